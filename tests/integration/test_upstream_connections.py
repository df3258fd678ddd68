"""From an endpoint's name to a connection, in a whole proxy: look-ups, the name that TLS verifies,
and failures of the proxy's machine.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from support.certificates import Certificates
from support.client import Answer, fetch, open_client
from support.interceptors import until
from support.process import WEIRPOOL, port_of, running
from support.proxy import config_for, open_proxy
from support.upstream import Peer, answering, open_upstream

from proxy.config import parse_config
from proxy.errors import ConfigError
from proxy.upstream.connections import ConnectionPool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


good = answering(OK)


def kind_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["type"])


async def test_a_response_with_white_space_before_a_colon_passes() -> None:
    """Without it, once upstream for each request, and no endpoint is ejected for it."""

    script = answering(b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\nX-XSS-Protection : 1\r\n\r\nok")

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        for _ in range(8):
            answer = await fetch(proxy.port)
            assert (answer.status, answer.body) == (200, b"ok")
            assert answer.all("x-xss-protection") == [b"1"]
        assert len(upstream.requests) == 8


async def test_an_idle_connection_ends_with_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub watches it; the regular search for such connections is off here."""
    monkeypatch.setattr(ConnectionPool, "expire", lambda pool: None)
    end = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await end.wait()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        assert (await fetch(proxy.port)).body == b"ok"
        statistics = proxy.worker.routes.transports["up"].statistics
        await until(lambda: [pool.idle for pool in statistics()] == [1])
        end.set()
        await until(lambda: [pool.idle for pool in statistics()] == [0])


# Look-ups


class Resolver:
    """The system's resolver, replaced: `slow.*` fails when released, other `.example` names are
    loopback.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: Counter[str] = Counter()
        self.release = threading.Event()
        self._original = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if "." not in name or name[-1].isdigit():
            return self._original(host, port, *args, **kwargs)
        self.asked[name] += 1
        if name.startswith("slow."):
            self.release.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver(monkeypatch)
    yield resolver
    resolver.release.set()


async def test_a_slow_name_delays_no_other_upstream(names: Resolver) -> None:
    """Forty-five requests wait for one look-up, and another upstream's are answered meanwhile."""
    answers: list[Answer] = []
    async with open_upstream(good) as upstream:
        config = parse_config(f"""
reverse_proxy:
  upstreams:
    - {{name: slow, endpoints: ["http://slow.example:8001"]}}
    - {{name: fast, endpoints: ["http://fast.example:{upstream.port}"]}}
  routes: [{{path: /slow, upstream: slow}}, {{path: /fast, upstream: fast}}]
log: {{level: error}}
""")
        async with open_proxy(config) as proxy, trio.open_nursery() as nursery:

            async def ask_slow() -> None:
                answers.append(await fetch(proxy.port, target="/slow"))

            for _ in range(45):
                nursery.start_soon(ask_slow)
            statistics = proxy.worker.routes.transports["slow"].statistics
            await until(lambda: sum(pool.lent for pool in statistics()) == 45)
            for _ in range(3):
                assert (await fetch(proxy.port, target="/fast")).status == 200
            assert answers == []
            names.release.set()
    assert {(answer.status, kind_of(answer)) for answer in answers} <= {
        (502, "upstream_dns_failed"),
        (503, "no_endpoint"),
    }
    assert names.asked == {"slow.example": 1, "fast.example": 1}


# The name that TLS is about

A_LABELS = "xn--strae-oqa.example"


@pytest.mark.parametrize(
    ("certificate", "endpoint", "keys", "sent", "status"),
    [
        ("a.example", "127.0.0.1", "tls_server_name: a.example", "a.example", 200),
        ("a.example", "127.0.0.1", "tls_server_name: A.Example., host: other", "a.example", 200),
        ("a.example", "127.0.0.1", "tls_server_name: b.example", "b.example", 502),
        ("a.example", "127.0.0.1", "host: a.example", None, 502),
        ("a.example", "fast.example", "tls_server_name: a.example", "a.example", 200),
        ("fast.example", "fast.example", "host: a.example", "fast.example", 200),
        ("fast.example", "fast.example", "tls_server_name: a.example", "a.example", 502),
        ("127.0.0.1", "fast.example", "tls_server_name: 127.0.0.1", None, 200),
        ("straße.example", "127.0.0.1", "tls_server_name: straße.example", A_LABELS, 200),
        ("strasse.example", "127.0.0.1", "tls_server_name: straße.example", A_LABELS, 502),
        # IDNA 2003 makes another host of these.
        ("straße.example", "straße.example", "host: upstream", A_LABELS, 200),
        ("straße.example", "Straße.example.", "host: upstream", A_LABELS, 200),
        ("straße.example", "xn--strae-oqa.example", "host: upstream", A_LABELS, 200),
        ("strasse.example", "straße.example", "host: upstream", A_LABELS, 502),
    ],
)
async def test_tls_server_name_is_what_is_sent_and_verified(
    tmp_path: Path,
    names: Resolver,
    certificate: str,
    endpoint: str,
    keys: str,
    sent: str | None,
    status: int,
) -> None:
    """By default the endpoint's host, independent of `host`; an address is verified and not sent.
    An international name has one form, which is also resolved and written in Host.
    """
    server = Certificates(tmp_path, certificate)
    got: set[str | None] = set()
    server.server.sni_callback = lambda _, name, __: got.add(name)
    async with open_upstream(good, ssl_context=server.server) as upstream:
        settings = f'ca_file: "{server.ca_file}", {keys}'
        config = config_for(f"https://{endpoint}:{upstream.port}", upstream=settings)
        async with open_proxy(config) as proxy:
            answer = await fetch(proxy.port)
    assert answer.status == status
    assert status == 200 or kind_of(answer) == "upstream_tls_failed"
    assert got == {sent}
    if keys == "host: upstream":
        assert [name.removesuffix(".") for name in names.asked] == [A_LABELS]
        for request in upstream.requests:
            host = request.all("host")[0].replace(b".:", b":")
            assert host == f"{A_LABELS}:{upstream.port}".encode()


@pytest.mark.parametrize("name", ["", "a b", "https://a", "a:1", "[::1]", "*.a", "a.example"])
def test_a_tls_server_name_that_cannot_be_one_is_refused_at_load(name: str) -> None:
    scheme, problem = "https", f"{name!r} is neither a host name nor an address"
    if name == "a.example":
        scheme, problem = "http", "no endpoint of this upstream is https"
    with pytest.raises(ConfigError) as caught:
        config_for(f"{scheme}://127.0.0.1", upstream=f'tls_server_name: "{name}"')
    (line,) = caught.value.errors
    assert line.startswith(f"reverse_proxy.upstreams[0].tls_server_name: {problem}")


# Limits of this machine

HOARDER = """
import os
from interceptors import Interceptor, Response

class Hoarder(Interceptor):
    held = []

    async def on_request(self, request):
        if request.path == "/fill":
            try:
                while True:
                    self.held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as error:
                return Response(str(error))
        if request.path == "/free":
            while self.held:
                os.close(self.held.pop())
            return Response("free")
"""
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
os.execv(sys.argv[1], sys.argv[1:])
"""


async def test_without_descriptors_is_503(tmp_path: Path, certificates: Certificates) -> None:
    """By name and by address, over HTTP and TLS: 503 while none is left, and success as soon as
    there is one.
    """
    (tmp_path / "hoarder.py").write_text(HOARDER)
    async with (
        open_upstream(good) as plain,
        open_upstream(good, ssl_context=certificates.server) as secure,
    ):
        urls = {
            "/name": f"http://localhost:{plain.port}",
            "/address": f"http://127.0.0.1:{plain.port}",
            "/tls": f"https://localhost:{secure.port}",
        }
        tls = {"ca_file": certificates.ca_file}
        hoarding = [
            {"path": path, "upstream": "/name", "interceptors": ["hoarder"]}
            for path in ("/fill", "/free")
        ]
        settings = {
            "reverse_proxy": {
                "upstreams": [
                    {"name": path, "endpoints": [url], **(tls if path == "/tls" else {})}
                    for path, url in urls.items()
                ],
                "routes": [*({"path": path, "upstream": path} for path in urls), *hoarding],
            },
            "interceptors": [{"name": "hoarder", "use": "hoarder.py:Hoarder"}],
        }
        config = tmp_path / "weirpool.yaml"
        config.write_text(yaml.safe_dump(settings))
        serve = [*WEIRPOOL, "serve", "--config", str(config), "--bind", "127.0.0.1:0"]
        async with running([sys.executable, "-c", LIMITED, *serve]) as process:
            client = await open_client(await port_of(process))

            async def get(target: str) -> Answer:
                await client.send("GET", target)
                answer = await client.answer()
                client.next_cycle()
                assert answer.complete
                return answer

            assert (await get("/fill")).status == 200
            for path in urls:
                for _ in range(6):
                    answer = await get(path)
                    assert (answer.status, kind_of(answer)) == (503, "out_of_resources")
                    assert answer.all("retry-after") == [b"1"]
            assert (await get("/free")).status == 200
            for path in urls:
                assert (await get(path)).status == 200
            lines = [line for line in await process.event("exchange", 23) if line["route"] in urls]
            assert [line["outcome"] for line in lines] == ["refused"] * 18 + ["completed"] * 3
            events = {json.loads(line)["event"] for line in process.lines}
            assert not events & {"endpoint_ejected", "internal_error"}
            assert not any("Traceback" in line for line in process.lines)
            metrics = (await get("/metrics")).body.decode()
            assert 'weirpool_refused_total{reason="out_of_resources",route="/name"} 6.0' in metrics
            await client.aclose()
