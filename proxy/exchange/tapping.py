"""Where an exchange meets the inspector: what of it a tap is shown, and from when.

A tap may come at any time. Phases call these functions only if there is one.
"""

from __future__ import annotations

from typing import Any

from interceptors import Response
from interceptors.content import is_json_type

from ..inspector import BodyKind, Tap
from ..relay import Relay
from .context import Progress

__all__ = ["AT_END", "OWN", "copy_unseen", "show_answer", "show_head", "show_own", "watch"]

OWN = "weirpool"
"""The stage of what the proxy itself sends."""

AT_END = (
    *("outcome", "status", "endpoint", "bytes", "duration", "time_to_first_byte", "error"),
    *("error_type", "interceptor", "client"),
)
"""Fields of the exchange's log line that the end shows."""


def watch(progress: Progress, tap: Tap | None, status: int | None, *, is_plain: bool) -> None:
    """Show the rest of the exchange to `tap`; None: stop. `status`: of the head that was sent.
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
        head = {"status": status, **_interceptors(progress), **_client(progress)}
        tap.head(head, "events" if is_plain else "hidden")
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
    head |= _client(progress)
    body: BodyKind = "events" if is_sse else "text" if is_text else "hidden"
    tap.head(head, body if coding == "identity" else "hidden")


def show_answer(progress: Progress, answer: Response) -> None:
    """Show the head of an interceptor's answer, or of the proxy's to a preflight, and its body, if it
    is whole.
    """
    by = OWN if answer.made_by is None else answer.made_by.name
    show_own(progress, answer.status, answer.headers.get("content-type") or "", by, answer.body)


def show_own(progress: Progress, status: int, media_type: str, by: str, body: bytes) -> None:
    """Show the head of an answer that is not the upstream's, and its body, if it is not empty."""
    tap = progress.tap
    assert tap is not None
    tap.head({"status": status, "content_type": media_type, "answered_by": by, **_client(progress)})
    if body:
        tap.show_added(body, by, is_body=True)


def _client(progress: Progress) -> dict[str, Any]:
    """The client as the log names it, which interceptors decide."""
    return {} if progress.request is None else {"client": progress.request.client_name}


def _interceptors(progress: Progress) -> dict[str, Any]:
    chain = progress.chain
    return {} if chain is None else {"interceptors": [owner.name for owner, _ in chain.members]}
