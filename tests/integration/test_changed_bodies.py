"""What a response states about its content, when interceptors may have changed that: validators,
digests, ranges, lengths.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, fetch
from support.http2_client import Http2Requester, open_http2
from support.interceptors import Log, Rig, config_with, interceptor
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from interceptors import Event, EventResult, Request, ResponseHead
from proxy.config import parse_config

JSON, EVENTS, HTML = b'{"a": 1}', b'data: {"a": 1}\n\n', b"<p>{}</p>"
CHANGED = b'{"a":1,"seen":1}'
DIGEST = b"sha-256=:" + base64.b64encode(hashlib.sha256(JSON).digest()) + b":"
ABOUT = {
    b"etag": b'"v1"',
    b"last-modified": b"Thu, 01 Jan 2026 00:00:00 GMT",
    b"content-md5": b"x",
    b"digest": b"md5=x",
    b"content-digest": DIGEST,
    b"repr-digest": DIGEST,
    b"accept-ranges": b"bytes",
}
ALL, NONE = set(ABOUT), set[bytes]()


# The interceptors, each on a route of its name


def edit(event: Event) -> EventResult:
    message = event.json()
    if not isinstance(message, dict):
        return event
    message["seen"] = 1
    return event.replace(json=message)


async def state_own(head: ResponseHead) -> None:
    head.headers["etag"] = '"mine"'
    head.headers["accept-ranges"] = "none"


def state_own_at_start(head: ResponseHead) -> None:
    head.headers["last-modified"] = "Fri, 02 Jan 2026 00:00:00 GMT"


async def replace_request(request: Request) -> None:
    if request.has_body:
        request.replace_body(json={"b": 2})
        request.headers["repr-digest"] = "md5=:mine:"


async def ask_for_range(request: Request) -> None:
    assert "range" not in request.headers
    request.headers["range"] = "bytes=0-"


JSON_TOO = {"wants_json": True}
GIVEN = [
    interceptor("Changes", on_event=edit, **JSON_TOO),
    # States itself what it knows of the changed body.
    interceptor(
        "Own", on_response=state_own, on_start=state_own_at_start, on_event=edit, **JSON_TOO
    ),
    # Sees the body, and leaves it as it is.
    interceptor("Looks", opened=lambda context: None, **JSON_TOO),
    interceptor("Passes", on_event=lambda event: event, **JSON_TOO),
    interceptor("StaysOut", open_stream=lambda context: None, **JSON_TOO),
    # Sees no body of a response, and sends another request.
    interceptor("Asks", on_request=replace_request),
    # Asks for a range by itself.
    interceptor("Ranges", on_request=ask_for_range, on_event=edit, **JSON_TOO),
]


async def serve_files(peer: Peer) -> None:
    """JSON, an event stream, HTML, by the end of the path; ranges and conditions are honoured."""
    while True:
        request = await peer.request()
        body, kind = {
            b"json": (JSON, b"application/json"),
            b"array": (b"[1]", b"application/json"),
            b"events": (EVENTS, b"text/event-stream"),
        }.get(request.target.rpartition(b"/")[2], (HTML, b"text/html"))
        lines = [b"%s: %s" % field for field in ABOUT.items()]
        if request.all("if-none-match"):
            await peer.send(b"\r\n".join([b"HTTP/1.1 304 Not Modified", *lines, b"", b""]))
            continue
        status, size = b"200 OK", len(body)
        if request.all("range") == [b"bytes=2-5"]:
            status, body = b"206 Partial Content", body[2:6]
            lines.append(b"Content-Range: bytes 2-5/%d" % size)
        lines += [b"Content-Type: " + kind, b"Content-Length: %d" % len(body)]
        content = b"" if request.method == "HEAD" else body
        await peer.send(b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", content]))


@pytest.fixture
async def rig(log: Log) -> AsyncIterator[Rig]:
    async with serving(log) as rig:
        yield rig


@asynccontextmanager
async def serving(log: Log, tls: tuple[str, str] | None = None) -> AsyncIterator[Rig]:
    async with open_upstream(serve_files) as upstream:
        entries = config_with(upstream.url, *GIVEN).interceptors
        routes = "".join(
            f"    - {{path: /{entry.name}, upstream: up, interceptors: [{entry.name}]}}\n"
            for entry in entries
        )
        config = parse_config(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes:
    - {{path: /, upstream: up}}
    - {{path: /llm, upstream: up, dialect: openai, interceptors: [Changes]}}
{routes}
interceptors: [{", ".join(f'{{name: {entry.name}, use: "{entry.use}"}}' for entry in entries)}]
drain: {{timeout: 1}}
log: {{level: error}}
"""
        )
        async with open_proxy(config, tls=tls) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            with trio.fail_after(5):
                await rig.everything_is_back()


def about(answer: Answer) -> set[bytes]:
    return {name for name, _ in answer.headers if name in ALL}


async def check(
    rig: Rig, target: str, expected: set[bytes], length: int | None, **request: object
) -> Answer:
    """What the answer states about its content, and its Content-Length."""
    answer = await rig.fetch(target, **request)
    assert about(answer) == expected, target
    lengths = [] if length is None else [b"%d" % length]
    assert answer.all("content-length") == lengths, target
    assert answer.complete
    return answer


async def test_a_changed_body_leaves_without_what_was_stated_about_the_other(rig: Rig) -> None:
    """What an interceptor states itself stays."""
    answer = await check(rig, "/Changes/json", NONE, len(CHANGED))
    assert (answer.status, answer.body) == (200, CHANGED)
    own = {b"etag", b"accept-ranges", b"last-modified"}
    answer = await check(rig, "/Own/json", own, len(CHANGED))
    assert answer.body == CHANGED
    assert answer.all("etag") == [b'"mine"']
    assert answer.all("last-modified") == [b"Fri, 02 Jan 2026 00:00:00 GMT"]
    assert answer.all("accept-ranges") == [b"none"]


async def test_a_stream_that_may_change_states_nothing(rig: Rig) -> None:
    """Its head leaves before anyone knows; also where interceptors may only add something."""
    for route in ("Changes", "Passes", "Looks"):
        await check(rig, f"/{route}/events", NONE, None)


async def test_what_interceptors_do_not_change_keeps_all(rig: Rig) -> None:
    """Where no interceptor sees it, or one has seen all of it and left it as it was."""
    for target, body in (
        ("/json", JSON), ("/events", EVENTS), ("/html", HTML), ("/Looks/json", JSON),
        ("/Passes/json", JSON), ("/StaysOut/json", JSON), ("/StaysOut/events", EVENTS),
        ("/Changes/array", b"[1]"), ("/Changes/html", HTML), ("/Asks/json", JSON),
    ):  # fmt: skip
        assert (await check(rig, target, ALL, len(body))).body == body


async def test_head_is_answered_as_get_would_be(rig: Rig) -> None:
    """The type that GET has, and no length that only GET would show."""
    for target, expected, length in (
        ("/Changes/json", NONE, None),
        ("/Changes/events", NONE, None),
        ("/Looks/json", NONE, None),
        ("/llm/v1/chat/completions", NONE, None),
        ("/Own/json", {b"etag", b"accept-ranges"}, None),
        ("/json", ALL, len(JSON)),
        ("/Changes/html", ALL, len(HTML)),
        ("/Asks/json", ALL, len(JSON)),
    ):
        answer = await check(rig, target, expected, length, method="HEAD")
        assert (answer.status, len(answer.all("content-type"))) == (200, 1)


async def test_a_304_describes_no_body_that_may_have_been_changed(rig: Rig) -> None:
    """A cache would update what it has stored of the changed body (RFC 9111, section 3.2)."""
    condition = [("If-None-Match", '"v1"')]
    for target, expected in (("/Changes/json", NONE), ("/json", ALL)):
        assert (await check(rig, target, expected, None, headers=condition)).status == 304


async def test_no_range_is_asked_of_what_may_change(rig: Rig) -> None:
    """The whole comes back, as 200. Elsewhere ranges pass."""
    ranged = [("Range", "bytes=2-5"), ("If-Range", '"v1"')]
    for target, body, asked in (
        ("/Changes/json", CHANGED, []),
        ("/Looks/json", JSON, []),
        ("/Ranges/json", CHANGED, [b"bytes=0-"]),  # an interceptor's own
    ):
        answer = await rig.fetch(target, headers=ranged)
        assert (answer.status, answer.body, answer.all("content-range")) == (200, body, [])
        request = rig.upstream.requests[-1]
        assert (request.all("if-range"), request.all("range")) == ([], asked)
    for target in ("/json", "/Asks/json"):
        answer = await check(rig, target, ALL, 4, headers=ranged)
        assert (answer.status, answer.body) == (206, JSON[2:6])
        assert answer.all("content-range") == [b"bytes 2-5/8"]


async def test_a_replaced_request_body_goes_up_without_the_clients_digests(rig: Rig) -> None:
    """And without its coding; what the interceptor states stays."""
    fields = {
        "content-digest": "md5=:x:",
        "content-md5": "x",
        "content-encoding": "gzip",
        "repr-digest": "md5=:x:",
    }
    for target, body, expected in (
        ("/Asks/json", b'{"b":2}', {"repr-digest": "md5=:mine:"}),
        ("/json", b"body", fields),
    ):
        await rig.fetch(target, method="POST", headers=list(fields.items()), body=b"body")
        request = rig.upstream.requests[-1]
        assert request.body == body
        sent = [(name, value.decode()) for name in fields for value in request.all(name)]
        assert sent == list(expected.items())


async def test_it_is_the_same_over_http2(log: Log, certificates: Certificates) -> None:
    async with (
        serving(log, certificates.files) as rig,
        open_http2(rig.proxy, certificates) as connection,
    ):
        client = Http2Requester(connection)
        for method, target, status, expected, length in (
            ("GET", "/Changes/json", 200, NONE, [b"16"]),
            ("HEAD", "/Changes/json", 200, NONE, []),
            ("GET", "/json", 206, ALL, [b"4"]),
        ):
            with trio.fail_after(5):
                await client.send(method, target, [("range", "bytes=2-5")])
                answer = await client.answer()
            assert (answer.status, about(answer)) == (status, expected)
            assert answer.all("content-length") == length
            client.next_cycle()


# What ends a message is the proxy's


async def frame(head: ResponseHead) -> None:
    """Set the status, or the length, that the request's query names."""
    name, _, value = head.request.query.decode().partition("=")
    if name == "status":
        head.status = int(value)
    elif name == "length":
        head.headers["content-length"] = value


async def test_the_status_and_the_length_that_an_interceptor_sets(log: Log) -> None:
    """A 1xx status is the interceptor's failure; the length is that of the body. A response without
    content has none (RFC 9110, section 8.6); a 304 has the length of what it stands for.
    """

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            status = request.target[1:4] if request.target[1:4].isdigit() else b"200"
            has_body = request.method != "HEAD" and status == b"200"
            await peer.send(b"HTTP/1.1 " + status + b" X\r\nContent-Length: 5\r\n\r\n")
            await peer.send(b"hello" if has_body else b"")

    async with open_upstream(script) as upstream:
        framing = interceptor(on_response=frame)
        async with open_proxy(config_with(upstream.url, framing)) as proxy:
            for method, target, status, body, length in (
                ("GET", "/?status=99", 502, None, None),
                ("GET", "/?status=101", 502, None, None),
                ("GET", "/?status=103", 502, None, None),
                ("GET", "/?status=1000", 502, None, None),
                ("GET", "/?length=1", 200, b"hello", [b"5"]),
                ("GET", "/?length=9", 200, b"hello", [b"5"]),
                ("GET", "/?length=abc", 200, b"hello", [b"5"]),
                ("GET", "/?length=+5", 200, b"hello", [b"5"]),
                ("HEAD", "/?length=9", 200, b"", [b"9"]),
                ("HEAD", "/?length=abc", 502, b"", None),
                ("GET", "/?status=204", 204, b"", []),
                ("GET", "/?status=304", 304, b"", None),
                ("GET", "/304?status=200", 200, b"", []),
                ("GET", "/204", 204, b"", []),
            ):
                answer = await fetch(proxy.port, target, method=method)
                assert answer.status == status, target
                assert body is None or answer.body == body, target
                assert body is not None or b"interceptor_failed" in answer.body, target
                assert length is None or answer.all("content-length") == length, target
        async with open_proxy(config_with(upstream.url)) as proxy:
            for target, length in (("/204", []), ("/304", [b"5"])):
                assert (await fetch(proxy.port, target)).all("content-length") == length
    assert not [line for line in log if line["event"] == "internal_error"]
