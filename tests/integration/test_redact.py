"""`redact` in a whole proxy on real sockets: LLM answers, streamed and not, other JSON, and when
held text is sent.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.client import Answer
from support.interceptors import Feed, Log, Rig
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

REDACT = '{name: redact, use: redact, options: {patterns: ["sk-[A-Za-z0-9]{8}"]}}'


@asynccontextmanager
async def serve(script: Script, log: Log) -> AsyncIterator[Rig]:
    async with open_upstream(script) as upstream:
        config = config_for(
            upstream.url,
            interceptors=REDACT,
            names="redact",
            route="limits: {max_event_bytes: 65536}",
        )
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            for client in rig.clients:
                await client.aclose()
            await rig.everything_is_back()


def chunk(text: str, reason: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return (
        b"data: %s\n\n"
        % json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode()
    )


def leaves(text: str) -> bytes:
    """A chunk that was written anew."""
    return (
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
        % text.encode()
    )


async def test_held_text_is_sent_as_soon_as_it_cannot_be_a_secret(log: Log) -> None:
    """The beginning of a text leaves at once, what could become a secret with the delta that
    decides.
    """
    feed = Feed()
    async with serve(feed.script, log) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", "/v1/chat/completions", body=b"{}")
            feed.send(chunk("The key is sk-Zq3"))
            answer = await client.head()
            await client.read_until(answer, leaves("The key is "))
            feed.send(chunk("xV81L"))
            await client.read_until(answer, leaves("[redacted]"))
            feed.send(chunk("", "stop"))
            feed.send(b"data: [DONE]\n\n")
            feed.end()
            await client.rest(answer)
        assert answer.complete
        assert (
            answer.body
            == leaves("The key is ")
            + leaves("[redacted]")
            + chunk("", "stop")
            + b"data: [DONE]\n\n"
        )


async def test_json_that_is_not_an_answer_passes_unchanged_and_uncollected(log: Log) -> None:
    """Larger than an event may be, with what would be a secret in an answer."""
    answers = {
        b"/v1/files": b'{ "data": "sk-Zq3xV81L%s" }' % (b"x" * 100_000),
        b"/v1/chat/completions": b'{"choices": [{"index": 0, "message": {"content": "sk-Zq3xV81L"}, "finish_reason": "stop"}]}',
    }

    async def script(peer: Peer) -> None:
        body = answers[(await peer.request()).target]
        await peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(body)
            + body
        )

    async with serve(script, log) as rig:
        answer = await rig.fetch("/v1/files")
        assert (answer.status, answer.body) == (200, answers[b"/v1/files"])
        answer = await rig.fetch("/v1/chat/completions", method="POST", body=b"{}")
        assert json.loads(answer.body)["choices"][0]["message"] == {"content": "[redacted]"}


KEY = "sk-Zq3xV81L"
RESULT = {
    "jsonrpc": "2.0",
    "id": 5,
    "result": {
        "content": [
            {"type": "text", "text": f"key {KEY}"},
            {"type": "resource", "resource": {"uri": f"x:{KEY}", "text": "t"}},
        ],
        "structuredContent": {"token": KEY, KEY: 1.50},
    },
}
ERROR = {
    "jsonrpc": "2.0",
    "id": 6,
    "error": {"code": -32000, "message": f"bad key {KEY}", "data": [{"key": KEY}]},
}
CONTENTS = {"jsonrpc": "2.0", "id": "7", "result": {"contents": [{"uri": "a", "text": KEY}]}}


async def mcp_answer(
    log: Log, body: bytes, *headers: bytes, content_type: bytes = b"application/json"
) -> Answer:
    """What a client of an MCP route gets for a POST."""

    async def script(peer: Peer) -> None:
        await peer.request()
        lines = [b"content-type: " + content_type, b"content-length: %d" % len(body), *headers]
        await peer.send(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body)

    async with open_upstream(script) as upstream:
        route = "dialect: mcp, limits: {max_event_bytes: 65536}"
        config = config_for(upstream.url, interceptors=REDACT, names="redact", route=route)
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, proxy, log)
            request = json.dumps(
                {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "f"}}
            ).encode()
            answer = await rig.fetch("/mcp", method="POST", body=request)
            for client in rig.clients:
                await client.aclose()
            await rig.everything_is_back()
            return answer


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream", b"text/plain"])
@pytest.mark.parametrize(
    "message",
    [RESULT, ERROR, CONTENTS, [RESULT, ERROR]],
    ids=["result", "error", "contents", "batch"],
)
@pytest.mark.parametrize("escaped", [False, True])
async def test_results_of_mcp_are_redacted_as_json_and_as_events(
    message: Any, content_type: bytes, escaped: bool, log: Log
) -> None:
    """Every string, names and values, decoded."""
    sent = json.dumps(message, indent=1).replace("\n", " ")
    expected = sent.replace(KEY, "[redacted]")
    sent = sent.replace(KEY, "\\u0073k-Zq3xV81L") if escaped else sent
    is_event = content_type == b"text/event-stream"
    body = f"data: {sent}\n\n" if is_event else sent
    answer = await mcp_answer(log, body.encode(), content_type=content_type)
    assert answer.complete
    assert answer.body.decode() == (f"data: {expected}\n\n" if is_event else expected)
    if not is_event:
        assert answer.all("content-length") == [str(len(expected)).encode()]


async def test_what_redact_cannot_see_on_mcp_is_refused(log: Log) -> None:
    """An encoded body, a body above the limit, and one that is not JSON is searched as text."""
    body = json.dumps(RESULT).encode()
    for sent, header in (
        (gzip.compress(body), b"content-encoding: gzip"),
        (body + b" " * 70_000, b"x: y"),
    ):
        answer = await mcp_answer(log, sent, header)
        assert answer.status == 502
        assert b"sk-" not in answer.body
    answer = await mcp_answer(log, f'{{"jsonrpc": "2.0", "result": {KEY}'.encode())
    assert answer.body == b'{"jsonrpc": "2.0", "result": [redacted]'


@pytest.mark.parametrize("path", [
    "/v1/Chat/completions", "/V1/CHAT/COMPLETIONS/", "/v1//chat/%43ompletion%53",
    "/v1/chat/completion%C5%BF",
])  # fmt: skip
async def test_the_case_of_a_path_hides_no_answer(path: str, log: Log) -> None:
    """On a route without `dialect` the path determines what an answer is, and Express and ASP.NET Core
    ignore its case.
    """
    feed = Feed()
    for text in ("The key is sk-Zq3", "xV81L"):
        feed.send(chunk(text))
    feed.send(b"data: [DONE]\n\n")
    feed.end()
    async with serve(feed.script, log) as rig:
        answer = await rig.fetch(path, method="POST", body=b"{}")
        assert rig.upstream.requests[0].target.decode() == path
        assert answer.body == leaves("The key is ") + leaves("[redacted]") + b"data: [DONE]\n\n"
