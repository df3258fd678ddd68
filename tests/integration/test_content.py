"""A response that names several media types or content codings, in front of interceptors and
without, over a real proxy.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.interceptors import Log, Rig
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from interceptors import Interceptor, Response, ResponseHead
from proxy.config import parse_config

KEY = b"sk-ABCDEFGHIJKLMNOPQRSTUVWX"
EVENTS = b"data: the key is " + KEY + b"\n\n"
SSE, HTML = b"Content-Type: text/event-stream", b"Content-Type: text/html"
GZIP, IDENTITY = b"Content-Encoding: gzip", b"Content-Encoding: identity"


class Looks(Interceptor):
    """Looks at heads only."""

    async def on_response(self, head: ResponseHead) -> Response | None:
        return None


class Adds(Interceptor):
    """Gives every response a second type."""

    async def on_response(self, head: ResponseHead) -> Response | None:
        head.headers = type(head.headers)([*head.headers.raw, (b"content-type", b"text/html")])
        return None


@asynccontextmanager
async def serve(log: Log, *lines: bytes, body: bytes = EVENTS) -> AsyncIterator[Rig]:
    """An upstream whose every answer has these lines."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            head = b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines))
            await peer.send(head + b"\r\n\r\n" + (b"" if request.method == "HEAD" else body))

    async with open_upstream(script) as upstream:
        config = parse_config(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes:
    - {{path: /redact, upstream: up, interceptors: [redact]}}
    - {{path: /looks, upstream: up, interceptors: [looks]}}
    - {{path: /adds, upstream: up, interceptors: [adds]}}
    - {{path: /usage, upstream: up, interceptors: [usage]}}
    - {{path: /mcp, upstream: up, dialect: mcp}}
    - {{path: /plain, upstream: up}}
interceptors:
  - {{name: redact, use: redact, options: {{patterns: ["sk-[A-Za-z0-9]{{20,}}"]}}}}
  - {{name: looks, use: "integration.test_content:Looks"}}
  - {{name: adds, use: "integration.test_content:Adds"}}
  - {{name: usage, use: usage}}
log: {{level: info}}
drain: {{timeout: 1}}
"""
        )
        async with open_proxy(config) as proxy:
            yield Rig(upstream, proxy, log)


@pytest.mark.parametrize(
    "lines",
    [
        [SSE, SSE],
        [b"Content-Type: text/event-stream, text/event-stream"],
        [b"Content-Type: Text/Event-Stream", b"content-type: text/event-stream ; charset=utf-8"],
    ],
)
async def test_equal_types_are_one(lines: list[bytes], log: Log) -> None:
    """Interceptors see the stream, and the client gets one line."""
    async with serve(log, *lines) as rig:
        answer = await rig.fetch("/redact")
        assert (answer.status, KEY in answer.body) == (200, False)
        assert len(answer.all("content-type")) == 1
        assert b"," not in answer.all("content-type")[0]
        await rig.fetch("/usage/v1/chat/completions", method="POST", body=b"{}")
        assert rig.lines("exchange")[0]["events"] == 1
        assert [line["streamed"] for line in rig.lines("usage")] == [True]


@pytest.mark.parametrize(
    "lines",
    [
        [HTML, SSE],
        [b"Content-Type:", SSE],
        [b"Content-Type: text/event-stream, text/html"],
        [b'Content-Type: text/html; x="a, text/event-stream'],
    ],
)
async def test_contradictions_are_refused_if_seen(lines: list[bytes], log: Log) -> None:
    """502, nothing of the body leaves, and the endpoint stays in service. Else it passes as it is."""
    async with serve(log, *lines) as rig:
        for route in ("/redact", "/looks", "/usage", "/mcp"):
            answer = await rig.fetch(route)
            assert (answer.status, KEY in answer.body) == (502, False), route
        assert (await rig.fetch("/redact", method="HEAD")).status == 502
        answer = await rig.fetch("/plain")
        assert (answer.status, answer.body) == (200, EVENTS)
        values = [line.partition(b":")[2].strip() for line in lines]
        assert answer.all("content-type") == values
        outcomes = await rig.outcomes(6)
        assert set(outcomes) == {"upstream_error", "completed"}
        assert not rig.lines("endpoint_ejected")
        with trio.fail_after(5):
            await rig.everything_is_back()


async def test_an_interceptor_that_contradicts_is_a_failure(log: Log) -> None:
    """Or the other interceptors would have looked at something else than the client reads."""
    async with serve(log, SSE) as rig:
        answer = await rig.fetch("/adds")
        assert (answer.status, b"interceptor_failed" in answer.body) == (502, True)
        assert await rig.outcomes() == ["intercepted"]


@pytest.mark.parametrize(
    "lines",
    [
        [GZIP],
        [IDENTITY, GZIP],
        [b"Content-Encoding: identity, gzip"],
        [b"Content-Encoding:", GZIP],
        [GZIP, GZIP],
    ],
)
async def test_an_encoded_body_that_must_be_seen_is_refused(lines: list[bytes], log: Log) -> None:
    """However many lines name codings. Where none must see it, it passes unchanged."""
    body = gzip.compress(EVENTS)
    async with serve(log, SSE, *lines, body=body) as rig:
        answer = await rig.fetch("/redact", headers=[("Accept-Encoding", "gzip, br")])
        assert (answer.status, body in answer.body) == (502, False)
        assert json.loads(answer.body)["error"]["type"] == "upstream_protocol_error"
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        assert await rig.outcomes() == ["upstream_error"]
        assert "an interceptor must read it" in rig.lines("exchange")[0]["error"]
        for route in ("/looks", "/usage/v1/chat/completions", "/plain"):
            answer = await rig.fetch(route)
            assert (answer.status, answer.body) == (200, body), route
        if lines == [GZIP, GZIP]:
            assert (await rig.fetch("/looks")).all("content-encoding") == [b"gzip"]
