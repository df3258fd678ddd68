"""Where an exchange meets the inspector: what of it a tap is shown, and from when.

A tap may come at any time. Phases call these functions only if there is one.
"""

from __future__ import annotations

from typing import Any

from interceptors import Event, Response
from interceptors.content import is_json_type

from ..inspector import BodyKind, Tap
from ..relay import Relay
from .context import Progress

__all__ = ["AT_END", "copy_unseen", "show_added", "show_answer", "show_head", "watch"]

AT_END = (
    *("outcome", "status", "endpoint", "bytes", "duration", "time_to_first_byte", "error"),
    *("error_type", "interceptor", "client"),
)
"""Fields of the exchange's log line that the end shows."""


def watch(progress: Progress, tap: Tap | None, status: int | None, *, is_plain: bool) -> None:
    """Show the rest of the exchange to `tap`; None: to nobody. `status`: of the head that was sent.
    `is_plain`: its body is an event stream that can be framed.
    """
    progress.tap = tap
    if progress.chain is not None:
        progress.chain.watch(tap)
    relay = progress.relay
    if tap is None:
        if relay is not None:
            relay.copy_to(None)
    elif status is not None:
        tap.head({"status": status, **_interceptors(progress)}, "events" if is_plain else "hidden")
        if relay is not None:
            copy_unseen(tap, relay)


def copy_unseen(tap: Tap, relay: Relay) -> None:
    """Show what no hook of the relay's chain sees."""
    if not relay.runs_hooks:
        relay.copy_to(tap.open_copy(at_boundary=relay.at_boundary))


def show_head(progress: Progress, status: int, media_type: str, is_sse: bool, coding: str) -> None:
    """Show the head of the upstream's response, as interceptors left it."""
    tap = progress.tap
    assert tap is not None
    is_text = media_type.startswith("text/") or is_json_type(media_type)
    head = {"status": status, "content_type": media_type, **_interceptors(progress)}
    body: BodyKind = "events" if is_sse else "text" if is_text else "hidden"
    tap.head(head, body if coding == "identity" else "hidden")


def show_answer(tap: Tap, answer: Response) -> None:
    """Show the head of an answer that is not the upstream's, and its body, if it is whole."""
    by = "weirpool" if answer.made_by is None else answer.made_by.name
    media_type = answer.headers.get("content-type") or ""
    tap.head({"status": answer.status, "content_type": media_type, "answered_by": by})
    if answer.events is None and answer.body:
        tap.show_body(answer.body)


def show_added(tap: Tap, event: Event) -> None:
    """Show an event of an answer."""
    tap.added([event])
    tap.left([event])


def _interceptors(progress: Progress) -> dict[str, Any]:
    chain = progress.chain
    return {} if chain is None else {"interceptors": [owner.name for owner, _ in chain.members]}
