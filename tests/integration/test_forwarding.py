"""What of a request goes upstream and what of a response comes back: fields of the hop, who the
client is, Via, TRACE.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from support.client import fetch
from support.interceptors import Log, Rig
from support.process import WEIRPOOL, running
from support.proxy import open_proxy
from support.upstream import Peer, Request, open_upstream

import interceptors
from interceptors import Interceptor, Response, ResponseHead
from interceptors.api_keys import hash_key
from proxy.config import parse_config

ANN = "wk-ann-Zq3xV8"


class Marks(Interceptor):
    """Sets fields in both directions, and keeps what it has seen."""

    seen: ClassVar[list[interceptors.Headers]] = []

    async def on_request(self, request: interceptors.Request) -> Response | None:
        self.seen.append(request.headers.copy())
        request.headers["x-user-id"] = "alice"
        request.headers["x-forwarded-user"] = "alice"
        request.headers["connection"] = "x-user-id"
        if "x-method" in request.headers:
            request.method = request.headers["x-method"]
        return Response(str(request.client)) if "x-client" in request.headers else None

    async def on_response(self, head: ResponseHead) -> Response | None:
        self.seen.append(head.headers.copy())
        head.headers["x-mark"] = "ours"
        return None


async def echo(peer: Peer) -> None:
    """An upstream that has TRACE: its answer is the head of the request. Its own Connection names
    fields.
    """
    head = b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Mark\r\nX-Mark: theirs\r\nKeep-Alive: timeout=5\r\n"
    while True:
        request = await peer.request()
        body = b"".join(b"%s: %s\r\n" % field for field in request.headers)
        await peer.send(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


@asynccontextmanager
async def gateway(log: Log, *, bind: str = "127.0.0.1:0", trusted: str = "") -> AsyncIterator[Rig]:
    Marks.seen.clear()
    async with open_upstream(echo) as upstream:
        config = parse_config(
            f"""
reverse_proxy:
  trusted_proxies: [{trusted}]
  upstreams:
    - {{name: plain, endpoints: ["{upstream.url}"]}}
    - {{name: secret, endpoints: ["{upstream.url}"], headers: {{set: {{authorization: "Bearer sk-secret", x-set: ours}}}}}}
    - {{name: silent, endpoints: ["{upstream.url}"], headers: {{remove: [via]}}}}
  routes:
    - {{path: /, upstream: plain}}
    - {{path: /marks, upstream: plain, interceptors: [marks]}}
    - {{path: /keys, upstream: plain, interceptors: [keys]}}
    - {{path: /secret, upstream: secret}}
    - {{path: /silent, upstream: silent}}
    - {{path: /origins, upstream: plain, allowed_origins: ["https://app.test"]}}
interceptors:
  - {{name: marks, use: "{__name__}:Marks"}}
  - {{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(ANN)}"}}, upstream: sk-upstream, upstream_header: x-api-key}}}}
drain: {{timeout: 1}}
log: {{level: info}}
"""
        )
        async with open_proxy(config, bind=bind) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            with trio.fail_after(5):
                await rig.everything_is_back()


def last(rig: Rig) -> Request:
    return rig.upstream.requests[-1]


# Fields of the hop


@pytest.mark.parametrize(
    ("target", "sent", "arrives"),
    [
        (
            "/marks",
            [("Connection", "keep-alive, x-user-id"), ("X-User-Id", "mallory")],
            {"x-user-id": [b"alice"], "x-forwarded-user": [b"alice"], "connection": []},
        ),
        (
            "/keys",
            [("Authorization", f"Bearer {ANN}"), ("Connection", "x-api-key, authorization")],
            {"x-api-key": [b"sk-upstream"], "authorization": []},
        ),
        (
            "/secret",
            [("Connection", "x-set, authorization"), ("X-Set", "theirs")],
            {"x-set": [b"ours"], "authorization": [b"Bearer sk-secret"]},
        ),
    ],
)
async def test_the_clients_connection_cannot_remove_what_is_set(
    target: str, sent: list[tuple[str, str]], arrives: dict[str, list[bytes]], log: Log
) -> None:
    """By an interceptor, by `api_keys`, by the configuration."""
    async with gateway(log) as rig:
        assert (await rig.fetch(target, headers=sent)).status == 200
        assert {name: last(rig).all(name) for name in arrives} == arrives


async def test_the_upstreams_connection_cannot_remove_what_is_set(log: Log) -> None:
    """By an interceptor, which also sets `x-user-id` upstream."""
    async with gateway(log) as rig:
        assert (await rig.fetch("/marks")).all("x-mark") == [b"ours"]
        assert last(rig).all("x-user-id") == [b"alice"]
        assert (await rig.fetch("/plain")).all("x-mark") == []


async def test_interceptors_see_no_field_of_the_hop(log: Log) -> None:
    """Of the client's and of the upstream's, and nothing that a client claims about itself."""
    hop = {"Connection": "TE, X-Hop", "TE": "trailers", "X-Hop": "1", "Upgrade": "h2c"}
    claims = {"X-Forwarded-User": "m", "X_Forwarded_For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    sent = hop | claims | {"X-End": "2", "Transfer-Encoding": "chunked"}
    async with gateway(log) as rig:
        await rig.fetch("/marks", headers=list(sent.items()), body=b"x")
        request, response = Marks.seen
        assert sorted(request) == ["host", "x-end", "x-request-id"]
        assert sorted(response) == ["content-length"]
        assert last(rig).body == b"x"
        named = {name.decode().lower() for name, _ in last(rig).headers}
        assert not {"x-hop", "te", "upgrade", "x_forwarded_for", "forwarded"} & named


async def test_an_ipv4_client_of_a_socket_for_both_families_has_its_own_address(log: Log) -> None:
    """In X-Forwarded-For, for interceptors, and compared with trusted proxies."""
    claims = [("X-Forwarded-For", "192.0.2.1"), ("X_Forwarded_For", "6.6.6.6")]
    async with gateway(log, bind="[::]:0", trusted="127.0.0.0/8") as rig:
        await rig.fetch("/plain")
        assert last(rig).all("x-forwarded-for") == [b"127.0.0.1"]
        await rig.fetch("/plain", headers=claims)
        assert last(rig).all("x-forwarded-for") == [b"192.0.2.1, 127.0.0.1"]
        assert last(rig).all("x_forwarded_for") == []
        assert (await rig.fetch("/marks", headers=[("X-Client", "?")])).body == b"127.0.0.1"


# Via


async def test_a_request_names_the_proxies_that_it_has_passed(log: Log) -> None:
    """After existing entries; a response gets no entry. `headers.remove` can omit it."""
    before = [("Via", "1.0 a (b, c)"), ("Via", "2 d"), ("Connection", "via")]
    async with gateway(log) as rig:
        assert (await rig.fetch("/plain")).all("via") == []
        (entry,) = last(rig).all("via")
        version, _, pseudonym = entry.partition(b" ")
        assert version == b"1.1"
        assert socket.gethostname().encode() not in pseudonym
        await rig.fetch("/marks", headers=before)
        assert last(rig).all("via") == [b"1.0 a (b, c), 2 d, 1.1 " + pseudonym]
        await rig.fetch("/silent")
        assert last(rig).all("via") == []
        async with await trio.open_tcp_stream("127.0.0.1", rig.proxy.port) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            while await stream.receive_some():
                pass
        assert last(rig).all("via") == [b"1.0 " + pseudonym]


async def test_a_request_that_comes_back_is_refused(log: Log) -> None:
    """Wherever the pseudonym stands; another instance's is not a loop."""
    async with gateway(log) as rig, gateway(log) as other:
        await rig.fetch("/plain")
        (ours,) = last(rig).all("via")
        await other.fetch("/plain", headers=[("Via", ours.decode())])
        assert last(other).all("via")[0].startswith(ours + b", 1.1 weirpool-")
        for via in (ours, b"1.1 a, " + ours + b", 2 b", b"1.1 a,HTTP/" + ours):
            answer = await rig.fetch("/plain", headers=[("Via", via.decode())])
            assert (answer.status, b"loop_detected" in answer.body) == (508, True)
        assert len(rig.upstream.requests) == 1
        assert [line["outcome"] for line in rig.lines("exchange")][-3:] == ["refused"] * 3


async def test_a_worker_knows_a_request_that_another_worker_sent(tmp_path: Path) -> None:
    """A server that is its own upstream: two exchanges for a request, in any of its workers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    file = tmp_path / "weirpool.yaml"
    upstream = f'{{name: me, endpoints: ["http://{address}"]}}'
    file.write_text(
        f"reverse_proxy: {{upstreams: [{upstream}], routes: [{{path: /, upstream: me}}]}}"
    )
    command = [*WEIRPOOL, "serve", "--config", str(file), "--bind", address, "--workers", "2"]
    async with running(command) as process:
        await process.event("started", 2)
        for _ in range(8):
            with trio.fail_after(10):
                assert (await fetch(int(address.rpartition(":")[2]), "/x")).status == 508
        lines = await process.event("exchange", 16)
        assert [line["outcome"] for line in lines].count("refused") == len(lines) / 2 == 8


# TRACE and Max-Forwards


async def test_trace_goes_nowhere(log: Log) -> None:
    """Its answer would show what was added on the way: also when an interceptor makes one of
    another request.
    """
    async with gateway(log) as rig:
        for target, headers in (
            ("/secret", []),
            ("/secret", [("Max-Forwards", "0")]),
            ("/keys", [("Authorization", f"Bearer {ANN}")]),
            ("/keys", [("Content-Length", "5")]),  # of a body that does not come
        ):
            answer = await rig.fetch(target, method="TRACE", headers=headers)
            assert (answer.status, b"not_supported" in answer.body) == (501, True)
            assert b"sk-" not in answer.body
        assert (await rig.fetch("/marks", headers=[("X-Method", "TRACE")])).status == 501
        assert rig.upstream.requests == []
        assert {line["outcome"] for line in rig.lines("exchange")} == {"refused"}


@pytest.mark.parametrize("target", ["/plain", "/marks", "/origins"])
async def test_options_may_be_forwarded_so_many_times(target: str, log: Log) -> None:
    """Of other methods, `Max-Forwards` passes unread."""
    names = [("Connection", "max-forwards"), ("Origin", "https://app.test")]
    async with gateway(log) as rig:

        async def ask(method: str, value: str) -> tuple[int, list[bytes], list[bytes]]:
            """The status, what went upstream, and what a page is allowed."""
            rig.upstream.requests.clear()
            headers = [*names, ("Max-Forwards", value)]
            answer = await rig.fetch(target, method=method, headers=headers)
            left = [value for item in rig.upstream.requests for value in item.all("max-forwards")]
            return answer.status, left, answer.all("access-control-allow-origin")

        for value, left in (("5", b"4"), ("1", b"0"), ("007", b"6")):
            assert await ask("OPTIONS", value) == (200, [left], [])
        page = [b"https://app.test"] if target == "/origins" else []
        assert await ask("OPTIONS", "0") == (204, [], page)
        assert await ask("OPTIONS", "5, 4") == (400, [], page)
        for value in ("0", "nonsense"):
            assert await ask("GET", value) == (200, [value.encode()], [])
