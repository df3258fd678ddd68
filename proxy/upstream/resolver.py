"""Resolves names for all upstreams of a worker; look-ups are shared, bounded and cached briefly.

Invariants:

- at most one look-up of a name runs, on one of `MAX_LOOKUPS` threads that do nothing else;
- a look-up belongs to the resolver's nursery: it continues for others when the request that started
  it is cancelled;
- an answer is cached for `KEEP_S` and a failure for `KEEP_FAILURE_S`, but not a lack of this
  machine's resources (descriptor, memory, thread).

It knows no ports and no order of addresses: `dial` does.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

import trio

from ..errors import DnsFailed, OutOfResources, UpstreamFailure
from .failures import has_spare_descriptors, is_out_of_resources, reason
from .origin import Origin

__all__ = ["KEEP_FAILURE_S", "KEEP_S", "MAX_LOOKUPS", "Address", "Resolver"]

KEEP_S = 5.0
KEEP_FAILURE_S = 1.0
MAX_LOOKUPS = 256


class Address(NamedTuple):
    """An address without a port. `scope`: the flow label and the scope id of IPv6."""

    family: int
    host: str
    scope: tuple[int, ...] = ()

    def at(self, port: int) -> tuple[Any, ...]:
        """The socket address."""
        return (self.host, port, *self.scope)


class _NoRoom(Exception):
    """No descriptor or thread is left for a look-up."""


class _Lookup:
    """One look-up of a name, running or cached."""

    __slots__ = ("addresses", "done", "kept_until", "problem")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.addresses: tuple[Address, ...] = ()
        self.problem: tuple[type[UpstreamFailure], str] | None = (
            DnsFailed,
            "the look-up was cancelled",
        )
        self.kept_until = 0.0


class Resolver:
    """The look-ups of one worker. `run` must be running while names are resolved."""

    def __init__(self) -> None:
        self._lookups: dict[str, _Lookup] = {}
        self._limiter = trio.CapacityLimiter(MAX_LOOKUPS)
        self._nursery: trio.Nursery | None = None

    async def run(
        self, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Own the look-ups until cancelled; `started` returns the scope that ends it. Threads of
        unfinished look-ups are abandoned.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started(nursery.cancel_scope)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def resolve(self, origin: Origin) -> tuple[Address, ...]:
        """The addresses of an origin's name, at least one, in the system's order (RFC 6724).

        Raises `DnsFailed`, and `OutOfResources` if this machine lacks resources. When cancelled,
        the look-up continues for others.
        """
        name = origin.host
        lookup = self._lookups.get(name)
        if lookup is None or (lookup.done.is_set() and trio.current_time() >= lookup.kept_until):
            if self._nursery is None:
                raise RuntimeError("names are resolved only while Resolver.run() runs")
            lookup = self._lookups[name] = _Lookup()
            self._nursery.start_soon(self._look_up, name, lookup)
        if not lookup.done.is_set():
            await lookup.done.wait()
        if lookup.problem is not None:
            kind, problem = lookup.problem
            # A new exception for each caller: a shared one would collect tracebacks.
            raise kind(f"{origin}: {problem}")
        return lookup.addresses

    async def _look_up(self, name: str, lookup: _Lookup) -> None:
        try:
            lookup.addresses = await self._ask(name)
            lookup.problem = None if lookup.addresses else (DnsFailed, "the name has no address")
        except Exception as error:
            kind = OutOfResources if _is_own_lack(error) else DnsFailed
            lookup.problem = kind, f"cannot resolve the name: {_words(error)}"
        finally:
            now = trio.current_time()
            if lookup.problem is None:
                lookup.kept_until = now + KEEP_S
            elif lookup.problem[0] is DnsFailed:
                lookup.kept_until = now + KEEP_FAILURE_S
            lookup.done.set()
            for old in [
                key
                for key, item in self._lookups.items()
                if item.done.is_set() and now >= item.kept_until
            ]:
                del self._lookups[old]

    async def _ask(self, name: str) -> tuple[Address, ...]:
        arguments = (name.encode("ascii"), 0, 0, socket.SOCK_STREAM, 0, 0)
        # Trio's getaddrinfo uses the thread limiter that the whole process shares.
        custom = trio.socket.set_custom_hostname_resolver(None)
        trio.socket.set_custom_hostname_resolver(custom)
        if custom is not None:
            found: list[Any] = await custom.getaddrinfo(*arguments)
        else:
            try:
                found = await trio.to_thread.run_sync(
                    _getaddrinfo, arguments, abandon_on_cancel=True, limiter=self._limiter
                )
            except RuntimeError as error:
                raise _NoRoom(str(error)) from error  # can't start new thread
        addresses = [
            Address(int(family), str(place[0]), tuple(place[2:]))
            for family, _, _, _, place in found
        ]
        return tuple(dict.fromkeys(addresses))


def _getaddrinfo(arguments: tuple[Any, ...]) -> list[Any]:
    # Without a descriptor, getaddrinfo fails with misleading errors: EAI_AGAIN, EAI_NONAME, EBUSY.
    if not has_spare_descriptors():
        raise _NoRoom("no file descriptor is left")
    try:
        return socket.getaddrinfo(*arguments)
    except OSError as error:
        if not has_spare_descriptors():
            raise _NoRoom("no file descriptor is left") from error
        raise


def _is_own_lack(error: Exception) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_MEMORY
    if isinstance(error, OSError):
        return is_out_of_resources(error.errno)
    return isinstance(error, _NoRoom | MemoryError)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return reason(error)
    return str(error) or type(error).__name__
