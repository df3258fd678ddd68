"""What `weirpool top` reads of `/status`: docs/status.md describes the keys.

Keys that an older or newer proxy does not send have defaults, and unknown ones are ignored.
"""

from __future__ import annotations

import msgspec

__all__ = ["Endpoint", "Exchange", "Route", "State", "Worker", "decode_state"]


class _Part(msgspec.Struct, frozen=True):
    pass


class Exchange(_Part, frozen=True):
    """A live exchange."""

    id: int = 0
    worker: int = 0
    request_id: str | None = None
    route: str = ""
    client: str | None = None
    method: str = ""
    path: str | None = None
    phase: str = ""
    age: float = 0.0
    bytes: int = 0
    events: int | None = None
    endpoint: str | None = None
    call: str | None = None

    @property
    def key(self) -> str:
        """Its name, unique among all workers."""
        return f"{self.worker}-{self.id}"


class Exchanges(_Part, frozen=True):
    total: int = 0
    oldest: list[Exchange] = []


class Rates(_Part, frozen=True):
    exchanges: float = 0.0
    failures: float = 0.0
    events: float = 0.0
    bytes: float = 0.0


class Quantiles(_Part, frozen=True):
    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Times(_Part, frozen=True):
    first_byte: Quantiles = Quantiles()
    first_token: Quantiles | None = None


class Pool(_Part, frozen=True):
    pool: str = ""
    in_use: int = 0
    current_size: int = 0
    max_pooled: int = 0
    reuse_rate: float = 0.0
    discards: dict[str, int] = {}
    leaks: int = 0
    high_water: int = 0


class Endpoint(_Part, frozen=True):
    endpoint: str = ""
    state: str = ""
    outstanding: int = 0
    failures: int = 0
    ejections: int = 0
    retries: int = 0


class Connections(_Part, frozen=True):
    origin: str = ""
    lent: int = 0
    idle: int = 0
    waiting: int = 0


class Upstream(_Part, frozen=True):
    endpoints: list[Endpoint] = []
    connections: list[Connections] = []


class Route(_Part, frozen=True):
    route: str = ""
    upstream: str | None = None
    dialect: str | None = None
    streams: int = 0
    outcomes: dict[str, int] = {}


class Interceptor(_Part, frozen=True):
    interceptor: str = ""
    use: str | None = None
    seconds: float = 0.0
    waited: float = 0.0
    unread_parts: int = 0
    events: int = 0
    seconds_per_event: float | None = None
    calls: int = 0
    seconds_per_call: float | None = None


class Limit(_Part, frozen=True):
    limit: str = ""
    used: float = 0
    of: float | None = None


class Budget(_Part, frozen=True):
    interceptor: str = ""
    key: str = ""
    used: float = 0
    of: float | None = None


class Store(_Part, frozen=True):
    at: str | None = None
    up: bool = True
    failures: dict[str, int] = {}


class Reload(_Part, frozen=True):
    at: float = 0.0
    ok: bool = True
    errors: list[str] = []
    changed: list[str] = []
    needs_restart: list[str] = []


class History(_Part, frozen=True):
    step: float = 5.0
    streams: list[float] = []
    exchanges: list[float] = []
    failures: list[float] = []
    events: list[float] = []
    bytes: list[float] = []
    first_byte: dict[str, list[float | None]] = {}


class ClientConnections(_Part, frozen=True):
    open: int = 0
    limit: int = 0


class Worker(_Part, frozen=True):
    worker: int = 0
    problem: str | None = None
    pid: int = 0
    started_at: float = 0.0
    draining: bool = False
    streams: int = 0
    generations: int = 0
    memory: int | None = None
    cpu_seconds: float = 0.0
    connections: ClientConnections = ClientConnections()


class State(_Part, frozen=True):
    """One answer of `/status`."""

    version: str = ""
    now: float = 0.0
    started_at: float = 0.0
    draining: bool = False
    streams: int = 0
    exchanges: Exchanges = Exchanges()
    rates: Rates = Rates()
    times: Times = Times()
    pools: list[Pool] = []
    upstreams: dict[str, Upstream] = {}
    routes: list[Route] = []
    interceptors: list[Interceptor] = []
    limits: list[Limit] = []
    budgets: list[Budget] = []
    store: Store = Store()
    reload: Reload | None = None
    history: History = History()
    workers: list[Worker] = []


_decoder = msgspec.json.Decoder(State, strict=False)


def decode_state(data: bytes) -> State:
    """Return the state. Raises `ValueError` if it is not one."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the answer is not the state of a weirpool: {error}") from None
