"""`usage` in a whole proxy on real sockets: the metrics page, the log, a client's key, and a client
that leaves.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from support.interceptors import Feed, Log, Rig, until
from support.proxy import config_for, open_proxy
from support.upstream import Script, open_upstream, stream_of

from interceptors.api_keys import hash_key

ANN = "wk-ann-Zq3xV8"
KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(ANN)}"}}, upstream: "Bearer upstream-8sQ"}}}}'
USAGE = "{name: usage, use: usage, options: {ask: true}}"

START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude","content":[],'
    b'"usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
)
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}\n\n'
CHUNK = b'data: {"model":"gpt","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}],"usage":null}\n\n'
TOLD = b'data: {"model":"gpt","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":0}}\n\n'
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def serve(script: Script, log: Log) -> AsyncIterator[Rig]:
    async with open_upstream(script) as upstream:
        config = config_for(upstream.url, interceptors=f"{KEYS}, {USAGE}", names="keys, usage")
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            for client in rig.clients:
                await client.aclose()
            await rig.everything_is_back()


async def test_tokens_are_on_the_metrics_page_by_the_clients_name(log: Log) -> None:
    """The upstream is asked for usage, the client does not see it, and neither its key nor
    upstream's is anywhere.
    """
    async with serve(stream_of(CHUNK, TOLD, DONE), log) as rig:
        body, key = b'{"model":"gpt-latest","stream":true}', [("x-api-key", ANN)]
        answer = await rig.fetch("/v1/chat/completions", method="POST", headers=key, body=body)
        assert answer.body == CHUNK + DONE
        (sent,) = rig.upstream.requests
        assert json.loads(sent.body) == {
            **json.loads(body),
            "stream_options": {"include_usage": True},
        }
        assert sent.all("content-length") == [str(len(sent.body)).encode()]
        page = (await rig.fetch("/metrics")).body.decode()
        labels = 'client="ann",interceptor="usage",{}model="gpt",route="/"'
        samples = {line for line in page.splitlines() if line.startswith("weirpool_llm_")}
        assert samples == {
            f"weirpool_llm_requests_total{{{labels.format('')}}} 1.0",
            *(
                f"weirpool_llm_tokens_total{{{labels.format(kind)}}} {count}"
                for kind, count in (('kind="input",', 5.0), ('kind="output",', 0.0))
            ),
        }
        (line,) = rig.lines("usage")
        keys = ("model", "client", "outcome", "output")
        assert [line[key] for key in keys] == ["gpt", "ann", "completed", 0]
        assert ANN not in page + str(log)
        assert "upstream-8sQ" not in page + str(log)


async def test_what_was_reported_counts_when_the_client_leaves(log: Log) -> None:
    """Anthropic has reported the input by then: it is counted, once, and the line names how the
    answer ended.
    """
    feed = Feed()
    async with serve(feed.script, log) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            body = b'{"model":"claude-latest","stream":true}'
            await client.send("POST", "/v1/messages", [("x-api-key", ANN)], body)
            feed.send(START + DELTA)
            await client.read_until(await client.head(), DELTA)
        client.reset()
        await until(lambda: rig.lines("usage"))
        (line,) = rig.lines("usage")
        assert (line["outcome"], line["input"], line["output"]) == ("client_disconnected", 25, 1)
        assert (line["finish_reason"], line["streamed"], line["model"]) == (None, True, "claude")
        labels = {"route": "/", "model": "claude", "client": "ann", "interceptor": "usage"}
        assert rig.metric("weirpool_llm_tokens_total", kind="input", **labels) == 25
        assert rig.metric("weirpool_llm_requests_total", **labels) == 1
