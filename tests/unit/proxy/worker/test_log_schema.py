"""The table of log events: it has every event of the code, and docs/log-schema.json is made of it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from support.items import ROOT, items

from proxy.worker.log_schema import EVENTS, log_schema

VALIDATOR = jsonschema.Draft202012Validator(log_schema())
LINE = {"level": "info", "timestamp": "2026-11-26T22:17:25.468018Z", "pid": 1}


def test_the_file_is_up_to_date() -> None:
    text = (ROOT / "docs/log-schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == log_schema(), "weirpool schema --log > docs/log-schema.json"
    jsonschema.Draft202012Validator.check_schema(log_schema())


def test_the_table_has_every_event_of_the_code() -> None:
    found = {item.partition(" ")[2] for item in items() if item.startswith("log ")}
    assert set(EVENTS) - {"interceptor_slow", "interceptor_waited"} == found


@pytest.mark.parametrize(
    ("line", "is_valid"),
    [
        ({"event": "worker_died", "exit_status": -9}, True),
        ({"event": "worker_died"}, False),  # a field is missing
        ({"event": "worker_died", "exit_status": -9, "more": 1}, False),
        ({"event": "worker_died", "exit_status": "9"}, False),
        ({"event": "exchange", "status": 200, "outcome": "completed"}, True),  # log.fields
        ({"event": "exchange", "outcome": "done"}, False),
        ({"event": "budget_is_low", "left": [1], "request_id": "a"}, True),  # an interceptor's
        ({"event": "a message", "logger": "library", "stack": "..."}, True),
        ({"event": "a message", "level": "loud"}, False),
    ],
)
def test_what_the_schema_accepts(line: dict[str, Any], is_valid: bool) -> None:
    assert VALIDATOR.is_valid(LINE | line) == is_valid
