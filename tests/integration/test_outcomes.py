"""The outcome of an exchange that the proxy itself has ended: what it refuses is `refused`, its own
defect is `internal_error`, and `intercepted` is left to interceptors.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from support.client import fetch
from support.interceptors import Feed, Log, Rig, Serve, Way
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream, stream_of

from interceptors import Abort, Interceptor, Outcome, Request, Response, ResponseHead
from proxy.config import parse_config
from proxy.dialects.mcp_interceptors import _First
from proxy.exchange import phases
from proxy.exchange.context import ExchangeContext

EVENTS = stream_of(b"data: 1\n\n")


@pytest.fixture
def serve(log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
    return Way().serve(log, monkeypatch)


async def only_outcome(rig: Any, outcome: str) -> dict[str, Any]:
    """The one exchange has ended so, in the log and in the metric; its log line."""
    assert await rig.outcomes() == [outcome]
    (line,) = rig.lines("exchange")
    for each in Outcome:
        assert rig.metric("weirpool_exchanges_total", route=line["route"], outcome=each.value) == (
            each == outcome
        )
    return dict(line)


@pytest.mark.parametrize(
    ("route", "request_of", "status"),
    [
        ('allowed_hosts: ["good.test"]', {}, 403),
        (
            'allowed_origins: ["https://good.test"]',
            {"headers": [("Origin", "https://bad.test")]},
            403,
        ),
        ("limits: {max_request_body_bytes: 10}", {"method": "POST", "body": bytes(20)}, 413),
        (
            "limits: {max_request_body_bytes: 10}",
            {"method": "POST", "body": bytes(20), "headers": [("Transfer-Encoding", "chunked")]},
            413,
        ),
        ("timeouts: {idle: 0.1}", {"method": "POST", "headers": [("Content-Length", "9")]}, 408),
    ],
)
async def test_what_the_proxy_refuses_is_refused(
    route: str, request_of: dict[str, Any], status: int, serve: Serve
) -> None:
    """403, 408 and 413 of the proxy, in the log and in the metric; no interceptor is involved."""
    async with serve(EVENTS, route=route) as rig:
        answer = await rig.fetch(**request_of)
        assert answer.status == status
        line = await only_outcome(rig, "refused")
        assert line["status"] == status


@pytest.mark.parametrize("limit", ["max_streams", "max_streams_per_client"])
async def test_a_limit_of_streams_refuses(limit: str, serve: Serve) -> None:
    """503 and 429 by a limit, beside a stream that lives."""
    feed = Feed()
    async with serve(feed.script, route=f"limits: {{{limit}: 1}}") as rig:
        feed.send(b"data: 1\n\n")
        await rig.start()
        assert (await rig.fetch()).status == (503 if limit == "max_streams" else 429)
        assert await rig.outcomes() == ["refused"]


async def test_no_route_is_refused(log: Log) -> None:
    """404 for a path without a route counts on the pseudo-route, which is there from the start."""
    config = parse_config(
        """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["http://127.0.0.1:9"]}]
  routes: [{path: /a, upstream: up}]
log: {level: error}
"""
    )
    async with open_upstream(EVENTS) as upstream, open_proxy(config) as proxy:
        assert (await fetch(proxy.port, "/no-route")).status == 404
        await only_outcome(Rig(upstream, proxy, log), "refused")


async def test_what_dialect_mcp_refuses_is_refused(serve: Serve) -> None:
    """A header that differs from the body is refused by the proxy, not by an interceptor of the
    route.
    """
    headers = [
        ("content-type", "application/json"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/list"),
    ]
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"}}'
    async with serve(EVENTS, route="dialect: mcp") as rig:
        assert (await rig.fetch(method="POST", headers=headers, body=body)).status == 400
        await only_outcome(rig, "refused")


class Answers(Interceptor):
    async def on_request(self, request: Request) -> Response:
        return Response(status=401)


class Aborts(Interceptor):
    async def on_request(self, request: Request) -> None:
        raise Abort("enough")


class Fails(Interceptor):
    async def on_request(self, request: Request) -> None:
        raise ValueError


class SetsNonsense(Interceptor):
    async def on_response(self, head: ResponseHead) -> None:
        head.headers["x-a"] = "a\r\nb"


@pytest.mark.parametrize("cls", [Answers, Aborts, Fails, SetsNonsense])
async def test_what_an_interceptor_does_stays_intercepted(
    cls: type[Interceptor], serve: Serve
) -> None:
    async with serve(EVENTS, cls) as rig:
        await rig.fetch()
        await only_outcome(rig, "intercepted")


async def test_an_answered_preflight_is_completed(serve: Serve) -> None:
    """No interceptor has answered it, and nothing was refused."""
    headers = [("Origin", "https://good.test"), ("Access-Control-Request-Method", "POST")]
    async with serve(EVENTS, route='allowed_origins: ["https://good.test"]') as rig:
        assert (await rig.fetch(method="OPTIONS", headers=headers)).status == 204
        await only_outcome(rig, "completed")


class Defect(Exception):
    pass


@pytest.mark.parametrize("where", ["admission", "request", "response", "relay", "watching", "mcp"])
@pytest.mark.parametrize("http_method", ["GET", "POST"])
async def test_a_defect_of_the_proxy_is_an_internal_error(
    where: str, http_method: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in an exchange the proxy itself raises: 500 or a broken response, one traceback, and
    its own outcome.
    """

    def fail(*_: object, **__: object) -> None:
        raise Defect

    async def fail_later(*_: object, **__: object) -> None:
        raise Defect

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await trio.sleep_forever()

    if where == "admission":
        monkeypatch.setattr("proxy.exchange.admission.Cors.of", fail)
    elif where == "request":
        monkeypatch.setattr(phases, "call_upstream", fail_later)
    elif where == "response":
        monkeypatch.setattr(phases, "on_response", fail_later)
    elif where == "relay":
        monkeypatch.setattr("proxy.exchange.phases.open_relay", fail)
    elif where == "watching":
        monkeypatch.setattr(ExchangeContext, "watch_client", fail)
    else:
        monkeypatch.setattr(_First, "on_request", fail_later)
    async with Way().serve(log, monkeypatch)(script, route="dialect: mcp") as rig:
        answer = await rig.fetch(method=http_method, body=b"{}" if http_method == "POST" else None)
        assert answer.status == (200 if where == "relay" else 500)
        assert answer.complete is (where != "relay")
        await only_outcome(rig, "internal_error")
        problems = [*rig.lines("internal_error"), *rig.lines("interceptor_failed")]
        assert len(problems) == 1
        log[:] = [
            line for line in log if line["event"] != "internal_error"
        ]  # the rig takes one for a failure of the test


def test_the_metric_has_both_from_the_start() -> None:
    """`refused` and `internal_error` are values of `Outcome`, and so labels that are there at 0."""
    assert (Outcome.REFUSED, Outcome.INTERNAL_ERROR) == ("refused", "internal_error")
