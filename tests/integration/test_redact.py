"""`redact` behind a whole proxy on real sockets: answers of LLMs streamed and not, other JSON, and when held text leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from support.interceptors import Feed, Log, Rig
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

REDACT = '{name: redact, use: redact, options: {patterns: ["sk-[A-Za-z0-9]{8}"]}}'


@asynccontextmanager
async def serve(script: Script, log: Log) -> AsyncIterator[Rig]:
    async with open_upstream(script) as upstream:
        config = config_for(upstream.url, interceptors=REDACT, names="redact", route="limits: {max_event_bytes: 65536}")
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            for client in rig.clients:
                await client.aclose()
            await rig.everything_is_back()


def chunk(text: str, reason: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode()


def leaves(text: str) -> bytes:
    """A chunk that was written anew."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n' % text.encode()


async def test_what_waits_is_with_the_client_as_soon_as_it_is_no_secret(log: Log) -> None:
    """The beginning of a text leaves at once, what could become a secret with the delta that decides."""
    feed = Feed()
    async with serve(feed.script, log) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send("POST", "/v1/chat/completions", body=b"{}")
            feed.send(chunk("The key is sk-Zq3"))
            answer = await client.head()
            await client.read_until(answer, leaves("The key is "))
            feed.send(chunk("xV81L"))
            await client.read_until(answer, leaves("[redacted]"))
            feed.send(chunk("", "stop"))
            feed.send(b"data: [DONE]\n\n")
            feed.end()
            await client.rest(answer)
        assert answer.complete
        assert answer.body == leaves("The key is ") + leaves("[redacted]") + chunk("", "stop") + b"data: [DONE]\n\n"


async def test_json_that_is_no_answer_passes_as_it_is_and_uncollected(log: Log) -> None:
    """Larger than an event may be, with what would be a secret in an answer; and an answer is redacted."""
    answers = {
        b"/v1/files": b'{ "data": "sk-Zq3xV81L%s" }' % (b"x" * 100_000),
        b"/v1/chat/completions": b'{"choices": [{"index": 0, "message": {"content": "sk-Zq3xV81L"}, "finish_reason": "stop"}]}',
    }

    async def script(peer: Peer) -> None:
        body = answers[(await peer.request()).target]
        await peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

    async with serve(script, log) as rig:
        answer = await rig.fetch("/v1/files")
        assert (answer.status, answer.body) == (200, answers[b"/v1/files"])
        answer = await rig.fetch("/v1/chat/completions", method="POST", body=b"{}")
        assert json.loads(answer.body)["choices"][0]["message"] == {"content": "[redacted]"}
