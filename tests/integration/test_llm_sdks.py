"""The `openai` and `anthropic` SDKs get the same through the proxy as without it."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from support.chains import built_ins, config_of
from support.llm_sdks import HEADERS, Call, Seen, anthropic, observe, openai
from support.llm_upstream import open_llm_upstream
from support.proxy import open_proxy

pytestmark = [
    # The SDK's helper for streams of responses holds types that Pydantic does not expect there.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    # The SDK leaves its own generator unfinished at `[DONE]`.
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]

SDKS = {"openai": openai, "anthropic": anthropic}
ANSWERS = {
    "openai": {"chat.completions": ["text", "tools"], "responses": ["text", "tools", "reasoning"]},
    "anthropic": {"messages": ["text", "tools", "thinking"]},
}
ONLY_STREAMED = ["reasoning", "thinking"]
METHODS = {provider: list(methods) for provider, methods in ANSWERS.items()}
ATTEMPTS = {
    "error-400": 1,
    "error-429": 3,
    "error-500": 3,
    "error-500-final": 1,
    "error-529": 3,
    "error-429-once": 2,
}
"""How often the SDKs ask, when they may retry twice."""

each_provider = pytest.mark.parametrize("provider", ANSWERS)
each_way = pytest.mark.parametrize(
    ("way", "chain"),
    [("sync", "idle"), ("trio", "built-ins"), ("asyncio", "inspecting"), ("trio", "redact")],
)
"""Every way to run an SDK, and every chain."""


async def see(
    calls: list[Call],
    way: str,
    chain: str,
    directory: Path,
    *,
    dialect: str = "generic",
    attempts: dict[str, int] | None = None,
    **settings: Any,
) -> tuple[dict[str, Seen], dict[str, Seen]]:
    """What an SDK sees without the proxy, and through it. The upstream has been asked for the same,
    as often: once a call, or `attempts`.
    """
    asked = attempts or Counter(call.model for call in calls)
    header = HEADERS[calls[0].provider]
    async with open_llm_upstream() as upstream:
        with trio.fail_after(30):
            direct = await observe(way, upstream.url, calls, **settings)
        assert upstream.asked == asked
        upstream.asked.clear()
        config = config_of(upstream.url, chain, directory, header=header, dialect=dialect)
        async with open_proxy(config) as proxy:
            with trio.fail_after(30):
                through = await observe(way, proxy.url, calls, **settings)
        assert upstream.asked == asked
    return direct, through


def test_the_chain_of_built_ins_has_every_built_in() -> None:
    """Except `replay`, which answers in the upstream's place."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    known = set(project["project"]["entry-points"]["weirpool.interceptors"])
    assert built_ins() == known - {"replay"}


@each_way
@each_provider
async def test_answers_are_the_same(provider: str, way: str, chain: str, tmp_path: Path) -> None:
    """Text, parallel tool calls, thinking and usage: as a message, as chunks, and as the SDK's
    helpers assemble those.
    """
    calls = []
    for method, models in ANSWERS[provider].items():
        for model in models:
            if model not in ONLY_STREAMED:
                calls.append(Call(f"{method}.create", model))
            calls.append(Call(f"{method}.create", model, stream=True))
            calls.append(Call(f"{method}.stream", model))
    direct, through = await see(calls, way, chain, tmp_path)
    for name, seen in direct.items():
        assert seen.error is None, name
        assert len(seen.items) > (5 if "stream" in name else 0), name
        if chain in ("redact", "built-ins") and "stream" in name:  # which hold tool calls
            assert through[name].error is None, name
            if ".stream(" in name:
                assert through[name].items[-1] == seen.items[-1], name
        else:
            assert through[name].plain() == seen.plain(), name


@each_way
@each_provider
async def test_errors_are_the_same_and_are_retried_as_often(
    provider: str, way: str, chain: str, tmp_path: Path
) -> None:
    """Statuses, bodies and headers make the SDK raise the same error after as many attempts."""
    method = METHODS[provider][0]
    calls = [
        Call(f"{method}.create", model, stream=index % 2 == 1)
        for index, model in enumerate(ATTEMPTS)
    ]
    direct, through = await see(calls, way, chain, tmp_path, max_retries=2, attempts=ATTEMPTS)
    for name, seen in direct.items():
        assert through[name].plain() == seen.plain(), name
    kinds = {type(seen.error).__name__ for seen in direct.values()}
    assert kinds >= {"BadRequestError", "RateLimitError", "InternalServerError", "NoneType"}


@each_provider
async def test_an_error_inside_a_stream_is_the_same(provider: str, tmp_path: Path) -> None:
    """An event with an error raises what it raises without the proxy, after the same chunks."""
    models = {"responses": "error-inside-nested"}
    calls = [
        Call(f"{method}.create", models.get(method, "error-inside"), stream=True)
        for method in METHODS[provider]
    ]
    direct, through = await see(calls, "trio", "inspecting", tmp_path)
    for name, seen in direct.items():
        assert through[name].plain() == seen.plain(), name
        assert seen.items
        assert isinstance(seen.error, SDKS[provider].APIError)


@pytest.mark.parametrize("dialect", ["generic", "own", "abort"])
@each_provider
async def test_a_lost_connection_is_an_sdk_error(
    provider: str, dialect: str, tmp_path: Path
) -> None:
    """The upstream breaks off inside a stream: the same chunks, then the error there is without the
    proxy, or the SDK's own.
    """
    route = provider if dialect == "own" else dialect
    calls = [Call(f"{method}.create", "lost", stream=True) for method in METHODS[provider]]
    direct, through = await see(calls, "trio", "none", tmp_path, dialect=route)
    for name, seen in through.items():
        assert seen.items == direct[name].items
        assert seen.items
        assert direct[name].error is not None
        if dialect != "abort":
            assert isinstance(seen.error, SDKS[provider].APIError), seen.error
        elif provider == "openai":
            assert type(seen.error) is type(direct[name].error)
        else:  # This SDK passes on the HTTP client's errors: of a closed connection, and of a reset
            assert isinstance(direct[name].error, httpx2.TransportError)
            assert isinstance(seen.error, httpx2.TransportError)


@each_provider
async def test_only_the_sdk_retries_a_lost_connection(provider: str, tmp_path: Path) -> None:
    """Through the proxy that is a 502, which the SDK retries as it does the loss itself."""
    calls = [Call(f"{METHODS[provider][0]}.create", "lost-head")]
    attempts = {"lost-head": 2}
    direct, through = await see(calls, "sync", "none", tmp_path, max_retries=1, attempts=attempts)
    assert [type(seen.error).__name__ for seen in direct.values()] == ["APIConnectionError"]
    assert [type(seen.error).__name__ for seen in through.values()] == ["InternalServerError"]
