"""The files of `deploy/` for containers: JSON Schemas accept them, and their parts fit each other."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.items import ROOT
from support.required import lacking

from proxy.config import parse_config
from proxy.server.serve import time_to_end_s
from proxy.worker.generations import _ENTER_S

DEPLOY = ROOT / "deploy"
LAYERS = ["base", "overlays/example"]
Item = dict[str, Any]


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_API_KEY", "STORE_PASSWORD"):
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("LLM_URL", "https://llm.example.com")


def needs(module: str) -> None:
    if find_spec(module) is None:
        lacking(f"package {module} (the extra `deploy`)", "WEIRPOOL_REQUIRE_DEPLOY")


def merged(item: Any, patch: Any) -> Any:
    """A strategic merge of what the patches here use: lists of named items are merged by name."""
    if isinstance(item, dict) and isinstance(patch, dict):
        both = item.keys() & patch.keys()
        return {**item, **patch, **{key: merged(item[key], patch[key]) for key in both}}
    if isinstance(patch, list) and all(isinstance(part, dict) and "name" in part for part in patch):
        named = {part["name"]: part for part in item}
        assert all(part["name"] in named for part in patch), "the patch names nothing"
        changes = {part["name"]: part for part in patch}
        return [merged(part, changes.get(part["name"], {})) for part in item]
    return patch


def key_of(item: Item) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


@cache
def built(layer: Path) -> dict[tuple[str, str], Item]:
    """What a kustomization makes, without the names that `namespace` and `images` change."""
    rules = yaml.safe_load((layer / "kustomization.yaml").read_text())
    items: dict[tuple[str, str], Item] = {}
    for name in rules["resources"]:
        if (layer / name).is_dir():
            items |= copy.deepcopy(built((layer / name).resolve()))
        else:
            found = [*yaml.safe_load_all((layer / name).read_text())]
            items |= {key_of(item): item for item in found}
    for generator in rules["configMapGenerator"]:
        meta = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}}
        items["ConfigMap", generator["name"]] = {
            **meta,
            "data": {name: (layer / name).read_text() for name in generator["files"]},
        }
    for entry in rules.get("patches", ()):
        patch = yaml.safe_load((layer / entry["path"]).read_text())
        items[key_of(patch)] = merged(items[key_of(patch)], patch)
    used = {*rules["resources"], *(entry["path"] for entry in rules.get("patches", ()))}
    used |= {name for generator in rules["configMapGenerator"] for name in generator["files"]}
    assert {path.name for path in layer.glob("*.yaml")} - {"kustomization.yaml"} <= used
    return items


def accepts(item: Item) -> None:
    """As the oldest and newest Kubernetes with a schema, strictly: no unknown fields."""
    import kubernetes_validate

    for version in ("1.27", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("layer", LAYERS)
def test_kubernetes_schemas_accept_every_resource(layer: str) -> None:
    needs("kubernetes_validate")
    items = [*built(DEPLOY / "kubernetes" / layer).values()]
    if shutil.which("kubectl"):  # what kustomize itself makes of it
        done = subprocess.run(
            ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / layer)],
            capture_output=True,
            check=True,
        )
        theirs = [*yaml.safe_load_all(done.stdout)]
        assert len(theirs) == len(items)
        items += theirs
    kinds = set()
    for item in items:
        kinds.add(item["kind"])
        if item["kind"] == "ServiceMonitor":  # of the Prometheus Operator: no schema here
            assert item["apiVersion"] == "monitoring.coreos.com/v1"
            assert item["spec"].keys() == {"jobLabel", "selector", "endpoints"}
        else:
            accepts(item)
    assert kinds == {
        *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy"),
        *("PodDisruptionBudget", "Service", "ServiceMonitor"),
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_the_resources_fit_the_configuration_and_each_other(layer: str) -> None:
    items = built(DEPLOY / "kubernetes" / layer)
    config = parse_config(items["ConfigMap", "weirpool"]["data"]["weirpool.yaml"])
    deployment = items["Deployment", "weirpool"]["spec"]
    pod = deployment["template"]["spec"]
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
    probe = container["startupProbe"]
    assert probe["httpGet"] == probes["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > _ENTER_S

    labels = deployment["template"]["metadata"]["labels"]
    autoscaler = items["HorizontalPodAutoscaler", "weirpool"]["spec"]
    target = int(autoscaler["metrics"][0]["pods"]["target"]["averageValue"])
    assert target < config.reverse_proxy.limits.max_streams
    assert "replicas" not in deployment  # the autoscaler's
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = items[kind, "weirpool"]["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"] == labels
    monitor = items["ServiceMonitor", "weirpool"]
    pages = items["Service", "weirpool-admin"]
    assert monitor["spec"]["selector"]["matchLabels"] == pages["metadata"]["labels"]
    assert pages["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "weirpool"
    assert monitor["spec"]["endpoints"][0]["port"] == pages["spec"]["ports"][0]["name"]
    for name in ("weirpool", "valkey"):
        inside = items["Deployment", name]["spec"]["template"]
        (port,) = items["Service", name]["spec"]["ports"]
        names = {item["name"] for item in inside["spec"]["containers"][0]["ports"]}
        assert port["targetPort"] in names
        assert items["Service", name]["spec"]["selector"] == inside["metadata"]["labels"]
    assert config.store.url == "valkey://valkey"


def test_the_compose_specification_accepts_the_file() -> None:
    needs("check_jsonschema")
    from check_jsonschema import main

    schema = ["--builtin-schema", "vendor.compose-spec", "--no-cache"]
    with pytest.raises(SystemExit) as done:
        main([*schema, str(DEPLOY / "compose.yaml")])
    assert done.value.code == 0


def test_the_services_fit_the_configuration_and_each_other() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    config = parse_config((DEPLOY / "compose/weirpool.yaml").read_text())
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source
    weirpools = {name: item for name, item in services.items() if item["image"] == "weirpool"}
    assert config.admin.hosts == [*weirpools]
    for item in weirpools.values():
        assert int(item["stop_grace_period"].removesuffix("s")) > time_to_end_s(config)
        (volume,) = item["volumes"]
        assert f":{CONFIGURED}:" in volume
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["job_name"] == "weirpool"
    targets = [f"{name}:{config.admin.port}" for name in weirpools]
    assert job["static_configs"] == [{"targets": targets}]
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert yaml.safe_load(source)["datasources"][0]["url"] == "http://prometheus:9090"


def lost(given: Any, kept: Any, path: str = "") -> set[str]:
    """The keys of `given` that are not in `kept`, or have another value there."""
    if isinstance(given, dict) and isinstance(kept, dict):
        parts = [lost(given[key], kept.get(key), f"{path}.{key}") for key in given]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        parts = [lost(one, other, path) for one, other in zip(given, kept, strict=True)]
    else:
        return set() if given == kept else {path}
    return set().union(*parts)


def test_grafanas_own_model_reads_the_dashboard_and_loses_nothing() -> None:
    needs("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    given = json.loads((DEPLOY / "grafana/weirpool.json").read_text())
    kept = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))
    assert lost(given, kept) == {  # Grafana writes these, and its model does not have them
        ".templating.list.definition",
        *(f".annotations.list.{key}" for key in ("builtIn", "titleFormat", "textFormat")),
    }


CONFIGURED = "/etc/weirpool/weirpool.yaml"
"""Where the container's command reads its configuration."""


def test_the_container_reads_the_file_that_is_mounted() -> None:
    assert json.dumps(CONFIGURED) in (DEPLOY / "Containerfile").read_text()
