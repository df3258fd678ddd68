"""What a response's body is, in a whole proxy on real sockets: its first bytes decide where a
dialect is expected, and what is larger than `max_event_bytes` passes if no interceptor needs it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
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
SECRET = b"sk-abcdefgh12345"
FIRST = (
    b'data: {"choices":[{"index":0,"delta":{"content":"key sk-abcdefgh12345"},"finish_reason":null}]}'
    b"\n\n"
)
LAST = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,'
    b'"completion_tokens":5}}\n\ndata: [DONE]\n\n'
)
JSON, SSE, TEXT, JSON_LINES = (
    *(b"application/json", b"text/event-stream", b"text/plain"),
    b"application/x-ndjson",
)
TYPES = (b"text/plain; charset=utf-8", b"", JSON, b"application/octet-stream", SSE)
FRAMINGS = ("length", "chunks", "close")
OPENAI = "dialect: openai"


def head(content_type: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    types = [b"Content-Type: " + content_type] if content_type else []
    return b"\r\n".join([b"HTTP/1.1 " + status, *types, *lines]) + b"\r\n\r\n"


class Bodies(Rig):
    """A proxy whose upstream answers as `answering` has been called last."""

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            begin, body, by = self.answer
            await peer.send(begin)
            if by == "chunks":
                for byte in body:
                    await peer.send(b"1\r\n%c\r\n" % byte)
                    await trio.sleep(0)
                await peer.end()
            else:
                await peer.send(body)
            if by == "close":
                return

    def answering(
        self,
        content_type: bytes,
        body: bytes,
        by: str = "length",
        *lines: bytes,
        status: bytes = b"200 OK",
    ) -> None:
        framing = {
            "length": b"Content-Length: %d" % len(body),
            "chunks": b"Transfer-Encoding: chunked",
            "close": b"Connection: close",
        }[by]
        self.answer = head(content_type, framing, *lines, status=status), body, by

    async def post(self, path: str = CHAT) -> Answer:
        return await self.fetch(path, method="POST", body=b"{}")

    @property
    def usage(self) -> dict[str, Any]:
        return self.lines("usage")[-1]


@asynccontextmanager
async def serve(
    log: Log, *names: str, route: str = "", script: Script | None = None
) -> AsyncIterator[Bodies]:
    """A proxy with these built-ins. `script`: another upstream."""
    rig: Bodies

    async def answer(peer: Peer) -> None:
        await (rig.script if script is None else script)(peer)

    async with open_upstream(answer) as upstream:
        entries = ", ".join(BUILT_INS[name] for name in names)
        config = config_for(upstream.url, interceptors=entries, names=", ".join(names), route=route)
        async with open_proxy(config) as proxy:
            rig = Bodies(upstream, proxy, log)
            with trio.fail_after(20):
                yield rig
                for client in rig.clients:
                    await client.aclose()
                await rig.everything_is_back()


def texts(body: bytes) -> str:
    """What a client reads in a chat stream."""
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


# --- event streams under another name


async def test_what_looks_like_sse_is_a_stream_for_all_interceptors(log: Log) -> None:
    """Whatever its type and framing, secrets are redacted and tokens counted."""
    async with serve(log, "redact", "guard", "usage") as rig:
        for content_type, by in product(TYPES, FRAMINGS):
            rig.answering(content_type, b"\xef\xbb\xbf\n" + FIRST + LAST, by)
            answer = await rig.post()
            assert (answer.status, answer.complete) == (200, True)
            assert texts(answer.body) == "key [redacted]"
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert answer.all("content-type") == ([content_type] if content_type else [])
            assert answer.all("content-length") == []
            usage = rig.usage
            assert (usage["input"], usage["output"], usage["streamed"]) == (11, 5, True)


@pytest.mark.parametrize("names", [("usage",), ("usage", "redact", "guard")], ids="-".join)
async def test_each_event_leaves_as_it_arrives(names: tuple[str, ...], log: Log) -> None:
    """The client has the first event before the upstream sends the second."""
    types = iter(TYPES)

    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.send(head(next(types), b"Transfer-Encoding: chunked"))
            await peer.chunk(FIRST)
            await gate.wait()
            await peer.chunk(LAST)
            await peer.end()

    async with serve(log, *names, script=script) as rig:
        for _ in TYPES:
            gate = trio.Event()
            client, answer = await rig.start(CHAT, "POST")
            await client.read_until(answer, b"\n\n")
            gate.set()
            await client.rest(answer)
            assert answer.complete
            expected = "key [redacted]" if "redact" in names else "key sk-abcdefgh12345"
            assert texts(answer.body) == expected


async def test_the_first_bytes_decide_and_no_more_is_waited_for(log: Log) -> None:
    """`:` of a comment is enough for the head to leave, and an empty line is not."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(TEXT, b"Transfer-Encoding: chunked"))
        await peer.chunk(b"\n")
        await gate.wait()
        await peer.chunk(b":")
        await peer.wait_closed()

    async with serve(log, "redact", script=script) as rig:
        client = await rig.client()
        await client.send("POST", CHAT, body=b"{}")
        with trio.move_on_after(0.1) as waiting:
            await client.head()
        assert waiting.cancelled_caught
        gate.set()
        answer = await client.head()
        assert (answer.status, answer.all("x-accel-buffering")) == (200, [b"no"])


async def test_what_does_not_look_like_sse_passes_exact(log: Log) -> None:
    """On a path of an LLM, with its length and its headers as they were."""
    async with serve(log, "redact", "usage", route=OPENAI) as rig:
        for content_type, body in (
            (TEXT, b"dat: sk-abcdefgh12345\n\ndata: x\n\n"),
            (TEXT, b"data\n\ndata: sk-abcdefgh12345\n\n"),  # a field without a colon
            (b"", b"Data: sk-abcdefgh12345\n\n"),  # an unknown field
            (b"text/html", b"\n\n<html>data: sk-abcdefgh12345</html>"),
            (b"audio/mpeg", b"\xff\xfb\x90data: " * 20),
            (TEXT, b""),
            (TEXT, b"\n\n\r\n"),
            (TEXT, b"retr"),  # a part of a field's name
        ):
            for by in FRAMINGS:
                rig.answering(content_type, body, by)
                answer = await rig.post()
                assert (answer.status, answer.body, answer.complete) == (200, body, True)
                length = [b"%d" % len(body)] if by == "length" else []
                assert answer.all("content-length") == length
                assert answer.all("x-accel-buffering") == []


EVENT = b'data: {"note":"sk-abcdefgh12345"}\n\n'
ONE, TWO = b'{"a":"sk-abcdefgh12345"}', b'{"a":"sk-abcdefgh12345"}\n{}\n'


@pytest.mark.parametrize(
    ("dialect", "seen", "passed"),
    [
        (
            "openai",
            [("/v1/images/generations", JSON, EVENT), ("/v1/anything", JSON, EVENT),
             (CHAT, JSON_LINES, ONE), (CHAT, JSON_LINES, TWO)],
            [("/api/chat", JSON_LINES, ONE), ("/api/chat", JSON_LINES, TWO)],
        ),
        (
            "anthropic",
            [("/v1/complete", JSON, EVENT), ("/v1/messages", JSON_LINES, ONE),
             ("/v1/messages", JSON_LINES, TWO)],
            [("/v1/messages/batches/b/results", b"application/x-jsonl", ONE),
             ("/v1/messages/batches/b/results", b"application/x-jsonl", TWO)],
        ),
        (
            "mcp",
            [("/mcp", JSON, EVENT), ("/mcp", b"application/jsonl", ONE),
             ("/mcp", b"application/jsonl", TWO)],
            [],
        ),
        (
            "generic",
            [("/v1/messages", JSON, EVENT), ("/v1/responses/", JSON, EVENT),
             (RESPONSES, JSON_LINES, ONE), (RESPONSES, JSON_LINES, TWO)],
            [("/v1/images/generations", JSON, EVENT), ("/events", JSON, EVENT)],
        ),
    ],
)  # fmt: skip
async def test_where_the_first_bytes_decide(
    dialect: str,
    seen: list[tuple[str, bytes, bytes]],
    passed: list[tuple[str, bytes, bytes]],
    log: Log,
) -> None:
    """On routes of a dialect and on paths of LLM answers; elsewhere the content type does.
    Official SDKs read JSON lines as JSON where they expect an answer.
    """
    async with serve(log, "redact", route=f"dialect: {dialect}") as rig:
        for path, content_type, body in seen + passed:
            rig.answering(content_type, body)
            is_seen = (path, content_type, body) in seen
            expected = body.replace(SECRET, b"[redacted]") if is_seen else body
            assert (await rig.post(path)).body == expected, (path, content_type, body)


async def test_a_response_without_a_body_is_not_waited_for(log: Log) -> None:
    """HEAD, and the statuses that have none."""
    statuses = iter([b"200 OK", b"204 No Content", b"304 Not Modified"])

    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.send(head(TEXT, status=next(statuses)))

    async with serve(log, "redact", script=script) as rig:
        for method, status in (("HEAD", 200), ("POST", 204), ("POST", 304)):
            client, answer = await rig.start(CHAT, method)
            assert answer.status == status
            await client.aclose()


async def test_an_upstream_that_is_silent_after_its_head_has_its_time(log: Log) -> None:
    """The idle deadline bounds the wait for the first bytes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(TEXT, b"Transfer-Encoding: chunked"))
        await peer.wait_closed()

    async with serve(log, "redact", route="timeouts: {idle: 0.1}", script=script) as rig:
        answer = await rig.post()
        assert answer.status == 504
        assert json.loads(answer.body)["error"]["type"] == "upstream_read_timeout"


async def test_a_stream_under_another_name_ends_and_beats_as_a_stream(log: Log) -> None:
    """Heartbeats go out in its silence, and an error event when its upstream breaks off."""
    gate = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(TEXT, b"Transfer-Encoding: chunked"))
        await peer.chunk(FIRST)
        await gate.wait()

    beats = "heartbeat: {interval: 0.05}, dialect: openai"
    async with serve(log, "redact", route=beats, script=script) as rig:
        client, answer = await rig.start(CHAT, "POST")
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
        length = b"Content-Length: %d" % len(FIRST + LAST)
        await peer.send(head(TEXT, length) + FIRST + LAST)

    early = "heartbeat: {interval: 0.02, early: true}"
    async with serve(log, "redact", route=early, script=script) as rig:
        client = await rig.client()
        await client.send("POST", CHAT, [("Accept", "text/event-stream")], body=b"{}")
        answer = await client.head()
        gate.set()
        await client.rest(answer)
        assert (answer.complete, texts(answer.body)) == (True, "key [redacted]")


async def test_a_client_that_leaves_ends_it_all(log: Log) -> None:
    """While the first bytes are awaited or a large body passes: the upstream is closed."""
    bodies = [
        (TEXT, b""),
        (TEXT, b"d"),
        (SSE, b'{"a":"' + b"A" * 100_000),
        (SSE, b"data: " + b"A" * 1_500_000),
        (JSON, b'{"a":"' + b"A" * 1_500_000),
    ]
    sending = trio.Event()

    async def script(peer: Peer) -> None:
        content_type, body = bodies[peer.upstream.accepted - 1]
        await peer.request()
        await peer.send(head(content_type, b"Content-Length: 9000000") + body)
        sending.set()
        await peer.wait_closed()

    async with serve(log, "usage", route=OPENAI, script=script) as rig:
        for _, body in bodies:
            sending = trio.Event()
            client = await rig.client()
            await client.send("POST", CHAT, body=b"{}")
            await sending.wait()
            if len(body) > 1_000_000:
                await client.head()
                await client.read_some()
            client.reset()
            while rig.upstream.open:
                await trio.sleep(0.001)


# --- JSON under the name of an event stream

ERROR = b'{"error":{"message":"bad sk-abcdefgh12345","type":"invalid_request_error","code":400}}'


async def test_json_under_text_event_stream_is_json_for_interceptors(log: Log) -> None:
    """The secret is redacted, what leaves is JSON, and the failure is known to `usage`."""
    async with serve(log, "usage", "redact", route=OPENAI) as rig:
        for status, by in product((b"400 Bad Request", b"200 OK"), FRAMINGS):
            rig.answering(SSE, b"\n " + ERROR, by, status=status)
            answer = await rig.post()
            assert (answer.status, answer.complete) == (int(status[:3]), True)
            assert json.loads(answer.body)["error"]["message"] == "bad [redacted]"
            assert rig.usage["error"] == "invalid_request_error"


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

    async with serve(log, "redact", route="heartbeat: {interval: 0.02}", script=script) as rig:
        client, answer = await rig.start(CHAT, "POST")
        with trio.move_on_after(0.1):
            answer.body += await client.read_some()
        gate.set()
        await client.rest(answer)
        assert json.loads(answer.body.removeprefix(b": ping\n"))


@pytest.mark.parametrize("names", [(), ("redact",)])
async def test_json_as_an_event_stream_that_reconnects(names: tuple[str, ...], log: Log) -> None:
    """It is not a stream that could resume: it is sent whole, and upstream is called once."""
    async with serve(log, *names, route="reconnect: {enabled: true}") as rig:
        rig.answering(SSE, ERROR, "chunks")
        answer = await rig.fetch(RESPONSES)
        assert answer.complete
        expected = ERROR.replace(SECRET, b"[redacted]") if names else ERROR
        assert json.loads(answer.body) == json.loads(expected)
        assert rig.upstream.accepted == 1


async def test_a_stream_under_another_type_continues_over_connections(log: Log) -> None:
    """The next response may have the wrong type, too; one that is not a stream is refused."""
    bodies = [b"id: 1\ndata: 1\n\n", b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n", b"no stream"]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(TEXT, b"Transfer-Encoding: chunked"))
        await peer.chunk(bodies.pop(0))

    quick = "reconnect: {enabled: true, initial_backoff: 0.001, max_backoff: 0.01, max_attempts: 1}"
    async with serve(log, "redact", route=quick, script=script) as rig:
        answer = await rig.fetch(RESPONSES)
        data = [line for line in answer.body.splitlines() if line.startswith(b"data: ")]
        assert data[:2] == [b"data: 1", b"data: 2"]
        assert (answer.complete, rig.upstream.accepted) == (False, 3)
        assert b"no stream" not in answer.body


# --- larger than an event may be

LIMITED = "dialect: openai, limits: {max_event_bytes: 65536}"
EMBEDDINGS = b'{"data":[%s],"usage":{"prompt_tokens":800}}' % b",".join([b"0.0123456789"] * 10_000)
IMAGE = (
    b'data: {"type":"response.image_generation_call.partial_image","output_index":0,"item_id":"ig_1",'
    b'"partial_image_index":0,"partial_image_b64":"%s"}\n\n' % (b"A" * 200_000)
)
OUTPUT = b'{"type":"image_generation_call","id":"ig_1","result":"%s"}' % (b"B" * 200_000)
RESPONSE = (
    b'{"object":"response","status":"completed","model":"gpt-x","output":[%s],"usage":'
    b'{"input_tokens":11,"output_tokens":5}}'
)


async def test_json_that_is_not_an_answer_is_not_collected(log: Log) -> None:
    """Embeddings and the like are exact at any size, through every built-in."""
    async with serve(log, "usage", "guard", "redact", route=LIMITED) as rig:
        rig.answering(JSON, EMBEDDINGS)
        for path in (
            "/v1/embeddings",
            "/openai/deployments/x/embeddings",
            "/v1/files/abc/content",
            "/images/generations",
            "/v1/models/org/name",
        ):
            answer = await rig.post(path)
            assert (answer.status, answer.body == EMBEDDINGS) == (200, True), path
            assert answer.all("content-length") == [b"%d" % len(EMBEDDINGS)]


async def test_what_is_large_passes_usage(log: Log) -> None:
    """Exact, and a body with its length where it has one. The tokens count if the event that has
    them is small enough.
    """
    completed = b'data: {"type":"response.completed","response":%s}\n\n'
    async with serve(log, "usage", route=LIMITED) as rig:
        for content_type, by in product((SSE, JSON), ("length", "close")):
            for body, tokens in (
                (IMAGE + completed % RESPONSE % b"", (11, 5)),
                (IMAGE + completed % RESPONSE % OUTPUT, (None, None)),
                (RESPONSE % OUTPUT, (None, None)),
            ):
                rig.answering(content_type, body, by)
                answer = await rig.post(RESPONSES)
                assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
                assert (rig.usage["input"], rig.usage["output"]) == tokens
                has_length = by == "length" and content_type == JSON and body[:1] == b"{"
                length = [b"%d" % len(body)] if has_length else []
                assert answer.all("content-length") == length


async def test_json_under_another_type_is_json_for_interceptors(log: Log) -> None:
    """An unstreamed answer: its secret is redacted, and its tokens are counted."""
    message = {"role": "assistant", "content": "key sk-abcdefgh12345"}
    usage = {"prompt_tokens": 11, "completion_tokens": 5}
    body = json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage}).encode()
    async with serve(log, "redact", "usage") as rig:
        for content_type in (*TYPES[:2], b"application/octet-stream", b"text/json"):
            for before in (b"", b"\n  ", b"\xef\xbb\xbf"):
                rig.answering(content_type, before + body, "chunks")
                got = json.loads((await rig.post()).body.decode("utf-8-sig"))
                assert got["choices"][0]["message"]["content"] == "key [redacted]"
                line = rig.usage
                assert (line["input"], line["output"], line["streamed"]) == (11, 5, False)


@pytest.mark.parametrize("name", BUILT_INS)
async def test_an_encoded_answer_passes_usage_and_no_protector(name: str, log: Log) -> None:
    """gzip although identity was asked for (Wei-Shaw/claude-relay-service#1027)."""
    body = gzip.compress(b"data: {}\n\n")
    async with serve(log, name) as rig:
        for content_type in (JSON, SSE, TEXT, JSON_LINES, b""):
            for codings in ((b"gzip",), (b"identity", b"gzip")):
                lines = [b"Content-Encoding: " + coding for coding in codings]
                rig.answering(content_type, body, "length", *lines)
                answer = await rig.post()
                assert answer.status == (200 if name == "usage" else 502)
                assert (answer.body == body) == (name == "usage")


@pytest.mark.parametrize("names", [("redact",), ("guard",), ("usage", "redact")], ids="-".join)
async def test_protectors_refuse_what_is_too_large(names: tuple[str, ...], log: Log) -> None:
    """In an answer, they fail closed, whatever the body calls itself."""
    async with serve(log, *names, route=LIMITED) as rig:
        for content_type, body in product((JSON, SSE), (IMAGE, RESPONSE % OUTPUT)):
            rig.answering(content_type, body)
            answer = await rig.post(RESPONSES)
            assert b"event_too_large" in answer.body
            assert b"AAAA" not in answer.body
            assert b"BBBB" not in answer.body
