"""What a worker needs for traces: it begins spans, ends them, and exports the last ones in time.

It loads OpenTelemetry only if the environment asks for traces (`settings`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import structlog
import trio

from ..http.headers import HeaderList
from .context import TRACE_FIELDS, TraceContext, read_context
from .settings import TracingUnavailable, exporters_of, propagates_context
from .span import ExchangeSpan, FinishedSpan

__all__ = ["FLUSH_S", "Sdk", "Tracing", "open_tracing"]

FLUSH_S = 3.0
"""How long a process that ends waits for its last spans to be exported."""


class Sdk(Protocol):
    """What decides and exports: `otel.OtelSdk`. Its methods never raise."""

    def samples(self, trace_id: str, parent: TraceContext | None) -> bool:
        """Whether a trace is exported. Never blocks."""
        ...

    def export(self, finished: FinishedSpan) -> None:
        """Queue a span for a thread that sends it. Never blocks."""
        ...

    def close(self) -> None:
        """Send what is queued. Blocks, perhaps for long."""
        ...


class Tracing:
    """The traces of one worker."""

    __slots__ = ("_sdk", "propagates")

    def __init__(self, sdk: Sdk, *, propagates: bool = True) -> None:
        self._sdk = sdk
        self.propagates = propagates
        """Clients' contexts are taken over, and upstreams get the span's."""

    def begin(self, headers: HeaderList, started_at: float) -> ExchangeSpan:
        """The span of an exchange. `headers`: the request's, in lower case."""
        parent: TraceContext | None = None
        given = [item for item in headers if item[0] in TRACE_FIELDS] if self.propagates else []
        if given:
            parent = read_context(
                [value for name, value in given if name == b"traceparent"],
                [value for name, value in given if name == b"tracestate"],
            )
        samples, replaces = self._sdk.samples, bool(given)
        return ExchangeSpan(parent, started_at, samples, self.propagates, replaces)

    def end(self, finished: FinishedSpan) -> None:
        """Export a span. Call it only for a sampled one. Never blocks."""
        self._sdk.export(finished)

    async def aclose(self) -> None:
        """Export the last spans, for `FLUSH_S` at most, in a thread."""
        with trio.move_on_after(FLUSH_S) as scope:
            await trio.to_thread.run_sync(self._sdk.close, abandon_on_cancel=True)
        if scope.cancelled_caught:
            structlog.get_logger("proxy").warning(
                "tracing_failed", error=f"the last spans were not exported within {FLUSH_S:.0f} s"
            )


def open_tracing(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """What a worker needs for traces; None if the environment does not ask for any, or if they
    cannot be made, which is logged.

    Starts a thread: call it after a fork. Blocks on imports.
    """
    try:
        exporters = exporters_of(environment)
        if not exporters:
            return None
        propagates = propagates_context(environment)
        return Tracing(_open_sdk(exporters), propagates=propagates)
    except TracingUnavailable as error:
        structlog.get_logger("proxy").warning("tracing_unavailable", error=str(error))
        return None


def _open_sdk(exporters: list[str]) -> Sdk:
    try:
        from .otel import OtelSdk  # takes 0.3 s, and memory
    except ImportError as error:
        raise TracingUnavailable(
            f"OpenTelemetry cannot be imported ({error}): install weirpool[otel], "
            "or set OTEL_SDK_DISABLED=true"
        ) from None
    except ValueError as error:  # some variables are read at import
        raise TracingUnavailable(f"an OTEL_* variable is not accepted: {error}") from None
    return OtelSdk(exporters)
