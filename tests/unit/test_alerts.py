"""The alert rules, the dashboard and the runbook fit each other and name what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from support.items import ROOT, items
from support.required import lacking

RULES = ROOT / "deploy/prometheus/weirpool.rules.yml"
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy/grafana/weirpool.json").read_text(encoding="utf-8"))
SEVERITIES = {"critical", "warning", "info"}


def rules(kind: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        lacking("promtool", "WEIRPOOL_REQUIRE_PROMTOOL")
    done = subprocess.run(
        ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", RULES.name)
    promtool("test", "rules", "weirpool.rules.test.yml")


def test_every_alert_is_tested_and_has_its_section_in_the_runbook() -> None:
    names = [rule["alert"] for rule in rules("alert")]
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == names
    tested = (RULES.parent / "weirpool.rules.test.yml").read_text()
    for rule in rules("alert"):
        name, notes = rule["alert"], rule["annotations"]
        assert re.search(rf'alertname(: |="){name}\b', tested), name
        assert notes.keys() == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"].endswith(f"docs/runbook.md#{name.lower()}")
        section = RUNBOOK.partition(f"### {name}\n")[2].partition("\n##")[0]
        (severity,) = re.findall(r"Severity:\s(\w+)\.", section)
        assert rule["labels"] == {"severity": severity}
        assert severity in SEVERITIES
        assert "- **See it**" in section
        assert "- **Do**" in section


METRIC = r"[a-z_]*:[a-z_]+:\w+|\b(?:weirpool|buffer_pool|gen_ai|mcp_(?:client|server)|process_(?:cpu|open|resident))_\w+"


def metrics_in(text: str) -> set[str]:
    """The names of metrics in an expression, without its labels."""
    text = re.sub(r"\{[^}]*\}|\"[^\"]*\"", "", text)
    text = re.sub(r"\b(by|on|group_left|group_right|without|ignoring)\s*\([^)]*\)", "", text)
    return set(re.findall(METRIC, text))


@cache
def existing() -> frozenset[str]:
    """The samples' names of all metrics, each of which a test of `reach.txt` has seen in a real
    `/metrics`, and what the rules record."""
    found = {item.partition(" ")[2] for item in items() if item.startswith("metric ")}
    found |= {"weirpool_worker_up"}
    suffixes = ("", "_total", "_bucket", "_count", "_sum")
    recorded = {rule["record"] for rule in rules("record")}
    return frozenset({name + suffix for name in found for suffix in suffixes} | recorded)


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression with its place."""
    for rule in [*rules("alert"), *rules("record")]:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for span in re.findall(r"`([^`\n]*)`", RUNBOOK):
        yield f"runbook: {span}", span
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"dashboard: {panel['title']}", target["expr"]
    for entry in DASHBOARD["annotations"]["list"] + DASHBOARD["templating"]["list"]:
        yield f"dashboard: {entry['name']}", entry.get("expr") or entry.get("definition", "")


def is_query(text: str) -> bool:
    return bool(metrics_in(text) & existing()) and not text.startswith("label_values(")


def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    """Of the dashboard, with the variables replaced as Grafana does, and of the runbook."""
    values = {"$__rate_interval": "1m", "$instance": ".*", "$route": ".*"}
    recorded = []
    for place, text in expressions():
        if place.partition(":")[0] in ("dashboard", "runbook") and is_query(text):
            for name, value in values.items():
                text = text.replace(name, value)
            assert "$" not in text, place
            recorded.append({"record": f"panel:{len(recorded)}", "expr": text})
    assert len(recorded) > 100
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", str(file))


def test_metrics_that_every_process_has_are_those_of_weirpool() -> None:
    """Others are in the same Prometheus, such as its own; a queried instance can be all of them."""
    found = [
        labels for _, text in expressions() for labels in re.findall(r"\bprocess_\w+(.*)", text)
    ]
    assert found
    for labels in found:
        assert labels.startswith('{job="weirpool"') or not labels.startswith("{"), labels


def test_the_dashboards_structure_is_what_grafana_imports() -> None:
    """What the schema does not say: ids, places, data sources, labels of legends."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {item["name"] for item in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance", "route"}
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels:
        place = panel["gridPos"]
        assert place.keys() == {"x", "y", "w", "h"}
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert panel["datasource"] == source
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["datasource"] == source
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            shown = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            assert labels <= shown | {"instance"}, panel["title"]
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above
    provider = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    assert provider["datasources"][0]["uid"] == "prometheus"
    assert DASHBOARD["templating"]["list"][0]["current"]["value"] == "prometheus"


def test_every_metric_that_is_named_exists() -> None:
    """A name that is misspelt is an alert that never fires."""
    named = {name: place for place, text in expressions() for name in metrics_in(text)}
    events = {item.partition(" ")[2] for item in items() if item.startswith("log ")}
    missing = {name: named[name] for name in named.keys() - existing() - events}
    assert not missing
    tested = yaml.safe_load((RULES.parent / "weirpool.rules.test.yml").read_text())
    series = {item["series"] for test in tested["tests"] for item in test["input_series"]}
    assert {name for text in series for name in metrics_in(text)} <= named.keys()


def test_every_word_of_the_runbook_is_a_word_of_the_proxy() -> None:
    """Log events, fields, outcomes, error types, labels and keys are in the source."""
    source = "".join(
        path.read_text()
        for package in ("proxy", "interceptors", "pools")
        for path in (ROOT / package).rglob("*.py")
    )
    keys = {item.rpartition(".")[2] for item in items() if item.startswith(("key ", "option "))}
    words = set()
    for span in re.findall(r"`([^`\n]*)`", RUNBOOK):
        if re.fullmatch(r"[a-z_.]+", span):
            words |= set(span.split("."))
    unknown = {
        word
        for word in words - keys - existing()
        if "_" in word and not re.search(rf"\b{word}\b", source)
    }
    assert unknown == set()
