"""A whole `weirpool serve` before an upstream that answers every request with the transcript that
its path names.

The proxy has a route for each dialect and chain: `/<dialect>/<chain>/<case>/<path of the
provider>`.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from providers.chains import CHAINS, entries
from providers.transcripts import Case
from support.process import ROOT, WEIRPOOL

__all__ = ["Answer", "Rig", "open_rig"]

_DEADLINE_S = 20


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes


@dataclass
class Rig:
    port: int
    _lines: list[dict[str, Any]] = field(default_factory=list)
    _others: list[bytes] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, case: Case, chain: str) -> Answer:
        """Send the request of a case. Raises `http.client.HTTPException` or `OSError` for an answer
        that is not whole.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_DEADLINE_S)
        try:
            connection.request(
                "POST",
                f"/{case.dialect}/{chain}/{case.id}{case.path}",
                json.dumps({"model": "m", "stream": case.streamed}),
                {"content-type": "application/json", "authorization": f"Bearer {key_of(case)}"},
            )
            response = connection.getresponse()
            return Answer(response.status, response.getheader("content-type", ""), response.read())
        finally:
            connection.close()

    def usage(self, case: Case, chain: str) -> dict[str, Any]:
        """The line of `usage` for that request, when it is there."""
        route = f"/{case.dialect}/{chain}"

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self._lines
                if line.get("event") == "usage"
                and (line["client"], line["route"]) == (case.id, route)
            ]

        with self._news:
            assert self._news.wait_for(found, _DEADLINE_S), (
                f"no line of usage for {case} behind {chain}"
            )
            (line,) = found()
        return line

    def read(self, log: Any) -> None:
        for text in log:
            try:
                line = json.loads(text)
            except ValueError:
                self._others.append(text)
                continue
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    def started(self) -> None:
        def found() -> list[dict[str, Any]]:
            return [line for line in self._lines if line.get("event") == "started"]

        with self._news:
            assert self._news.wait_for(found, _DEADLINE_S), (
                f"the proxy did not start: {self._lines} {self._others}"
            )
            self.port = int(str(found()[0]["bind"][0]).rsplit(":", 1)[1])


def key_of(case: Case) -> str:
    return f"key-of-{case.id}"


@contextmanager
def open_rig(cases: list[Case], directory: Path) -> Iterator[Rig]:
    """Serve the cases; `redact_secret` and `guard_secret` look for the secrets of all."""
    with _upstream(cases) as url:
        file = directory / "weirpool.yaml"
        secrets = sorted(
            {case.secret for case in cases if case.secret is not None}, key=len, reverse=True
        )
        configured = entries(
            directory, "|".join(map(re.escape, secrets)), {case.id: key_of(case) for case in cases}
        )
        routes = [
            {
                "path": f"/{dialect}/{chain}",
                "upstream": "up",
                "dialect": dialect,
                "interceptors": [*([] if "api_keys" in names else ["api_keys"]), *names],
            }
            for dialect in ("generic", "openai", "anthropic")
            for chain, names in CHAINS.items()
        ]
        config = {
            "reverse_proxy": {
                "upstreams": [{"name": "up", "endpoints": [url]}],
                "routes": routes,
                "leak_detection": "paranoid",
                "retry": {"max_attempts": 1},
            },
            "interceptors": list(configured.values()),
            "log": {"level": "info"},
        }
        file.write_text(yaml.safe_dump(config))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        process = subprocess.Popen(
            [*WEIRPOOL, "serve", "--config", str(file), "--bind", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        rig = Rig(0)
        reader = threading.Thread(target=rig.read, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            rig.started()
            yield rig
        finally:
            process.terminate()
            try:
                process.wait(_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join(_DEADLINE_S)
            assert process.stderr is not None
            process.stderr.close()


@contextmanager
def _upstream(cases: list[Case]) -> Iterator[str]:
    by_id = {case.id: case for case in cases}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            case = by_id[self.path.split("/")[3]]
            self.send_response(case.status)
            if case.type:
                self.send_header("content-type", case.type)
            if case.is_sse:
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for at in range(0, len(case.data), 700):  # events are cut
                    piece = case.data[at : at + 700]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.send_header("content-length", str(len(case.data)))
                self.end_headers()
                self.wfile.write(case.data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
