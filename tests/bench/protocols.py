"""What a short exchange costs by the client's protocol, beside nginx: HTTP/1.1 and HTTP/2, in the clear
and with TLS. Prints a table of CPU microseconds a request.

    apt-get install nghttp2-client nginx && pip install -e '.[bench]' && python tests/bench/protocols.py

`h2load` sends the requests on 4 connections, 5 at a time each (HTTP/1.1: one). The proxies run on one
core, load and upstream on the other. Each measurement is repeated in alternation; figures are
medians of the operating system's accounting.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trustme

from proxy.commands.bench.processes import cpu_seconds
from proxy.commands.bench.run import LOAD_CORE, free_port, pinned, running

UPSTREAM = """
daemon off; master_process off; pid {directory}/up.pid; error_log {directory}/up.log;
events {{ worker_connections 1000; }}
http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/t;
  server {{ listen 127.0.0.1:{upstream}; keepalive_requests 1000000;
    location / {{ default_type application/json; return 200 '{{"answer": 42}}'; }} }} }}
"""
NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 1000; }}
http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/t;
  keepalive_requests 1000000; proxy_http_version 1.1; proxy_set_header Connection "";
  ssl_certificate {certificate}; ssl_certificate_key {certificate};
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; }}
  server {{ listen 127.0.0.1:{plain}; location / {{ proxy_pass http://up; }} }}
  server {{ listen 127.0.0.1:{h2c} http2; location / {{ proxy_pass http://up; }} }}
  server {{ listen 127.0.0.1:{tls} ssl http2; location / {{ proxy_pass http://up; }} }} }}
"""
PROTOCOLS = {
    "HTTP/1.1": ("plain", "http", ["--h1"]),
    "HTTP/2": ("h2c", "http", ["-m", "5"]),
    "HTTP/1.1 with TLS": ("tls", "https", ["--h1"]),
    "HTTP/2 with TLS": ("tls", "https", ["-m", "5"]),
}


@contextmanager
def nginx(directory: str, name: str, text: str, port: int) -> Iterator[int]:
    config = Path(directory) / name
    config.write_text(text)
    with running(["nginx", "-c", str(config)], port) as process:
        yield process.pid


@contextmanager
def weirpool(config: Path, port: int, *options: str) -> Iterator[int]:
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
    with running([*command, "--bind", f"127.0.0.1:{port}", *options], port) as process:
        yield process.pid


def load(scheme: str, port: int, pid: int, options: list[str], requests: int) -> float:
    """CPU microseconds a request. Raises `RuntimeError` if not all succeed."""
    before = cpu_seconds([pid])
    command = ["h2load", "-n", str(requests), "-c", "4", *options, f"{scheme}://127.0.0.1:{port}/"]
    out = subprocess.run(pinned(LOAD_CORE, command), capture_output=True, text=True).stdout
    if f"{requests} succeeded" not in out:
        raise RuntimeError(out)
    return (cpu_seconds([pid]) - before) / requests * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000)
    arguments = parser.parse_args()
    if not (shutil.which("h2load") and shutil.which("nginx")):
        sys.exit("protocols.py needs h2load and nginx")
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        certificate = str(Path(directory) / "cert.pem")
        issued = trustme.CA().issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(certificate)
        upstream = free_port()
        values = {"directory": directory, "certificate": certificate, "upstream": upstream}
        stack.enter_context(nginx(directory, "up.conf", UPSTREAM.format(**values), upstream))
        ports = {name: free_port() for name in ("plain", "h2c", "tls")}
        text = NGINX.format(**values, **ports)
        pid = stack.enter_context(nginx(directory, "nginx.conf", text, ports["plain"]))
        targets = {"nginx": (ports, dict.fromkeys(ports, pid))}
        config = Path(directory) / "weirpool.yaml"
        up = [{"name": "up", "endpoints": [f"http://127.0.0.1:{upstream}"]}]
        routes = {"upstreams": up, "routes": [{"path": "/", "upstream": "up"}]}
        config.write_text(json.dumps({"reverse_proxy": routes, "log": {"level": "error"}}))
        plain, tls = free_port(), free_port()
        files = ("--certfile", certificate, "--keyfile", certificate)
        one = stack.enter_context(weirpool(config, plain))
        two = stack.enter_context(weirpool(config, tls, *files))
        targets["weirpool"] = (
            {"plain": plain, "h2c": plain, "tls": tls},
            {"plain": one, "h2c": one, "tls": two},
        )
        for _ in range(arguments.rounds):
            for protocol, (place, scheme, options) in PROTOCOLS.items():
                for name, (where, pids) in targets.items():
                    cost = load(scheme, where[place], pids[place], options, arguments.requests)
                    found.setdefault((protocol, name), []).append(cost)
    print("| client | weirpool | nginx | ratio |\n|---|---:|---:|---:|")
    for protocol in PROTOCOLS:
        ours, theirs = (statistics.median(found[protocol, name]) for name in ("weirpool", "nginx"))
        print(f"| {protocol} | {ours:.0f} us | {theirs:.0f} us | {ours / theirs:.1f} |")


if __name__ == "__main__":
    main()
