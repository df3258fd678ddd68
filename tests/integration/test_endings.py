"""How exchanges end: every failure is visible to the client, has its outcome, and gives everything
back.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme
from support.client import Answer, Client, fetch, open_client
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Script, open_upstream, stream_of


async def outcome_of(log: list[dict[str, object]], count: int = 1) -> list[object]:
    """The outcomes of the first exchanges, when their lines are there."""
    with trio.fail_after(10):
        while len(lines := [line for line in log if line["event"] == "exchange"]) < count:
            await trio.sleep(0.005)
    return [line["outcome"] for line in lines]


async def all_back(proxy: Proxy) -> None:
    """Wait until no exchange is live; then nothing may be on loan."""
    with trio.fail_after(10):
        while proxy.worker.live:
            await trio.sleep(0.005)
    assert set(proxy.in_use().values()) == {0}
    assert proxy.lent() == 0


async def closes(count: int, upstream_open: object) -> None:
    with trio.fail_after(5):
        while upstream_open.open > count:  # type: ignore[attr-defined]
            await trio.sleep(0.005)


# The client leaves


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("when", ["before the head", "in the stream"])
async def test_a_client_that_leaves_closes_the_upstream_at_once(
    how: str, when: str, log: list[dict[str, object]]
) -> None:
    """Before the first byte as well as mid-stream, the upstream sees its connection closed while it
    would stream on.
    """
    seen = trio.Event()
    arrived = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if when == "in the stream":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
        arrived.set()
        await peer.wait_closed()
        seen.set()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        if when == "in the stream":
            await client.read_until(await client.head(), b"\n\n")
        await arrived.wait()
        if how == "reset":
            client.reset()
        else:
            await client.aclose()
        with trio.fail_after(5):
            await seen.wait()
        assert await outcome_of(log) == ["client_disconnected"]
        await all_back(proxy)


async def test_a_client_that_leaves_while_its_upload_is_blocked_is_noticed(
    log: list[dict[str, object]],
) -> None:
    """The upstream takes nothing, so nobody reads what the client sends; that it has left is
    noticed all the same.
    """
    seen = trio.Event()

    async def script(peer: Peer) -> None:
        peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # type: ignore[attr-defined]
        await trio.sleep(0.5)
        while True:  # not reading; only a write tells that the other side has gone
            await trio.sleep(0.01)
            try:
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            except trio.BrokenResourceError:
                break
        seen.set()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.stream.send_all(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n\r\n"
        )
        with trio.move_on_after(0.7):
            while True:
                await client.stream.send_all(bytes(65536))
        client.reset()
        with trio.fail_after(5):
            await seen.wait()
        assert await outcome_of(log) == ["client_disconnected"]
        await all_back(proxy)


async def test_five_hundred_clients_leave_at_random_moments(log: list[dict[str, object]]) -> None:
    """Some while uploading, some before the head, some mid-stream: everything comes back, and the
    upstream saw every close.

    Afterwards 50 good requests through an upstream with max_connections: 20 succeed.
    """
    dice = random.Random(11)
    good = False

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if not request.target.startswith(b"/good"):
                await trio.sleep(dice.random() * 0.05)
            await peer.start_stream()
            for number in range(5 if request.target.startswith(b"/good") else 1000):
                await peer.chunk(b"data: %d\n\n" % number)
                if not good:
                    await trio.sleep(0.005)
            await peer.end()

    async def leave(proxy: Proxy) -> None:
        client = await open_client(proxy.port)
        try:
            kind = dice.choice(["upload", "head", "stream"])
            with trio.move_on_after(dice.random() * 0.3):
                if kind == "upload":
                    await client.stream.send_all(
                        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n"
                    )
                    while True:
                        await client.stream.send_all(bytes(10_000))
                        await trio.sleep(0.01)
                await client.send("GET", "/")
                answer = await client.head()
                await client.rest(answer) if kind == "stream" else await trio.sleep(1)
            if dice.random() < 0.5:
                client.reset()
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            pass
        finally:
            await client.aclose()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, upstream="max_connections: 20")) as proxy,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(leave, proxy)
                await trio.sleep(0.002)
        await all_back(proxy)
        good = True
        idle = sum(state.idle for state in proxy.worker.routes.transports["up"].statistics())
        await closes(idle, upstream)
        answers: list[Answer] = []

        async def one() -> None:
            answers.append(await fetch(proxy.port, "/good"))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert [answer.complete for answer in answers] == [True] * 50
        (state,) = proxy.worker.routes.transports["up"].statistics()
        assert state.lent == 0
        assert state.idle <= 20


async def test_one_client_resets_in_a_burst_and_the_others_go_on() -> None:
    """A reset connection in the middle of a burst is that stream's end and no other's."""
    burst = [b"data: %d %s\n\n" % (number, b"x" * 200) for number in range(2000)]
    async with (
        open_upstream(stream_of(*burst)) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        answers: list[Answer] = []

        async def good() -> None:
            answers.append(await fetch(proxy.port))

        async def bad() -> None:
            client = await open_client(proxy.port)
            await client.send("GET", "/")
            answer = await client.head()
            await client.read_until(answer, answer.body[-1:])
            client.reset()

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(good)
                nursery.start_soon(bad)
        assert [answer.complete for answer in answers] == [True] * 10
        assert {answer.body for answer in answers} == {b"".join(burst)}
        await all_back(proxy)


# The client is slow


async def test_a_slow_client_slows_the_upstream() -> None:
    """While the client reads nothing, upstream is not read either: what is in flight is bounded by
    the kernel's buffers.
    """
    sent = 0
    blocked = trio.Event()

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.start_stream()
        for _ in range(4000):
            with trio.move_on_after(0.5) as scope:
                await peer.chunk(b"data: " + bytes(16000).replace(b"\0", b"x") + b"\n\n")
            if scope.cancelled_caught:
                blocked.set()
                return
            sent += 16000

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        await client.head()
        with trio.fail_after(20):
            await blocked.wait()
        assert sent < 40_000_000
        assert sum(proxy.in_use().values()) == 0
        client.reset()
        await all_back(proxy)


async def test_a_client_that_takes_nothing_stalls(log: list[dict[str, object]]) -> None:
    """The send deadline ends an exchange whose client does not read."""
    event = b"data: " + b"x" * 16000 + b"\n\n"
    config = {"route": "timeouts: {send: 0.2}"}
    async with (
        open_upstream(stream_of(*[event] * 2000)) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        assert await outcome_of(log) == ["send_stalled"]
        assert (await client.answer()).complete is False
        await client.aclose()
        await all_back(proxy)


# The upstream fails before the head


async def error_of(proxy: Proxy, **request: object) -> tuple[int, str]:
    answer = await fetch(proxy.port, **request)  # type: ignore[arg-type]
    assert answer.complete
    assert answer.all("content-type") == [b"application/json"]
    return answer.status, json.loads(answer.body)["error"]["type"]


async def test_refused_connections_are_502(log: list[dict[str, object]]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with open_proxy(config_for(f"http://127.0.0.1:{unused.getsockname()[1]}")) as proxy:
            assert await error_of(proxy) == (502, "upstream_connect_failed")
            assert await outcome_of(log) == ["upstream_error"]
            await all_back(proxy)


async def test_unresolvable_names_are_502() -> None:
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, *args: object, **kwargs: object) -> list[object]:
            if host == b"nowhere.invalid" or host == "nowhere.invalid":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return await trio.to_thread.run_sync(lambda: socket.getaddrinfo(host, *args, **kwargs))  # type: ignore

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    async with open_proxy(config_for("http://nowhere.invalid")) as proxy:
        assert await error_of(proxy) == (502, "upstream_dns_failed")


async def test_untrusted_certificates_are_502(certificates: Certificates) -> None:
    async with (
        open_upstream(stream_of(b"data: x\n\n"), ssl_context=certificates.server) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,  # the system's certificates, not the test's
    ):
        assert await error_of(proxy) == (502, "upstream_tls_failed")
        await all_back(proxy)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "upstream_protocol_error"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "upstream_protocol_error",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "upstream_protocol_error",
        ),
        (b"HTTP/1.1 200 OK\r\nBad Header: x\r\n\r\n", "upstream_protocol_error"),
        (b"", "upstream_connection_lost"),
    ],
)
async def test_what_is_not_http_is_502(head: bytes, kind: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        assert await error_of(proxy) == (502, kind)
        await all_back(proxy)


async def test_a_late_head_is_504(log: list[dict[str, object]]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.wait_closed()

    config = {"route": "timeouts: {first_byte: 0.05}"}
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        assert await error_of(proxy) == (504, "upstream_read_timeout")
        assert await outcome_of(log) == ["upstream_timeout"]
        await all_back(proxy)


async def test_the_total_deadline_is_504_before_the_head(log: list[dict[str, object]]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.wait_closed()

    config = {"route": "timeouts: {total: 0.05}"}
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        assert await error_of(proxy) == (504, "total_timeout")
        assert await outcome_of(log) == ["upstream_timeout"]


# The upstream fails after the head: the client must see that the stream is not whole


class Certificates:
    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued.configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self.ca_file = str(directory / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        self.files = (str(directory / "cert.pem"), str(directory / "key.pem"))
        issued.private_key_and_cert_chain_pem.write_to_path(self.files[0])
        issued.private_key_pem.write_to_path(self.files[1])


def breaking(framing: str) -> Script:
    """One event, and then the connection is gone."""

    async def script(peer: Peer) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if framing == "chunked":
            await peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            await peer.chunk(b"data: 1\n\n")
        else:
            await peer.send(head + b"Content-Length: 1000\r\n\r\ndata: 1\n\n")

    return script


@asynccontextmanager
async def broken(
    framing: str, *, tls: Certificates | None = None, route: str = ""
) -> AsyncIterator[Proxy]:
    async with (
        open_upstream(breaking(framing)) as upstream,
        open_proxy(config_for(upstream.url, route=route), tls=tls.files if tls else None) as proxy,
    ):
        yield proxy
        await all_back(proxy)


@pytest.mark.parametrize("framing", ["chunked", "content-length"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_broken_stream_is_aborted_on_http11(
    framing: str, tls: bool, certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """HTTP/1.1, with and without TLS, with both writers: what came is delivered, and the end is
    visibly none.
    """
    context = certificates.client if tls else None
    async with broken(framing, tls=certificates if tls else None) as proxy:
        answer = await fetch(proxy.port, ssl_context=context)
        assert answer.body.startswith(b"data: 1\n\n")
        assert not answer.complete
        assert await outcome_of(log) == ["upstream_error"]


async def test_a_broken_stream_is_reset_on_http10() -> None:
    """An HTTP/1.0 body ends with the connection, so only a reset can tell."""
    async with broken("chunked") as proxy:
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        with pytest.raises(trio.BrokenResourceError) as caught:
            while data := await stream.receive_some():
                received += data
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert b"data: 1\n\n" in received
        await stream.aclose()


async def test_a_broken_stream_is_reset_on_http2(certificates: Certificates) -> None:
    """The HTTP/2 stream is reset; its connection carries the next request."""
    context = certificates.client
    context.set_alpn_protocols(["h2"])
    try:
        async with broken("chunked", tls=certificates) as proxy:
            client = await open_client(proxy.port, context)
            h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
            h2c.initiate_connection()
            for stream_id in (1, 3):
                headers = [
                    (":method", "GET"),
                    (":path", "/"),
                    (":scheme", "https"),
                    (":authority", "localhost"),
                ]
                h2c.send_headers(stream_id, headers, end_stream=True)
                await client.stream.send_all(h2c.data_to_send())
                body = b""
                ended: object = None
                with trio.fail_after(5):
                    while ended is None:
                        for event in h2c.receive_data(await client.stream.receive_some()):
                            if isinstance(event, h2.events.DataReceived):
                                body += event.data
                            elif isinstance(event, h2.events.StreamReset | h2.events.StreamEnded):
                                ended = event
                assert isinstance(ended, h2.events.StreamReset)
                assert body.startswith(b"data: 1\n\n")
            await client.aclose()
    finally:
        context.set_alpn_protocols(["http/1.1"])


async def test_the_generic_dialect_says_an_error_event_first(log: list[dict[str, object]]) -> None:
    """Between events, the failure is an event of its own before the abort; with `dialect: abort`
    there is none.
    """
    async with broken("chunked") as proxy:
        answer = await fetch(proxy.port)
        assert answer.body.startswith(
            b'data: 1\n\nevent: error\ndata: {"error":{"type":"upstream_truncated"'
        )
    async with broken("chunked", route="dialect: abort") as proxy:
        answer = await fetch(proxy.port)
        assert answer.body == b"data: 1\n\n"
        assert not answer.complete


async def test_no_error_event_inside_an_event() -> None:
    """A stream that breaks in the middle of an event is aborted without a word: nothing may be
    written into an event.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\ndata: unfin")

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        answer = await fetch(proxy.port)
        assert answer.body == b"data: 1\n\ndata: unfin"
        assert not answer.complete


async def test_a_silent_upstream_times_out(log: list[dict[str, object]]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    config = {"route": "timeouts: {idle: 0.1}"}
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert b"upstream_read_timeout" in answer.body
        assert not answer.complete
        assert await outcome_of(log) == ["upstream_timeout"]
        await all_back(proxy)


async def test_tls_upstream_that_ends_without_a_goodbye_is_truncated(
    certificates: Certificates,
) -> None:
    """A body framed by the connection's end is whole only after close_notify."""
    for goodbye in (True, False):

        async def script(peer: Peer, goodbye: bool = goodbye) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello")
            assert isinstance(peer.stream, trio.SSLStream)
            if goodbye:
                # https_compatible leaves close_notify out; unwrap sends it
                with trio.move_on_after(0.5):
                    await peer.stream.unwrap()
            await trio.aclose_forcefully(peer.stream)

        async with (
            open_upstream(script, ssl_context=certificates.server) as upstream,
            open_proxy(
                config_for(upstream.url, upstream=f'ca_file: "{certificates.ca_file}"')
            ) as proxy,
        ):
            answer = await fetch(proxy.port)
            assert answer.body == b"hello"
            assert answer.complete is goodbye


async def test_a_stream_from_a_tls_upstream(certificates: Certificates) -> None:
    """Large TLS records, and events that wait inside TLS: everything arrives, nothing is parked for
    ever.
    """
    events = [b"data: %d %s\n\n" % (number, b"x" * (number * 37 % 9000)) for number in range(500)]
    async with (
        open_upstream(stream_of(*events), ssl_context=certificates.server) as upstream,
        open_proxy(
            config_for(upstream.url, upstream=f'ca_file: "{certificates.ca_file}"')
        ) as proxy,
    ):
        with trio.fail_after(20):
            for _ in range(3):
                assert (await fetch(proxy.port)).body == b"".join(events)
        assert upstream.accepted == 1


# Interceptors end a stream


async def test_an_event_beyond_the_limit_ends_the_stream_visibly(
    log: list[dict[str, object]],
) -> None:
    redact = '{name: r, use: "interceptors.redact:Redact", options: {patterns: ["x"]}}'

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: ok\n\ndata: ")
        for _ in range(100):
            await peer.chunk(b"y" * 1000)
        await peer.wait_closed()

    config = {"route": "limits: {max_event_bytes: 20000}", "interceptors": redact, "names": "r"}
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert answer.body.startswith(b"data: ok\n\nevent: error\n")
        assert b"event_too_large" in answer.body
        assert not answer.complete
        assert await outcome_of(log) == ["upstream_error"]
        await all_back(proxy)


async def test_a_compressed_stream_that_must_be_seen_is_refused() -> None:
    redact = '{name: r, use: "interceptors.redact:Redact", options: {patterns: ["x"]}}'

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream(b"Content-Encoding: gzip")
        await peer.wait_closed()

    config = {"interceptors": redact, "names": "r"}
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        assert await error_of(proxy) == (502, "upstream_protocol_error")
        await all_back(proxy)


# Requests that are refused


async def test_bad_requests_are_answered_readably() -> None:
    """404, 413 and 400 arrive whole, also at a client that is still sending."""
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        config = config_for(upstream.url, route="limits: {max_request_body_bytes: 1000}")
        async with open_proxy(config) as proxy:
            assert await error_of(proxy, method="POST", body=bytes(3_000_000)) == (
                413,
                "request_too_large",
            )
            chunked = [("Transfer-Encoding", "chunked")]
            assert await error_of(proxy, method="POST", headers=chunked, body=bytes(3_000_000)) == (
                413,
                "request_too_large",
            )
            client = await open_client(proxy.port)
            await client.stream.send_all(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            assert b" 400 " in await client.stream.receive_some()
            await client.aclose()
            client = await open_client(proxy.port)
            await client.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n")
            assert b" 400 " in await client.stream.receive_some()
            await client.aclose()
            await all_back(proxy)


async def test_an_unknown_route_is_404_and_reads_the_body_first(
    log: list[dict[str, object]],
) -> None:
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        config = config_for(upstream.url)
        with pytest.MonkeyPatch.context() as patch:
            async with open_proxy(config) as proxy:
                patch.setattr(proxy.worker.routes, "find", lambda *_: None)
                assert await error_of(proxy, method="POST", body=bytes(1_000_000)) == (
                    404,
                    "no_route",
                )
                assert await outcome_of(log) == ["refused"]


@pytest.mark.parametrize("length", [5, 3_000_000])
async def test_an_early_answer_reaches_a_client_that_is_still_sending(length: int) -> None:
    """The upstream answers 401 and closes without reading the body; the client reads 401."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.send(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        )

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        answer = await fetch(proxy.port, method="POST", body=bytes(length))
        assert (answer.status, answer.body) == (401, b"no")
        await all_back(proxy)


async def test_host_and_origin_lists() -> None:
    config = 'allowed_hosts: ["good.test"], allowed_origins: ["https://app.test"]'
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        async with open_proxy(config_for(upstream.url, route=config)) as proxy:
            assert await error_of(proxy, headers=[("Host", "bad.test")]) == (
                403,
                "host_not_allowed",
            )
            bad = [("Host", "good.test"), ("Origin", "https://evil.test")]
            assert await error_of(proxy, headers=bad) == (403, "origin_not_allowed")
            good = [("Host", "good.test:8000"), ("Origin", "https://app.test")]
            assert (await fetch(proxy.port, headers=good)).status == 200


async def test_max_streams() -> None:
    """Beyond the limit: 503 at once, with Retry-After."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.wait_closed()

    async with open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, route="limits: {max_streams: 1}")) as proxy:
            client = await open_client(proxy.port)
            await client.send("GET", "/")
            await client.head()
            answer = await fetch(proxy.port)
            assert (answer.status, answer.all("retry-after")) == (503, [b"1"])
            client.reset()


async def test_the_log_line_has_no_secret(log: list[dict[str, object]]) -> None:
    """Neither a credential, nor the query, nor a body: one line with the documented fields."""
    async with open_upstream(stream_of(b"data: hush-body\n\n")) as upstream:
        async with open_proxy(config_for(upstream.url)) as proxy:
            await fetch(
                proxy.port, "/?key=hush-query", headers=[("Authorization", "Bearer hush-key")]
            )
            await outcome_of(log)
        (line,) = [line for line in log if line["event"] == "exchange"]
        assert "hush" not in repr(log)
        assert set(line) >= {
            "route",
            "upstream",
            "endpoint",
            "status",
            "outcome",
            "events",
            "bytes",
            "duration",
            "time_to_first_byte",
        }
        assert (line["status"], line["outcome"], line["events"], line["bytes"]) == (
            200,
            "completed",
            None,
            17,
        )


async def test_draining_ends_live_streams_and_refuses_new_ones(
    log: list[dict[str, object]],
) -> None:
    """New requests get 503 and Connection: close; a live stream goes on for drain.timeout and ends
    with that outcome.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client: Client = await open_client(proxy.port)
        kept: Client = await open_client(proxy.port)
        await client.send("GET", "/")
        answer = await client.head()
        await client.read_until(answer, b"\n\n")
        proxy.worker.start_draining()
        await kept.send("GET", "/")
        refused = await kept.answer()
        assert (refused.status, refused.all("connection")) == (503, [b"close"])
        assert (await fetch(proxy.port, "/readyz")).status == 503
        assert (await fetch(proxy.port, "/healthz")).status == 200
        proxy.worker.stop_live()
        await client.rest(answer)
        assert b'"type":"draining"' in answer.body
        assert not answer.complete
        assert await outcome_of(log, 2) == ["draining", "draining"]
        await client.aclose()
        await kept.aclose()
