"""`redact` in a whole proxy on real sockets: LLM answers, streamed and not, other JSON, and when
held text is sent.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import trio
from support.interceptors import Feed, Serve, with_options
from support.upstream import Peer

from interceptors.redact import Redact

REDACT = with_options(Redact, ["sk-[A-Za-z0-9]{8}"])
LIMITS = "limits: {max_event_bytes: 65536}"
KEY = "sk-Zq3xV81L"
CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


def chunk(text: str, reason: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    message = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return f"data: {json.dumps(message)}\n\n".encode()


def leaves(text: str) -> bytes:
    """A chunk that was written anew."""
    delta = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    return delta % text.encode()


async def test_held_text_is_sent_as_soon_as_it_cannot_be_a_secret(serve_once: Serve) -> None:
    """The beginning of a text leaves at once, what could become a secret with the delta that
    decides.
    """
    feed = Feed()
    async with serve_once(feed.script, REDACT, route=LIMITS) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", CHAT, body=b"{}")
            feed.send(chunk("The key is sk-Zq3"))
            answer = await client.head()
            await client.read_until(answer, leaves("The key is "))
            feed.send(chunk("xV81L"))
            await client.read_until(answer, leaves("[redacted]"))
            feed.send(chunk("", "stop") + DONE)
            feed.end()
            await client.rest(answer)
        assert answer.complete
        left = leaves("The key is ") + leaves("[redacted]")
        assert answer.body == left + chunk("", "stop") + DONE


def sending(answers: dict[bytes, tuple[bytes, bytes]]) -> Any:
    """A script with an answer for each path: lines of its head, and its body."""

    async def script(peer: Peer) -> None:
        while True:
            lines, body = answers[(await peer.request()).target]
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n\r\n" % (len(body), lines)
            await peer.send(head + body)

    return script


JSON, STREAM = b"content-type: application/json", b"content-type: text/event-stream"


async def test_other_json_passes_uncollected(serve_once: Serve) -> None:
    """Larger than an event may be, with what would be a secret in an answer."""
    message = {"choices": [{"index": 0, "message": {"content": KEY}, "finish_reason": "stop"}]}
    file = b'{ "data": "sk-Zq3xV81L%s" }' % (b"x" * 100_000)
    answers = {b"/v1/files": (JSON, file), CHAT.encode(): (JSON, json.dumps(message).encode())}
    async with serve_once(sending(answers), REDACT, route=LIMITS) as rig:
        answer = await rig.fetch("/v1/files")
        assert (answer.status, answer.body) == (200, file)
        answer = await rig.fetch(CHAT, method="POST", body=b"{}")
        assert json.loads(answer.body)["choices"][0]["message"] == {"content": "[redacted]"}


CONTENT = [
    {"type": "text", "text": f"key {KEY}"},
    {"type": "resource", "resource": {"uri": f"x:{KEY}", "text": "t"}},
]
RESULT = {"content": CONTENT, "structuredContent": {"token": KEY, KEY: 1.50}}
ERROR = {"code": -32000, "message": f"bad key {KEY}", "data": [{"key": KEY}]}
MESSAGES: list[Any] = [
    {"jsonrpc": "2.0", "id": 5, "result": RESULT},
    {"jsonrpc": "2.0", "id": "7", "result": {"contents": [{"uri": "a", "text": KEY}]}},
    {"jsonrpc": "2.0", "id": 6, "error": ERROR},
]
CALL = b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"f"}}'
MCP = f"dialect: mcp, {LIMITS}"


@pytest.mark.parametrize("content_type", [JSON, STREAM, b"content-type: text/plain"])
async def test_mcp_results_are_redacted(content_type: bytes, serve_once: Serve) -> None:
    """Every string, names and values, decoded; in results, errors and batches."""
    asked: list[str] = []
    answers = {}
    for message in (*MESSAGES, MESSAGES[:2]):
        text = json.dumps(message, indent=1).replace("\n", " ")
        for sent in (text, text.replace(KEY, "\\u0073k-Zq3xV81L")):
            frame = "data: %s\n\n" if content_type == STREAM else "%s"
            answers[b"/%d" % len(asked)] = content_type, (frame % sent).encode()
            asked.append(frame % text.replace(KEY, "[redacted]"))
    async with serve_once(sending(answers), REDACT, route=MCP) as rig:
        for number, expected in enumerate(asked):
            answer = await rig.fetch(f"/{number}", method="POST", body=CALL)
            assert (answer.complete, answer.body.decode()) == (True, expected)
            if content_type != STREAM:
                assert answer.all("content-length") == [str(len(expected)).encode()]


async def test_what_redact_cannot_see_on_mcp_is_refused(serve_once: Serve) -> None:
    """An encoded body, a body above the limit, and one that is not JSON is searched as text."""
    body = json.dumps(MESSAGES[0]).encode()
    answers = {
        b"/gzip": (JSON + b"\r\ncontent-encoding: gzip", gzip.compress(body)),
        b"/large": (JSON, body + b" " * 70_000),
        b"/cut": (JSON, b'{"jsonrpc": "2.0", "result": ' + KEY.encode()),
    }
    async with serve_once(sending(answers), REDACT, route=MCP) as rig:
        for path in ("/gzip", "/large"):
            answer = await rig.fetch(path, method="POST", body=CALL)
            assert answer.status == 502
            assert b"sk-" not in answer.body
        answer = await rig.fetch("/cut", method="POST", body=CALL)
        assert answer.body == b'{"jsonrpc": "2.0", "result": [redacted]'
