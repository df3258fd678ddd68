"""The chains of built-ins that every transcript passes, in process and from YAML. A new built-in
goes into `_OPTIONS`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from interceptors import Interceptor, StreamContext
from interceptors.api_keys import hash_key
from interceptors.dialects import MessageInterceptor, MessageStream, TextDelta, ToolCall
from interceptors.loader import load_interceptor

__all__ = ["CHAINS", "CHANGING", "EXACT", "HOLDING", "Policy", "Watch", "entries", "load_chain"]

_NOWHERE = "☃nowhere [0-9]{20}"  # no transcript has a beginning of it, which `redact` would hold

CHAINS: dict[str, list[str]] = {
    "none": [],
    "front": ["api_keys", "rate_limit"],
    "usage": ["usage"],
    "audit": ["audit"],
    "record": ["record"],
    "watch": ["watch"],
    "redact": ["redact"],
    "guard": ["guard"],
    "policy": ["policy"],
    "all": ["api_keys", "rate_limit", "audit", "usage", "redact", "guard", "watch", "record"],
    "redact-secret": ["redact_secret"],
    "guard-secret": ["guard_secret"],
    "all-secret": [
        "api_keys",
        "rate_limit",
        "audit",
        "redact_secret",
        "guard_secret",
        "policy",
        "usage",
        "record",
    ],
}
CHANGING = ("redact-secret", "guard-secret", "all-secret")
"""Those that look for the secret. Behind `redact`, `guard` must find nothing."""
HOLDING = {"redact", "policy"}
"""The interceptors that hold tool calls until they are complete, and give them on in one piece."""
EXACT = [name for name in CHAINS if name not in CHANGING and name != "policy"]
"""Chains that keep every byte, except the pieces of held calls."""


class Watch(MessageInterceptor):
    """Keeps what hooks are shown, and changes nothing."""

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _WatchStream(context)


class _WatchStream(MessageStream):
    def __init__(self, context: StreamContext) -> None:
        self._seen = context.state.setdefault("seen", {"texts": {}, "calls": []})

    def on_text_delta(self, delta: TextDelta) -> None:
        if not delta.repeated:
            texts = self._seen["texts"]
            texts[delta.block] = texts.get(delta.block, "") + delta.text

    def on_tool_call(self, call: ToolCall) -> None:
        self._seen["calls"].append((call.id, call.name, call.arguments))


class Policy(MessageInterceptor):
    """Holds every tool call, and lets it pass."""

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _PolicyStream(context)


class _PolicyStream(_WatchStream):
    holds_tool_calls = True


def entries(directory: Path, secret: str, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The configuration of each interceptor. `secret` is a pattern; `keys` has each client's key."""
    here = f"{Path(__file__)}:"
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "api_keys": (
            "api_keys",
            {
                "keys": {name: hash_key(key) for name, key in keys.items()},
                "upstream": "Bearer theirs",
            },
        ),
        "rate_limit": ("rate_limit", {"requests_per_minute": 1_000_000, "burst": 1_000_000}),
        "usage": ("usage", {"max_clients": 10_000}),
        "audit": ("audit", {"path": str(directory / "audit.jsonl"), "events": "data"}),
        "record": ("record", {"directory": str(directory / "tapes")}),
        "redact": ("redact", {"patterns": [_NOWHERE]}),
        "redact_secret": ("redact", {"patterns": [secret]}),
        "guard": ("guard", {"patterns": [_NOWHERE]}),
        "guard_secret": ("guard", {"patterns": [secret]}),
        "watch": (f"{here}Watch", {}),
        "policy": (f"{here}Policy", {}),
    }
    return {
        name: {"name": name, "use": use, "options": given} for name, (use, given) in options.items()
    }


def load_chain(chain: str, directory: Path, secret: str | None, key: str) -> list[Interceptor]:
    """New interceptors, as a configuration makes them."""
    configured = entries(
        directory / chain, re.escape(secret) if secret is not None else _NOWHERE, {"ann": key}
    )
    return [load_interceptor(_CLASSES[name], configured[name]["options"]) for name in CHAINS[chain]]


_CLASSES = {
    "api_keys": "interceptors.api_keys:ApiKeys",
    "rate_limit": "interceptors.rate_limit:RateLimit",
    "usage": "interceptors.usage:Usage",
    "audit": "interceptors.audit:Audit",
    "record": "interceptors.record:Record",
    "redact": "interceptors.redact:Redact",
    "redact_secret": "interceptors.redact:Redact",
    "guard": "interceptors.guard:Guard",
    "guard_secret": "interceptors.guard:Guard",
    "watch": f"{__name__}:Watch",
    "policy": f"{__name__}:Policy",
}
"""By their modules: to look up entry points takes longer than all the rest of a run."""
