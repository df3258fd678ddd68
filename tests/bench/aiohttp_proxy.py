"""aiohttp, client and server, on uvloop: the fastest that one can write in Python in an afternoon.
A baseline.
"""

from __future__ import annotations

import json
import os
import sys

import aiohttp
import uvloop
from aiohttp import web

UPSTREAM = os.environ["UPSTREAM"]


async def proxy(request: web.Request) -> web.StreamResponse:
    session: aiohttp.ClientSession = request.app["session"]
    headers = {
        key: value
        for key, value in request.headers.items()
        if key.lower() not in ("host", "content-length")
    }
    data = await request.read() if request.method == "POST" else None
    async with session.request(
        request.method, UPSTREAM + request.path_qs, headers=headers, data=data
    ) as upstream:
        dropped = ("transfer-encoding", "connection")
        answer = {
            key: value for key, value in upstream.headers.items() if key.lower() not in dropped
        }
        response = web.StreamResponse(status=upstream.status, headers=answer)
        await response.prepare(request)
        if request.path == "/edit":
            pending = b""
            async for data in upstream.content.iter_any():
                *events, pending = (pending + data).split(b"\n\n")
                out = []
                for event in events:
                    message = json.loads(event.removeprefix(b"data: "))
                    message["i"] = 2
                    out.append(b"data: " + json.dumps(message).encode() + b"\n\n")
                if out:
                    await response.write(b"".join(out))
        else:
            async for data in upstream.content.iter_any():
                await response.write(data)
        await response.write_eof()
        return response


async def session(app: web.Application) -> object:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    app["session"] = aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False
    )
    yield
    await app["session"].close()


if __name__ == "__main__":
    uvloop.install()
    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", proxy)
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, backlog=4096, print=None
    )
