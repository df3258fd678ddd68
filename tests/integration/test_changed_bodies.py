"""What a response states about its content, when interceptors may have changed that: validators,
digests, ranges, lengths.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, fetch
from support.http2_client import Http2Requester, open_http2
from support.interceptors import Log, Rig, config_with
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from interceptors import (
    Event,
    EventResult,
    Interceptor,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from proxy.config import parse_config

JSON, EVENTS, HTML = b'{"a": 1}', b'data: {"a": 1}\n\n', b"<p>{}</p>"
CHANGED = b'{"a":1,"seen":1}'
DIGEST = b"sha-256=:" + base64.b64encode(hashlib.sha256(JSON).digest()) + b":"
ABOUT = [
    *(
        (b"ETag", b'"v1"'),
        (b"Last-Modified", b"Thu, 01 Jan 2026 00:00:00 GMT"),
        (b"Content-MD5", b"x"),
        (b"Digest", b"md5=x"),
    ),
    *((b"Content-Digest", DIGEST), (b"Repr-Digest", DIGEST), (b"Accept-Ranges", b"bytes")),
]
NAMES = {name.lower() for name, _ in ABOUT}


class Edits(StreamInterceptor):
    def on_event(self, event: Event) -> EventResult:
        message = event.json()
        if not isinstance(message, dict):
            return event
        message["seen"] = 1
        return event.replace(json=message)


class Changes(Interceptor):
    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        return Edits()


class Own(Changes):
    """States itself what it knows of the changed body."""

    async def on_response(self, head: ResponseHead) -> Response | None:
        head.headers["etag"] = '"mine"'
        head.headers["accept-ranges"] = "none"
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        return OwnEdits()


class OwnEdits(Edits):
    def on_start(self, head: ResponseHead) -> None:
        head.headers["last-modified"] = "Fri, 02 Jan 2026 00:00:00 GMT"


class Looks(Interceptor):
    """Sees the body and leaves it as it is."""

    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        return StreamInterceptor()


class Passes(Looks):
    class Stream(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            return event

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        return self.Stream()


class StaysOut(Interceptor):
    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        return None


class Asks(Interceptor):
    """Sees no body of a response, and sends another request."""

    async def on_request(self, request: Request) -> Response | None:
        if request.has_body:
            request.replace_body(json={"b": 2})
            request.headers["repr-digest"] = "md5=:mine:"
        return None


class Ranges(Changes):
    """Asks for a range by itself."""

    async def on_request(self, request: Request) -> Response | None:
        assert "range" not in request.headers
        request.headers["range"] = "bytes=0-"
        return None


async def serve_files(peer: Peer) -> None:
    """JSON, an event stream, HTML, by the end of the path; ranges and conditions are honoured."""
    while True:
        request = await peer.request()
        path = request.target.rpartition(b"/")[2]
        body, kind = {
            b"json": (JSON, b"application/json"),
            b"array": (b"[1]", b"application/json"),
            b"events": (EVENTS, b"text/event-stream"),
        }.get(path, (HTML, b"text/html"))
        lines = [b"%s: %s" % field for field in ABOUT]
        if request.all("if-none-match"):
            await peer.send(b"\r\n".join([b"HTTP/1.1 304 Not Modified", *lines]) + b"\r\n\r\n")
            continue
        status, size = b"200 OK", len(body)
        if request.all("range") == [b"bytes=2-5"]:
            status, body = b"206 Partial Content", body[2:6]
            lines.append(b"Content-Range: bytes 2-5/%d" % size)
        lines += [b"Content-Type: " + kind, b"Content-Length: %d" % len(body)]
        await peer.send(
            b"\r\n".join([b"HTTP/1.1 " + status, *lines])
            + b"\r\n\r\n"
            + (b"" if request.method == "HEAD" else body)
        )


CLASSES = (Changes, Own, Looks, Passes, StaysOut, Asks, Ranges)


@asynccontextmanager
async def serve(log: Log) -> AsyncIterator[Rig]:
    async with open_upstream(serve_files) as upstream:
        names = [cls.__name__ for cls in CLASSES]
        routes = ", ".join(
            f"{{path: /{name}, upstream: up, interceptors: [{name}]}}" for name in names
        )
        entries = ", ".join(f'{{name: {name}, use: "{__name__}:{name}"}}' for name in names)
        config = parse_config(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes: [{{path: /, upstream: up}}, {{path: /llm, upstream: up, dialect: openai, interceptors: [Changes]}}, {routes}]
interceptors: [{entries}]
drain: {{timeout: 1}}
log: {{level: error}}
"""
        )
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            with trio.fail_after(5):
                await rig.everything_is_back()


def about(answer: Answer) -> set[bytes]:
    return {name for name, _ in answer.headers if name in NAMES}


async def test_a_changed_body_leaves_without_what_was_stated_about_the_other(log: Log) -> None:
    async with serve(log) as rig:
        answer = await rig.fetch("/Changes/json")
        assert (answer.status, answer.body) == (200, CHANGED)
        assert answer.all("content-length") == [b"16"]
        assert about(answer) == set()


@pytest.mark.parametrize("route", ["Changes", "Passes", "Looks"])
async def test_a_stream_that_may_change_states_nothing(route: str, log: Log) -> None:
    """Its head leaves before anyone knows; also where interceptors may only add something."""
    async with serve(log) as rig:
        answer = await rig.fetch(f"/{route}/events")
        assert (answer.status, answer.complete) == (200, True)
        assert about(answer) == set()
        assert answer.all("content-length") == []


@pytest.mark.parametrize(
    "target", ["/json", "/events", "/html", "/Looks/json", "/Passes/json", "/StaysOut/json"]
)
async def test_an_unchanged_body_keeps_all(target: str, log: Log) -> None:
    """Where no interceptor sees it, or one has seen all of it and left it as it was."""
    async with serve(log) as rig:
        answer = await rig.fetch(target)
        assert about(answer) == NAMES
        assert answer.all("content-length") == [b"%d" % len(answer.body)]


@pytest.mark.parametrize(
    "target", ["/Changes/array", "/Changes/html", "/StaysOut/events", "/Asks/json"]
)
async def test_what_interceptors_do_not_change_keeps_all(target: str, log: Log) -> None:
    async with serve(log) as rig:
        assert about(await rig.fetch(target)) == NAMES


async def test_head_is_answered_as_get_would_be(log: Log) -> None:
    """The type that GET has, and no length that only GET would show."""
    async with serve(log) as rig:
        for target in (
            "/Changes/json",
            "/Changes/events",
            "/Looks/json",
            "/llm/v1/chat/completions",
        ):
            answer = await rig.fetch(target, method="HEAD")
            assert (answer.status, about(answer), answer.all("content-length")) == (
                200,
                set(),
                [],
            ), target
            assert len(answer.all("content-type")) == 1
        for target, body in (("/json", JSON), ("/Changes/html", HTML), ("/Asks/json", JSON)):
            answer = await rig.fetch(target, method="HEAD")
            assert (about(answer), answer.all("content-length")) == (NAMES, [b"%d" % len(body)]), (
                target
            )
        answer = await rig.fetch("/Own/json", method="HEAD")
        assert (answer.all("etag"), answer.all("content-length")) == ([b'"mine"'], [])


async def test_a_304_describes_no_body_that_may_have_been_changed(log: Log) -> None:
    """A cache would update what it has stored of the changed body (RFC 9111, section 3.2)."""
    async with serve(log) as rig:
        condition = [("If-None-Match", '"v1"')]
        answer = await rig.fetch("/Changes/json", headers=condition)
        assert (answer.status, about(answer)) == (304, set())
        answer = await rig.fetch("/json", headers=condition)
        assert (answer.status, about(answer)) == (304, NAMES)


async def test_no_range_is_asked_of_what_may_change(log: Log) -> None:
    """The whole comes back, as 200. Elsewhere ranges pass."""
    ranged = [("Range", "bytes=2-5"), ("If-Range", '"v1"')]
    async with serve(log) as rig:
        for target, body in (
            ("/Changes/json", CHANGED),
            ("/Looks/json", JSON),
            ("/Ranges/json", CHANGED),
        ):
            answer = await rig.fetch(target, headers=ranged)
            assert (answer.status, answer.body, answer.all("content-range")) == (200, body, [])
            assert rig.upstream.requests[-1].all("if-range") == []
        assert rig.upstream.requests[-1].all("range") == [b"bytes=0-"]  # an interceptor's own
        for target in ("/json", "/Asks/json"):
            answer = await rig.fetch(target, headers=ranged)
            assert (answer.status, answer.body) == (206, JSON[2:6])
            assert answer.all("content-range") == [b"bytes 2-5/8"]
            assert about(answer) == NAMES


async def test_what_an_interceptor_states_itself_stays(log: Log) -> None:
    async with serve(log) as rig:
        answer = await rig.fetch("/Own/json")
        assert answer.body == CHANGED
        assert about(answer) == {b"etag", b"accept-ranges", b"last-modified"}
        assert answer.all("etag") == [b'"mine"']
        assert answer.all("last-modified") == [b"Fri, 02 Jan 2026 00:00:00 GMT"]
        assert answer.all("accept-ranges") == [b"none"]


async def test_a_replaced_request_body_goes_up_without_the_clients_digests(log: Log) -> None:
    """And without its coding; what the interceptor states stays."""
    fields = [
        ("Content-Digest", "md5=:x:"),
        ("Content-MD5", "x"),
        ("Content-Encoding", "gzip"),
        ("Repr-Digest", "md5=:x:"),
    ]
    async with serve(log) as rig:
        await rig.fetch("/Asks/json", method="POST", headers=fields, body=b"body")
        request = rig.upstream.requests[-1]
        assert request.body == b'{"b":2}'
        assert (
            request.all("content-digest")
            == request.all("content-md5")
            == request.all("content-encoding")
            == []
        )
        assert request.all("repr-digest") == [b"md5=:mine:"]
        await rig.fetch("/json", method="POST", headers=fields, body=b"body")
        assert [rig.upstream.requests[-1].all(name) for name, _ in fields] == [
            [value.encode()] for _, value in fields
        ]


async def test_it_is_the_same_over_http2(log: Log, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with (
        serve(log) as rig,
        open_proxy(rig.proxy.worker.config, tls=certificates.files) as proxy,
        open_http2(proxy, certificates) as connection,
    ):

        async def ask(method: str, target: str) -> Answer:
            client = Http2Requester(connection)
            with trio.fail_after(5):
                await client.send(method, target, [("range", "bytes=2-5")])
                return await client.answer()

        answer = await ask("GET", "/Changes/json")
        assert (answer.status, answer.body, about(answer)) == (200, CHANGED, set())
        answer = await ask("HEAD", "/Changes/json")
        assert (answer.status, answer.body, about(answer), answer.all("content-length")) == (
            200,
            b"",
            set(),
            [],
        )
        assert (await ask("GET", "/json")).status == 206


# What ends a message is the proxy's


class Frames(Interceptor):
    """Sets the status, or the length, that the request's query names."""

    async def on_response(self, head: ResponseHead) -> Response | None:
        name, _, value = head.request.query.decode().partition("=")
        if name == "status":
            head.status = int(value)
        elif name == "length":
            head.headers["content-length"] = value
        return None


async def test_the_status_and_the_length_that_an_interceptor_sets(log: Log) -> None:
    """A 1xx status is the interceptor's failure; the length is that of the body."""

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
                + (b"" if asked.method == "HEAD" else b"hello")
            )

    async with open_upstream(script) as upstream:
        async with open_proxy(config_with(upstream.url, Frames)) as proxy:
            for status in (99, 101, 103, 1000):
                answer = await fetch(proxy.port, f"/?status={status}")
                assert (answer.status, b"interceptor_failed" in answer.body) == (502, True)
            for length in ("1", "9", "abc", "+5"):
                answer = await fetch(proxy.port, f"/?length={length}")
                assert (answer.status, answer.body, answer.all("content-length")) == (
                    200,
                    b"hello",
                    [b"5"],
                )
            assert (await fetch(proxy.port, "/?length=9", method="HEAD")).all("content-length") == [
                b"9"
            ]
            assert (await fetch(proxy.port, "/?length=abc", method="HEAD")).status == 502
            for status in (204, 304):
                answer = await fetch(proxy.port, f"/?status={status}")
                assert (answer.status, answer.body) == (status, b"")
        assert not [line for line in log if line["event"] == "internal_error"]


async def test_a_response_without_content_has_no_length() -> None:
    """RFC 9110, section 8.6; a 304 has the length of what it stands for."""

    class Replaces(Interceptor):
        async def on_response(self, head: ResponseHead) -> Response | None:
            if head.status == 304:
                head.status = 200
            return None

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            await peer.send(b"HTTP/1.1 %b X\r\nContent-Length: 5\r\n\r\n" % asked.target[1:])

    async with open_upstream(script) as upstream:
        for given in ((), (Replaces,)):
            async with open_proxy(config_with(upstream.url, *given)) as proxy:
                answer = await fetch(proxy.port, "/204")
                assert (answer.status, answer.all("content-length")) == (204, [])
                answer = await fetch(proxy.port, "/304")
                status, length = (200, []) if given else (304, [b"5"])
                assert (answer.status, answer.body, answer.all("content-length")) == (
                    status,
                    b"",
                    length,
                )
