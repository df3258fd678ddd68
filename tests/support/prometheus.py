"""A real Prometheus on loopback, with the files of `deploy/prometheus` at a test's pace."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import yaml

from .client import fetch
from .process import ROOT, free_port
from .required import lacking

__all__ = ["Prometheus", "open_prometheus"]

DEPLOYED = ROOT / "deploy/prometheus"


class Prometheus:
    """What its API tells."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of `/api/v1`."""
        query = urllib.parse.urlencode(parameters)
        answer = await fetch(self._port, f"/api/v1/{path}?{query}")
        assert answer.status == 200, answer.body
        return json.loads(answer.body)["data"]

    async def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of firing alerts, by name."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in (await self.ask("alerts"))["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    async def values(self, expression: str) -> list[float]:
        """The values of an instant query."""
        result = (await self.ask("query", query=expression))["result"]
        return [float(item["value"][1]) for item in result]


def _at_tests_pace(directory: Path, targets: list[str], change: Callable[[str], str]) -> Path:
    """Copy the deployed files: other targets, short intervals, no `for`, short windows."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    rules = yaml.safe_load((DEPLOYED / "weirpool.rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
            rule["expr"] = change(re.sub(r"\[\d+m\]", "[20s]", rule["expr"]))
    (directory / "weirpool.rules.yml").write_text(yaml.safe_dump(rules))
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    return directory / "prometheus.yml"


@asynccontextmanager
async def open_prometheus(
    directory: Path, targets: list[str], change: Callable[[str], str] = str
) -> AsyncIterator[Prometheus]:
    """Serve Prometheus on these targets. `change`: edits the expressions of the rules."""
    if (program := shutil.which("prometheus")) is None:
        lacking("prometheus", "WEIRPOOL_REQUIRE_PROMTOOL")
    file, port = _at_tests_pace(directory, targets, change), free_port()
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(60):
            while True:
                assert process.poll() is None, "Prometheus ended"
                try:
                    if (await fetch(port, "/-/ready")).status == 200:
                        break
                except OSError:
                    pass
                await trio.sleep(0.1)
        yield Prometheus(port)
    finally:
        process.terminate()
        with trio.move_on_after(10, shield=True):
            await process.wait()
        if process.poll() is None:
            process.kill()
