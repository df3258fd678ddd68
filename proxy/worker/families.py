"""Metric families as plain data: sent between workers, published for a replacement, and merged.

Counters, histograms and summaries are added. For gauges `RULES` decides, or the author of an
interceptor with `multiprocess_mode`. It does not know where families come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client.core import Exemplar, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

__all__ = [
    "Family",
    "Sample",
    "as_metrics",
    "counters_of",
    "decode",
    "encode",
    "families_of",
    "labelled",
    "merge",
    "merge_each",
    "render",
]

RULES = {
    "buffer_pool_high_water": "max",
    "buffer_pool_reuse_rate": "share",
    "weirpool_config_last_reload_success_timestamp_seconds": "min",
    "weirpool_config_last_reload_successful": "min",
    "weirpool_endpoint_up": "min",
    "weirpool_store_up": "min",
}
"""How gauges of several workers become one; all others are added.

- `max`, `min`: the largest or smallest value
- `share`: computed from the merged counters `buffer_pool_reuses` and `buffer_pool_allocations`
"""

_POOLS = "buffer_pool_"
"""How the names of metrics begin that are merged together: the reuse rate follows from others."""
_EOF = b"# EOF\n"

_KEPT_TYPES = ("counter", "histogram", "summary")


Exemplified = tuple[dict[str, str], float, float | None]
"""An exemplar: labels, value, and when it was measured, in seconds since 1970."""


class Sample(msgspec.Struct, array_like=True):
    """One series' value."""

    name: str
    labels: dict[str, str]
    value: float
    timestamp: float | None = None
    exemplar: Exemplified | None = None


class Family(msgspec.Struct, array_like=True):
    """The series of one metric. `rule`: as in `RULES`, empty for the sum."""

    name: str
    documentation: str
    type: str
    unit: str
    rule: str
    samples: list[Sample]


_decoder = msgspec.msgpack.Decoder(list[Family])
encode: Callable[[Sequence[Family]], bytes] = msgspec.msgpack.Encoder().encode


def decode(data: bytes) -> list[Family]:
    """Return the families of `encode`. Raises `msgspec.DecodeError`, also for cut data."""
    return _decoder.decode(data)


def families_of(metrics: Iterable[Metric], rule: str = "") -> list[Family]:
    """Return the families of collected metrics. `rule`: for gauges that `RULES` does not name."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            metric.unit,
            RULES.get(metric.name, rule),
            [
                Sample(
                    sample.name,
                    sample.labels,
                    float(sample.value),
                    None if sample.timestamp is None else float(sample.timestamp),
                    _plain(sample.exemplar),
                )
                for sample in metric.samples
            ],
        )
        for metric in metrics
    ]


def _plain(exemplar: Exemplar | None) -> Exemplified | None:
    if exemplar is None:
        return None
    at = exemplar.timestamp
    return dict(exemplar.labels), float(exemplar.value), None if at is None else float(at)


def counters_of(families: Iterable[Family]) -> list[Family]:
    """The families that only grow, which outlive their worker."""
    return [family for family in families if family.type in _KEPT_TYPES]


def labelled(families: Iterable[Family], label: str, value: str) -> list[Family]:
    """Return copies with one more label; the samples' own label of that name wins."""
    return [
        msgspec.structs.replace(
            family,
            samples=[
                msgspec.structs.replace(sample, labels={label: value, **sample.labels})
                for sample in family.samples
            ],
        )
        for family in families
    ]


def merge(parts: Iterable[Iterable[Family]]) -> list[Family]:
    """Merge families by name, and samples by name and labels. The parts do not change; a family that
    only one part has is not copied.

    While a reload is under way, workers can differ in a family's type: the first one counts.
    """
    return list(merge_each(parts))


def merge_each(parts: Iterable[Iterable[Family]]) -> Iterator[Family]:
    """As `merge`, one family after the other: thousands of series take many milliseconds."""
    groups: dict[str, dict[str, list[Family]]] = {}
    for part in parts:
        for family in part:
            name = family.name
            group = groups.setdefault(_POOLS if name.startswith(_POOLS) else name, {})
            group.setdefault(name, []).append(family)
    for group in groups.values():
        merged = {name: _merge_one(families) for name, families in group.items()}
        if len(group.get("buffer_pool_reuse_rate", ())) > 1:
            _set_shares(merged)
        yield from merged.values()


def _merge_one(families: Sequence[Family]) -> Family:
    """Merge families of one name."""
    if len(families) == 1:
        return families[0]
    merged = msgspec.structs.replace(families[0], samples=[])
    places: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
    for family in families:
        if merged.type != family.type:
            continue
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            there = places.get(key)
            if there is None:
                there = places[key] = msgspec.structs.replace(sample)
                merged.samples.append(there)
            else:
                there.value = _rule_of(merged, sample)(there.value, sample.value)
                there.exemplar = _later(there.exemplar, sample.exemplar)
    return merged


def _later(one: Exemplified | None, other: Exemplified | None) -> Exemplified | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda item: item[2] or 0.0)


def _add(one: float, other: float) -> float:
    return one + other


def _rule_of(family: Family, sample: Sample) -> Callable[[float, float], float]:
    """The function that merges two values of a series."""
    if family.type in ("info", "stateset") or "quantile" in sample.labels:
        return max
    if sample.name.endswith("_created"):
        return min
    if family.type in ("gauge", "unknown"):
        return {"max": max, "min": min}.get(family.rule, _add)
    return _add


def _set_shares(merged: Mapping[str, Family]) -> None:
    """Compute the gauges with the rule `share`."""
    if not {"buffer_pool_reuse_rate", "buffer_pool_reuses", "buffer_pool_allocations"} <= set(
        merged
    ):
        return
    reuses, allocations = (
        {sample.labels["pool"]: sample.value for sample in merged[name].samples}
        for name in ("buffer_pool_reuses", "buffer_pool_allocations")
    )
    for sample in merged["buffer_pool_reuse_rate"].samples:
        pool = sample.labels["pool"]
        leases = reuses.get(pool, 0.0) + allocations.get(pool, 0.0)
        sample.value = reuses.get(pool, 0.0) / leases if leases else 0.0


def as_metrics(families: Iterable[Family]) -> list[Metric]:
    """Return the families as prometheus-client's metrics."""
    metrics = []
    for family in families:
        metric = Metric(family.name, family.documentation, family.type, family.unit)
        for sample in family.samples:
            last = None if sample.exemplar is None else Exemplar(*sample.exemplar)
            metric.add_sample(sample.name, sample.labels, sample.value, sample.timestamp, last)
        metrics.append(metric)
    return metrics


class _Collected(Collector):
    """What an encoder needs of a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def render(families: Iterable[Family], accept: str = "") -> tuple[Iterator[bytes], str]:
    """Return the text format that an `Accept` header asks for, a piece for each family, and its
    content type: Prometheus', or OpenMetrics', which has exemplars.

    Other tasks can run between two pieces.
    """
    encode, content_type = choose_encoder(accept)

    def pieces() -> Iterator[bytes]:
        end = b""
        for family in families:
            text = encode(_Collected(as_metrics([family])))
            end = _EOF if text.endswith(_EOF) else b""
            yield text.removesuffix(_EOF)
        yield end

    return pieces(), content_type
