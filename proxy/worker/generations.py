"""Generations of the configuration, and how the next one replaces the current one.

A *generation* is a configuration with its routes, interceptors and upstream transports. New
exchanges start in the current one and stay in theirs. Invariants:

- each generation has one task in the app's lifespan nursery, which enters and exits its
  interceptors' lifespans, as nurseries and cancel scopes inside them require;
- a generation is over when it has been replaced and its last exchange has ended; then its lifespans
  are exited, and transports that no other generation uses are closed;
- a generation that cannot be set up never becomes current.

It does not know where a configuration comes from, nor what an exchange does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import structlog
import trio

from interceptors import Request, Store
from interceptors.dialects.mcp_hooks import McpInterceptor
from interceptors.hooks import Owner

from ..config import Config, mask_references
from ..errors import ConfigError, RequestRefused
from ..http import read_target
from ..http.headers import TrustedProxies
from ..upstream import Balancer, Resolver
from .exchange_log import ExchangeLog
from .live import LiveExchange
from .logs import flush_log
from .metrics import Collectors, InterceptorTotals
from .routes import RouteTable
from .sessions import Sessions

__all__ = ["LEAVE_S", "Generation", "Generations"]

_ENTER_S = 60.0
LEAVE_S = 10.0
"""The deadline for exiting interceptors' lifespans when the app ends."""


class Generation:
    """A compiled configuration and the exchanges that started with it."""

    def __init__(
        self,
        config: Config,
        sessions: Sessions,
        kept: Mapping[str, Balancer] | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """`sessions`, `resolver`: the worker's. `kept`: transports to reuse, by upstream. Raises
        `ConfigError`. Blocks on imports.
        """
        self.config = config
        self.routes = RouteTable(config, kept, sessions, resolver)
        self.log = ExchangeLog(config.log)
        self.trusted_proxies = TrustedProxies(config.reverse_proxy.trusted_proxies)
        self.collectors = _collectors(self.owners)
        """Metrics of its interceptors."""
        self.live: set[LiveExchange] = set()
        self.superseded = False
        self.over = trio.Event()
        """Set when no exchange needs its interceptors."""
        self.left = trio.Event()
        """Set when their lifespans have been exited."""

    def end_if_unused(self) -> None:
        """End this generation if it has been replaced and has no exchange left."""
        if self.superseded and not self.live:
            self.over.set()

    @property
    def owners(self) -> tuple[Owner, ...]:
        """Its interceptors."""
        return tuple(self.routes.owners.values())

    @property
    def counted(self) -> tuple[Owner, ...]:
        """Its interceptors, and the proxy's own whose time is counted."""
        return (*self.owners, *self.routes.observers.values())


class Generations:
    """The current generation, and replaced ones that still have exchanges."""

    def __init__(self, config: Config, store_of: Callable[[str], Store], workers: int = 1) -> None:
        """Compile the first generation. `store_of`: the store of an interceptor, by its name.
        `workers`: processes that share the clients. Raises `ConfigError`.
        """
        self._store_of = store_of
        self.sessions = Sessions(workers)
        """State that outlives generations."""
        self.sessions.mcp.owners_of = self._mcp_interceptors
        self._resolver = Resolver()
        self._resolving: trio.CancelScope | None = None
        self.current = Generation(config, self.sessions, resolver=self._resolver)
        self._all = [self.current]
        self._closing = False
        self._maintained: dict[Balancer, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._gone: dict[str, InterceptorTotals] = {}
        self.on_retire: Callable[[Collectors], None] = lambda collectors: None
        """Called with the metrics of a generation that is over. Must not block."""

    def __len__(self) -> int:
        return len(self._all)

    def interceptor_totals(self) -> dict[str, InterceptorTotals]:
        """Sums over all generations so far, by the interceptor's name."""
        totals = dict(self._gone)
        for generation in self._all:
            _add_totals(totals, generation.counted)
        return totals

    def collectors(self) -> Collectors:
        """Metrics of all present interceptors."""
        return [item for generation in self._all for item in generation.collectors]

    def leave(self, exchange: LiveExchange) -> None:
        """Remove an ended exchange from its generation, whose `live` it is in."""
        for generation in self._all:
            if exchange in generation.live:
                generation.live.discard(exchange)
                generation.end_if_unused()
                return

    async def start(self, nursery: trio.Nursery) -> None:
        """Set up the first generation, in the app's lifespan nursery. Raises `ConfigError` if a
        lifespan fails.
        """
        self._nursery = nursery
        self._resolving = await nursery.start(self._resolver.run)
        await self._open(self.current)

    async def replace(
        self, config: Config, check: Callable[[Collectors], None] = lambda collectors: None
    ) -> Generation:
        """Compile `config` and make it current. Raises `ConfigError`, also from `check`; then the
        current generation stays.

        An unchanged upstream keeps its transport and connections. One with a `ca_file` gets a new
        transport, because the file may have changed. Blocks on imports.
        """
        before = self.current.config.reverse_proxy
        after = config.reverse_proxy
        same = before.health == after.health and self.current.config.secret == config.secret
        kept = {
            upstream.name: self.current.routes.transports[upstream.name]
            for upstream in after.upstreams
            if same and upstream in before.upstreams and upstream.ca_file is None
        }
        new = Generation(config, self.sessions, kept, self._resolver)
        check(new.collectors)
        for name, transport in new.routes.transports.items():
            was = self.current.routes.transports.get(name)
            if was is not None and was is not transport:
                transport.endpoints.resume(was.endpoints, trio.current_time())
        await self._open(new)
        old, self.current = self.current, new
        self.sessions.mcp.reloads += 1
        for route in new.routes.routes:
            route.sessions.since = self.sessions.mcp.reloads
        old.superseded = True
        old.end_if_unused()
        return new

    def _mcp_interceptors(self, request: Request) -> list[Owner]:
        """Return the interceptors that the request's path has now; if its route is gone, the last
        ones: they may protect a resource.
        """
        path = read_target(request.target).normal
        for generation in (self.current, *reversed(self._all)):
            try:
                route = generation.routes.find(path)
            except RequestRefused:
                continue
            if route is not None and route.upstream == request.sessions.upstream:
                return [
                    owner
                    for owner in route.chain.owners
                    if isinstance(owner.interceptor, McpInterceptor)
                ]
        return []

    async def aclose(self) -> None:
        """Close every transport and exit every lifespan, within `LEAVE_S`."""
        self._closing = True  # a generation that is being entered is exited at once
        for transport in tuple(self._maintained):
            await self._close_transport(transport)
        for generation in self._all:
            generation.over.set()
        with trio.move_on_after(LEAVE_S):
            for generation in tuple(self._all):
                await generation.left.wait()
        if self._resolving is not None:
            self._resolving.cancel()

    async def _open(self, generation: Generation) -> None:
        assert self._nursery is not None, "start comes first"
        with trio.move_on_after(_ENTER_S) as scope:
            problem: ConfigError | None = await self._nursery.start(self._keep, generation)
            if problem is not None:
                raise problem
        if scope.cancelled_caught:
            raise ConfigError(
                f"interceptors: their lifespans were not entered within {_ENTER_S:.0f} s"
            )
        for transport in generation.routes.transports.values():
            if self._closing:
                raise ConfigError("this worker is ending, and begins no new configuration")
            if transport not in self._maintained:
                maintained = await self._nursery.start(_maintain, transport)
                self._maintained[transport] = maintained
                if self._closing:
                    await self._close_transport(transport)

    async def _keep(
        self,
        generation: Generation,
        task_status: trio.TaskStatus[ConfigError | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Own a generation from entering its lifespans to exiting them. The start value is the
        problem, or None.
        """
        entering: str | None = None
        started = False
        try:
            async with AsyncExitStack() as stack:
                for index, owner in enumerate(generation.owners):
                    entering = f"interceptors[{index}]: the lifespan of {owner.name!r} failed"
                    owner.use_store(self._store_of(owner.name))
                    await stack.enter_async_context(owner.interceptor.lifespan())
                # A lifespan that could not be cancelled may finish entering when its caller has
                # given up.
                await trio.lowlevel.checkpoint_if_cancelled()
                started = True
                if generation not in self._all:
                    self._all.append(generation)
                if self._closing:
                    generation.over.set()
                task_status.started(None)
                await generation.over.wait()
        except BaseException as error:
            if _is_of_the_process(error):
                raise
            if not started:
                first = _first(error)
                task_status.started(
                    ConfigError(mask_references(f"{entering}: {type(first).__name__}: {first}"))
                )
                return
            leaving = generation.over.is_set()
            structlog.get_logger("proxy").critical(
                "lifespan_failed", leaving=leaving, exc_info=True
            )
            if not leaving:
                # Exchanges would continue with interceptors that are half torn down: end the worker
                # instead.
                flush_log()
                os._exit(1)
        await self._retire(generation)

    async def _retire(self, generation: Generation) -> None:
        self._all.remove(generation)
        _add_totals(self._gone, generation.counted)
        self.on_retire(generation.collectors)
        used = {transport for other in self._all for transport in other.routes.transports.values()}
        for transport in generation.routes.transports.values():
            if transport not in used:
                await self._close_transport(transport)
        generation.left.set()

    async def _close_transport(self, transport: Balancer) -> None:
        scope = self._maintained.pop(transport, None)
        if scope is not None:
            scope.cancel()
            await transport.aclose()


async def _maintain(
    transport: Balancer, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await transport.maintain()


def _collectors(owners: Sequence[Owner]) -> Collectors:
    """Collect the metrics of interceptors. Raises `ConfigError` when one fails."""
    found = []
    for owner in owners:
        try:
            found += [(owner, collector) for collector in owner.interceptor.collectors()]
        except Exception as error:
            raise ConfigError(
                f"interceptors: collectors() of {owner.name!r} failed:"
                f" {type(error).__name__}: {error}"
            ) from error
    return found


def _is_of_the_process(error: BaseException) -> bool:
    """Whether an exception ends the task itself. `SystemExit` of a lifespan counts as the
    lifespan's failure.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(_is_of_the_process(item) for item in error.exceptions)
    return isinstance(error, trio.Cancelled | KeyboardInterrupt | GeneratorExit)


def _first(error: BaseException) -> BaseException:
    """Return the first exception of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _add_totals(totals: dict[str, InterceptorTotals], owners: Sequence[Owner]) -> None:
    for owner in owners:
        before = totals.get(owner.name, InterceptorTotals(0.0, 0.0, 0))
        totals[owner.name] = InterceptorTotals(
            before.seconds + owner.seconds,
            before.waited + owner.waited,
            before.unread_parts + owner.unread_parts,
            tuple(map(sum, zip(before.calls, owner.calls(), strict=True))),
        )
