"""The `openai` and `anthropic` SDKs get the same through the proxy as without it, through every
chain of interceptors.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import trio
from support.chains import CHAINS, built_ins, config_of
from support.llm_sdks import HEADERS, WAYS, Call, Seen, observe
from support.llm_upstream import open_llm_upstream
from support.proxy import open_proxy

pytestmark = [
    # The SDK's helper for streams of responses holds types that Pydantic does not expect where it
    # puts them.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning"
    ),  # the SDK leaves its own unfinished at `[DONE]`
]

PROVIDERS = ["openai", "anthropic"]
OWN_ERRORS: dict[str, type[Exception]] = {
    "openai": openai.APIError,
    "anthropic": anthropic.APIError,
}
METHODS = {"openai": ["chat.completions", "responses"], "anthropic": ["messages"]}
ERRORS = {
    "error-400": 1,
    "error-429": 3,
    "error-500": 3,
    "error-500-final": 1,
    "error-529": 3,
    "error-429-once": 2,
}
"""How often the SDKs ask, when they may try again twice."""

each_provider = pytest.mark.parametrize("provider", PROVIDERS)
each_way = pytest.mark.parametrize("way", WAYS)


async def see(
    provider: str,
    way: str,
    calls: list[Call],
    directory: Path,
    *,
    dialect: str = "generic",
    asked: dict[str, int] | None = None,
    **settings: Any,
) -> tuple[dict[str, Seen], dict[str, dict[str, Seen]]]:
    """What an SDK sees without the proxy, and through it after each chain. The upstream has been
    asked for the same, as often.

    `asked` is how often, by model; when it is not given, each call is one request.
    """
    if asked is None:
        asked = Counter(call.model for call in calls)
    through = {}
    async with open_llm_upstream() as upstream:
        with trio.fail_after(30):
            direct = await observe(way, upstream.url, calls, **settings)
        assert upstream.asked == asked
        for chain in CHAINS:
            upstream.asked = Counter()
            config = config_of(
                upstream.url, chain, directory, header=HEADERS[provider], dialect=dialect
            )
            async with open_proxy(config) as proxy:
                with trio.fail_after(30):
                    through[chain] = await observe(way, proxy.url, calls, **settings)
            assert upstream.asked == asked, chain
    return direct, through


def assert_equal(direct: dict[str, Seen], through: dict[str, dict[str, Seen]]) -> None:
    for chain, seen in through.items():
        for name, expected in direct.items():
            if chain in (
                "redact",
                "built-ins",
            ):  # which may hold text back, and holds tool calls until they are whole
                assert seen[name].result() == expected.result(), (chain, name)
            else:
                assert seen[name].plain() == expected.plain(), (chain, name)


def test_the_chain_of_built_ins_has_every_built_in() -> None:
    """A built-in that is added is added to the chain, too; but for `replay`, which answers in the
    upstream's place.
    """
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert built_ins() == set(project["project"]["entry-points"]["weirpool.interceptors"]) - {
        "replay"
    }


@each_way
@each_provider
async def test_answers_are_the_same(provider: str, way: str, tmp_path: Path) -> None:
    """Text, parallel tool calls and thinking, with usage: as a message, as chunks, and as the SDK's
    helpers put those together.
    """
    calls = [
        call
        for method in METHODS[provider]
        for model in ("text", "tools", "thinking")
        for call in (
            Call(f"{method}.create", model),
            Call(f"{method}.create", model, stream=True),
            Call(f"{method}.stream", model),
        )
    ]
    direct, through = await see(provider, way, calls, tmp_path)
    assert_equal(direct, through)
    for name, seen in direct.items():
        assert seen.error is None, name
        assert len(seen.items) > (5 if "stream" in name else 0), name


@each_way
@each_provider
async def test_errors_are_the_same_and_are_retried_as_often(
    provider: str, way: str, tmp_path: Path
) -> None:
    """Statuses, bodies and headers make the SDK raise the same error after as many attempts, all of
    them its own.
    """
    method = METHODS[provider][0]
    calls = [
        Call(f"{method}.create", model, stream=index % 2 == 1) for index, model in enumerate(ERRORS)
    ]
    direct, through = await see(provider, way, calls, tmp_path, max_retries=2, asked=ERRORS)
    assert_equal(direct, through)
    kinds = {name: type(seen.error).__name__ for name, seen in direct.items()}
    assert set(kinds.values()) >= {
        "BadRequestError",
        "RateLimitError",
        "InternalServerError",
        "NoneType",
    }


@each_way
@each_provider
async def test_an_error_inside_a_stream_is_the_same(
    provider: str, way: str, tmp_path: Path
) -> None:
    """An event with an error raises what it raises without the proxy, after the same chunks."""
    calls = [Call(f"{method}.create", "error-event", stream=True) for method in METHODS[provider]]
    direct, through = await see(provider, way, calls, tmp_path)
    assert_equal(direct, through)
    for seen in direct.values():
        assert seen.items
        assert isinstance(seen.error, OWN_ERRORS[provider])


@pytest.mark.parametrize("dialect", ["generic", "own", "abort"])
@each_way
@each_provider
async def test_a_lost_connection_raises_an_error_of_the_sdk(
    provider: str, way: str, dialect: str, tmp_path: Path
) -> None:
    """The upstream breaks off inside a stream: the same chunks, then the error there is without the
    proxy, or the SDK's own.
    """
    dialect = provider if dialect == "own" else dialect
    calls = [Call(f"{method}.create", "lost", stream=True) for method in METHODS[provider]]
    direct, through = await see(provider, way, calls, tmp_path, dialect=dialect)
    for name, seen in ((name, seen) for found in through.values() for name, seen in found.items()):
        assert seen.items == direct[name].items
        assert seen.items
        assert direct[name].error is not None
        if dialect == "abort" and provider == "anthropic":
            # This SDK lets the HTTP client's errors through: directly of a connection that is
            # closed, here of one that is reset.
            assert isinstance(direct[name].error, httpx2.TransportError)
            assert isinstance(seen.error, httpx2.TransportError)
        elif dialect == "abort":
            assert type(seen.error) is type(direct[name].error)
        else:
            assert isinstance(seen.error, OWN_ERRORS[provider]), seen.error


@each_provider
async def test_a_connection_lost_before_the_head_is_retried_by_the_sdk_alone(
    provider: str, tmp_path: Path
) -> None:
    """Through the proxy that is a 502, which the SDK takes for a reason to try again, as it does
    with the loss itself.
    """
    calls = [Call(f"{METHODS[provider][0]}.create", "lost-head")]
    direct, through = await see(
        provider, "sync", calls, tmp_path, max_retries=1, asked={"lost-head": 2}
    )
    assert [type(seen.error).__name__ for seen in direct.values()] == ["APIConnectionError"]
    for found in through.values():
        assert [type(seen.error).__name__ for seen in found.values()] == ["InternalServerError"]
