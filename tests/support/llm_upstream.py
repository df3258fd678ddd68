"""OpenAI's and Anthropic's APIs on a loopback socket. The request's `model` selects the answer:

- the name of a case in `tests/providers`, without `-streamed`: that answer.
- `error-400`, `error-429`, `error-500`, `error-529`: that status, with the providers' headers.
- `error-429-once`: that once, then as `text`. `error-500-final`: the headers forbid a retry.
- `lost`: the connection breaks after two events. `lost-head`: before the head.
- `wait-head`, `wait-first`, `wait-second`: sends nothing; the head; the head and the first event;
  then waits for the client to leave. `wait-body`, not streamed: the head and the start of the body.

JSON is compressed for clients that accept it, as both providers do.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from providers.transcripts import events_of, load_cases

from support.upstream import Peer, Request, Upstream, open_upstream

__all__ = ["LlmUpstream", "open_llm_upstream"]

_PROVIDERS = {
    b"/v1/chat/completions": "openai-chat",
    b"/v1/responses": "openai-responses",
    b"/v1/messages": "anthropic",
}


@dataclass
class LlmUpstream:
    """What the upstream has seen. Times are of `time.perf_counter`, which all threads share."""

    upstream: Upstream
    asked: Counter[str] = field(default_factory=Counter)
    """How many requests there were, by model."""
    waits: int = 0
    """Requests that wait for the client to leave."""
    left_at: list[float] = field(default_factory=list)
    """When the connections of those were closed."""

    @property
    def url(self) -> str:
        return self.upstream.url


@asynccontextmanager
async def open_llm_upstream() -> AsyncIterator[LlmUpstream]:
    """Serve on a free loopback port."""
    data = {case.id: case.data for case in load_cases(*_PROVIDERS.values())}

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            body = json.loads(request.body)
            model, streamed = body["model"], body.get("stream", False)
            llm.asked[model] += 1
            status = model.removeprefix("error-")[:3]
            if status.isdigit() and not (model.endswith("once") and llm.asked[model] % 2 == 0):
                await _refuse(peer, int(status), final=model.endswith("final"))
                continue
            provider = _PROVIDERS[request.target.partition(b"?")[0]]
            names = [f"{model}-streamed", model, "text-streamed"] if streamed else [model, "text"]
            cases = (data.get(f"{provider}.{name}") for name in names)
            await _answer(llm, peer, request, model, next(filter(None, cases)), streamed=streamed)

    async with open_upstream(script) as upstream:
        llm = LlmUpstream(upstream)
        yield llm


async def _answer(
    llm: LlmUpstream, peer: Peer, request: Request, model: str, data: bytes, *, streamed: bool
) -> None:
    async def wait_at(stage: str) -> None:
        if model == f"wait-{stage}":
            llm.waits += 1
            await peer.wait_closed()
            llm.left_at.append(time.perf_counter())
            raise EOFError

    if model == "lost-head":
        raise EOFError
    await wait_at("head")
    ids = [b"x-request-id: req_0001", b"request-id: req_0001"]
    if not streamed:
        lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", *ids]
        if any(b"gzip" in value for value in request.all("accept-encoding")):
            data = gzip.compress(data, mtime=0)
            lines += [b"Content-Encoding: gzip", b"Vary: Accept-Encoding"]
        head = b"\r\n".join([*lines, b"Content-Length: %d\r\n\r\n" % len(data)])
        await peer.send(head + data[:100])
        await wait_at("body")
        await peer.send(data[100:])
        return
    await peer.start_stream(*ids, b"Cache-Control: no-cache")
    await wait_at("first")
    for count, event in enumerate(events_of(data)):
        if count == 2 and model == "lost":
            raise EOFError
        await peer.chunk(event)
        await wait_at("second")
    await peer.end()


async def _refuse(peer: Peer, status: int, *, final: bool) -> None:
    """An error with the headers of both providers. `retry-after` is 5 ms, to keep tests quick."""
    error = {"type": f"error_{status}", "message": "No.", "param": "temperature", "code": "x"}
    body = json.dumps({"type": "error", "error": error, "request_id": "req_0002"})
    retry = "false" if final or status == 400 else "true"
    lines = [
        f"HTTP/1.1 {status} Error",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "request-id: req_0002",
        "x-request-id: req_0002",
        f"x-should-retry: {retry}",
        "retry-after: 0.005",
        "retry-after-ms: 5",
        "x-ratelimit-reset-requests: 5ms",
        "anthropic-ratelimit-requests-reset: 2026-01-02T03:04:05Z",
    ]
    await peer.send("\r\n".join([*lines, "", body]).encode())
