"""No credential appears where it does not belong, and no value becomes a header line.

Every place that a stranger, an operator or a disk may see is searched for every credential that
passes: log lines, metrics, the app's own pages, the proxy's own answers, error events, tapes and the audit
file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.client import Answer, fetch
from support.interceptors import Log, Rig, Way, on_event
from support.upstream import Peer

from interceptors import (
    Abort,
    Event,
    EventResult,
    Interceptor,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.audit import Audit, AuditOptions
from interceptors.record import Record, RecordOptions
from proxy.config import parse_config
from proxy.errors import ConfigError

SECRET = "s3cr3t"
CREDENTIALS = [
    ("Authorization", f"Bearer {SECRET}-authorization"), ("X-Api-Key", f"{SECRET}-key"),
    ("Cookie", f"session={SECRET}-cookie"), ("Proxy-Authorization", f"Basic {SECRET}-proxy"),
    ("X-Custom-Token", f"{SECRET}-custom"),
]  # fmt: skip
TARGET = f"/v1/things?api_key={SECRET}-query"
BODY = f'{{"password": "{SECRET}-body"}}'.encode()
INJECTED = f'headers: {{set: {{x-upstream-key: "{SECRET}-injected"}}}}'
SET_COOKIE = f"Set-Cookie: id={SECRET}-set".encode()


# What the upstream does, each another way for an exchange to end. What an event holds is the
# user's, and tapes hold it.


async def streams(peer: Peer) -> None:
    await peer.request()
    await peer.start_stream(SET_COOKIE)
    await peer.chunk(b"data: hello\n\n")
    await peer.end()


async def breaks(peer: Peer) -> None:
    await peer.request()
    await peer.start_stream(SET_COOKIE)
    await peer.chunk(b"data: hello\n\n")


async def breaks_its_framing(peer: Peer) -> None:
    await peer.request()
    await peer.start_stream(SET_COOKIE)
    await peer.chunk(b"data: hello\n\n")
    await peer.send(SECRET.encode() + b"-chunk\r\n")


async def answers_nonsense(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nX-Leak " + SECRET.encode() + b"\r\n\r\n")


async def answers_another_protocol(peer: Peer) -> None:
    await peer.request()
    await peer.send(SECRET.encode() + b"\r\n")


async def says_nothing(peer: Peer) -> None:
    await peer.request()
    await peer.wait_closed()


async def hangs_up(peer: Peer) -> None:
    await peer.request()


UPSTREAMS = [
    streams,
    breaks,
    breaks_its_framing,
    answers_nonsense,
    answers_another_protocol,
    says_nothing,
    hangs_up,
]


def _given(cls: Any, options: Any) -> type[Interceptor]:
    return type(
        cls.__name__,
        (cls,),
        {"__init__": lambda self: cls.__init__(self, options), "__module__": __name__},
    )


def _raise(event: Event) -> EventResult:
    raise ValueError("hush")  # the text of an author's exception is for the log


def _edit(event: Event) -> EventResult:
    return event.replace(data=event.data + "!")


def _tapes(directory: Path) -> tuple[type[Interceptor], ...]:
    return (
        _given(Record, RecordOptions(directory=str(directory / "tapes"))),
        _given(Audit, AuditOptions(path=str(directory / "audit.jsonl"))),
    )


INTERCEPTORS: dict[str, Callable[[Path], tuple[type[Interceptor], ...]]] = {
    "none": lambda directory: (), "tapes": _tapes,
    "editing": lambda directory: (on_event(_edit),),
    "failing": lambda directory: (on_event(_raise),),
}  # fmt: skip


@pytest.mark.parametrize("interceptors", INTERCEPTORS)
@pytest.mark.parametrize("script", UPSTREAMS)
async def test_no_credential_comes_out(
    script: Callable[[Peer], Awaitable[None]],
    interceptors: str,
    tmp_path: Path,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the client's headers, query and body nor the upstream's injected key and cookie,
    however the exchange ends.

    The upstream has got them, so that there was something to come out; the client gets that cookie
    in a head, and nothing else.
    """
    serve = Way().serve(log, monkeypatch)
    settings = {"upstream": INJECTED, "route": "timeouts: {first_byte: 0.2}"}
    async with serve(script, *INTERCEPTORS[interceptors](tmp_path), **settings) as rig:
        answer = await rig.fetch(TARGET, method="POST", headers=CREDENTIALS, body=BODY)
        await rig.outcomes()
        assert b"hush" not in answer.body
        (request,) = rig.upstream.requests
        got = repr(request)
        for kind in ("authorization", "key", "cookie", "custom", "query", "body", "injected"):
            assert f"{SECRET}-{kind}" in got
        assert f"{SECRET}-proxy" not in got  # RFC 9110, section 11.7.1: it is for us
        seen = {
            "answer": answer.body,
            "head": [item for item in answer.headers if item[0] != b"set-cookie"],
        }
        for page in ("/metrics", "/status", "/healthz", "/readyz"):
            seen[page] = (await rig.fetch(page)).body
    seen["log"] = log
    for path in tmp_path.rglob("*"):
        if path.is_file():
            seen[path.name] = path.read_bytes()
    assert (interceptors == "tapes") == any(
        path.name == "audit.jsonl" for path in tmp_path.iterdir()
    )
    for place, what in seen.items():
        assert SECRET not in repr(what), place


@pytest.mark.parametrize("refusal", ["route", "host", "too large", "target"])
async def test_a_refusal_repeats_nothing(
    refusal: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy's answer to a request that is not forwarded contains nothing of the request, and
    neither does the log.
    """
    settings = {"upstream": INJECTED}
    if refusal == "host":
        settings["route"] = 'allowed_hosts: ["good.test"]'
    if refusal == "too large":
        settings["route"] = "limits: {max_request_body_bytes: 3}"
    async with Way().serve(log, monkeypatch)(streams, **settings) as rig:
        if refusal == "route":
            monkeypatch.setattr(rig.proxy.worker.routes, "find", lambda *_: None)
        target = f"{SECRET}:443" if refusal == "target" else TARGET
        answer = await rig.fetch(
            target, method="POST", headers=[*CREDENTIALS, ("Host", f"{SECRET}.test")], body=BODY
        )
        assert 400 <= answer.status < 500
        assert json.loads(answer.body)["error"]["type"]
        assert await rig.outcomes() == ["refused"]
        assert rig.upstream.accepted == 0
        assert SECRET not in repr(answer)
        assert SECRET not in repr(log)


# Header injection and response splitting

LINE_ENDS = [
    "a" + end for end in ("\r\nX-Injected: yes", "\nX-Injected: yes", "\rX-Injected: yes", "\0")
]
LINE_ENDS.append("a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x")


async def _plain(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
        )


def not_injected(rig: Rig, answer: Answer) -> None:
    assert answer.complete
    assert not answer.all("x-injected")
    for request in rig.upstream.requests:
        assert not request.all("x-injected")
        assert b" " not in request.target


@pytest.mark.parametrize("value", LINE_ENDS)
@pytest.mark.parametrize(
    "where",
    ["request value", "request name", "path", "query", "response value", "response name", "answer"],
)
async def test_an_interceptor_cannot_forge_a_line(
    where: str, value: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value with a line end, which an interceptor may have taken from anywhere, is an error and
    never a header, a request or its own response; the connection is of use afterwards.
    """

    class Injects(Interceptor):
        async def on_request(self, request: Request) -> Response | None:
            if request.query == b"good":
                return None
            if where == "request value":
                request.headers["x-a"] = value
            elif where == "request name":
                request.headers["x-a" + value] = "b"
            elif where == "path":
                request.path = "/a" + value
            elif where == "query":
                request.query = b"a" + value.encode()
            elif where == "answer":
                return Response(status=200, headers={"x-a": value}, body=b"ok")
            return None

        async def on_response(self, head: ResponseHead) -> Response | None:
            if head.request.query == b"good":
                return None
            if where == "response value":
                head.headers["x-a"] = value
            elif where == "response name":
                head.headers["x-a" + value] = "b"
            return None

    async with Way().serve(log, monkeypatch)(_plain, Injects) as rig:
        answer = await rig.fetch("/x")
        not_injected(rig, answer)
        if (
            where != "path"
        ):  # a path is written percent-encoded, and then there is no line end in it
            assert (answer.status, b"interceptor_failed" in answer.body) == (502, True)
        good = await rig.fetch("/x?good")
        assert (good.status, good.body) == (200, b"ok")
        not_injected(rig, good)


@pytest.mark.parametrize("line_end", [b"\r", b"\n", b"\r\n", b"\0"])
async def test_an_upstreams_head_cannot_split_the_response(
    line_end: bytes, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an upstream puts into a value is one header, or makes it a response that is refused."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nLocation: /a%sX-Injected: yes\r\n\r\nok"
            % line_end
            + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
        )

    async with Way().serve(log, monkeypatch)(script) as rig:
        stream = await trio.open_tcp_stream("127.0.0.1", rig.proxy.port)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        received = b""
        with trio.move_on_after(2):
            while received.count(b"HTTP/1.1 ") < 2 and (data := await stream.receive_some()):
                received += data
        await stream.aclose()
        assert b"forged" not in received
        if line_end == b"\r\n":  # that is what a header of the upstream's own looks like
            assert b"x-injected: yes\r\n" in received.lower()
        else:
            assert received.startswith(b"HTTP/1.1 502 ")
            assert b"injected" not in received.lower()


@pytest.mark.parametrize("value", ["a\r\nX-Injected: yes", "a\nb", "a\rb", "a\0b"])
def test_a_configured_header_cannot_hold_a_line_end(value: str) -> None:
    """The configuration is refused, with the path of the mistake and without the value."""
    quoted = json.dumps(SECRET + value)
    text = f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://127.0.0.1:1"], headers: {{set: {{authorization: {quoted}}}}}}}]
  routes: [{{path: /, upstream: up}}]
"""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert "headers.set.authorization" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", LINE_ENDS)
@pytest.mark.parametrize("field", ["data", "event", "id"])
async def test_an_event_cannot_hold_another(
    field: str, value: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text in `data` is text, whatever its line ends."""
    forged = "x" + value.replace("X-Injected", "id") + "\n\ndata: forged"

    class Forges(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            if field == "data":
                return event.replace(data=forged)
            return Event("x", **{field: forged})

    class Opens(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return Forges()

    async with Way().serve(log, monkeypatch)(streams, Opens) as rig:
        answer = await rig.fetch("/")
        lines = re.split(rb"\r\n|\r|\n", answer.body)
        assert b"data: forged" not in lines or field == "data"
        if field == "data":
            assert answer.complete
            assert answer.body.count(b"\n\n") == 1
            assert all(line.startswith(b"data: ") for line in lines if line)
        else:
            assert not answer.complete
            assert b"interceptor_failed" in answer.body


async def test_an_abort_reason_is_the_authors_own_word(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason that an interceptor gives reaches the client, framed, so that it forges nothing."""

    def abort(event: Event) -> EventResult:
        raise Abort('no\r\n\r\ndata: forged\r\n\r\n"')

    async with Way().serve(log, monkeypatch)(streams, on_event(abort)) as rig:
        answer = await rig.fetch("/")
        assert not answer.complete
        assert b"data: forged" not in re.split(rb"\r\n|\r|\n", answer.body)


async def test_leases_do_not_carry_one_clients_bytes_to_another(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred short exchanges after one with a secret, in the same pooled buffers."""
    first = True

    async def script(peer: Peer) -> None:
        nonlocal first
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: " + (SECRET.encode() * 500 if first else b"x") + b"\n\n")
        first = False
        await peer.end()

    async with Way().serve(log, monkeypatch)(script, on_event(_edit)) as rig:
        assert SECRET.encode() in (await rig.fetch("/")).body
        for _ in range(100):
            assert (await fetch(rig.proxy.port)).body == b"data: x!\n\n"
