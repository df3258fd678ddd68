"""The zoo's files: what each provider sends, and what a client must get. CONTRIBUTING.md has the
format.

A file is `<provider>.yaml`. This module reads and checks it, and knows nothing of proxies,
interceptors and SDKs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import yaml

__all__ = ["Case", "Expected", "data_of", "events_of", "load_cases", "normalised", "pieces_of"]

_SSE_START = re.compile(r"(?:\ufeff)?\s*(?::|(?:data|event|id|retry):)")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SECRET = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 -]*[A-Za-z0-9])")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a client gets that follows the official SDK."""

    text: str = ""
    thinking: str = ""
    refusal: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    hook_calls: list[dict[str, Any]] | None = None
    """The calls that hooks get, where they are not `tool_calls`."""
    finish: str | None = None
    model: str | None = None
    usage: dict[str, float] | None = None
    error: str | None = None
    failed: bool = False
    raises: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer of one provider."""

    provider: str
    name: str
    api: Literal["chat", "responses", "messages"]
    streamed: bool
    """The client asked for a stream."""
    path: str
    expect: Expected
    body: str
    dialect: Literal["generic", "openai", "anthropic"] = "generic"
    status: int = 200
    content_type: str | None = None
    newline: Literal["lf", "crlf"] = "lf"
    cut: bool = False
    """The stream ends in the middle of an event."""
    secret: str | None = None
    guard: Literal["stops"] | None = None
    """The secret is in the answer itself, although not in `expect`."""

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), f"{self.id}: name must be like text-streamed"
        assert self.path.startswith("/"), f"{self.id}: path must start with '/'"
        if self.secret is None:
            return
        assert _SECRET.fullmatch(self.secret), (
            f"{self.id}: secret must consist of letters, digits, '-' and spaces"
        )
        in_answer = any(self.secret in text for text in self.told)
        assert in_answer or self.secret in self.body, f"{self.id}: the secret is nowhere"
        repeats = self.api == "responses" or '"message":' in self.body  # which then has it whole
        if self.is_sse and not repeats and in_answer:
            assert self.secret not in self.body, (
                f"{self.id}: the secret is in one event, it must be cut over several"
            )

    def __str__(self) -> str:
        return self.id

    @property
    def id(self) -> str:
        return f"{self.provider}.{self.name}"

    @cached_property
    def is_sse(self) -> bool:
        return _SSE_START.match(self.body) is not None

    @cached_property
    def is_json(self) -> bool:
        return not self.is_sse and _is_json(self.body)

    @cached_property
    def data(self) -> bytes:
        """The response's body."""
        text = self.body
        if self.is_sse:
            text = text.rstrip("\n") if self.cut else text.rstrip("\n") + "\n\n"
            return text.replace("\n", "\r\n" if self.newline == "crlf" else "\n").encode()
        return text.rstrip("\n").encode()

    @property
    def type(self) -> str:
        """Its content type; "" for none."""
        if self.content_type is not None:
            return self.content_type
        return "text/event-stream" if self.is_sse else "application/json"

    @property
    def failed(self) -> bool:
        return self.expect.failed or self.expect.error is not None or self.status >= 400

    @property
    def told(self) -> list[str]:
        """Texts of the model's answer."""
        expect = self.expect
        return [expect.text, expect.thinking, expect.refusal, json.dumps(expect.tool_calls)]

    @property
    def secret_is_in_answer(self) -> bool:
        """Whether it is in the model's answer, and not only in an error: `guard` then ends the
        answer with a filter's reason.
        """
        return self.guard == "stops" or any((self.secret or "\0") in text for text in self.told)


def load_cases(*providers: str) -> list[Case]:
    """The cases of these providers, or of all."""
    cases: list[Case] = []
    for name in providers or sorted(file.stem for file in Path(__file__).parent.glob("*.yaml")):
        content = yaml.load((Path(__file__).parent / f"{name}.yaml").read_text(), Loader=_Loader)
        assert content["provider"] == name, f"{name}.yaml: provider must be the file's name"
        assert content.get("sources"), f"{name}.yaml: sources are missing"
        for fields in content["cases"]:
            expect = Expected(**fields.pop("expect"))
            cases.append(Case(provider=name, expect=expect, **fields))
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), "cases with one name"
    return cases


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Quick, and without dates: `2026-01-02` is text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [item for item in items if item[0] != "tag:yaml.org,2002:timestamp"]
        for first, items in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def events_of(data: bytes) -> list[bytes]:
    """The events of a stream, as they are written."""
    return re.findall(rb"(?s).+?(?:\r?\n\r?\n|\Z)", data)


def pieces_of(data: bytes, largest: int) -> list[bytes]:
    """The stream in pieces of up to so many bytes."""
    random, cuts = Random(len(data)), [0]
    while cuts[-1] < len(data):
        cuts.append(min(len(data), cuts[-1] + random.randint(1, largest)))
    return [data[first:last] for first, last in pairwise(cuts)]


def normalised(data: bytes) -> bytes:
    """With LF as the only line end: an event that replaces one ended by CRLF may take the LF along
    or not.
    """
    return data.replace(b"\r\n", b"\n")


def data_of(stream: bytes) -> list[str]:
    """The data of each event."""
    found = []
    for block in normalised(stream).decode().split("\n\n"):
        lines = [
            line.partition(":")[2].removeprefix(" ")
            for line in block.split("\n")
            if line.startswith("data")
        ]
        if lines:
            found.append("\n".join(lines))
    return found


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
