"""The balancer on real sockets: what a session's key does, which failures count, and that
cancelling it leaks nothing.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
import trio
from support.upstream import Peer, Script, open_upstream
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
    UpstreamBody,
    UpstreamCall,
    dial,
)
from proxy.upstream.origin import Origin

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def balancer(*urls: str, failures: int = 100) -> Balancer:
    endpoints = Endpoints([Endpoint(url) for url in urls], consecutive_failures=failures)
    return Balancer("up", Http1Transport(max_connections=10), endpoints)


def call(method: str = "GET", target: bytes = b"/", **fields: Any) -> UpstreamCall:
    length = [(b"content-length", b"0")] if method == "POST" else []
    return UpstreamCall(method, target, [(b"host", b"ignored"), *length], **fields)


async def read(body: UpstreamBody) -> bytes:
    """Read to the end and close."""
    data, buffer = b"", bytearray(65536)
    while not body.complete:
        await body.wait_readable()
        if (span := body.receive(buffer, 0)) is not None:
            data += buffer[span[0] : span[1]]
    body.close()
    return data


async def good(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


async def resets(peer: Peer) -> None:
    await peer.request()
    sock = peer.stream.socket  # type: ignore[attr-defined]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def idle(transport: Balancer) -> bool:
    """Nothing is outstanding, lent or waited for."""
    return not any(item.outstanding for item in transport.endpoint_states()) and not any(
        item.lent or item.waiting for item in transport.statistics()
    )


async def test_any_bytes_may_be_a_sessions_key() -> None:
    """For sessions without a header: a caller that knows the key states where it belongs, and asks with
    it.
    """
    async with open_upstream(good) as one, open_upstream(good) as two:
        transport = balancer(one.url, two.url)
        response = await transport.call(call())
        endpoint = response.endpoint
        await read(response.body)
        assert transport.find(b"/messages?session=1") is None
        transport.remember(b"/messages?session=1", endpoint)
        for _ in range(5):
            response = await transport.call(call("POST", session=b"/messages?session=1"))
            assert response.endpoint is endpoint
            await read(response.body)
        transport.forget(b"/messages?session=1")
        assert transport.find(b"/messages?session=1") is None
        assert idle(transport)
        await transport.aclose()
    assert sorted([len(one.requests), len(two.requests)]) == [0, 6]


async def test_a_request_may_be_sent_a_second_time_as_it_was() -> None:
    """The balancer changes nothing in it: base path and Host belong to the attempt."""
    async with open_upstream(good) as upstream:
        transport = balancer(f"{upstream.url}/base")
        again = call(target=b"/x")
        for _ in range(2):
            response = await transport.call(again)
            await read(response.body)
        assert (again.target, again.headers) == (b"/x", [(b"host", b"ignored")])
        await transport.aclose()
    assert [item.target for item in upstream.requests] == [b"/base/x"] * 2


async def test_a_kept_connection_that_was_closed_is_not_the_endpoints_failure() -> None:
    """A server may close one just when the next request is written; this is no failure, and a GET
    is sent again.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if upstream.accepted == 1:
            await peer.request()  # and closes
        else:
            await good(peer)

    async with open_upstream(script) as upstream:
        transport = balancer(upstream.url, failures=1)
        for _ in range(2):
            response = await transport.call(call(retry=RetryPolicy(2, 1)))
            await read(response.body)
        (state,) = transport.endpoint_states()
        assert (state.state, state.failures, state.retries) == ("up", 0, 1)
        await transport.aclose()
    assert len(upstream.requests) == 3


async def test_a_retry_takes_a_new_connection() -> None:
    """A second kept one may be as dead as the first: one attempt more is enough, however many are
    kept.
    """

    async def script(peer: Peer) -> None:
        number = upstream.accepted
        await peer.request()
        await peer.send(OK)
        if number <= 2:
            await peer.request()  # and closes
        else:
            await good(peer)

    async with open_upstream(script) as upstream:
        transport = balancer(upstream.url)
        for count in (2, 1):
            responses = [await transport.call(call(retry=RetryPolicy(2, 1))) for _ in range(count)]
            for response in responses:
                assert await read(response.body) == b"ok"
        assert idle(transport)
        await transport.aclose()
    assert upstream.accepted == 3


async def test_without_a_policy_nothing_is_sent_twice() -> None:
    async with open_upstream(resets) as upstream:
        transport = balancer(upstream.url)
        with pytest.raises(ReadFailed):
            await transport.call(call())
        assert idle(transport)
    assert len(upstream.requests) == 1


async def test_when_every_endpoint_is_out_the_failure_says_for_how_long(
    autojump_clock: object,
) -> None:
    """In whole seconds, rounded up, and never none at all."""
    transport = balancer("http://127.0.0.1:1", failures=1)
    transport.endpoints.pin(transport.endpoints.all[0], trio.current_time()).fail(
        trio.current_time()
    )
    for waited, told in ((0, 10), (8.5, 2), (1, 1)):
        await trio.sleep(waited)
        with pytest.raises(NoEndpoint) as caught:
            await transport.call(call())
        assert caught.value.retry_after_s == told


@pytest.mark.parametrize("script", [good, resets])
async def test_cancelled_anywhere_it_leaks_nothing(script: Script) -> None:
    """After each number of the loop's turns, from before the first to after the last attempt."""
    finished = 0
    async with open_upstream(script) as one, open_upstream(script) as two:
        transport = balancer(one.url, two.url, failures=1_000_000)
        policy = RetryPolicy(3, 1)
        for turns in range(120):

            async def ask() -> None:
                nonlocal finished
                try:
                    response = await transport.call(call(retry=policy))
                except ReadFailed:
                    pass
                else:
                    response.body.close()
                finished += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert idle(transport)
        assert 0 < finished < 120
        await transport.aclose()


# What is ours


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No connection can be opened for want of a descriptor; the origins that were asked for one."""
    asked: list[str] = []

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        asked.append(str(origin))
        raise OutOfResources(f"{origin}: Too many open files")

    monkeypatch.setattr(dial, "connect", connect)
    return asked


async def test_a_limit_of_the_proxy_is_not_retried_and_counts_against_no_endpoint(
    no_room: list[str],
) -> None:
    """One attempt for each request, however many endpoints there are; each stays in service with no
    failure.
    """
    transport = balancer("http://one.test", "http://127.0.0.1:9", failures=1)
    policy = RetryPolicy(5, 1)
    for _ in range(4):
        with pytest.raises(OutOfResources):
            await transport.call(call(retry=policy))
    assert len(no_room) == 4
    assert [
        (item.state, item.failures, item.ejections, item.retries)
        for item in transport.endpoint_states()
    ] == [("up", 0, 0, 0)] * 2
    assert idle(transport)


async def test_a_check_that_fails_for_lack_of_resources_ejects_no_endpoint(
    no_room: list[str], autojump_clock: MockClock
) -> None:
    endpoints = Endpoints([Endpoint("http://one.test")], consecutive_failures=1, checked=True)
    transport = Balancer("up", Http1Transport(), endpoints, checks=Checks("/", 1))
    with trio.move_on_after(5.5):
        await transport.maintain()
    assert len(no_room) == 6
    (state,) = transport.endpoint_states()
    assert (state.state, state.failures) == ("up", 0)


async def test_a_check_that_waits_for_a_connection_ejects_no_endpoint() -> None:
    """All connections are in use, which is not the endpoint's fault."""
    async with open_upstream(good) as upstream:
        endpoints = Endpoints([Endpoint(upstream.url)], consecutive_failures=1, checked=True)
        transport = Http1Transport(max_connections=1)
        checked = Balancer("up", transport, endpoints, checks=Checks("/", 0.2))
        held = await checked.call(call())
        with trio.move_on_after(0.7):
            await checked.maintain()
        (state,) = checked.endpoint_states()
        assert (state.state, state.failures) == ("up", 0)
        held.body.close()
        await checked.aclose()


async def test_a_probe_that_fails_for_want_of_resources_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """An endpoint that is due again is neither ejected anew nor left without a probe."""
    problems: list[UpstreamFailure] = [
        ConnectFailed("x"),
        OutOfResources("x"),
        OutOfResources("x"),
        ConnectFailed("x"),
    ]

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        raise problems.pop(0)

    monkeypatch.setattr(dial, "connect", connect)
    transport = balancer("http://one.test", failures=1)
    states = []
    for _ in range(4):
        with pytest.raises(UpstreamFailure):
            await transport.call(call())
        (state,) = transport.endpoint_states()
        states.append((state.state, state.ejections))
        if state.ejections == 1 and len(states) == 1:
            await trio.sleep(10)
    assert states == [("ejected", 1), ("ejected", 1), ("ejected", 1), ("ejected", 2)]
