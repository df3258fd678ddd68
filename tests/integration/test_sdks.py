"""The official SDKs get the same through the proxy as without it."""

from __future__ import annotations

import warnings

import pytest
import trio
from support.mcp_server import open_mcp_server
from support.proxy import config_for, open_proxy

from proxy.demo import serve_upstream

REDACT = {
    "interceptors": '{name: r, use: "interceptors.redact:Redact", options: {patterns: ["matches nothing"]}}',
    "names": "r",
}
CHAINS = pytest.mark.parametrize("chain", [{}, REDACT], ids=["pass-through", "redact"])


@CHAINS
async def test_openai_streams_a_chat_completion(chain: dict[str, str]) -> None:
    """The `openai` SDK, synchronous and asynchronous, reads the same chunks with and without the proxy."""
    import openai

    messages = [{"role": "user", "content": "What is a weir?"}]

    def read_sync(url: str) -> list[object]:
        with openai.OpenAI(base_url=url + "/v1", api_key="sk-test", max_retries=0) as client:
            stream = client.chat.completions.create(model="demo", messages=messages, stream=True)  # type: ignore[call-overload]
            return [chunk.to_dict() for chunk in stream]

    async def read_async(url: str) -> list[object]:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-test", max_retries=0) as client:
            stream = await client.chat.completions.create(model="demo", messages=messages, stream=True)  # type: ignore[call-overload]
            return [chunk.to_dict() async for chunk in stream]

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(serve_upstream, 0)
        direct = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_proxy(config_for(direct, **chain)) as proxy:
            expected = await trio.to_thread.run_sync(read_sync, direct)
            assert len(expected) > 20
            assert await trio.to_thread.run_sync(read_sync, proxy.url) == expected
            assert await read_async(proxy.url) == expected
        nursery.cancel_scope.cancel()


@CHAINS
@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.filterwarnings("default")
async def test_mcp_lists_and_calls_tools(mode: str, chain: dict[str, str]) -> None:
    """The `mcp` SDK, its own server and client over Streamable HTTP: list, call and progress as without the proxy.

    `legacy` is the protocol with sessions, `auto` the newest revision that both speak.
    """
    from mcp.client import Client

    async def use(url: str) -> list[object]:
        progress: list[object] = []

        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            progress.append((done, total, message))

        async with Client(url + "/mcp", mode=mode) as client:  # type: ignore[arg-type]
            tools = await client.list_tools()
            result = await client.call_tool("add", {"a": 19, "b": 23}, progress_callback=on_progress)
            return [client.protocol_version, tools.tools, result.content, result.structured_content, progress]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with trio.fail_after(30):
            async with open_mcp_server() as direct, open_proxy(config_for(direct, **chain)) as proxy:
                expected = await use(direct)
                assert expected[3] == {"result": 42}
                assert expected[4]
                assert await use(proxy.url) == expected
