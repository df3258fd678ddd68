"""What one reading of the configuration has compiled, and how the next one takes its place.

A *generation* is a configuration with its routes, its interceptors and its upstream transports. New
exchanges begin in the current one and stay in theirs to their end. Invariants:

- each generation has a task of its own in the app's lifespan nursery, which enters its
  interceptors' lifespans and leaves them, in that one task, as nurseries and cancel scopes inside
  them must be;
- a generation is over when another has taken its place and its last exchange has ended; then its
  lifespans are left, and the transports that no other generation has are closed;
- what cannot be set up never becomes current.

It does not know where a configuration comes from, nor what an exchange does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import structlog
import trio

from interceptors import Request
from interceptors.dialects.mcp_hooks import McpInterceptor
from interceptors.hooks import Owner
from pools import Pools

from ..config import Config, mask_references
from ..errors import ConfigError, RequestRefused
from ..http import read_target
from ..http.headers import TrustedProxies
from ..upstream import Balancer, Resolver
from .live import LiveExchange
from .logs import flush_log
from .metrics import Collectors, InterceptorTotals
from .routes import RouteTable
from .sessions import Sessions

__all__ = ["LEAVE_S", "Generation", "Generations"]

_ENTER_S = 60.0
LEAVE_S = 10.0
"""When the app ends, its interceptors' lifespans have this long to be left."""


class Generation:
    """One compiled configuration, and the exchanges that began with it. Raises `ConfigError` when
    something cannot be loaded.
    """

    def __init__(
        self,
        config: Config,
        pools: Pools,
        sessions: Sessions,
        kept: Mapping[str, Balancer] | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """`sessions`, `resolver`: the worker's. `kept`: the transports, by upstream, that go on
        from the generation before. Blocks on what it imports.
        """
        self.config = config
        self.routes = RouteTable(config, pools, kept, sessions, resolver)
        self.trusted_proxies = TrustedProxies(config.reverse_proxy.trusted_proxies)
        self.collectors = _collectors(self.owners)
        """The metrics of its interceptors, each with the interceptor's name."""
        self.live: set[LiveExchange] = set()
        self.superseded = False
        self.over = trio.Event()
        """Set when nothing needs its interceptors any more."""
        self.left = trio.Event()
        """Set when their lifespans have been left."""

    def end_if_unused(self) -> None:
        """Let it be over if another has taken its place and no exchange is left."""
        if self.superseded and not self.live:
            self.over.set()

    @property
    def owners(self) -> tuple[Owner, ...]:
        """Its interceptors."""
        return tuple(self.routes.owners.values())


class Generations:
    """The current generation, and those that still have exchanges."""

    def __init__(self, config: Config, pools: Pools) -> None:
        """Compile the first. Raises `ConfigError`."""
        self._pools = pools
        self.sessions = Sessions()
        """What outlives them all."""
        self.sessions.mcp.owners_of = self._mcp_interceptors
        self._resolver = Resolver()
        self._resolving: trio.CancelScope | None = None
        self.current = Generation(config, pools, self.sessions, resolver=self._resolver)
        self._all = [self.current]
        self._closing = False
        self._maintained: dict[Balancer, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._gone: dict[str, InterceptorTotals] = {}
        self.on_retire: Callable[[Collectors], None] = lambda collectors: None
        """Called, synchronously, with the metrics of a generation that is over."""

    def __len__(self) -> int:
        return len(self._all)

    def interceptor_totals(self) -> dict[str, InterceptorTotals]:
        """By the interceptor's name, the sums over all generations so far."""
        totals = dict(self._gone)
        for generation in self._all:
            _add_totals(totals, generation.owners)
        return totals

    def collectors(self) -> Collectors:
        """The metrics of the interceptors that there are."""
        return [item for generation in self._all for item in generation.collectors]

    def enter(self, exchange: LiveExchange) -> None:
        """An exchange begins, in the current generation."""
        self.current.live.add(exchange)

    def leave(self, exchange: LiveExchange) -> None:
        """It has ended, in whichever it began."""
        for generation in self._all:
            if exchange in generation.live:
                generation.live.discard(exchange)
                generation.end_if_unused()
                return

    async def start(self, nursery: trio.Nursery) -> None:
        """Set the first one up, in the app's lifespan nursery. Raises `ConfigError` when a lifespan
        fails.
        """
        self._nursery = nursery
        self._resolving = await nursery.start(self._resolver.run)
        await self._open(self.current)

    async def replace(
        self, config: Config, check: Callable[[Collectors], None] = lambda collectors: None
    ) -> Generation:
        """Compile `config` and make it current. Raises `ConfigError`, as `check` may, and then the
        current one stays.

        The transport of an upstream that is the same goes on, with its connections. One with a
        `ca_file` is made anew: what the file holds may have changed. Blocks on what the
        interceptors import.
        """
        before = self.current.config.reverse_proxy
        after = config.reverse_proxy
        same = before.health == after.health
        kept = {
            upstream.name: self.current.routes.transports[upstream.name]
            for upstream in after.upstreams
            if same and upstream in before.upstreams and upstream.ca_file is None
        }
        new = Generation(config, self._pools, self.sessions, kept, self._resolver)
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
        """Those that a request's path leads to now; where its route is gone, as before: they may
        protect something.
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
        """Close every transport and leave every lifespan, which has a bounded time for it."""
        self._closing = True  # what is being entered just now will be left at once
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
        """Own a generation: from the entering of its lifespans to the leaving. Says that it started
        with what is wrong, or None.
        """
        entering: str | None = None
        started = False
        try:
            async with AsyncExitStack() as stack:
                for index, owner in enumerate(generation.owners):
                    entering = f"interceptors[{index}]: the lifespan of {owner.name!r} failed"
                    await stack.enter_async_context(owner.interceptor.lifespan())
                # A lifespan that could not be cancelled may have been entered too late, when nobody
                # waits for it any more.
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
                # Its exchanges would go on with interceptors that are half torn down: then better
                # no worker.
                flush_log()
                os._exit(1)
        await self._retire(generation)

    async def _retire(self, generation: Generation) -> None:
        self._all.remove(generation)
        _add_totals(self._gone, generation.owners)
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
    """Ask interceptors for their metrics. Raises `ConfigError` when one fails."""
    found = []
    for owner in owners:
        try:
            found += [(owner, collector) for collector in owner.interceptor.collectors()]
        except Exception as error:
            raise ConfigError(
                f"interceptors: collectors() of {owner.name!r} failed: {type(error).__name__}: {error}"
            ) from error
    return found


def _is_of_the_process(error: BaseException) -> bool:
    """Whether it ends this task, and not only what an interceptor does. `SystemExit` of a lifespan
    is the lifespan's failure.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(_is_of_the_process(item) for item in error.exceptions)
    return isinstance(error, trio.Cancelled | KeyboardInterrupt | GeneratorExit)


def _first(error: BaseException) -> BaseException:
    """The exception that an exception group is about."""
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
        )
