"""What the exchanges of one worker share: pools, generations, metrics, the live exchanges, the
draining state.
"""

from __future__ import annotations

import math
import time

import trio

from interceptors.store import Share
from pools import Pools

from ..config import Config
from ..downstream import client_connections, connections_by_open_files
from ..errors import ConfigError
from ..http.headers import Via, network_of, new_pseudonym
from ..hub import Hub
from ..inspector import Inspector
from ..telemetry import Tracing
from .collecting import BodyBudget
from .counters import State
from .generations import Generations
from .history import History
from .live import LiveExchange
from .log_level import CurrentLevel
from .logs import configure_logging, output
from .metrics import Metrics
from .reloads import Reloads
from .routes import Route, RouteTable
from .siblings import Group, Siblings
from .stores import Stores
from .tally import new_memory

__all__ = ["NO_ROUTE", "Worker"]

_PUBLISH_S = 0.1
_REST = 50
NO_ROUTE = ""
"""The route label of requests that match no route."""


class Worker:
    """One per process, made from a checked configuration. Raises `ConfigError` if an interceptor or
    a file cannot be loaded.
    """

    hub: Hub | None = None
    """Moves streams while the app's lifespan runs it; without it each stream's task waits for
    itself.
    """
    tracing: Tracing | None = None
    """Makes the spans of exchanges; None while traces are off. The app opens it."""
    siblings: Siblings | None = None
    """The other workers, which may have sessions that this one does not know."""
    entered = 0
    """Exchanges so far: the number of the last one."""
    admitted = 0
    """Exchanges that count against the limits."""
    begun = False
    """Whether the worker has been ready: from then on it drains before it ends."""
    draining = False
    _unpublished = True  # counters have changed, or can change without a notice

    def __init__(self, config: Config, group: Group | None = None, index: int = 0) -> None:
        """`group`: all workers, of which this one is number `index`, from 0."""
        self.index = index
        self.memories = [new_memory()] if group is None else group.memories
        """For the counters of all workers."""
        self.memory = self.memories[index]
        sizes = config.reverse_proxy.buffer_pools
        self.pools = Pools(
            sse_event=(sizes.sse_event.size, sizes.sse_event.max_pooled),
            http_response=(sizes.http_response.size, sizes.http_response.max_pooled),
            json=(sizes.json.size, sizes.json.max_pooled),
            leak_detection=config.reverse_proxy.leak_detection,
        )
        self.stores = Stores(
            config.store,
            Share(index, len(self.memories)),
            None if group is None else group.store_url,
        )
        """What interceptors count and keep."""
        self.generations = Generations(config, self.stores.of, len(self.memories))
        bound_connections(config)
        self.reloads = Reloads(None if group is None else group.notice)
        self.metrics = Metrics(
            self.pools,
            [NO_ROUTE, *(route.name for route in self.routes.routes)],
            interceptor_totals=self.generations.interceptor_totals,
            collectors=self.generations.collectors,
            upstreams=lambda: self.routes.transports,
            memory=self.memory,
            store=lambda: (self.stores.is_up, self.stores.failures),
            reloads=self.reloads,
            streams_limit=self.streams_limit,
        )
        self.metrics.add_interceptors(self.routes.interceptors())
        self.metrics.genai.limit(config.telemetry.max_label_values)
        self.generations.on_retire = self.metrics.keep
        self.started_at = time.time()
        self.history = History(self.pools, self.metrics.routes, self.metrics.genai.first_tokens)
        """What has happened in the last minutes."""
        self.log_level = CurrentLevel(self.memories, self.memory, config.log.level)
        """The level of the log; other workers and the supervisor can change it, too."""
        self.log_level.follow()
        output.joined_by = config.log.fields
        self.via = Via(new_pseudonym())
        """This instance in the `Via` header. `weirpool serve` gives all of its workers the same."""
        if group is not None:
            sessions = self.generations.sessions.mcp
            self.siblings = Siblings(group.mailboxes, index, sessions)
            sessions.ask_others = self.siblings.ask
        self.start_details: dict[str, object] = {}
        """Further fields of the `started` line."""
        self.live: set[LiveExchange] = set()
        self.inspector = Inspector(index, lambda: self.live) if config.admin.inspect else None
        """Shows live streams to clients of `/inspect/stream`; None: `admin.inspect` is off."""
        self.client_streams: dict[tuple[str, str], int] = {}
        """Streams of each limited client, by `client_place`."""
        self.bodies = BodyBudget()
        self.none_left = trio.Event()

    @property
    def config(self) -> Config:
        """The configuration of new exchanges."""
        return self.generations.current.config

    @property
    def routes(self) -> RouteTable:
        """The routes of new exchanges."""
        return self.generations.current.routes

    @property
    def ready(self) -> bool:
        """Whether the worker accepts exchanges. All workers can see it."""
        return self.memory.state is State.READY

    @ready.setter
    def ready(self, ready: bool) -> None:
        self.memory.state = State.READY if ready else State.DRAINING

    async def reload(self, config: Config) -> None:
        """Apply `config` to new exchanges. Raises `ConfigError`, and then nothing has changed."""
        if self.draining or not self.ready:
            raise ConfigError("this worker is ending, and begins no new configuration")
        before = self.config
        new = await self.generations.replace(config, self.metrics.check)
        self.metrics.add_routes([route.name for route in new.routes.routes])
        self.metrics.add_interceptors(new.routes.interceptors())
        self.metrics.genai.limit(config.telemetry.max_label_values)
        bound_connections(config)
        if config.log.format != before.log.format:
            configure_logging(config.log.format, config.log.level)
        self.log_level.configure(config.log.level)
        output.joined_by = config.log.fields

    def enter(self, exchange: LiveExchange) -> None:
        """Register an exchange. A refused one is tracked until answered but does not count against
        the limits.
        """
        self.entered = exchange.number = self.entered + 1
        self.generations.current.live.add(exchange)
        tally = self.metrics.routes[exchange.route_name]
        tally.begin(exchange)
        self._unpublished = True
        self.live.add(exchange)
        if self.inspector is not None and self.inspector.views:
            self.inspector.begin(exchange)
        if exchange.is_counted:
            tally.admitted += 1
            self.admitted += 1
            if (place := exchange.client_place) is not None:
                self.client_streams[place] = self.client_streams.get(place, 0) + 1
        self.memory.admitted = self.admitted

    def leave(self, exchange: LiveExchange) -> None:
        """Remove an exchange that `enter` registered."""
        tally = self.metrics.routes[exchange.route_name]
        tally.end(exchange)
        self._unpublished = True
        self.live.discard(exchange)
        if exchange.is_counted:
            tally.admitted -= 1
            self.admitted -= 1
            self.memory.admitted = self.admitted
            if (place := exchange.client_place) is not None:
                self.client_streams[place] -= 1
                if not self.client_streams[place]:
                    del self.client_streams[place]
        self.generations.leave(exchange)
        if self.draining and not self.live:
            self.none_left.set()

    def is_full(self, route: Route) -> bool:
        """Whether the worker, or the route if it has its own limit, has reached `max_streams`, or all
        workers `max_total_streams`. If not, `enter` must follow without a checkpoint.
        """
        settings = self.generations.current.config.reverse_proxy
        if self.admitted >= settings.limits.max_streams or (
            route.max_streams is not None
            and self.metrics.routes[route.name].admitted >= route.max_streams
        ):
            return True
        if settings.max_total_streams is None:
            return False
        # First take the place: another worker can look at the same time.
        self.memory.admitted = self.admitted + 1
        return sum(memory.admitted for memory in self.memories) > settings.max_total_streams

    def streams_limit(self) -> float:
        """`max_streams`, or the worker's share of `max_total_streams` if that is less."""
        settings = self.generations.current.config.reverse_proxy
        total = settings.max_total_streams
        share = math.inf if total is None else total / len(self.memories)
        return min(settings.limits.max_streams, share)

    def client_place(self, route: Route, client: str | None) -> tuple[str, str] | None:
        """Return the counter of a client's streams; None if they are not limited, or the address is
        unknown.
        """
        if route.limits.max_streams_per_client is None or client is None:
            return None
        return route.clients, network_of(client)

    def is_client_full(self, route: Route, place: tuple[str, str] | None) -> bool:
        """Whether a client has as many streams as it may; `place` is from `client_place`."""
        most = route.limits.max_streams_per_client
        if place is None or most is None:
            return False
        return self.client_streams.get(place, 0) >= most

    async def keep_counters(self) -> None:
        """Publish the counters that are not in memory, and that the event loop runs, until
        cancelled.
        """
        while True:
            self.memory.seen()
            self.log_level.follow()
            began = time.perf_counter()
            if self._unpublished:
                self._unpublished = bool(self.live)
                self.metrics.publish()
            # Thousands of series take milliseconds.
            await trio.sleep(max(_PUBLISH_S, _REST * (time.perf_counter() - began)))

    def start_draining(self) -> None:
        """Accept no new exchanges."""
        self.ready = False
        self.draining = True
        if not self.live:
            self.none_left.set()

    def stop_live(self) -> None:
        """End every live exchange with the outcome `draining`."""
        for exchange in tuple(self.live):
            exchange.stop()


def bound_connections(config: Config) -> None:
    """Limit the open client connections of this process."""
    client_connections.limit = (
        config.reverse_proxy.max_client_connections or connections_by_open_files()
    )
