"""Metrics of the calls of models and of MCP servers (`telemetry.genai`), by OpenTelemetry's names in
Prometheus' spelling.

Sources: OpenTelemetry's semantic conventions for generative AI and for MCP, status Development:
names, buckets and attributes. An absent attribute is an empty label. Each call is recorded once, at
its exchange's end. Values of labels that clients and upstreams choose are bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from interceptors.operation import Operation
from interceptors.toolkit.labels import OTHER, Labels

from ..relay.gaps import GAP_BOUNDS
from .histograms import Exemplars, add_histogram, exemplar

__all__ = ["FIRST_TOKEN_BOUNDS", "GenAiMetrics"]

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**power for power in range(14))
_MCP_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)

_SERVER = ("server_address", "server_port")
_CALL = (
    *("gen_ai_operation_name", "gen_ai_provider_name"),
    *("gen_ai_request_model", "gen_ai_response_model"),
    *_SERVER,
)
_MCP_CALL = ("mcp_method_name", "gen_ai_operation_name", "gen_ai_tool_name", *_SERVER)
_ERROR = "error_type"
_CHOSEN = frozenset(
    ("gen_ai_request_model", "gen_ai_response_model", "mcp_method_name", "gen_ai_tool_name", _ERROR)
)
"""Labels whose values clients and upstreams choose."""
_CHOSEN_OF_CALL = ("gen_ai_request_model", "gen_ai_response_model")
_CHOSEN_OF_MCP = ("mcp_method_name", "gen_ai_tool_name")
_NOTIFICATIONS = frozenset(
    f"notifications/{name}"
    for name in ("cancelled", "initialized", "progress", "roots/list_changed", "tasks/status")
)
"""Those that MCP's clients send."""
_SERIES_FOR_EACH_VALUE = 10
_BELOW_10_MS = sum(bound < _SECONDS[0] for bound in GAP_BOUNDS)


class _Series:
    """One histogram with one set of labels."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: Exemplars = {}

    def observe(self, value: float, trace_id: str | None) -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1.0
        self.total += value
        if trace_id is not None:
            self.exemplars[bucket] = exemplar(trace_id, value)


class _Family:
    """One histogram."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: tuple[str, ...]
    ) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labels = labels
        self._series: dict[tuple[str, ...], _Series] = {}
        self.most = 0
        """Beyond so many series, labels that clients and upstreams choose are `other`."""

    def of(self, labels: tuple[str, ...]) -> _Series:
        """The series with these labels."""
        series = self._series.get(labels)
        if series is not None:
            return series
        if len(self._series) >= self.most:
            labels = tuple(
                OTHER if value and name in _CHOSEN else value
                for name, value in zip(self._labels, labels, strict=True)
            )
        return self._series.setdefault(labels, _Series(self._bounds))

    def total(self) -> list[float]:
        """The counts of all series, by bucket."""
        counts = [series.counts for series in self._series.values()]
        return [sum(bucket) for bucket in zip(*counts, strict=True)] if counts else []

    def collect(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in self._series.items():
            add_histogram(
                family, labels, self._bounds, series.counts, series.total, series.exemplars
            )
        return family


class _Call:
    """The series of calls with the same labels. Each begins with its first value."""

    __slots__ = ("_series", "asked", "labels", "whole")

    def __init__(self, labels: tuple[str, ...], asked: _Series, whole: _Series) -> None:
        self.labels = labels
        self.asked = asked
        """Durations since the request to the upstream."""
        self.whole = whole
        """Durations since the client's request."""
        self._series: dict[tuple[_Family, str], _Series] = {}

    def of(self, family: _Family, kind: str = "") -> _Series:
        """The series in another histogram. `kind`: its last label, if it has one more."""
        series = self._series.get((family, kind))
        if series is None:
            labels = (*self.labels, kind) if kind else self.labels
            series = self._series[family, kind] = family.of(labels)
        return series


class GenAiMetrics(Collector):
    """The nine histograms of one worker. Call `limit` first."""

    def __init__(self) -> None:
        failing, kinds = (*_CALL, _ERROR), (*_CALL, "gen_ai_token_type")
        self._duration = _Family(
            "gen_ai_client_operation_duration_seconds",
            "From the request to the upstream to the end of its answer.",
            _SECONDS,
            failing,
        )
        self._tokens = _Family(
            "gen_ai_client_token_usage",
            "Tokens of one call, as the provider reports them.",
            _TOKENS,
            kinds,
        )
        self._first_chunk = _Family(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From the request to the upstream to the first bytes of a stream.",
            _SECONDS,
            _CALL,
        )
        self._chunk = _Family(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Between two events of a stream.",
            _SECONDS,
            _CALL,
        )
        self._request = _Family(
            "gen_ai_server_request_duration_seconds",
            "From the client's request to the end of the answer.",
            _SECONDS,
            failing,
        )
        self._first_token = _Family(
            "gen_ai_server_time_to_first_token_seconds",
            "From the client's request to the first token, of streams that succeed.",
            FIRST_TOKEN_BOUNDS,
            _CALL,
        )
        self._per_token = _Family(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per output token after the first, of streams that succeed.",
            _PER_TOKEN,
            _CALL,
        )
        self._mcp_client = _Family(
            "mcp_client_operation_duration_seconds",
            "From the request to the upstream to the end of its answer.",
            _MCP_SECONDS,
            (*_MCP_CALL, _ERROR),
        )
        self._mcp_server = _Family(
            "mcp_server_operation_duration_seconds",
            "From the client's request to the end of the answer.",
            _MCP_SECONDS,
            (*_MCP_CALL, _ERROR),
        )
        self._values = {name: Labels(0, "") for name in _CHOSEN}
        self._families = [item for item in vars(self).values() if isinstance(item, _Family)]
        self._calls: dict[tuple[object, ...], _Call] = {}
        self._most_calls = 0

    def limit(self, max_label_values: int) -> None:
        """Set `telemetry.max_label_values`. Values that have a label keep it."""
        for values in self._values.values():
            values.most = max_label_values
        self._most_calls = max_label_values * _SERIES_FOR_EACH_VALUE
        for family in self._families:
            family.most = self._most_calls
        self._calls.clear()

    def first_tokens(self) -> list[float]:
        """Calls by their time to the first token, in the buckets of `FIRST_TOKEN_BOUNDS`, over all
        labels.
        """
        return self._first_token.total()

    def collect(self) -> Iterable[Metric]:
        return (family.collect() for family in self._families)

    def record(
        self,
        operation: Operation,
        *,
        started_at: float,
        ended_at: float,
        first_read_at: float | None,
        gaps: Sequence[float] | None,
        trace_id: str | None,
    ) -> None:
        """Record a call whose exchange has ended. Times are Trio's, in seconds. `gaps`: the sum and
        the buckets of the times between its events.
        """
        asked_at = operation.asked_at
        if asked_at is None or (operation.mcp_method is None and operation.name is None):
            return  # the upstream was not asked, or for something else
        key = (
            *(operation.mcp_method, operation.name, operation.tool, operation.provider),
            *(operation.request_model, operation.response_model, operation.error_type),
            *(operation.server_address, operation.server_port),
        )
        call = self._calls.get(key) or self._find(operation, key)
        call.asked.observe(ended_at - asked_at, trace_id)
        call.whole.observe(ended_at - started_at, trace_id)
        if operation.mcp_method is not None:
            return
        if operation.input_tokens is not None:
            call.of(self._tokens, "input").observe(operation.input_tokens, trace_id)
        if operation.output_tokens is not None:
            call.of(self._tokens, "output").observe(operation.output_tokens, trace_id)
        if operation.streams:
            if first_read_at is not None:
                call.of(self._first_chunk).observe(first_read_at - asked_at, trace_id)
            if gaps is not None:
                self._add_chunks(call.of(self._chunk), gaps)
            if operation.error_type is None:
                self._record_tokens(operation, started_at, call, trace_id)

    def _find(self, operation: Operation, key: tuple[object, ...]) -> _Call:
        """The series of a call, which are kept by its `key` if its labels are its own values: a
        failed call must not use up labels, because its model need not exist.
        """
        is_mcp = operation.mcp_method is not None
        chosen = {
            "mcp_method_name": operation.mcp_method,
            "gen_ai_tool_name": operation.tool,
            "gen_ai_request_model": operation.request_model,
            "gen_ai_response_model": operation.response_model,
        }
        new = operation.error_type is None and (
            # Servers accept each notification, whatever its name.
            not is_mcp or operation.jsonrpc_id is not None or operation.mcp_method in _NOTIFICATIONS
        )
        names = _CHOSEN_OF_MCP if is_mcp else _CHOSEN_OF_CALL
        shown = {name: self._values[name].of(chosen[name], new=new) for name in names}
        error = self._values[_ERROR].of(operation.error_type)
        shown |= {
            "gen_ai_operation_name": operation.name or "",
            "gen_ai_provider_name": operation.provider or operation.dialect,
            "server_address": operation.server_address or "",
            "server_port": str(operation.server_port or ""),
        }
        labels = tuple(shown[name] for name in (_MCP_CALL if is_mcp else _CALL))
        asked, whole = self._duration, self._request
        if is_mcp:
            asked, whole = self._mcp_client, self._mcp_server
        call = _Call(labels, asked.of((*labels, error)), whole.of((*labels, error)))
        is_own = error == (operation.error_type or "") and all(
            shown[name] == (chosen[name] or "") for name in names
        )
        if is_own and len(self._calls) < self._most_calls:
            self._calls[key] = call
        return call

    def _add_chunks(self, series: _Series, gaps: Sequence[float]) -> None:
        series.total += gaps[0]
        counts = series.counts
        counts[0] += sum(gaps[1 : 2 + _BELOW_10_MS])
        for bucket, count in enumerate(gaps[2 + _BELOW_10_MS :], 1):
            if count:
                counts[bucket] += count

    def _record_tokens(
        self, operation: Operation, started_at: float, call: _Call, trace_id: str | None
    ) -> None:
        first, last = operation.first_token_at, operation.last_token_at
        if first is None:
            return
        call.of(self._first_token).observe(first - started_at, trace_id)
        tokens = operation.output_tokens
        if last is not None and tokens is not None and tokens > 1:
            per_token_s = (last - first) / (tokens - 1)
            call.of(self._per_token).observe(per_token_s, trace_id)
