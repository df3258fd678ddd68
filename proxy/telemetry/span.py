"""The span of an exchange while it runs: its ids, its parent, and its events.

Its name and attributes are added once, at its end, and only if the span is exported. It knows no
OpenTelemetry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..http.headers import HeaderList
from .context import RANDOM, TraceContext, new_ids

__all__ = ["Attributes", "ExchangeSpan", "FinishedSpan", "Samples", "SpanEvent"]

Attributes = Mapping[str, str | int | float | bool | list[str]]

Samples = Callable[[str, TraceContext | None], bool]
"""Decides whether a trace, by its id and the client's span, is exported. Must be cheap."""

_MOST_EVENTS = 100
"""A stream that reconnects for days must not grow."""


class SpanEvent(NamedTuple):
    """Something that happened during a span."""

    name: str
    at: float
    """Trio's time."""
    attributes: Attributes


class ExchangeSpan:
    """One span. Its trace is the client's, or a new one."""

    __slots__ = (
        "_began_ns",
        "_samples",
        "events",
        "flags",
        "parent",
        "propagates",
        "replaces",
        "sampled",
        "span_id",
        "started_at",
        "trace_id",
    )

    def __init__(
        self,
        parent: TraceContext | None,
        started_at: float,
        samples: Samples,
        propagates: bool = True,
        replaces: bool = False,
    ) -> None:
        """`started_at`: Trio's time, now or a moment ago."""
        self._began_ns = time.time_ns()
        self._samples = samples
        self.started_at = started_at
        new_trace, self.span_id = new_ids()
        """16 hexadecimal digits."""
        self.propagates = propagates
        """The upstream gets the span's context."""
        self.replaces = replaces
        """The client's request has a context, valid or not, in its headers."""
        self.events: list[SpanEvent] = []
        """Those that `add_event` noted, at most a hundred."""
        self.parent: TraceContext | None = None
        self.trace_id = new_trace
        """32 hexadecimal digits."""
        if parent is not None:
            self.join(parent)
            return
        self.sampled = samples(new_trace, None)
        """The span is exported."""
        self.flags = RANDOM | self.sampled

    def join(self, parent: TraceContext) -> None:
        """Become a part of the client's trace. Decides anew whether the span is exported."""
        self.parent = parent
        self.trace_id = parent.trace_id
        self.sampled = self._samples(parent.trace_id, parent)
        self.flags = (parent.flags & RANDOM) | self.sampled

    @property
    def traceparent(self) -> str:
        """The context for the upstream, whose parent is this span."""
        return f"00-{self.trace_id}-{self.span_id}-0{self.flags}"

    @property
    def tracestate(self) -> bytes:
        """As the client sent it: the proxy adds no member. Empty without one."""
        return b"" if self.parent is None else self.parent.state

    def fields(self) -> HeaderList:
        """The header fields for the upstream."""
        fields = [(b"traceparent", self.traceparent.encode("ascii"))]
        if self.parent is not None and self.parent.state:
            fields.append((b"tracestate", self.parent.state))
        return fields

    def add_event(self, name: str, at: float, attributes: Attributes | None = None) -> None:
        """Note an event; nothing if the span is not exported. `at`: Trio's time."""
        if self.sampled and len(self.events) < _MOST_EVENTS:
            self.events.append(SpanEvent(name, at, attributes or {}))

    def nanoseconds(self, at: float) -> int:
        """Trio's time as nanoseconds since 1970, by the clock as it was when the span began."""
        return self._began_ns + int((at - self.started_at) * 1e9)

    def __repr__(self) -> str:
        return f"<ExchangeSpan {self.traceparent}>"


class FinishedSpan(NamedTuple):
    """An exchange that has ended, as it is exported."""

    span: ExchangeSpan
    name: str
    ended_at: float
    """Trio's time."""
    attributes: Attributes
    error: str | None
    """Why it failed; "" without a text, None for success."""
