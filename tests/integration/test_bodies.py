"""What a response's body is, in a whole proxy on real sockets: its first bytes decide where a
dialect is expected, and what is larger than `max_event_bytes` passes if no interceptor needs it.
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
from support.interceptors import Log, Rig
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

BUILT_INS = {
    "redact": '{name: redact, use: redact, options: {patterns: ["sk-[A-Za-z0-9]{8,}"]}}',
    "guard": '{name: guard, use: guard, options: {patterns: ["project nightjar"]}}',
    "usage": "{name: usage, use: usage}",
}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"key sk-abcdefgh12345"},"finish_reason":null}]}\n\n'
LAST = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":5}}\n\n'
    b"data: [DONE]\n\n"
)
TYPES = pytest.mark.parametrize(
    "content_type",
    [
        b"text/plain; charset=utf-8",
        b"",
        b"application/json",
        b"application/octet-stream",
        b"text/event-stream",
    ],
    ids=["text", "none", "json", "binary", "sse"],
)


@asynccontextmanager
async def serve(
    script: Script, log: Log, *names: str, route: str = "", proxy: str = ""
) -> AsyncIterator[Rig]:
    async with open_upstream(script) as upstream:
        config = config_for(
            upstream.url,
            interceptors=", ".join(BUILT_INS[name] for name in names),
            names=", ".join(names),
            route=route,
            proxy=proxy,
        )
        async with open_proxy(config) as opened:
            rig = Rig(upstream, opened, log)
            yield rig
            for client in rig.clients:
                await client.aclose()
            await rig.everything_is_back()


def head(content_type: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    types = [b"Content-Type: " + content_type] if content_type else []
    return b"\r\n".join([b"HTTP/1.1 " + status, *types, *lines]) + b"\r\n\r\n"


def answering(
    content_type: bytes,
    body: bytes,
    *,
    status: bytes = b"200 OK",
    by: str = "length",
    lines: Any = (),
) -> Script:
    """Every request is answered with that body."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if by == "length":
                await peer.send(
                    head(content_type, b"Content-Length: %d" % len(body), *lines, status=status)
                    + body
                )
            elif by == "chunks":
                await peer.send(
                    head(content_type, b"Transfer-Encoding: chunked", *lines, status=status)
                )
                for byte in body:
                    await peer.send(b"1\r\n%c\r\n" % byte)
                    await trio.sleep(0)
                await peer.end()
            else:
                await peer.send(
                    head(content_type, b"Connection: close", *lines, status=status) + body
                )
                return

    return script


async def post(rig: Rig, path: str) -> Answer:
    return await rig.fetch(path, method="POST", body=b"{}")


def texts(body: bytes) -> str:
    """What a client reads in a chat stream."""
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(
        choice["delta"].get("content", "")
        for event in events
        for choice in json.loads(event)["choices"]
    )


# --- event streams under another name
# -----------------------------------------------------------------------------------


@TYPES
@pytest.mark.parametrize("by", ["length", "chunks", "close"])
async def test_what_looks_like_sse_is_a_stream_for_all_interceptors(
    content_type: bytes, by: str, log: Log
) -> None:
    """Whatever its type and framing, secrets are redacted and tokens counted."""
    async with serve(
        answering(content_type, b"\xef\xbb\xbf\n" + FIRST + LAST, by=by),
        log,
        "redact",
        "guard",
        "usage",
    ) as rig:
        answer = await post(rig, CHAT)
        assert (answer.status, answer.complete, texts(answer.body)) == (200, True, "key [redacted]")
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.all("content-type") == ([content_type] if content_type else [])
        assert answer.all("content-length") == []
        (line,) = rig.lines("usage")
        assert (line["input"], line["output"], line["streamed"]) == (11, 5, True)


@TYPES
@pytest.mark.parametrize("names", [("usage",), ("usage", "redact", "guard")], ids="-".join)
async def test_each_event_leaves_as_it_arrives(
    content_type: bytes, names: tuple[str, ...], log: Log
) -> None:
    """The client has the first event before the upstream sends the second."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(content_type, b"Transfer-Encoding: chunked"))
        await peer.chunk(FIRST)
        await gate.wait()
        await peer.chunk(LAST)
        await peer.end()

    async with serve(script, log, *names) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, body=b"{}")
            answer = await client.head()
            await client.read_until(answer, b"\n\n")
            gate.set()
            await client.rest(answer)
        assert answer.complete
        assert texts(answer.body) == (
            "key [redacted]" if "redact" in names else "key sk-abcdefgh12345"
        )


async def test_the_first_bytes_decide_and_no_more_is_waited_for(log: Log) -> None:
    """`: ` of a comment is enough for the head to leave, and a `d` is not."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(b"text/plain", b"Transfer-Encoding: chunked"))
        await peer.chunk(b"\n")
        await gate.wait()
        await peer.chunk(b":")
        await peer.wait_closed()

    async with serve(script, log, "redact") as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, body=b"{}")
            with trio.move_on_after(0.2) as waiting:
                await client.head()
            assert waiting.cancelled_caught
            gate.set()
            answer = await client.head()
            assert (answer.status, answer.all("x-accel-buffering")) == (200, [b"no"])


OTHERS = {
    "prose": (b"text/plain", b"dat: sk-abcdefgh12345\n\ndata: x\n\n", {}),
    "a field without a colon": (b"text/plain", b"data\n\ndata: sk-abcdefgh12345\n\n", {}),
    "an unknown field": (b"", b"Data: sk-abcdefgh12345\n\n", {}),
    "html": (b"text/html", b"\n\n<html>data: sk-abcdefgh12345</html>", {}),
    "audio": (b"audio/mpeg", b"\xff\xfb\x90data: " * 100, {}),
    "nothing": (b"text/plain", b"", {}),
    "empty lines": (b"text/plain", b"\n\n\r\n", {}),
    "half a field": (b"text/plain", b"retr", {}),
}


@pytest.mark.parametrize("by", ["length", "chunks", "close"])
@pytest.mark.parametrize(("content_type", "body", "more"), OTHERS.values(), ids=OTHERS)
async def test_what_does_not_look_like_sse_passes_exact(
    content_type: bytes, body: bytes, more: Any, by: str, log: Log
) -> None:
    """On a path of an LLM, with its length and its headers as they were."""
    async with serve(
        answering(content_type, body, by=by, **more),
        log,
        "redact",
        "usage",
        route="dialect: openai",
    ) as rig:
        answer = await post(rig, CHAT)
        assert (answer.status, answer.body, answer.complete) == (200, body, True)
        assert answer.all("content-length") == ([str(len(body)).encode()] if by == "length" else [])
        assert answer.all("x-accel-buffering") == []


@pytest.mark.parametrize(
    ("dialect", "path", "seen"),
    [
        ("openai", "/v1/images/generations", True), ("openai", "/v1/anything", True),
        ("anthropic", "/v1/complete", True), ("mcp", "/mcp", True),
        ("generic", "/v1/messages", True), ("generic", "/v1/responses/", True),
        ("generic", "/v1/images/generations", False), ("generic", "/events", False),
    ],
)  # fmt: skip
async def test_where_the_first_bytes_decide(dialect: str, path: str, seen: bool, log: Log) -> None:
    """On routes of a dialect and on paths of LLM answers; elsewhere the content type does."""
    body = b'data: {"note":"sk-abcdefgh12345"}\n\n'
    async with serve(
        answering(b"application/json", body), log, "redact", route=f"dialect: {dialect}"
    ) as rig:
        answer = await post(rig, path)
        assert answer.body == (body.replace(b"sk-abcdefgh12345", b"[redacted]") if seen else body)


@pytest.mark.parametrize(
    "body", [b'{"a":"sk-abcdefgh12345"}', b'{"a":"sk-abcdefgh12345"}\n{}\n'], ids=["one", "two"]
)
@pytest.mark.parametrize(
    ("dialect", "path", "content_type", "seen"),
    [
        ("openai", CHAT, b"application/x-ndjson", True),
        ("generic", RESPONSES, b"application/x-ndjson", True),
        ("anthropic", "/v1/messages", b"application/x-ndjson", True),
        ("mcp", "/mcp", b"application/jsonl", True),
        ("anthropic", "/v1/messages/batches/b/results", b"application/x-jsonl", False),
        ("openai", "/api/chat", b"application/x-ndjson", False),
    ],
)
async def test_json_under_a_type_of_json_lines(
    dialect: str, path: str, content_type: bytes, seen: bool, body: bytes, log: Log
) -> None:
    """Official SDKs read it as JSON where they expect an answer: it is redacted there."""
    async with serve(
        answering(content_type, body), log, "redact", route=f"dialect: {dialect}"
    ) as rig:
        answer = await post(rig, path)
        assert (answer.status, answer.body) == (
            200,
            body.replace(b"sk-abcdefgh12345", b"[redacted]") if seen else body,
        )


@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", b"200 OK"), ("POST", b"204 No Content"), ("POST", b"304 Not Modified")],
)
async def test_a_response_without_a_body_is_not_waited_for(
    method: str, status: bytes, log: Log
) -> None:
    """HEAD, and the statuses that have none."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(b"text/plain", status=status))
        await peer.wait_closed()

    async with serve(script, log, "redact") as rig:
        with trio.fail_after(10):
            client = await rig.client()
            await client.send(method, CHAT)
            assert (await client.head()).status == int(status[:3])


async def test_an_upstream_that_is_silent_after_its_head_has_its_time(log: Log) -> None:
    """The idle deadline bounds the wait for the first bytes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(b"text/plain", b"Transfer-Encoding: chunked"))
        await peer.wait_closed()

    async with serve(script, log, "redact", route="timeouts: {idle: 0.1}") as rig:
        answer = await post(rig, CHAT)
        assert (answer.status, json.loads(answer.body)["error"]["type"]) == (
            504,
            "upstream_read_timeout",
        )


async def test_a_stream_under_another_name_ends_and_beats_as_a_stream(log: Log) -> None:
    """Heartbeats go out in its silence, and an error event when its upstream breaks off."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(b"text/plain", b"Transfer-Encoding: chunked"))
        await peer.chunk(FIRST)
        await gate.wait()

    beats = "heartbeat: {interval: 0.05}, dialect: openai"
    async with serve(script, log, "redact", route=beats) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, body=b"{}")
            answer = await client.head()
            await client.read_until(answer, b": ping\n")
            gate.set()
            await client.rest(answer)
        assert (answer.complete, b'"code":"upstream_truncated"' in answer.body) == (False, True)


async def test_a_stream_under_another_name_after_early_heartbeats(log: Log) -> None:
    """The head has left as an event stream's, and what comes is one."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await gate.wait()
        await peer.send(
            head(b"text/plain", b"Content-Length: %d" % len(FIRST + LAST)) + FIRST + LAST
        )

    async with serve(
        script, log, "redact", route="heartbeat: {interval: 0.02, early: true}"
    ) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, [("Accept", "text/event-stream")], body=b"{}")
            answer = await client.head()
            gate.set()
            await client.rest(answer)
        assert (answer.complete, texts(answer.body)) == (True, "key [redacted]")


@pytest.mark.parametrize(
    "sent", ["nothing", "a first byte", "a large event", "a large body", "JSON in a stream"]
)
async def test_a_client_that_leaves_ends_it_all(sent: str, log: Log) -> None:
    """While the first bytes are awaited or a large body passes: the upstream is closed."""
    content_type, body = {
        "nothing": (b"text/plain", b""),
        "a first byte": (b"text/plain", b"d"),
        "a large event": (b"text/event-stream", b"data: " + b"A" * 1_500_000),
        "a large body": (b"application/json", b'{"a":"' + b"A" * 1_500_000),
        "JSON in a stream": (b"text/event-stream", b'{"a":"' + b"A" * 100_000),
    }[sent]
    sending, closed = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(content_type, b"Content-Length: 9000000") + body)
        sending.set()
        await peer.wait_closed()
        closed.set()

    async with serve(script, log, "usage", route="dialect: openai") as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, body=b"{}")
            await sending.wait()
            if sent.startswith("a large"):
                await client.head()
                await client.read_some()
            client.reset()
            await closed.wait()


# --- JSON under the name of an event stream
# -----------------------------------------------------------------------------

ERROR = b'{"error":{"message":"bad sk-abcdefgh12345","type":"invalid_request_error","code":400}}'


@pytest.mark.parametrize("by", ["length", "chunks", "close"])
@pytest.mark.parametrize("status", [b"400 Bad Request", b"200 OK"], ids=["400", "200"])
async def test_json_under_text_event_stream_is_json_for_interceptors(
    status: bytes, by: str, log: Log
) -> None:
    """The secret is redacted, what leaves is JSON, and the failure is known to `usage`."""
    script = answering(b"text/event-stream", b"\n " + ERROR, status=status, by=by)
    async with serve(script, log, "usage", "redact", route="dialect: openai") as rig:
        answer = await post(rig, CHAT)
        assert (answer.status, answer.complete) == (int(status[:3]), True)
        assert json.loads(answer.body)["error"]["message"] == "bad [redacted]"
        (line,) = rig.lines("usage")
        assert line["error"] == "invalid_request_error"


async def test_nothing_is_put_into_json_under_text_event_stream(log: Log) -> None:
    """No heartbeat goes out once JSON has begun, until all of it has left."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(ERROR[:10])
        await gate.wait()
        await peer.chunk(ERROR[10:])
        await peer.end()

    async with serve(script, log, "redact", route="heartbeat: {interval: 0.02}") as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, body=b"{}")
            answer = await client.head()
            with trio.move_on_after(0.2):
                answer.body += await client.read_some()
            gate.set()
            await client.rest(answer)
        assert json.loads(
            answer.body.replace(b": ping\n", b"", 1)
            if answer.body.startswith(b": ping")
            else answer.body
        )


async def test_json_under_text_event_stream_on_a_route_that_reconnects(log: Log) -> None:
    """It is not a stream that could resume: it is sent whole, and upstream is called once."""
    for names in ((), ("redact",)):
        async with serve(
            answering(b"text/event-stream", ERROR, by="chunks"),
            log,
            *names,
            route="reconnect: {enabled: true}",
        ) as rig:
            answer = await rig.fetch("/v1/responses")
            assert answer.complete
            expected = "bad [redacted]" if names else "bad sk-abcdefgh12345"
            assert json.loads(answer.body)["error"]["message"] == expected
            assert rig.upstream.accepted == 1


async def test_a_stream_under_another_type_continues_over_connections(log: Log) -> None:
    """The next response may have the wrong type, too; one that is not a stream is refused."""
    bodies = [b"id: 1\ndata: 1\n\n", b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n", b"no stream"]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(b"text/plain", b"Transfer-Encoding: chunked"))
        await peer.chunk(bodies.pop(0))

    quick = "reconnect: {enabled: true, initial_backoff: 0.001, max_backoff: 0.01, max_attempts: 1}"
    async with serve(script, log, "redact", route=quick) as rig:
        answer = await rig.fetch("/v1/responses")
        assert [line for line in answer.body.splitlines() if line.startswith(b"data: ")][:2] == [
            b"data: 1",
            b"data: 2",
        ]
        assert (answer.complete, b"no stream" in answer.body, rig.upstream.accepted) == (
            False,
            False,
            3,
        )


# --- larger than an event may be
# ----------------------------------------------------------------------------------------

EMBEDDINGS = json.dumps(
    {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": [0.0123456789012345] * 1536}
            for i in range(100)
        ],
        "usage": {"prompt_tokens": 800, "total_tokens": 800},
    },
    separators=(",", ":"),
).encode()
IMAGE = (
    b'data: {"type":"response.image_generation_call.partial_image","output_index":0,"item_id":"ig_1","partial_image_index":0,'
    b'"partial_image_b64":"%s"}\n\n' % (b"A" * 1_400_000)
)
OUTPUT = b'{"type":"image_generation_call","id":"ig_1","status":"completed","result":"%s"}' % (
    b"B" * 1_400_000
)
RESPONSE = b'{"object":"response","status":"completed","model":"gpt-x","output":[%s],"usage":{"input_tokens":11,"output_tokens":5}}'


@pytest.mark.parametrize("name", ["usage", "guard", "redact"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "/openai/deployments/x/embeddings",
        "/v1/files/abc/content",
        "/images/generations",
        "/v1/models/org/name",
    ],
)
async def test_json_that_is_not_an_answer_is_not_collected(path: str, name: str, log: Log) -> None:
    """Embeddings and the like are exact at any size, through every built-in."""
    async with serve(
        answering(b"application/json", EMBEDDINGS), log, name, route="dialect: openai"
    ) as rig:
        answer = await post(rig, path)
        assert (answer.status, answer.body == EMBEDDINGS) == (200, True)
        assert answer.all("content-length") == [str(len(EMBEDDINGS)).encode()]


@pytest.mark.parametrize(
    "content_type", [b"text/event-stream", b"application/json"], ids=["sse", "json"]
)
@pytest.mark.parametrize(
    "completed", [RESPONSE % b"", RESPONSE % OUTPUT], ids=["small end", "large end"]
)
async def test_a_large_event_passes_usage(content_type: bytes, completed: bytes, log: Log) -> None:
    """Exact; the tokens count if the event that has them is small enough."""
    body = IMAGE + b'data: {"type":"response.completed","response":%s}\n\n' % completed
    async with serve(answering(content_type, body), log, "usage", route="dialect: openai") as rig:
        answer = await post(rig, RESPONSES)
        assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
        (line,) = rig.lines("usage")
        assert (line["input"], line["output"]) == (
            (11, 5) if len(completed) < 1000 else (None, None)
        )


@pytest.mark.parametrize("by", ["length", "close"])
@pytest.mark.parametrize(
    "content_type", [b"application/json", b"text/event-stream"], ids=["json", "sse"]
)
async def test_a_large_body_passes_usage(content_type: bytes, by: str, log: Log) -> None:
    """Exact, and with its length where it has one."""
    body = RESPONSE % OUTPUT
    async with serve(
        answering(content_type, body, by=by), log, "usage", route="dialect: openai"
    ) as rig:
        answer = await post(rig, RESPONSES)
        assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
        length = (
            [str(len(body)).encode()]
            if by == "length" and content_type == b"application/json"
            else []
        )
        assert answer.all("content-length") == length


@pytest.mark.parametrize(
    "content_type", [b"text/plain; charset=utf-8", b"", b"application/octet-stream", b"text/json"]
)
@pytest.mark.parametrize(
    "before", [b"", b"\n  ", b"\xef\xbb\xbf"], ids=["at once", "white space", "BOM"]
)
async def test_json_under_another_type_is_json_for_interceptors(
    content_type: bytes, before: bytes, log: Log
) -> None:
    """An unstreamed answer: its secret is redacted, and its tokens are counted."""
    message = {"role": "assistant", "content": "key sk-abcdefgh12345"}
    answer = {
        "choices": [{"index": 0, "message": message}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5},
    }
    body = before + json.dumps(answer).encode()
    async with serve(answering(content_type, body, by="chunks"), log, "redact", "usage") as rig:
        got = await post(rig, CHAT)
        assert (
            json.loads(got.body.decode("utf-8-sig"))["choices"][0]["message"]["content"]
            == "key [redacted]"
        )
        (line,) = rig.lines("usage")
        assert (line["input"], line["output"], line["streamed"]) == (11, 5, False)


@pytest.mark.parametrize(
    "content_type",
    [b"application/json", b"text/event-stream", b"text/plain", b"application/x-ndjson", b""],
)
@pytest.mark.parametrize(
    "encoding", [(b"gzip",), (b"identity", b"gzip")], ids=["gzip", "two headers"]
)
async def test_an_encoded_answer_passes_usage_and_no_protector(
    content_type: bytes, encoding: tuple[bytes, ...], log: Log
) -> None:
    """gzip although identity was asked for (Wei-Shaw/claude-relay-service#1027)."""
    body = gzip.compress(b"data: {}\n\n")
    script = answering(
        content_type, body, lines=[b"Content-Encoding: " + value for value in encoding]
    )
    async with serve(script, log, "usage") as rig:
        answer = await post(rig, CHAT)
        assert (answer.status, answer.complete, answer.body) == (200, True, body)
    for name in ("redact", "guard"):
        async with serve(script, log, name, "usage") as rig:
            assert (await post(rig, CHAT)).status == 502


@pytest.mark.parametrize("names", [("redact",), ("guard",), ("usage", "redact")], ids="-".join)
@pytest.mark.parametrize(
    "content_type", [b"application/json", b"text/event-stream"], ids=["json", "sse"]
)
@pytest.mark.parametrize("body", [IMAGE, RESPONSE % OUTPUT], ids=["an event", "a body"])
async def test_protectors_let_nothing_pass_that_is_too_large_for_them(
    body: bytes, content_type: bytes, names: tuple[str, ...], log: Log
) -> None:
    """In an answer, they fail closed, whatever the body calls itself."""
    async with serve(answering(content_type, body), log, *names, route="dialect: openai") as rig:
        answer = await post(rig, RESPONSES)
        assert b"event_too_large" in answer.body
        assert b"AAAA" not in answer.body
        assert b"BBBB" not in answer.body
