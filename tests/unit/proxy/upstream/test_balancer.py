"""The balancer on real sockets: what a session's key does, which failures count, and that
cancelling it leaks nothing.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import pytest
import trio
from support.upstream import Peer, Script, answering, open_upstream
from trio.testing import MockClock

from proxy.errors import ConnectFailed, NoEndpoint, OutOfResources, ReadFailed, UpstreamFailure
from proxy.upstream import (
    Balancer,
    Checks,
    Endpoint,
    Endpoints,
    Http1Transport,
    Resolver,
    RetryPolicy,
    UpstreamCall,
    UpstreamResponse,
    dial,
)
from proxy.upstream.origin import Origin

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def balancer(*urls: str, failures: int = 100, checks: Checks | None = None) -> Balancer:
    endpoints = Endpoints([Endpoint(url) for url in urls], consecutive_failures=failures)
    return Balancer("up", Http1Transport(max_connections=10), endpoints, checks=checks)


def call(method: str = "GET", target: bytes = b"/", **fields: Any) -> UpstreamCall:
    length = [(b"content-length", b"0")] if method == "POST" else []
    return UpstreamCall(method, target, [(b"host", b"ignored"), *length], **fields)


async def finish(response: UpstreamResponse) -> Endpoint:
    """Read to the end and close."""
    while not response.body.complete:
        await response.body.wait_readable()
        response.body.receive(bytearray(65536), 0)
    response.body.close()
    return response.endpoint


good = answering(OK)


async def resets(peer: Peer) -> None:
    await peer.request()
    peer.reset()


def good_then_closes(connections: int) -> Script:
    """The first connections are closed when their second request arrives."""

    async def script(peer: Peer) -> None:
        is_first = peer.upstream.accepted <= connections
        await peer.request()
        await peer.send(OK)
        if is_first:
            await peer.request()
        else:
            await good(peer)

    return script


def idle(transport: Balancer) -> bool:
    """Nothing is outstanding, lent or waited for."""
    return not any(item.outstanding for item in transport.endpoint_states()) and not any(
        item.lent or item.waiting for item in transport.statistics()
    )


async def test_any_bytes_may_be_a_sessions_key() -> None:
    """A caller that knows the key ties the session to an endpoint, and asks with the key."""
    key = b"/messages?session=1"
    async with open_upstream(good) as one, open_upstream(good) as two:
        transport = balancer(one.url, two.url)
        endpoint = await finish(await transport.call(call()))
        assert transport.sessions.find(key) is None
        transport.sessions.remember(key, endpoint)
        for _ in range(5):
            assert await finish(await transport.call(call("POST", session=key))) is endpoint
        transport.sessions.forget(key)
        assert transport.sessions.find(key) is None
        assert idle(transport)
        await transport.aclose()


async def test_a_call_may_be_sent_a_second_time_as_it_was() -> None:
    """Base path and Host belong to the attempt. Without a retry policy, nothing is sent twice."""
    async with open_upstream(good) as upstream:
        transport = balancer(f"{upstream.url}/base")
        again = call(target=b"/x")
        for _ in range(2):
            await finish(await transport.call(again))
        assert (again.target, again.headers) == (b"/x", [(b"host", b"ignored")])
        await transport.aclose()
    assert [item.target for item in upstream.requests] == [b"/base/x"] * 2
    async with open_upstream(resets) as upstream:
        with pytest.raises(ReadFailed):
            await balancer(upstream.url).call(call())
    assert len(upstream.requests) == 1


async def test_a_kept_connection_that_was_closed_is_not_the_endpoints_failure() -> None:
    """A server may close one just when the next request is written. A retry takes a new connection,
    because a second kept one may be dead, too.
    """
    async with open_upstream(good_then_closes(2)) as upstream:
        transport = balancer(upstream.url, failures=1)
        for count in (2, 1):
            for response in [
                await transport.call(call(retry=RetryPolicy(2, 1))) for _ in range(count)
            ]:
                await finish(response)
        (state,) = transport.endpoint_states()
        assert (state.state, state.failures, state.retries) == ("up", 0, 1)
        assert idle(transport)
        await transport.aclose()
    assert (upstream.accepted, len(upstream.requests)) == (3, 4)


async def test_when_every_endpoint_is_out(autojump_clock: MockClock) -> None:
    """In whole seconds, rounded up, and at least one."""
    transport = balancer("http://127.0.0.1:1", failures=1)
    now = trio.current_time()
    transport.endpoints.pin(transport.endpoints.all[0], now).fail(now)
    for waited, retry_after_s in ((0, 10), (8.5, 2), (1, 1)):
        await trio.sleep(waited)
        with pytest.raises(NoEndpoint) as caught:
            await transport.call(call())
        assert caught.value.retry_after_s == retry_after_s


@pytest.mark.parametrize("script", [good, resets])
async def test_cancelled_anywhere_it_leaks_nothing(script: Script) -> None:
    """After each number of the loop's turns, from before the first to after the last attempt."""
    finished = 0
    async with open_upstream(script) as one, open_upstream(script) as two:
        transport = balancer(one.url, two.url, failures=1_000_000)
        policy = RetryPolicy(3, 1)

        async def ask() -> None:
            nonlocal finished
            with suppress(ReadFailed):
                (await transport.call(call(retry=policy))).body.close()
            finished += 1

        for turns in range(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert idle(transport)
            if finished > 10:
                break
        assert 10 < finished < 100
        await transport.aclose()


# Limits of this machine


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[UpstreamFailure]:
    """What the next connections fail with; the last one repeats."""
    problems: list[UpstreamFailure] = [OutOfResources("Too many open files")]

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        raise problems.pop(0) if len(problems) > 1 else problems[0]

    monkeypatch.setattr(dial, "connect", connect)
    return problems


async def test_a_limit_of_the_proxy_is_not_retried(problems: list[UpstreamFailure]) -> None:
    transport = balancer("http://one.test", "http://127.0.0.1:9", failures=1)
    for _ in range(4):
        with pytest.raises(OutOfResources):
            await transport.call(call(retry=RetryPolicy(5, 1)))
    assert [
        (item.state, item.failures, item.ejections, item.retries)
        for item in transport.endpoint_states()
    ] == [("up", 0, 0, 0)] * 2
    assert idle(transport)


async def test_a_check_that_fails_for_lack_of_resources_ejects_no_endpoint(
    problems: list[UpstreamFailure], autojump_clock: MockClock
) -> None:
    """Afterwards, one fails for another reason, and does."""
    problems[:] = [*problems * 3, ConnectFailed("x")]
    transport = balancer("http://one.test", failures=1, checks=Checks("/", 1))
    states = []
    with trio.move_on_after(3.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.maintain)
            for at in (2.5, 0.9):
                await trio.sleep(at)
                states += [(item.state, item.failures) for item in transport.endpoint_states()]
    assert states == [("up", 0), ("ejected", 1)]


async def test_a_check_that_waits_for_a_connection_ejects_no_endpoint() -> None:
    """All connections are in use, which is not the endpoint's fault."""
    async with open_upstream(good) as upstream:
        transport = balancer(upstream.url, failures=1, checks=Checks("/", 0.1))
        held = [await transport.call(call()) for _ in range(10)]
        with trio.move_on_after(0.35):
            await transport.maintain()
        (state,) = transport.endpoint_states()
        assert (state.state, state.failures) == ("up", 0)
        for response in held:
            response.body.close()
        await transport.aclose()


async def test_a_probe_that_fails_for_lack_of_resources_is_followed_by_another(
    problems: list[UpstreamFailure], autojump_clock: MockClock
) -> None:
    """An endpoint that is due again is neither ejected anew nor left without a probe."""
    problems[:] = [ConnectFailed("x"), *problems * 2, ConnectFailed("x")]
    transport = balancer("http://one.test", failures=1)
    ejections = []
    for wait_s in (10, 0, 0, 0):
        with pytest.raises(UpstreamFailure):
            await transport.call(call())
        await trio.sleep(wait_s)
        (state,) = transport.endpoint_states()
        assert state.state == "ejected"
        ejections.append(state.ejections)
    assert ejections == [1, 1, 1, 2]
