"""The naive proxy: Quart-Trio and httpx, written as most people would. A baseline, not an example."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import httpx
from quart import Response, request
from quart_trio import QuartTrio

UPSTREAM = os.environ["UPSTREAM"]
app = QuartTrio(__name__)
app.config["RESPONSE_TIMEOUT"] = None
client: httpx.AsyncClient


@app.before_serving
async def start() -> None:
    global client
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(base_url=UPSTREAM, timeout=None, limits=limits)


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
async def proxy(path: str) -> Response:
    headers = {
        key: value
        for key, value in request.headers.items()
        if key.lower() not in ("host", "remote-addr")
    }
    upstream = await client.send(
        client.build_request(
            request.method, "/" + path, headers=headers, content=await request.get_data()
        ),
        stream=True,
    )
    dropped = ("transfer-encoding", "connection", "content-length")
    answer = {key: value for key, value in upstream.headers.items() if key.lower() not in dropped}

    async def body() -> AsyncIterator[bytes]:
        try:
            if path == "edit":
                pending = b""
                async for data in upstream.aiter_raw():
                    *events, pending = (pending + data).split(b"\n\n")
                    for event in events:
                        message = json.loads(event.removeprefix(b"data: "))
                        message["i"] = 2
                        yield b"data: " + json.dumps(message).encode() + b"\n\n"
            else:
                async for data in upstream.aiter_raw():
                    yield data
        finally:
            await upstream.aclose()

    return Response(body(), status=upstream.status_code, headers=answer)
