"""The head of a request: what is read, what is refused, and when; however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from proxy.http.head import MAX_HEAD_BYTES
from proxy.http.request import Http2Assumed, RequestHead, RequestReader

GET = b"GET / HTTP/1.1\r\n"
HEAD = RequestHead("GET", b"/", [], "1.1", 0, True, False)


def read(wire: bytes, step: int = 0) -> tuple[RequestHead | None, bytes]:
    """The first head in pieces of `step` bytes, or whole; and how much was needed for it."""
    reader = RequestReader()
    for at in range(0, len(wire), step or len(wire)):
        reader.feed(wire[at : at + (step or len(wire))])
        head = reader.read()
        if head is not None:
            return head, wire[: at + (step or len(wire))]
    return None, wire


@pytest.mark.parametrize(
    ("wire", "differs"),
    [
        (GET, {}),
        (b"HEAD /a?b=c HTTP/1.0\r\n", {"method": "HEAD", "target": b"/a?b=c", "version": "1.0"}),
        (b"get * HTTP/1.9\r\n", {"method": "GET", "target": b"*"}),
        (b"\r\n" * 8 + GET, {}),
        (GET + b"X:\t a b \t\r\nX:\r\n", {"headers": [(b"x", b"a b"), (b"x", b"")]}),
        (GET + b"Connection: x, Close\r\n", {"keep_alive": False}),
        (GET + b"Connection: a\r\nconnection: CLOSE\r\n", {"keep_alive": False}),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", {"version": "1.0"}),
        (GET + b"Content-Length: 5\r\n", {"length": 5}),
        (GET + b"Content-Length: 5, 5\r\ncontent-length:5\r\n", {"length": 5}),
        (GET + b"Transfer-Encoding: Chunked\r\n", {"length": None}),
        (
            GET + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            {"length": None, "keep_alive": False},
        ),
        (GET + b"Expect: 100-Continue\r\nExpect: x\r\n", {"expects_continue": True}),
        (b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n", {"version": "1.0"}),
    ],
)
def test_what_is_read(wire: bytes, differs: dict[str, Any]) -> None:
    """And `Content-Length` occurs once. The same for every cut."""
    differs.setdefault("keep_alive", b"HTTP/1.0" not in wire)
    for step in range(40):
        head, needed = read(wire + b"\r\n", step)
        assert head is not None
        assert replace(head, headers=differs.get("headers", [])) == replace(HEAD, **differs)
        assert needed == wire + b"\r\n"
        assert [name for name, _ in head.headers].count(b"content-length") <= 1


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (GET + b"Host: a\n", 400),
        (GET + b"a: b\rc: d\r\n", 400),
        (GET + b"a: b\r\n fold: x\r\n", 400),
        (GET + b"a : b\r\n", 400),
        (GET + b"a: \x00\r\n", 400),
        (GET + b": b\r\n", 400),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b" GET / HTTP/1.1\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET / http/1.1\r\n", 400),
        (b"\n" + GET, 400),
        (b"\r\n" * 9 + GET, 400),
        (GET + b"Content-Length: 5, 6\r\n", 400),
        (GET + b"Content-Length: 5\r\nContent-Length: 05\r\n", 400),
        (GET + b"Content-Length: +5\r\n", 400),
        (GET + b"Content-Length:\r\n", 400),
        (GET + b"Content-Length: 1000000000000000000\r\n", 400),
        (GET + b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (GET + b"Transfer-Encoding: chunked\r\n" * 2, 501),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"\r\nPRI * HTTP/2.0\r\n", 505),
        (GET + b"x: ".ljust(MAX_HEAD_BYTES, b"x") + b"\r\n", 431),
        (GET + b"x: \n".ljust(MAX_HEAD_BYTES, b"x") + b"\r\n", 400),
    ],
)
def test_what_is_refused(wire: bytes, status: int) -> None:
    """The connection ends, and nothing of the head is quoted."""
    for step in (0, 1, 2, 3, 7, len(wire)):
        head, _ = read(wire + b"\r\n", step)
        assert head is not None
        assert head.fault is not None
        assert (head.fault.status, head.keep_alive, head.method) == (status, False, "")


@pytest.mark.parametrize("start", [b"\x16\x03\x01", b"(", b"GET\t", b"\n", b"\r\r", GET + b"a\n"])
def test_what_cannot_become_a_request_is_refused_before_its_end(start: bytes) -> None:
    head, _ = read(start + b"x")
    assert head is not None
    assert head.fault is not None


def test_http2_is_recognized_by_the_first_bytes_only() -> None:
    reader, preface = RequestReader(), b"PRI * HTTP/2.0\r\n\r\n"
    reader.feed(preface[:-1])
    assert reader.read() is None
    reader.feed(preface[-1:] + b"SM")
    with pytest.raises(Http2Assumed):
        reader.read()
    assert reader.data == preface + b"SM"
