"""What `deploy/` and the pages for operators show is accepted, and its parts fit each other."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from hypercorn.config import Config as HypercornConfig
from support.pages import blocks_of
from support.process import run_command
from support.required import lacking

from proxy import healthcheck
from proxy.config import load_config, parse_config
from proxy.server.listen import hypercorn_config
from proxy.server.serve import time_to_end_s

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "key")


CONFIGURATIONS = [
    *("weirpool.yaml", "compose/weirpool.yaml", "kubernetes/base/weirpool.yaml"),
    "kubernetes/overlays/example/weirpool.yaml",
]


@pytest.mark.parametrize("file", CONFIGURATIONS)
def test_check_accepts_the_configurations(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an operator would check them."""
    monkeypatch.setenv("LLM_URL", "https://llm.example.com")
    monkeypatch.setenv("STORE_PASSWORD", "password")
    done = run_command("check", str(DEPLOY / file))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_waits_for_the_drain_and_reloads() -> None:
    unit = (DEPLOY / "weirpool.service").read_text()
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop_s) > time_to_end_s(load_config(DEPLOY / "weirpool.yaml"))
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit


def test_hypercorns_settings_are_those_of_serve() -> None:
    """`deploy/hypercorn.toml` is what `weirpool serve` sets by itself."""
    settings = tomllib.loads((DEPLOY / "hypercorn.toml").read_text())
    ours = hypercorn_config([])
    for name in ("worker_class", "bind", "workers", "graceful_timeout"):
        assert hasattr(HypercornConfig(), name)
        settings.pop(name, None)
    assert settings.pop("keep_alive_max_requests") >= 2**31 - 1
    assert settings == {name: getattr(ours, name) for name in settings}


def verify(*command: str) -> None:
    """Run a program's own check of its configuration."""
    if shutil.which(command[0]) is None:
        lacking(command[0], "WEIRPOOL_REQUIRE_BALANCERS")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """But for the program, which is not installed here. It reads the socket's unit, too."""
    if shutil.which("systemd-analyze") is None:
        lacking("systemd", "WEIRPOOL_REQUIRE_SYSTEMD")
    for name in ("weirpool.socket", "weirpool.service"):
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/weirpool/bin/weirpool", "/bin/true"))
    verify("systemd-analyze", "verify", str(tmp_path / "weirpool.service"))


def test_the_service_does_not_begin_again_for_a_wrong_configuration() -> None:
    """`RestartPreventExitStatus` is about the main process."""
    unit = (DEPLOY / "weirpool.service").read_text()
    assert "\nExecStartPre=" not in unit
    assert "\nRestartPreventExitStatus=2\n" in unit


BELIEVED = [
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port"),
    *("X-Forwarded-Prefix", "X-Real-IP", "Forwarded"),
]


def test_other_proxies_pass_nothing_of_a_client_that_weirpool_would_believe() -> None:
    nginx = (DEPLOY / "nginx.conf").read_text()
    for name in BELIEVED:
        own = rf"^\s*proxy_set_header {name} (?!\$http_x|\$proxy_add)"
        assert re.search(own, nginx, re.MULTILINE), name
    for file in ("haproxy.cfg", "compose/haproxy.cfg"):
        haproxy = (DEPLOY / file).read_text()
        (pattern,) = re.findall(r"http-request del-header (\S+) -m reg", haproxy)
        for name in BELIEVED:
            assert re.fullmatch(pattern, name.lower()), name
        assert haproxy.index("del-header") < haproxy.index("set-header")


def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    bind = "bind :443 ssl crt /etc/haproxy/llm.example.com.pem alpn h2,http/1.1"
    (tmp_path / "haproxy.cfg").write_text(text.replace(bind, "bind 127.0.0.1:8443"))
    verify("haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg"))


def test_haproxy_takes_the_configuration_of_the_containers(tmp_path: Path) -> None:
    """But for their names, which only resolve inside."""
    text = (DEPLOY / "compose/haproxy.cfg").read_text()
    for name in ("weirpool-a", "weirpool-b"):
        text = text.replace(f"{name}:8000", "127.0.0.1:8000")
    (tmp_path / "haproxy.cfg").write_text(text)
    verify("haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg"))


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    """As a file of `conf.d`, with a certificate of the test."""
    text = (DEPLOY / "nginx.conf").read_text()
    certificate = trustme.CA().issue_cert("llm.example.com")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "llm.example.com.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "llm.example.com.key")
    (tmp_path / "weirpool.conf").write_text(
        text.replace("/etc/ssl/", f"{tmp_path}/").replace("listen 443", "listen 127.0.0.1:8443")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}"
        f"http {{ access_log off; include {tmp_path}/weirpool.conf; }}"
    )
    verify("nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/capacity.md"])
def test_configurations_metrics_and_outcomes_on_the_pages_exist(page: str) -> None:
    """A name that is misspelt in an alert is an alert that never comes."""
    for block in blocks_of(page):
        if block.language == "yaml":
            parse_config(block.text)
    text = (ROOT / page).read_text()
    source = "".join(path.read_text() for path in (ROOT / "proxy").rglob("*.py"))
    for name in re.findall(r"\b((?:weirpool|buffer_pool)_\w+)\b", text):
        base = re.sub(r"_(total|bucket)$", "", name)
        assert f'"{base}"' in source, name
    outcomes = "".join(
        (ROOT / "interceptors" / name).read_text() for name in ("message.py", "api.py")
    )
    for outcome in re.findall(r'outcome="(\w+)"', text):
        assert outcome in outcomes


class Pages(http.server.BaseHTTPRequestHandler):
    """What is ready on one path, and not ready on all others."""

    ready = "/readyz"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == self.ready else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def page() -> Iterator[int]:
    """The port of a server with `/readyz`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        yield server.server_port
        server.shutdown()


def test_the_health_check_follows_the_configuration(
    page: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main port; `admin.port`; `admin.prefix`."""
    file = tmp_path / "weirpool.yaml"
    monkeypatch.setenv("PAGES_PORT", str(page))
    served, not_served = f"0.0.0.0:{page}", "0.0.0.0:9"

    def check(text: str, bind: str, *options: str) -> int:
        file.write_text(text)
        return healthcheck.main(["--config", str(file), "--bind", bind, *options])

    assert check("", served) == 0
    assert check("", f"[::ffff:127.0.0.1]:{page}") == 0
    assert check("", not_served) == 1
    assert check("", "8000") == 2
    assert check("", "systemd") == 2
    assert check(f"admin: {{port: {page}}}", "systemd") == 0
    assert check("[", served) == 2
    assert check("nonsense: 1", served) == 0
    assert check(f"admin: {{port: {page}, host: 0.0.0.0}}", not_served) == 0
    assert check(f"admin: {{port: {page}}}", not_served, "--tls") == 0
    assert check(f"admin: {{port: {page}}}", not_served, "--workers", "2") == 0
    assert check('admin: {port: "${PAGES_PORT}"}', not_served) == 0
    assert check('admin: {port: "${NO_PORT:-null}"}', served) == 0
    assert check('admin: {port: "${NO_PORT}"}', served) == 2
    assert check("admin: {prefix: /-}", served) == 1
    monkeypatch.setattr(Pages, "ready", "/-/readyz")
    assert check("admin: {prefix: /-}", served) == 0


def test_the_containers_health_check_runs_as_written(page: int, tmp_path: Path) -> None:
    """With the configuration of the docs that has `admin.port`."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", "")
    (health,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    (serve,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    python, *arguments = json.loads(health)
    assert python == "/opt/weirpool/bin/python"
    assert arguments[2:] == json.loads(serve)[1:]  # the options of serve
    file = tmp_path / "weirpool.yaml"
    file.write_text(f"admin: {{port: {page}}}")
    arguments = [str(file) if item.endswith(".yaml") else item for item in arguments]
    assert subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode == 0


def test_what_the_docs_write_to_is_there_and_may_be_written() -> None:
    """The unit and the container have the directories of the pages of audit and record."""
    unit = (DEPLOY / "weirpool.service").read_text()
    container = (DEPLOY / "Containerfile").read_text()
    settings = dict(re.findall(r"^([A-Z]\w+)=(.*)$", unit, re.MULTILINE))
    state, logs = settings["StateDirectory"], settings["LogsDirectory"]
    directories = {f"/var/lib/{state}", f"/var/log/{logs}"}
    assert settings["WorkingDirectory"] in directories
    (made,) = re.findall(r"install -d -o 10001 -m 0700 (.*)", container)
    assert set(made.split()) == directories
    (work,) = re.findall(r"^WORKDIR (/var/.*)$", container, re.MULTILINE)
    assert work == settings["WorkingDirectory"]
    for page in (ROOT / "docs").rglob("*.md"):
        for path in re.findall(r"(?:path|directory): (/var/\S+?)[,}\s]", page.read_text()):
            assert any(path.startswith(directory + "/") for directory in directories), (page, path)
