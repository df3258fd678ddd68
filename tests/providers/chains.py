"""The chains of built-ins that every transcript passes. A new built-in goes into `_options`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interceptors import Interceptor, StreamContext
from interceptors.api_keys import hash_key
from interceptors.dialects import MessageInterceptor, MessageStream, TextDelta, ToolCall
from interceptors.loader import load_interceptor

__all__ = ["CHAINS", "HOLDING", "NOWHERE", "Policy", "Watch", "entries", "load_chain"]

NOWHERE = "☃nowhere [0-9]{20}"  # no transcript has a beginning of it, which `redact` would hold

_FRONT = ["api_keys", "rate_limit", "audit"]
CHAINS: dict[str, list[str]] = {
    "none": [],
    "held": [*_FRONT, "budget", "usage", "redact", "guard", "watch", "record"],
    "unheld": [*_FRONT, "usage", "budget", "guard", "watch"],
    "policy": [*_FRONT, "policy"],
    "redact-secret": [*_FRONT, "redact_secret", "guard_secret", "policy", "usage", "record"],
    "guard-secret": [*_FRONT, "guard_secret"],
}
HOLDING = ("held", "policy")
"""Chains that hold tool calls until they are complete, and pass each on in one piece."""


class Watch(MessageInterceptor):
    """Notes what hooks are shown, and changes nothing."""

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


def _options(directory: Path, secret: str, keys: dict[str, str]) -> dict[str, tuple[str, Any]]:
    """The class and the options of each interceptor."""
    hashed = {name: hash_key(key) for name, key in keys.items()}
    return {
        "api_keys": ("api_keys:ApiKeys", {"keys": hashed, "upstream": "Bearer theirs"}),
        "rate_limit": ("rate_limit:RateLimit", {"requests_per_minute": 10**6, "burst": 10**6}),
        "budget": ("budget:Budget", {"limits": [{"tokens": 10**9, "per": "month"}]}),
        "usage": ("usage:Usage", {"max_clients": 10_000}),
        "audit": ("audit:Audit", {"path": str(directory / "audit.jsonl"), "events": "data"}),
        "record": ("record:Record", {"directory": str(directory / "tapes")}),
        "redact": ("redact:Redact", {"patterns": [NOWHERE]}),
        "redact_secret": ("redact:Redact", {"patterns": [secret]}),
        "guard": ("guard:Guard", {"patterns": [NOWHERE]}),
        "guard_secret": ("guard:Guard", {"patterns": [secret]}),
        "watch": (f"{__name__}:Watch", {}),
        "policy": (f"{__name__}:Policy", {}),
    }


def entries(directory: Path, secret: str, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The configuration of each interceptor. `secret` is a pattern; `keys` has each client's key."""
    return {
        # By its module: to look up an entry point takes longer than the rest of a run.
        name: {"name": name, "use": _path(use), "options": options}
        for name, (use, options) in _options(directory, secret, keys).items()
    }


def _path(use: str) -> str:
    return use if use.startswith(__name__) else f"interceptors.{use}"


def load_chain(chain: str, directory: Path, secret: str, keys: dict[str, str]) -> list[Interceptor]:
    """New interceptors, as a configuration makes them."""
    configured = entries(directory, secret, keys)
    return [
        load_interceptor(configured[name]["use"], configured[name]["options"])
        for name in CHAINS[chain]
    ]
