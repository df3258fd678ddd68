"""What one load is given, and what it measures. Both cross process boundaries as JSON."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Result", "Settings"]


@dataclass(frozen=True)
class Settings:
    proxy_port: int
    upstream_port: int
    pids: list[int]
    """The proxy's processes, whose CPU time and memory are measured."""
    streams: int
    events: int
    """For each stream, or requests for each client with `kind` "json" or "opening"; 0: as many as
    fit in `seconds`.
    """
    seconds: float = 0
    rate: float = 0
    """Events per second and stream; 0: unlimited."""
    size: int = 200
    path: str = "/"
    kind: str = "sse"
    """`sse`; `json`: short POSTs on keep-alive connections; `opening`: streams of one event."""
    new_connections: bool = False
    """`json`, `opening`: each request on a connection of its own."""
    certificate: str | None = None
    """For a TLS upstream: a PEM file with certificate and key."""
    limit_s: float = 60
    beside: int = 0
    """Saturated streams besides the measured ones."""
    hold: bool = False
    """End the streams only when all have had their events, to measure the memory of all of them
    open at once.
    """


@dataclass
class Result:
    streams: int
    finished: int
    failed: int
    events: int
    wall_s: float
    events_per_s: float
    cpu_s: float
    cpu_us_per_event: float
    p50_us: float
    p99_us: float
    rss_before_kb: int
    rss_peak_kb: int
    load_cpu: float
