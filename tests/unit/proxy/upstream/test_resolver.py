"""Look-ups: joined, kept for a short time, independent of each other and of other threads, and not
owned by a request.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.errors import DnsFailed, OutOfResources, UpstreamFailure
from proxy.upstream import Resolver
from proxy.upstream import failures as failures_module
from proxy.upstream.origin import Origin
from proxy.upstream.resolver import KEEP_FAILURE_S, KEEP_S, MAX_LOOKUPS, Address

HERE = (Address(socket.AF_INET, "127.0.0.1"),)


class Names(trio.abc.HostnameResolver):
    """Each name takes `takes` seconds; `nowhere` does not exist, `ours` has no memory."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.takes: dict[str, float] = {}

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        name = host.decode()
        self.asked[name] += 1
        await trio.sleep(self.takes.get(name, 0))
        if name == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if name == "ours":
            raise socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))
        ] * 2

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
async def names() -> Names:
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    return names


@pytest.fixture
async def resolver(nursery: trio.Nursery) -> Resolver:
    resolver = Resolver()
    await nursery.start(resolver.run)
    return resolver


def at(name: str) -> Origin:
    return Origin("http", name, 80)


async def failure(resolver: Resolver, name: str) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as caught:
        await resolver.resolve(at(name))
    return caught.value


async def test_equal_look_ups_are_joined(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    """Forty-five requests, one look-up, and an exception for each when it fails."""
    names.takes = {"slow": 8, "nowhere": 8}
    found: list[Any] = []
    failures: list[UpstreamFailure] = []

    async def ask() -> None:
        found.append(await resolver.resolve(at("slow")))

    async def fail() -> None:
        failures.append(await failure(resolver, "nowhere"))

    async with trio.open_nursery() as nursery:
        for _ in range(45):
            nursery.start_soon(ask)
            nursery.start_soon(fail)
    assert found == [HERE] * 45
    assert len({id(item) for item in failures}) == 45
    assert {(type(item), str(item)) for item in failures} == {
        (DnsFailed, "http://nowhere:80: cannot resolve the name: Name or service not known")
    }
    assert names.asked == {"slow": 1, "nowhere": 1}


async def test_a_slow_name_delays_no_other(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    names.takes = {"slow": 8}
    async with trio.open_nursery() as nursery:
        for _ in range(45):
            nursery.start_soon(resolver.resolve, at("slow"))
        await wait_all_tasks_blocked()
        began = trio.current_time()
        assert await resolver.resolve(at("fast")) == HERE
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def test_a_cancelled_request_leaves_its_look_up_to_the_others(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    """The one that began it gives up, one that joined it as well, and the third has the answer when
    it comes, from one look-up.
    """
    names.takes = {"slow": 3}
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def give_up(after: float) -> None:
            with trio.move_on_after(after):
                await resolver.resolve(at("slow"))

        nursery.start_soon(give_up, 1)
        nursery.start_soon(give_up, 2)
        await trio.sleep(2.5)
        assert await resolver.resolve(at("slow")) == HERE
    assert trio.current_time() == began + 3
    with trio.move_on_after(0.5):
        await failure(resolver, "nowhere")
    assert names.asked["slow"] == 1


async def test_answers_are_kept_for_seconds_and_failures_for_less(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    assert KEEP_FAILURE_S < KEEP_S
    for name, kept_s in (("good", KEEP_S), ("nowhere", KEEP_FAILURE_S)):
        for wait_s, asked in ((0, 1), (kept_s - 0.1, 1), (0.1, 2)):
            await trio.sleep(wait_s)
            with suppress(DnsFailed):
                await resolver.resolve(at(name))
            assert names.asked[name] == asked


async def test_a_failure_that_is_ours_is_not_kept(resolver: Resolver, names: Names) -> None:
    for asked in (1, 2, 3):
        problem = await failure(resolver, "ours")
        assert type(problem) is OutOfResources
        assert names.asked["ours"] == asked


async def test_what_is_over_is_forgotten(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    """Names of configurations that are gone do not stay."""
    for number in range(5):
        await resolver.resolve(at(f"n{number}"))
    await trio.sleep(KEEP_S)
    await resolver.resolve(at("last"))
    assert list(resolver._lookups) == ["last"]


async def test_without_its_task_it_resolves_nothing_and_no_caller_waits_after_its_end(
    names: Names, nursery: trio.Nursery
) -> None:
    resolver = Resolver()
    with pytest.raises(RuntimeError):
        await resolver.resolve(at("good"))
    scope = await nursery.start(resolver.run)
    names.takes = {"slow": 1000}
    async with trio.open_nursery() as own:
        own.start_soon(failure, resolver, "slow")
        await wait_all_tasks_blocked()
        scope.cancel()


# The system's resolver


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set it, and look-ups of `slow...` end."""
    event = threading.Event()
    yield event
    event.set()


def patched(monkeypatch: pytest.MonkeyPatch, release: threading.Event) -> Counter[str]:
    """`slow...` fails when released, `none...` fails as it does without a descriptor; everything
    else is loopback.
    """
    asked: Counter[str] = Counter()

    def getaddrinfo(host: Any, port: Any, *_: Any) -> Any:
        name = host.decode()
        asked[name] += 1
        if name.startswith("slow"):
            release.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name == "busy":
            raise OSError(errno.EBUSY, "Device or resource busy")
        if name == "full":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_look_up_waits_for_no_thread_of_others(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    """More slow names than Trio's limiter has threads, and all of those threads in use for
    something else.
    """
    patched(monkeypatch, release)
    count = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 5
    assert count < MAX_LOOKUPS
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(failure, resolver, f"slow{number}")
            for _ in range(count):
                nursery.start_soon(trio.to_thread.run_sync, release.wait, 20)
            await wait_all_tasks_blocked(0.01)
            assert await resolver.resolve(at("fast")) == HERE
            release.set()


@pytest.mark.parametrize("name", ["busy", "full", "anything", "slow"])
async def test_without_a_descriptor_any_failure_is_ours(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, release: threading.Event, name: str
) -> None:
    """The C library reports EBUSY, EAI_AGAIN or EAI_NONAME; a lack of descriptors is checked separately."""
    patched(monkeypatch, release)
    release.set()
    if name != "full":
        opened = 0

        def open_none(*_: Any) -> int:
            nonlocal opened
            opened += 1
            if name == "anything" or opened > 4:  # before the look-up, or after it
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return os.dup(2)

        monkeypatch.setattr(failures_module.os, "open", open_none)
    assert type(await failure(resolver, name)) is OutOfResources
    monkeypatch.undo()
    patched(monkeypatch, release)
    assert await resolver.resolve(at("good")) == HERE


async def test_with_descriptors_a_failure_is_the_names(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    patched(monkeypatch, release)
    release.set()
    assert type(await failure(resolver, "slow")) is DnsFailed
    assert type(await failure(resolver, "busy")) is DnsFailed


async def test_without_a_thread_it_is_ours(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_sync(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    assert type(await failure(resolver, "good")) is OutOfResources
