"""What `deploy/` and the pages for operators show is accepted, and its parts fit each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypercorn.config import Config as HypercornConfig
from support.pages import blocks_of

from proxy.config import Config, load_config, parse_config
from proxy.generations import LEAVE_S
from proxy.listen import hypercorn_config
from proxy.serve import LAST_WORDS_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGES = ["docs/operations.md", "docs/capacity.md"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "key")


def kubernetes() -> dict[str, Any]:
    return {item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def time_to_end_s(config: Config) -> float:
    return config.drain.delay + config.drain.timeout + 2 * LAST_WORDS_S + LEAVE_S


@pytest.mark.parametrize("file", ["weirpool.yaml", "kubernetes.yaml"])
def test_check_accepts_the_configurations(file: str, tmp_path: Path) -> None:
    """As an operator would check them."""
    path = DEPLOY / file
    if file == "kubernetes.yaml":
        path = tmp_path / "weirpool.yaml"
        path.write_text(kubernetes()["ConfigMap"]["data"]["weirpool.yaml"])
    done = subprocess.run([sys.executable, "-m", "proxy", "check", str(path)], cwd=ROOT, capture_output=True, text=True)
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
        if name not in ("worker_class", "bind", "workers", "graceful_timeout", "keep_alive_max_requests"):
            assert settings[name] == getattr(ours, name), name
    assert settings["keep_alive_max_requests"] >= 2**31 - 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """But for the program, which is not installed here."""
    unit = tmp_path / "weirpool.service"
    unit.write_text((DEPLOY / "weirpool.service").read_text().replace("/opt/weirpool/bin/weirpool", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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
        assert outcome in (ROOT / "interceptors" / "message.py").read_text() + (ROOT / "interceptors" / "api.py").read_text()
