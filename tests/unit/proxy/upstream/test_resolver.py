"""Look-ups: joined, cached briefly, independent of each other and of other threads, and not owned
by a request.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
from support.names import Names
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.errors import DnsFailed, OutOfResources, UpstreamFailure
from proxy.upstream import Resolver
from proxy.upstream import failures as failures_module
from proxy.upstream.origin import Origin
from proxy.upstream.resolver import KEEP_FAILURE_S, KEEP_S, MAX_LOOKUPS, Address

HERE = (Address(socket.AF_INET, "127.0.0.1"),)


@pytest.fixture
async def names() -> Names:
    return Names(fast=0, slow=3, other=0, ours=socket.EAI_MEMORY)


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


async def test_equal_look_ups_are_joined_and_delay_no_other(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    """The request that started the look-up may give up, and one that joined it, too."""
    found: list[Any] = []

    async def ask(seconds: float) -> None:
        with trio.move_on_after(seconds):
            found.append(await resolver.resolve(at("slow")))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for seconds in (1, 2, *[10] * 43):
            nursery.start_soon(ask, seconds)
            await wait_all_tasks_blocked()
        assert await resolver.resolve(at("fast")) == HERE
        assert trio.current_time() == began
    assert trio.current_time() == began + 3
    assert found == [HERE] * 43
    assert names.asked == {"slow": 1, "fast": 1}


async def test_each_request_gets_its_own_exception(resolver: Resolver, names: Names) -> None:
    failures: list[UpstreamFailure] = []

    async def ask() -> None:
        failures.append(await failure(resolver, "nowhere"))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len({id(item) for item in failures}) == 5
    assert {(type(item), str(item)) for item in failures} == {
        (DnsFailed, "http://nowhere:80: cannot resolve the name: Name or service not known")
    }
    assert names.asked == {"nowhere": 1}


async def test_answers_are_kept_for_seconds_and_failures_for_less(
    resolver: Resolver, names: Names, autojump_clock: MockClock
) -> None:
    """A lack of this machine's resources is not kept. What is over is forgotten."""
    for name, kept_s in (("fast", KEEP_S), ("nowhere", KEEP_FAILURE_S)):
        for wait_s, asked in ((0, 1), (kept_s - 0.1, 1), (0.1, 2)):
            await trio.sleep(wait_s)
            with suppress(DnsFailed):
                await resolver.resolve(at(name))
            assert names.asked[name] == asked
    for asked in (1, 2):
        assert type(await failure(resolver, "ours")) is OutOfResources
        assert names.asked["ours"] == asked
    await trio.sleep(KEEP_S)
    await resolver.resolve(at("other"))
    assert list(resolver._lookups) == ["other"]


async def test_names_need_its_task(names: Names, nursery: trio.Nursery) -> None:
    """No caller waits after its end."""
    resolver = Resolver()
    with pytest.raises(RuntimeError):
        await resolver.resolve(at("fast"))
    scope = await nursery.start(resolver.run)
    async with trio.open_nursery() as own:
        own.start_soon(failure, resolver, "slow")
        await wait_all_tasks_blocked()
        scope.cancel()


# The system's resolver


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Look-ups of `slow...` fail once it is set; `busy` and `full` fail at once; other names are
    loopback.
    """
    event = threading.Event()

    def getaddrinfo(host: Any, port: Any, *_: Any) -> Any:
        name = host.decode()
        if name.startswith("slow"):
            event.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name in ("busy", "full"):
            number = errno.EBUSY if name == "busy" else errno.EMFILE
            raise OSError(number, os.strerror(number))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield event
    event.set()


async def test_a_look_up_waits_for_no_thread_of_others(
    resolver: Resolver, release: threading.Event
) -> None:
    """There are more slow names than Trio's limiter has threads, and all of those are in use."""
    count = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 5
    assert count < MAX_LOOKUPS
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(failure, resolver, f"slow{number}")
                nursery.start_soon(trio.to_thread.run_sync, release.wait, 20)
            await wait_all_tasks_blocked(0.01)
            assert await resolver.resolve(at("fast")) == HERE
            release.set()


@pytest.mark.parametrize(
    ("name", "descriptors", "kind"),
    [
        ("slow", 1000, DnsFailed),
        ("busy", 1000, DnsFailed),
        ("full", 1000, OutOfResources),
        ("fast", 0, OutOfResources),  # before the look-up
        ("slow", 4, OutOfResources),  # after it
        ("busy", 4, OutOfResources),
    ],
)
async def test_without_a_descriptor_any_failure_is_a_lack_of_resources(
    resolver: Resolver,
    monkeypatch: pytest.MonkeyPatch,
    release: threading.Event,
    name: str,
    descriptors: int,
    kind: type[UpstreamFailure],
) -> None:
    """The C library reports EBUSY, EAI_AGAIN or EAI_NONAME: descriptors are checked separately."""
    release.set()

    def open_some(*_: Any) -> int:
        nonlocal descriptors
        descriptors -= 1
        if descriptors < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return os.dup(2)

    with monkeypatch.context() as patched:
        patched.setattr(failures_module.os, "open", open_some)
        assert type(await failure(resolver, name)) is kind
    assert await resolver.resolve(at("good")) == HERE


async def test_without_a_thread_it_is_a_lack_of_resources(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_sync(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    assert type(await failure(resolver, "good")) is OutOfResources
