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

    def of(self, labels: tuple[str, ...], most: int) -> _Series:
        """The series with these labels. Beyond `most` series, those that clients and upstreams
        choose are `other`.
        """
        series = self._series.get(labels)
        if series is not None:
            return series
        if len(self._series) >= most:
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


class GenAiMetrics(Collector):
    """The nine histograms of one worker."""

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

    def first_tokens(self) -> list[float]:
        """Calls by their time to the first token, in the buckets of `FIRST_TOKEN_BOUNDS`, over all
        labels.
        """
        return self._first_token.total()

    def collect(self) -> Iterable[Metric]:
        families = [item for item in vars(self).values() if isinstance(item, _Family)]
        return [family.collect() for family in families]

    def record(
        self,
        operation: Operation,
        *,
        started_at: float,
        ended_at: float,
        first_read_at: float | None,
        gaps: Sequence[float] | None,
        most: int,
        trace_id: str | None,
    ) -> None:
        """Record a call whose exchange has ended. Times are Trio's, in seconds. `gaps`: the sum and
        the buckets of the times between its events. `most`: `telemetry.max_label_values`.
        """
        if operation.asked_at is None:
            return  # the upstream was not asked
        for values in self._values.values():
            values.most = most
        most *= _SERIES_FOR_EACH_VALUE
        asked_s, duration_s = ended_at - operation.asked_at, ended_at - started_at
        server = operation.server_address or "", str(operation.server_port or "")
        error = self._values[_ERROR].of(operation.error_type)
        if operation.mcp_method is not None:
            labels = (*self._labels_of_mcp(operation, operation.mcp_method), *server, error)
            self._mcp_client.of(labels, most).observe(asked_s, trace_id)
            self._mcp_server.of(labels, most).observe(duration_s, trace_id)
        elif operation.name is not None:
            call = (*self._labels_of_call(operation, operation.name), *server)
            self._duration.of((*call, error), most).observe(asked_s, trace_id)
            self._request.of((*call, error), most).observe(duration_s, trace_id)
            kinds = (("input", operation.input_tokens), ("output", operation.output_tokens))
            for kind, tokens in kinds:
                if tokens is not None:
                    self._tokens.of((*call, kind), most).observe(tokens, trace_id)
            if operation.streams:
                if first_read_at is not None:
                    first_chunk_s = first_read_at - operation.asked_at
                    self._first_chunk.of(call, most).observe(first_chunk_s, trace_id)
                if gaps is not None:
                    self._add_chunks(self._chunk.of(call, most), gaps)
                if not error:
                    self._record_tokens(operation, started_at, call, most, trace_id)

    def _labels_of_call(self, operation: Operation, name: str) -> tuple[str, ...]:
        """A failed call must not use up labels: its model need not exist."""
        new = operation.error_type is None
        return (
            name,
            operation.provider or operation.dialect,
            self._values["gen_ai_request_model"].of(operation.request_model, new=new),
            self._values["gen_ai_response_model"].of(operation.response_model, new=new),
        )

    def _labels_of_mcp(self, operation: Operation, method: str) -> tuple[str, ...]:
        new = operation.error_type is None
        return (
            self._values["mcp_method_name"].of(method, new=new),
            operation.name or "",
            self._values["gen_ai_tool_name"].of(operation.tool, new=new),
        )

    def _add_chunks(self, series: _Series, gaps: Sequence[float]) -> None:
        series.total += gaps[0]
        counts = series.counts
        counts[0] += sum(gaps[1 : 2 + _BELOW_10_MS])
        for bucket, count in enumerate(gaps[2 + _BELOW_10_MS :], 1):
            if count:
                counts[bucket] += count

    def _record_tokens(
        self,
        operation: Operation,
        started_at: float,
        call: tuple[str, ...],
        most: int,
        trace_id: str | None,
    ) -> None:
        first, last = operation.first_token_at, operation.last_token_at
        if first is None:
            return
        self._first_token.of(call, most).observe(first - started_at, trace_id)
        tokens = operation.output_tokens
        if last is not None and tokens is not None and tokens > 1:
            per_token_s = (last - first) / (tokens - 1)
            self._per_token.of(call, most).observe(per_token_s, trace_id)
