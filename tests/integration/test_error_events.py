"""Error events: only between two events of a plain stream, and without secrets of the upstream."""

from __future__ import annotations

import pytest
from support.client import Answer, fetch
from support.interceptors import Log, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def sending(*pieces: bytes) -> Script:
    """Send these raw bytes, one write each, and close."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)

    return script


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer_of(*pieces: bytes, **config: str) -> Answer:
    async with (
        open_upstream(sending(*pieces)) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert not answer.complete
        return answer


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        *(
            (b"Content-Encoding: %s\r\n%s" % (coding, CHUNKED), chunk(b"\x1f\x8b compressed \n\n"))
            for coding in (b"gzip", b"br", b"Zstd", b"gzip, identity")
        ),
        (b"Content-Length: 10\r\n\r\n", b"data: 1\n\n"),
        (b"Content-Length: 1000\r\n\r\n", b"data: 1\n\n"),
        (CHUNKED, chunk(b"data: 1\n\ndata: unfin")),
    ],
)
async def test_no_error_event(headers: bytes, body: bytes) -> None:
    """It would break a coding, count as missing bytes of a known length, or stand inside an event."""
    answer = await answer_of(HEAD + headers, body)
    came = body.split(b"\r\n")[1] if CHUNKED in headers else body
    assert answer.body == came


async def test_no_error_event_with_dialect_abort() -> None:
    answer = await answer_of(HEAD + CHUNKED, chunk(b"data: 1\n\n"), route="dialect: abort")
    assert answer.body == b"data: 1\n\n"


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        (b"event: tool\r\n", False), (b"event: tool\r", False), (b"data: 1\n\ndata: 2\r\n", False),
        (b"data: 1\n ", False), (b"data: 1\r\n\r\n", True), (b"data: 1\r\r", True),
        (b"data: 1\n\n", True), (b"data: 1\r\n\n", True), (b"data: 1\r\r\n", True),
        (b": comment\r\n\r\n", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", [False, True])
async def test_an_error_event_only_after_an_empty_line(
    body: bytes, ended: bool, split: bool
) -> None:
    """Also when a read separates CR from LF, and with the coding `identity`."""
    pieces = [chunk(bytes([byte])) for byte in body[-4:]]
    head = HEAD + b"Content-Encoding: identity\r\n" + CHUNKED
    answer = await answer_of(head, *([chunk(body[:-4]), *pieces] if split else [chunk(body)]))
    assert answer.body.startswith(body)
    error = answer.body[len(body) :]
    assert error.startswith(b'event: error\ndata: {"error":{"type":"upstream_truncated"') == ended
    assert bool(error) == ended


OK = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (OK + b"Bad Header: x\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nSet-Cookie\x0b: session=hush\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\x00\r\n\r\n",),
        (OK + b"Content-Length: hush\r\n\r\n",),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",),
        (OK + b"Transfer-Encoding: hush\r\n\r\n",),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",),
        (b"HTTP/2 hush hush\r\nSet-Cookie: session=hush\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nSet-Cookie: session=" + b"hush" * 30_000,),
        (OK,),
        (b"HTTP/1.1 101 Switching\r\nSet-Cookie: session=hush\r\nUpgrade: hush\r\n\r\n",),
        (HEAD + CHUNKED, chunk(b"data: 1\n\n"), b"hush\r\n"),
    ],
)
async def test_a_failure_reveals_no_secret(pieces: tuple[bytes, ...], log: Log) -> None:
    """Neither the client nor the log gets what could not be parsed, nor the client the address."""
    async with (
        open_upstream(sending(*pieces)) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        answer = await fetch(proxy.port)
        in_stream = len(pieces) > 1
        assert (answer.status, answer.complete) == ((200, False) if in_stream else (502, True))
        await until(lambda: [line for line in log if line["event"] == "exchange"])
        (line,) = [line for line in log if line["event"] == "exchange"]
        assert line["outcome"] == "upstream_error"
        assert line["error"]
    said = repr((answer.headers, answer.body))
    assert b'"error"' in answer.body
    assert not [word for word in ("hush", str(upstream.port), upstream.host) if word in said]
    assert "hush" not in repr(log)
