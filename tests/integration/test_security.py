"""No credential appears where it does not belong, and no value becomes a header line.

Every place that a stranger, an operator or a disk may see is searched for every credential that
passes: log lines, metrics, the app's own pages, the proxy's own answers, error events, tapes and the audit
file.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.interceptors import Serve, interceptor, on_event, with_options
from support.upstream import Peer

from interceptors import Abort, Event, EventResult, Interceptor, Request, Response, ResponseHead
from interceptors.api_keys import ApiKeys, ApiKeysOptions, hash_key
from interceptors.audit import Audit, AuditOptions
from interceptors.record import Record, RecordOptions
from proxy.config import parse_config
from proxy.errors import ConfigError

SECRET = "s3cr3t"
KEY = f"{SECRET}-key"
CREDENTIALS = [
    ("Authorization", f"Bearer {KEY}"), ("X-Api-Key", KEY), ("Cookie", f"session={SECRET}-cookie"),
    ("Proxy-Authorization", f"Basic {SECRET}-proxy"), ("X-Custom-Token", f"{SECRET}-custom"),
]  # fmt: skip
TARGET = f"/v1/things?api_key={SECRET}-query"
BODY = f'{{"password": "{SECRET}-body"}}'.encode()
INJECTED = f'headers: {{set: {{x-upstream-key: "{SECRET}-injected"}}}}'


def sending(data: bytes | None) -> Any:
    """An upstream that sends this and hangs up, or with None waits."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await (peer.wait_closed() if data is None else peer.send(data))

    return script


# What an event holds is the user's, and tapes hold it.
STREAM = (
    f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    f"Set-Cookie: id={SECRET}-set\r\n\r\nd\r\ndata: hello\n\n\r\n"
).encode()
UPSTREAMS: dict[str, bytes | None] = {
    "streams": STREAM + b"0\r\n\r\n",
    "breaks": STREAM,
    "breaks its framing": STREAM + SECRET.encode() + b"-chunk\r\n",
    "answers nonsense": b"HTTP/1.1 200 OK\r\nX-Leak " + SECRET.encode() + b"\r\n\r\n",
    "answers another protocol": SECRET.encode() + b"\r\n",
    "says nothing": None,
    "hangs up": b"",
}
streams = sending(UPSTREAMS["streams"])


def edit(event: Event) -> EventResult:
    return event.replace(data=event.data + "!")


def fail(event: Event) -> EventResult:
    raise ValueError("hush")  # the text of an author's exception is for the log


async def refuse(request: Request) -> None:
    raise ValueError(f"hush: {request!r} of {request.state!r}")


OPTIONS = ApiKeysOptions(keys={"ann": hash_key(KEY)}, upstream=f"Bearer {SECRET}-swapped")
KEYS = with_options(ApiKeys, OPTIONS)
CHAINS: dict[str, list[type[Interceptor]]] = {
    "none": [],
    "editing": [KEYS, on_event(edit)],
    "failing": [KEYS, on_event(fail)],
    "failing early": [KEYS, interceptor(on_request=refuse)],
}


@pytest.mark.parametrize(("upstream", "chain"), [
    *((upstream, "editing") for upstream in UPSTREAMS), *(("streams", chain) for chain in ("none", "failing", "failing early")),
    ("breaks its framing", "none"),
])  # fmt: skip
async def test_no_credential_comes_out(
    upstream: str,
    chain: str,
    tmp_path: Path,
    serve_once: Serve,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the client's headers, query and body nor the upstream's credential, injected key and
    cookie, however the exchange ends.

    The upstream has got them, so that there was something to come out; the client gets that cookie
    in a head, and nothing else.
    """
    caplog.set_level(0)
    tapes = with_options(Record, RecordOptions(directory=str(tmp_path / "tapes")))
    audit = with_options(Audit, AuditOptions(path=str(tmp_path / "audit.jsonl"), events="data"))
    given = [tapes, audit, *CHAINS[chain]] if CHAINS[chain] else []
    settings = {"upstream": INJECTED, "route": "timeouts: {first_byte: 0.2}"}
    async with serve_once(sending(UPSTREAMS[upstream]), *given, **settings) as rig:
        answer = await rig.fetch(TARGET, method="POST", headers=CREDENTIALS, body=BODY)
        await rig.outcomes()
        assert b"hush" not in answer.body
        got = repr(rig.upstream.requests)
        expected = ["cookie", "custom", "query", "body", "injected", "swapped" if given else "key"]
        for kind in expected if chain != "failing early" else ():
            assert f"{SECRET}-{kind}" in got
        assert f"{SECRET}-proxy" not in got  # RFC 9110, section 11.7.1: it is for us
        assert KEY not in got or not given
        head = [item for item in answer.headers if item[0] != b"set-cookie"]
        seen: dict[str, Any] = {"answer": answer.body, "head": head, "log": rig.log}
        for page in ("/metrics", "/status", "/healthz", "/readyz"):
            seen[page] = (await rig.fetch(page)).body
    errors = [line["exc_info"] for line in rig.log if line.get("exc_info")]
    seen["tracebacks"] = "".join("".join(traceback.format_exception(error)) for error in errors)
    assert ("hush" in seen["tracebacks"]) is chain.startswith("failing")
    seen |= {"output": capfd.readouterr(), "logging": caplog.text}
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert ("audit.jsonl" in files) is bool(given)
    for place, what in (seen | files).items():
        assert SECRET not in repr(what), place


@pytest.mark.parametrize(("refusal", "route"), [
    ("route", ""), ("host", 'allowed_hosts: ["good.test"]'), ("too large", "limits: {max_request_body_bytes: 3}"), ("target", ""),
])  # fmt: skip
async def test_a_refusal_repeats_nothing(
    refusal: str, route: str, serve_once: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy's answer to a request that is not forwarded contains nothing of the request, and
    neither does the log.
    """
    async with serve_once(streams, upstream=INJECTED, route=route) as rig:
        if refusal == "route":
            monkeypatch.setattr(rig.proxy.worker.routes, "find", lambda *_: None)
        target = f"{SECRET}:443" if refusal == "target" else TARGET
        headers = [*CREDENTIALS, ("Host", f"{SECRET}.test")]
        answer = await rig.fetch(target, method="POST", headers=headers, body=BODY)
        assert 400 <= answer.status < 500
        assert json.loads(answer.body)["error"]["type"]
        assert await rig.outcomes() == ["refused"]
        assert rig.upstream.accepted == 0
        assert SECRET not in repr(answer)
        assert SECRET not in repr(rig.log)


# Header injection and response splitting

LINE_ENDS = [
    *("a" + end for end in ("\r\nX-Injected: yes", "\nX-Injected: yes", "\rX-Injected: yes", "\0")),
    "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x",
]  # fmt: skip


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
FORGERIES: dict[str, Callable[[Any, str], object]] = {
    "request value": lambda request, value: request.headers.update({"x-a": value}),
    "request name": lambda request, value: request.headers.update({"x-a" + value: "b"}),
    "request path": lambda request, value: setattr(request, "path", "/a" + value),
    "request query": lambda request, value: setattr(request, "query", b"a" + value.encode()),
    "response value": lambda head, value: head.headers.update({"x-a": value}),
    "response name": lambda head, value: head.headers.update({"x-a" + value: "b"}),
    "answer": lambda _, value: Response(status=200, headers={"x-a": value}, body=b"ok"),
}


@pytest.mark.parametrize("where", FORGERIES)
async def test_an_interceptor_cannot_forge_a_line(where: str, serve_once: Serve) -> None:
    """A value with a line end, which an interceptor may have taken from anywhere, is an error and
    never a header, a request or its own response; the connection is of use afterwards.
    """

    async def on_request(request: Request) -> Any:
        request.state["value"] = int(request.query)
        if not where.startswith("response") and request.query != b"9":
            return FORGERIES[where](request, LINE_ENDS[int(request.query)])
        return None

    async def on_response(head: ResponseHead) -> None:
        value = head.request.state["value"]
        if where.startswith("response") and value < 9:
            FORGERIES[where](head, LINE_ENDS[value])

    injects = interceptor(on_request=on_request, on_response=on_response, sets_state=("value",))
    async with serve_once(sending(PLAIN), injects) as rig:
        for query in (*range(len(LINE_ENDS)), 9):
            answer = await rig.fetch(f"/x?{query}")
            assert answer.complete
            assert not answer.all("x-injected")
            # A path is written percent-encoded, and then there is no line end in it.
            if query == 9 or where == "request path":
                assert (answer.status, answer.body) == (200, b"ok")
            else:
                assert (answer.status, b"interceptor_failed" in answer.body) == (502, True)
        for request in rig.upstream.requests:
            assert not request.all("x-injected")
            assert b" " not in request.target


@pytest.mark.parametrize("line_end", [b"\r", b"\n", b"\r\n", b"\0"])
async def test_no_head_splits_the_response(line_end: bytes, serve_once: Serve) -> None:
    """What an upstream puts into a value is one header, or makes it a response that is refused."""

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nLocation: /a%sX-Injected: yes\r\n\r\nok"
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    async with serve_once(sending(head % line_end + forged)) as rig:
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
async def test_an_event_cannot_hold_another(value: str, serve_once: Serve) -> None:
    """Text in `data` is text, whatever its line ends; in other fields they are an error."""
    forged = "x" + value.replace("X-Injected", "id") + "\n\ndata: forged"

    def forge(event: Event) -> EventResult:
        if event.data == "data":
            return event.replace(data=forged)
        return Event("x", **{event.data: forged})

    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: %s\n\n" % request.target[1:])
        await peer.end()

    async with serve_once(script, on_event(forge)) as rig:
        answer = await rig.fetch("/data")
        assert answer.complete
        assert answer.body.count(b"\n\n") == 1
        lines = re.split(rb"\r\n|\r|\n", answer.body)
        assert all(line.startswith(b"data: ") for line in lines if line)
        for field in ("event", "id"):
            answer = await rig.fetch(f"/{field}")
            assert not answer.complete
            assert b"data: forged" not in re.split(rb"\r\n|\r|\n", answer.body)
            assert b"interceptor_failed" in answer.body


async def test_an_abort_reason_is_the_authors_own_word(serve_once: Serve) -> None:
    """A reason that an interceptor gives reaches the client, framed, so that it forges nothing."""

    def abort(event: Event) -> EventResult:
        raise Abort('no\r\n\r\ndata: forged\r\n\r\n"')

    async with serve_once(streams, on_event(abort)) as rig:
        answer = await rig.fetch("/")
        assert not answer.complete
        assert b"data: forged" not in re.split(rb"\r\n|\r|\n", answer.body)


async def test_leases_do_not_carry_one_clients_bytes_to_another(serve_once: Serve) -> None:
    """Short exchanges after one with a secret, in the same pooled buffers."""
    texts = iter([SECRET.encode() * 500])

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: " + next(texts, b"x") + b"\n\n")
        await peer.end()

    async with serve_once(script, on_event(edit)) as rig:
        assert SECRET.encode() in (await rig.fetch("/")).body
        for _ in range(50):
            assert (await rig.fetch("/")).body == b"data: x!\n\n"
