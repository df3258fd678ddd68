"""From an endpoint's name to a connection, in a whole proxy: look-ups, the name that TLS verifies,
and failures of the proxy's machine.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
import yaml
from support.client import Answer, Client, fetch, open_client
from support.process import WEIRPOOL, port_of, running
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream

from proxy.config import parse_config
from proxy.errors import ConfigError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ODD = b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\nX-XSS-Protection : 1\r\n\r\nok"


async def good(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


def kind_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["type"])


# A response with white space before a colon


async def test_a_response_with_white_space_before_a_colon_passes() -> None:
    """Without it, once upstream for each request, and no endpoint is ejected for it."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(ODD)

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        for _ in range(8):
            answer = await fetch(proxy.port)
            assert (answer.status, answer.body, answer.all("x-xss-protection")) == (
                200,
                b"ok",
                [b"1"],
            )
        assert len(upstream.requests) == 8


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
    """Forty-five requests wait for one look-up, and another upstream's are answered meanwhile; its
    name is looked up once.
    """
    async with open_upstream(good) as upstream:
        config = parse_config(f"""
reverse_proxy:
  upstreams:
    - {{name: slow, endpoints: ["http://slow.example:8001"]}}
    - {{name: fast, endpoints: ["http://fast.example:{upstream.port}"]}}
  routes: [{{path: /slow, upstream: slow}}, {{path: /fast, upstream: fast}}]
log: {{level: error}}
""")
        answers: list[Answer] = []
        async with open_proxy(config) as proxy, trio.open_nursery() as nursery:

            async def ask_slow() -> None:
                answers.append(await fetch(proxy.port, target="/slow"))

            for _ in range(45):
                nursery.start_soon(ask_slow)
            with trio.fail_after(10):
                while proxy.worker.routes.transports["slow"].statistics()[:1] == () or (
                    proxy.worker.routes.transports["slow"].statistics()[0].lent < 45
                ):
                    await trio.sleep(0.01)
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


class Server:
    """A TLS server with a certificate for `name`: the names that clients send, and what they put
    into Host.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.sent: list[str | None] = []
        authority = trustme.CA()
        self.ca_file = str(directory / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(self.context)
        self.context.sni_callback = lambda _, sent, __: self.sent.append(sent)


@pytest.mark.parametrize(
    ("certificate", "endpoint", "keys", "sent", "status"),
    [
        ("backend.example", "127.0.0.1", "tls_server_name: backend.example", "backend.example", 200),
        ("backend.example", "127.0.0.1", "tls_server_name: Backend.Example., host: other.example", "backend.example", 200),
        ("backend.example", "127.0.0.1", "tls_server_name: other.example", "other.example", 502),
        ("backend.example", "127.0.0.1", "host: backend.example", None, 502),
        ("backend.example", "fast.example", "tls_server_name: backend.example", "backend.example", 200),
        ("fast.example", "fast.example", "host: backend.example", "fast.example", 200),
        ("fast.example", "fast.example", "tls_server_name: backend.example", "backend.example", 502),
        ("127.0.0.1", "fast.example", "tls_server_name: 127.0.0.1", None, 200),
        ("straße.example", "127.0.0.1", "tls_server_name: straße.example", "xn--strae-oqa.example", 200),
        ("strasse.example", "127.0.0.1", "tls_server_name: straße.example", "xn--strae-oqa.example", 502),
    ],
)  # fmt: skip
async def test_tls_server_name_is_what_is_sent_and_verified(
    tmp_path: Path,
    names: Resolver,
    certificate: str,
    endpoint: str,
    keys: str,
    sent: str | None,
    status: int,
) -> None:
    """By default the endpoint's host, independent of `host`; an address is verified and not sent."""
    server = Server(tmp_path, certificate)
    async with open_upstream(good, ssl_context=server.context) as upstream:
        settings = config_for(
            f"https://{endpoint}:{upstream.port}", upstream=f'ca_file: "{server.ca_file}", {keys}'
        )
        async with open_proxy(settings) as proxy:
            answer = await fetch(proxy.port)
        assert answer.status == status
        assert status == 200 or kind_of(answer) == "upstream_tls_failed"
        assert set(server.sent) == {sent}


@pytest.mark.parametrize(
    ("url", "name", "problem"),
    [
        *(
            ("https://127.0.0.1", name, f"{name!r} is neither a host name nor an address")
            for name in ("", "a b", "https://a", "a:1", "[::1]", "*.a")
        ),
        ("http://127.0.0.1", "backend.example", "no endpoint of this upstream is https"),
    ],
)
def test_a_tls_server_name_that_can_be_none_is_refused_at_load(
    url: str, name: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_for(url, upstream=f'tls_server_name: "{name}"')
    (line,) = caught.value.errors
    assert line.startswith(f"reverse_proxy.upstreams[0].tls_server_name: {problem}")


@pytest.mark.parametrize(
    ("certificate", "status"), [("straße.example", 200), ("strasse.example", 502)]
)
@pytest.mark.parametrize("name", ["straße.example", "Straße.example.", "xn--strae-oqa.example"])
async def test_an_international_name_has_one_form_everywhere(
    tmp_path: Path, names: Resolver, name: str, certificate: str, status: int
) -> None:
    """Its A-labels by IDNA 2008 are resolved, sent, verified and written in Host; IDNA 2003 makes
    another host of it.
    """
    server = Server(tmp_path, certificate)
    async with open_upstream(good, ssl_context=server.context) as upstream:
        settings = config_for(
            f"https://{name}:{upstream.port}", upstream=f'ca_file: "{server.ca_file}"'
        )
        async with open_proxy(settings) as proxy:
            answer = await fetch(proxy.port)
        assert answer.status == status
        labels = "xn--strae-oqa.example"
        assert [item.removesuffix(".") for item in names.asked] == [labels]
        assert set(server.sent) == {labels}
        if status == 200:
            (request,) = upstream.requests
            assert (
                request.all("host")[0].replace(b".:", b":") == f"{labels}:{upstream.port}".encode()
            )
        else:
            assert kind_of(answer) == "upstream_tls_failed"


# One deadline


# What is ours

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
LIMITED = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); os.execv(sys.argv[1], sys.argv[1:])"


async def test_without_a_descriptor_requests_are_refused_and_no_endpoint_is_ejected(
    tmp_path: Path,
) -> None:
    """By name and by address, over HTTP and TLS: 503 while none is left, and success as soon as
    there is one.
    """
    (tmp_path / "hoarder.py").write_text(HOARDER)
    server = Server(tmp_path, "localhost")
    async with (
        open_upstream(good) as plain,
        open_upstream(good, ssl_context=server.context) as secure,
    ):
        ports = {
            "/name": f"http://localhost:{plain.port}",
            "/address": f"http://127.0.0.1:{plain.port}",
            "/tls": f"https://localhost:{secure.port}",
        }
        settings = {
            "reverse_proxy": {
                "upstreams": [
                    {"name": path, "endpoints": [url]}
                    | ({"ca_file": server.ca_file} if path == "/tls" else {})
                    for path, url in ports.items()
                ],
                "routes": [{"path": path, "upstream": path} for path in ports]
                + [
                    {"path": path, "upstream": "/name", "interceptors": ["hoarder"]}
                    for path in ("/fill", "/free")
                ],
            },
            "interceptors": [{"name": "hoarder", "use": "hoarder.py:Hoarder"}],
        }
        (tmp_path / "weirpool.yaml").write_text(yaml.safe_dump(settings))
        command = [
            sys.executable,
            "-c",
            LIMITED,
            *WEIRPOOL,
            "serve",
            "--config",
            str(tmp_path / "weirpool.yaml"),
        ]
        async with running([*command, "--bind", "127.0.0.1:0"]) as process:
            client = await open_client(await port_of(process))

            async def get(target: str) -> Answer:
                answer = await ask(client, target)
                assert answer.complete
                return answer

            assert (await get("/fill")).status == 200
            for path in ports:
                for _ in range(6):
                    answer = await get(path)
                    assert (answer.status, kind_of(answer)) == (503, "out_of_resources")
                    assert answer.all("retry-after") == [b"1"]
            assert (await get("/free")).status == 200
            for path in ports:
                assert (await get(path)).status == 200
            lines = [line for line in await process.event("exchange", 23) if line["route"] in ports]
            assert [line["outcome"] for line in lines] == ["refused"] * 18 + ["completed"] * 3
            events = {json.loads(line)["event"] for line in process.lines}
            assert not events & {"endpoint_ejected", "internal_error"}
            assert not any("Traceback" in line for line in process.lines)
            metrics = (await get("/metrics")).body.decode()
            assert 'weirpool_refused_total{reason="out_of_resources",route="/name"} 6.0' in metrics
            await client.aclose()


async def ask(client: Client, target: str) -> Answer:
    await client.send("GET", target)
    answer = await client.rest(await client.head())
    client.next_cycle()
    return answer
