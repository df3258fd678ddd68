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
from typing import Any

import pytest
import yaml
from hypercorn.config import Config as HypercornConfig
from support.pages import blocks_of
from support.process import run_command

from proxy import healthcheck
from proxy.config import Config, load_config, parse_config
from proxy.server.listen import hypercorn_config
from proxy.server.serve import LAST_WORDS_S
from proxy.worker.generations import LEAVE_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGES = ["docs/operations.md", "docs/capacity.md"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "key")


def kubernetes() -> dict[str, Any]:
    return {
        item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    }


def time_to_end_s(config: Config) -> float:
    return config.drain.delay + config.drain.timeout + 2 * LAST_WORDS_S + LEAVE_S


@pytest.mark.parametrize("file", ["weirpool.yaml", "kubernetes.yaml"])
def test_check_accepts_the_configurations(file: str, tmp_path: Path) -> None:
    """As an operator would check them."""
    path = DEPLOY / file
    if file == "kubernetes.yaml":
        path = tmp_path / "weirpool.yaml"
        path.write_text(kubernetes()["ConfigMap"]["data"]["weirpool.yaml"])
    done = run_command("check", str(path))
    assert (done.returncode, done.stderr) == (0, "")


def test_kubernetes_waits_for_the_drain_and_probes_the_port_of_the_pages() -> None:
    items = kubernetes()
    config = parse_config(items["ConfigMap"]["data"]["weirpool.yaml"])
    pod = items["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > time_to_end_s(config)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["admin"] == config.admin.port
    assert config.admin.host == "0.0.0.0"
    assert f"0.0.0.0:{ports['http']}" in container["args"]
    probes = {name: container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert probes == {
        "readinessProbe": {"path": "/readyz", "port": "admin"},
        "livenessProbe": {"path": "/healthz", "port": "admin"},
    }
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < config.drain.delay


def test_the_service_waits_for_the_drain_and_reloads() -> None:
    unit = (DEPLOY / "weirpool.service").read_text()
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop_s) > time_to_end_s(load_config(DEPLOY / "weirpool.yaml"))
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit


def test_hypercorns_settings_are_those_of_serve() -> None:
    """`deploy/hypercorn.toml` is what `weirpool serve` sets by itself."""
    settings = tomllib.loads((DEPLOY / "hypercorn.toml").read_text())
    ours = hypercorn_config([])
    for name in settings:
        assert hasattr(HypercornConfig(), name)
        if name not in (
            "worker_class",
            "bind",
            "workers",
            "graceful_timeout",
            "keep_alive_max_requests",
        ):
            assert settings[name] == getattr(ours, name), name
    assert settings["keep_alive_max_requests"] >= 2**31 - 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """But for the program, which is not installed here."""
    unit = tmp_path / "weirpool.service"
    unit.write_text(
        (DEPLOY / "weirpool.service").read_text().replace("/opt/weirpool/bin/weirpool", "/bin/true")
    )
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_does_not_begin_again_for_a_wrong_configuration() -> None:
    """`RestartPreventExitStatus` is about the main process."""
    unit = (DEPLOY / "weirpool.service").read_text()
    assert "\nExecStartPre=" not in unit
    assert "\nRestartPreventExitStatus=2\n" in unit


FORWARDED = [
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
]


def test_nginx_passes_nothing_of_a_client_that_weirpool_would_believe() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    for name in [*FORWARDED, "X-Real-IP", "Forwarded"]:
        assert re.search(
            rf"^\s*proxy_set_header {name} (?!\$http_x|\$proxy_add)", text, re.MULTILINE
        ), name


def test_haproxy_passes_nothing_of_a_client_that_weirpool_would_believe() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    (pattern,) = re.findall(r"http-request del-header (\S+) -m reg", text)
    for name in [*FORWARDED, "X-Real-IP", "Forwarded"]:
        assert re.fullmatch(pattern, name.lower()), name
    assert text.index("del-header") < text.index("set-header")


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy")
def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    text = text.replace(
        "bind :443 ssl crt /etc/haproxy/llm.example.com.pem alpn h2,http/1.1", "bind 127.0.0.1:8443"
    )
    (tmp_path / "haproxy.cfg").write_text(text)
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_configurations_on_the_pages_are_accepted(page: str) -> None:
    for block in blocks_of(page):
        if block.language == "yaml":
            parse_config(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_metrics_and_settings_on_the_pages_exist(page: str) -> None:
    """A name that is misspelt in an alert is an alert that never comes."""
    text = (ROOT / page).read_text()
    source = "".join(path.read_text() for path in (ROOT / "proxy").rglob("*.py"))
    for name in re.findall(r"\b((?:weirpool|buffer_pool)_\w+)\b", text):
        base = re.sub(r"_(total|bucket)$", "", name)
        assert f'"{base}"' in source, name
    for outcome in re.findall(r'outcome="(\w+)"', text):
        assert (
            outcome
            in (ROOT / "interceptors" / "message.py").read_text()
            + (ROOT / "interceptors" / "api.py").read_text()
        )


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
    """The main port; `admin.port`, for each worker; `admin.prefix`."""
    file = tmp_path / "weirpool.yaml"

    def check(text: str, *options: str) -> int:
        file.write_text(text)
        return healthcheck.main(["--config", str(file), *options])

    assert check("", "--bind", f"0.0.0.0:{page}") == 0
    assert check("", "--bind", f"[::ffff:127.0.0.1]:{page}") == 0
    assert check("", "--bind", "0.0.0.0:9") == 1
    assert check("nonsense: 1", "--bind", f"0.0.0.0:{page}") == 0
    assert check(f"admin: {{port: {page}, host: 0.0.0.0}}", "--bind", "0.0.0.0:9") == 0
    assert check(f"admin: {{port: {page}}}", "--bind", "0.0.0.0:9", "--tls") == 0
    assert check(f"admin: {{port: {page}}}", "--bind", "0.0.0.0:9", "--workers", "2") == 1
    monkeypatch.setenv("PAGES_PORT", str(page))
    assert check('admin: {port: "${PAGES_PORT}"}', "--bind", "0.0.0.0:9") == 0
    assert check('admin: {port: "${NO_PORT:-null}"}', "--bind", f"0.0.0.0:{page}") == 0
    assert check('admin: {port: "${NO_PORT}"}', "--bind", f"0.0.0.0:{page}") == 2
    assert check("admin: {prefix: /-}", "--bind", f"0.0.0.0:{page}") == 1
    monkeypatch.setattr(Pages, "ready", "/-/readyz")
    assert check("admin: {prefix: /-}", "--bind", f"0.0.0.0:{page}") == 0
    assert check("[", "--bind", f"0.0.0.0:{page}") == 2
    assert check("", "--bind", "8000") == 2


def test_the_containers_health_check_runs_as_written(page: int, tmp_path: Path) -> None:
    """With the configuration of the docs that has `admin.port`, and not reachable."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", "")
    (health,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    (serve,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    python, *arguments = json.loads(health)
    assert python == "/opt/weirpool/bin/python"
    assert arguments[2:] == json.loads(serve)[1:]  # the options of serve
    file = tmp_path / "weirpool.yaml"
    command = [
        sys.executable,
        *[str(file) if item.endswith(".yaml") else item for item in arguments],
    ]
    for port, status in ((page, 0), (9, 1)):
        file.write_text(f"admin: {{port: {port}}}")
        assert subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == status


def test_what_the_docs_write_to_is_there_and_may_be_written() -> None:
    """The unit and the container have the directories of the pages of audit and record."""
    unit = (DEPLOY / "weirpool.service").read_text()
    container = (DEPLOY / "Containerfile").read_text()
    settings = dict(
        line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line)
    )
    directories = {
        "/var/lib/" + settings["StateDirectory"],
        "/var/log/" + settings["LogsDirectory"],
    }
    assert settings["WorkingDirectory"] in directories
    (made,) = re.findall(r"install -d -o 10001 -m 0700 (.*)", container)
    assert set(made.split()) == directories
    assert re.findall(r"^WORKDIR (/var/.*)$", container, re.MULTILINE) == [
        settings["WorkingDirectory"]
    ]
    for page in (ROOT / "docs").rglob("*.md"):
        for path in re.findall(r"(?:path|directory): (/var/\S+?)[,}\s]", page.read_text()):
            assert any(path.startswith(directory + "/") for directory in directories), (page, path)
