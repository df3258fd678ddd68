"""What providers send passes every built-in: bytes exact where nothing matched, secrets gone where
something did, calls seen, usage counted, and what the official SDK makes of it the same as without
a proxy. Adding a provider is adding a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from providers.chains import CHAINS, HOLDING, NOWHERE, entries, load_chain
from providers.sdks import Result, read
from providers.transcripts import Case, data_of, load_cases, normalised, pieces_of
from structlog.testing import capture_logs
from support.client import fetch
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from interceptors import Request, ResponseHead
from interceptors.replay import Replay, ReplayOptions
from interceptors.testing import run_chain, run_json, run_request
from interceptors.usage import KINDS
from proxy.config import parse_config

CASES = load_cases()
READABLE = [case for case in CASES if case.is_sse or case.is_json]
SECRET = [case for case in READABLE if case.secret is not None]
PROVIDERS = sorted({case.provider for case in CASES})


# --- what is expected


def through(case: Case, output: bytes) -> Result:
    """What the SDK makes of this body."""
    return read(case.api, case.streamed, case.status, case.type, output)


def direct(case: Case) -> Result:
    return through(case, case.data)


def replaced(tree: Any, secret: str) -> Any:
    """The same with each secret replaced."""
    if isinstance(tree, str):
        return tree.replace(secret, "[redacted]")
    if isinstance(tree, dict):
        return {replaced(name, secret): replaced(value, secret) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(replaced(item, secret) for item in tree)
    return tree


def strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield str(name)
            yield from strings(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from strings(item)


def check_no_leak(case: Case, output: bytes) -> None:
    """The secret is not in the bytes, in decoded values, in joined deltas or in the SDK's result."""
    secret = case.secret or ""
    assert secret.encode() not in output
    for text in data_of(output) if case.is_sse else [output.decode()]:
        try:
            decoded = json.loads(text)
        except ValueError:
            decoded = text
        assert not any(secret in item for item in strings(decoded)), "decoded"
    found = strings(through(case, output).comparable())
    assert not any(secret in item for item in found), "in the SDK's result"


def ordered(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls that grow side by side may be complete in any order. An id that is a number is the same
    as text, and "" is none.
    """
    made = ({**call, "id": "" if call["id"] is None else str(call["id"])} for call in calls)
    return sorted(made, key=repr)


def is_foreign(case: Case) -> bool:
    """An error that `usage` need not count: no JSON, or not in the dialect on a path that is not
    the dialect's.
    """
    return (
        case.expect.failed
        and case.status >= 400
        and (case.dialect != "generic" or case not in READABLE)
    )


def check_usage(case: Case, lines: list[Any]) -> None:
    """What `usage` writes about one answer."""
    if not lines:
        assert is_foreign(case), "no line"
        return
    (line,) = lines
    expect = case.expect
    for kind in KINDS:
        told = (expect.usage or {}).get(kind)
        if told is None or line[kind] is None:
            assert line[kind] == told, (kind, line)
        else:
            assert abs(line[kind] - told) < 1, (kind, line)
    assert (line["status"], line["finish_reason"]) == (case.status, expect.finish), line
    assert expect.model in (None, line["model"]), line
    assert expect.failed or line["error"] == expect.error, line


_OF_CALLS = ("tool_call", "function_call", "tool_use", "partial_json")


def without_calls(stream: bytes) -> list[str]:
    return [data for data in data_of(stream) if not any(word in data for word in _OF_CALLS)]


def check_unchanged(case: Case, chain: str, output: bytes) -> None:
    """The same bytes; where calls were held, they may have left in other pieces, which are the same
    calls.
    """
    if output != case.data:
        assert case.is_sse, chain
        assert case.expect.tool_calls, chain
        assert chain in HOLDING
        assert without_calls(output) == without_calls(case.data), chain
        assert through(case, output).comparable() == direct(case).comparable(), chain


def check_redacted(case: Case, output: bytes) -> None:
    check_no_leak(case, output)
    expected = replaced(direct(case).comparable(), case.secret or "")
    assert through(case, output).comparable() == expected


_LAST = {"responses": "response.incomplete", "messages": "message_stop"}


def check_guarded(case: Case, output: bytes) -> None:
    """The answer has ended before the secret was whole, as its dialect ends answers, and what came
    before is as it was.
    """
    check_no_leak(case, output)
    result, original = through(case, output), direct(case)
    for key, text in result.texts.items():
        assert original.texts[key].startswith(text), "a text that upstream did not send"
    if case.secret_is_in_answer:
        assert result.error is None, result.error_text
        assert result.reasons[-1] == ("refusal" if case.api == "messages" else "content_filter")
    else:
        shown = result.error or result.reasons or not (original.error or original.reasons)
        assert shown, "nothing shows the client that the answer failed"
    if not case.is_sse:
        json.loads(output)
    elif case.api == "chat":
        assert data_of(output)[-1] == "[DONE]"
    else:
        assert json.loads(data_of(output)[-1])["type"] == _LAST[case.api]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_transcript_is_true(case: Case) -> None:
    """The official SDK, without a proxy, gets from the bytes what the file expects."""
    expect, result = case.expect, direct(case)
    assert result.error == expect.raises, result.error_text
    for kind in ("text", "thinking", "refusal"):
        assert result.joined(kind) == getattr(expect, kind)
    assert ordered(result.tool_calls()) == ordered(expect.tool_calls)
    if not case.failed:
        assert (",".join(result.reasons) or None) == expect.finish
    if case.secret is not None:
        with pytest.raises(AssertionError):
            check_no_leak(case, case.data)


# --- in process


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the files of `audit` and `record`."""
    return tmp_path_factory.mktemp("zoo")


def key_of(case: Case) -> str:
    return f"key-of-{case.id}"


class Run:
    """One answer through one chain, streams in these chunks."""

    def __init__(self, case: Case, chain: str, directory: Path, chunks: list[bytes]) -> None:
        secret = re.escape(case.secret) if case.secret is not None else NOWHERE
        interceptors = load_chain(chain, directory, secret, {"ann": key_of(case)})
        headers = [(b"authorization", b"Bearer " + key_of(case).encode())]
        request = Request(
            method="POST", path=case.path, dialect=case.dialect, headers=headers, body=b"{}"
        )
        kind = b"text/event-stream" if case.is_sse else b"application/json"
        head = ResponseHead(case.status, [(b"content-type", kind)], request)
        with capture_logs() as logs:
            assert run_request(interceptors, request) is None
            if case.is_sse:
                result = run_chain(interceptors, chunks, request=request, head=head)
                assert result.failure is None
                self.output = result.output
            else:
                self.output = run_json(interceptors, case.data, request=request, head=head)
        if "usage" in CHAINS[chain]:
            check_usage(case, [line for line in logs if line["event"] == "usage"])
        self.seen = request.state.get("seen", {"texts": {}, "calls": []})

    def texts(self, kind: str) -> str:
        return "".join(text for block, text in self.seen["texts"].items() if block.kind == kind)

    def calls(self) -> list[dict[str, Any]]:
        """The calls that a hook was shown, comparably."""
        made = []
        for call_id, name, arguments in self.seen["calls"]:
            try:
                decoded = json.loads(arguments) if arguments else {}
            except ValueError:
                decoded = arguments
            made.append({"id": call_id, "name": name, "arguments": decoded})
        return ordered(made)


@pytest.mark.parametrize("case", READABLE, ids=str)
def test_what_does_not_match_is_exact(case: Case, directory: Path) -> None:
    """Every byte leaves unchanged, and `usage` and the hooks have seen what there was; played back
    from its tape, the answer is the same for the SDK.
    """
    expect, pieces = case.expect, pieces_of(case.data, 60)
    files = directory / case.id
    files.mkdir()
    for chain, chunks in (("held", pieces), ("unheld", [case.data]), ("policy", pieces)):
        run = Run(case, chain, files, chunks)
        check_unchanged(case, chain, run.output)
        for kind in ("text", "thinking", "refusal") if "watch" in CHAINS[chain] else ():
            assert run.texts(kind) == getattr(expect, kind), chain
        hook_calls = expect.tool_calls if expect.hook_calls is None else expect.hook_calls
        assert run.calls() == ordered(hook_calls), chain
    if case.is_sse:
        (tape,) = (files / "tapes").iterdir()
        assert through(case, trio.run(play, tape)).comparable() == direct(case).comparable()


async def play(tape: Path) -> bytes:
    replay = Replay(ReplayOptions(path=str(tape), speed="instant"))
    async with replay.lifespan():
        events: Any = (await replay.on_request(Request())).events
        return b"".join([event.raw async for event in events])


@pytest.mark.parametrize("case", SECRET, ids=str)
def test_a_secret_does_not_leave(case: Case, directory: Path) -> None:
    """`redact` replaces it wherever it is, and all else is the same for the SDK; `guard` ends the
    answer before it. Both however the stream is cut.
    """
    whole, pieces = [case.data], pieces_of(case.data, 30)
    for chain, check in (("redact-secret", check_redacted), ("guard-secret", check_guarded)):
        outputs = {
            normalised(Run(case, chain, directory, chunks).output) for chunks in (whole, pieces)
        }
        assert len(outputs) == 1, "it depends on how the stream was cut"
        check(case, outputs.pop())


# --- over a real proxy


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_same_over_a_real_proxy(provider: str, tmp_path: Path, log: list[Any]) -> None:
    """With the provider's status and content type, also of a body that is neither SSE nor JSON."""
    cases = {case.id: case for case in CASES if case.provider == provider}
    secrets = sorted({case.secret or NOWHERE for case in cases.values()}, key=len, reverse=True)
    keys = {case.id: key_of(case) for case in cases.values()}
    configured = entries(tmp_path, "|".join(map(re.escape, secrets)), keys)

    async def script(peer: Peer) -> None:
        case = cases[(await peer.request()).target.decode().split("/")[3]]
        lines = [f"HTTP/1.1 {case.status} X", *([f"Content-Type: {case.type}"] * bool(case.type))]
        await peer.send("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        for piece in pieces_of(case.data, 1400):
            await peer.send(piece)

    async with open_upstream(script) as upstream:
        routes = [
            {
                "path": f"/{dialect}/{chain}",
                "upstream": "up",
                "dialect": dialect,
                "interceptors": names,
            }
            for dialect in {case.dialect for case in cases.values()}
            for chain, names in CHAINS.items()
        ]
        config = {
            "reverse_proxy": {
                "upstreams": [{"name": "up", "endpoints": [upstream.url]}],
                "routes": routes,
                "leak_detection": "paranoid",
                "retry": {"max_attempts": 1},
            },
            "interceptors": list(configured.values()),
        }
        async with open_proxy(parse_config(yaml.safe_dump(config))) as proxy:

            async def ask(case: Case, chain: str) -> bytes:
                target = f"/{case.dialect}/{chain}/{case.id}{case.path}"
                headers = [("authorization", f"Bearer {key_of(case)}")]
                with trio.fail_after(20):
                    answer = await fetch(
                        proxy.port, target, method="POST", headers=headers, body=b"{}"
                    )
                assert answer.complete, (case.id, chain)
                assert answer.status == case.status
                if chain != "guard-secret":
                    assert answer.all("content-type") == [case.type.encode()] * bool(case.type)
                return answer.body

            for case in cases.values():
                for chain in ("none", "held", "policy"):
                    check_unchanged(case, chain, await ask(case, chain))
                lines = [line for line in log if line["event"] == "usage"]
                if not is_foreign(case):
                    check_usage(case, [line for line in lines if line["client"] == case.id])
                if case.secret is not None:
                    check_redacted(case, await ask(case, "redact-secret"))
                    check_guarded(case, await ask(case, "guard-secret"))
