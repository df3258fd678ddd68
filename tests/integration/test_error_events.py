"""Error events: only between two events of a plain stream, and without secrets of the upstream."""

from __future__ import annotations

import pytest
from support.interceptors import Serve
from support.upstream import Peer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


ERROR = b'event: error\ndata: {"error":{"type":"upstream_truncated"'
IDENTITY = b"Content-Encoding: identity\r\n" + CHUNKED
LENGTH = b"Content-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("ended", "headers", "body"),
    [
        # It would break a coding, or count as missing bytes of a known length.
        *(
            (False, b"Content-Encoding: %s\r\n" % coding + CHUNKED, b"\x1f\x8b compressed \n\n")
            for coding in (b"gzip", b"br", b"Zstd", b"gzip, identity")
        ),
        (False, LENGTH % 10, b"data: 1\n\n"),
        (False, LENGTH % 1000, b"data: 1\n\n"),
        # Only after an empty line.
        (False, CHUNKED, b"data: 1\n\ndata: unfin"),
        (False, IDENTITY, b"event: tool\r\n"),
        (False, CHUNKED, b"event: tool\r"),
        (False, CHUNKED, b"data: 1\n\ndata: 2\r\n"),
        (False, CHUNKED, b"data: 1\n "),
        (True, IDENTITY, b"data: 1\r\n\r\n"),
        (True, CHUNKED, b"data: 1\r\r"),
        (True, CHUNKED, b"data: 1\n\n"),
        (True, CHUNKED, b"data: 1\r\n\n"),
        (True, CHUNKED, b"data: 1\r\r\n"),
        (True, CHUNKED, b": comment\r\n\r\n"),
    ],
)
async def test_an_error_event_only_between_two_events_of_a_plain_stream(
    ended: bool, headers: bytes, body: bytes, serve_once: Serve
) -> None:
    """Also when a read separates CR from LF."""
    pieces = [[body]]
    if CHUNKED in headers:
        pieces = [[chunk(body)], [chunk(body[:-4]), *(chunk(bytes([byte])) for byte in body[-4:])]]

    async def script(peer: Peer) -> None:
        number = int((await peer.request()).target[1:])
        await peer.send(HEAD + headers)
        for piece in pieces[number]:
            await peer.send(piece)

    async with serve_once(script) as rig:
        for number in range(len(pieces)):
            answer = await rig.fetch(f"/{number}")
            assert not answer.complete
            assert answer.body.startswith(body)
            error = answer.body[len(body) :]
            assert (error.startswith(ERROR), bool(error)) == (ended, ended)


OK = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\n"
UNREADABLE = [
    OK + b"Bad Header: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie\x0b: session=hush\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\x00\r\n\r\n",
    OK + b"Content-Length: hush\r\n\r\n",
    OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    OK + b"Transfer-Encoding: hush\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/2 hush hush\r\nSet-Cookie: session=hush\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: session=" + b"hush" * 30_000,
    OK,
    b"HTTP/1.1 101 Switching\r\nSet-Cookie: session=hush\r\nUpgrade: hush\r\n\r\n",
    HEAD + CHUNKED + chunk(b"data: 1\n\n") + b"hush\r\n",
]


async def test_a_failure_reveals_no_secret(serve_once: Serve) -> None:
    """Neither the client nor the log gets what could not be parsed, nor the client the address."""

    async def script(peer: Peer) -> None:
        number = int((await peer.request()).target[1:])
        await peer.send(UNREADABLE[number])

    proxy = "  health: {consecutive_failures: 100}"
    async with serve_once(script, proxy=proxy) as rig:
        for number, sent in enumerate(UNREADABLE):
            answer = await rig.fetch(f"/{number}")
            in_stream = sent.startswith(HEAD)
            assert (answer.status, answer.complete) == ((200, False) if in_stream else (502, True))
            assert (await rig.outcomes(number + 1))[-1] == "upstream_error"
            assert rig.lines("exchange")[-1]["error"]
            assert b'"error"' in answer.body
            shown = repr((answer.headers, answer.body))
            secrets = ("hush", str(rig.upstream.port), rig.upstream.host)
            assert not [secret for secret in secrets if secret in shown]
        assert "hush" not in repr(rig.log)
