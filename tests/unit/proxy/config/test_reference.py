"""The reference that is generated from the settings: the JSON Schema and docs/configuration.md."""

from __future__ import annotations

import re

import jsonschema
import pytest
import yaml
from support.items import items
from support.pages import ROOT, blocks_of

from proxy.config.reference import json_schema, reference_page

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
YAML = [
    pytest.param(block.text, id=str(block))
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for block in blocks_of(str(page.relative_to(ROOT)))
    if block.language == "yaml"
    and re.search(r"^reverse_proxy:\n  upstreams:", block.text, re.MULTILINE)
]


def test_the_page_is_up_to_date() -> None:
    assert len(YAML) >= 5
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), (
        "docs/configuration.md is stale: weirpool schema --markdown > docs/configuration.md"
    )


def test_every_key_has_a_meaning() -> None:
    """Every key that the test table of `reach.txt` knows is in the page, with a meaning."""
    meant = set(re.findall(r"^\| `(\w+)` \|.*\| [A-Z`].*\. \|$", reference_page(), re.MULTILINE))
    keys = [item for item in items() if item.startswith("key ")]
    # The pools' own keys are in the table of all pools.
    keys = [key for key in keys if not re.search(r"\.(sse_event|http_response|json)\.", key)]
    assert len(keys) > 50
    assert {re.split(r"[. ]", key)[-1] for key in keys} - meant == set()


@pytest.mark.parametrize(
    "text", [*YAML, pytest.param((ROOT / "deploy/weirpool.yaml").read_text(), id="deploy")]
)
def test_the_schema_accepts_what_the_documentation_shows(text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ('drain: {timeout: "${DRAIN:-30}"}', True),
        ("drain: {timeout: -1}", False),
        ("drain: {timeouts: 1}", False),
        ("log: {level: loud}", False),
        ("admin: {host: localhost}", False),
        ("admin: {prefix: /admin, port: null}", True),
        ("interceptors: [{name: x}]", False),
        ("interceptors: [{name: x, use: redact, options: {any: 1}}]", True),
        ("timeouts: {idle: null}", True),
        ("routes: []", False),
        ("routes: [{path: /, upstream: llm, limits: {max_stream: 1}}]", False),
    ],
)
def test_the_schema_knows_keys_types_and_ranges(text: str, is_accepted: bool) -> None:
    """Each key in a small valid configuration."""
    proxy = {
        "upstreams": [{"name": "llm", "endpoints": ["http://h"]}],
        "routes": [{"path": "/", "upstream": "llm"}],
    }
    tree = {"reverse_proxy": proxy}
    ((key, value),) = yaml.safe_load(text).items()
    (proxy if key in ("timeouts", "routes") else tree)[key] = value
    assert VALIDATOR.is_valid(tree) is is_accepted
