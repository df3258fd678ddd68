"""A whole proxy with interceptors that a test defines, in each way of serving."""

from __future__ import annotations

import ssl
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    EventResult,
    Interceptor,
    StreamContext,
    StreamInterceptor,
)
from proxy.config import Config
from proxy.hub.hub import Hub
from support.certificates import Certificates
from support.client import Answer, Client, fetch, open_client
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Script, Upstream, open_upstream

__all__ = [
    "Feed",
    "Log",
    "Rig",
    "Serve",
    "Way",
    "awaiting",
    "config_with",
    "interceptor",
    "limited",
    "on_event",
    "on_event_async",
    "outcomes_of",
    "until",
    "with_options",
]

Log = list[dict[str, Any]]
Serve = Callable[..., AbstractAsyncContextManager["Rig"]]


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.002)


async def outcomes_of(log: Log, count: int = 1) -> list[str]:
    """The outcomes of all exchanges, once there are as many as that."""
    await until(lambda: len([line for line in log if line["event"] == "exchange"]) >= count)
    return [line["outcome"] for line in log if line["event"] == "exchange"]


def config_with(url: str, *given: type[Interceptor], **more: str) -> Config:
    """One route to `url` with these interceptors, named as their classes; more as `config_for`."""
    module = types.ModuleType("given_interceptors")  # the configuration loads by module name
    sys.modules[module.__name__] = module
    for cls in given:
        setattr(module, cls.__name__, cls)
    entries = ", ".join(
        f'{{name: {cls.__name__}, use: "{module.__name__}:{cls.__name__}"}}' for cls in given
    )
    return config_for(
        url, interceptors=entries, names=", ".join(cls.__name__ for cls in given), **more
    )


_OF_STREAMS = ("needs", "passes_unseen", "on_start", "on_event", "on_complete", "on_end")


def interceptor(name: str = "Hook", *, is_async: bool = False, **parts: Any) -> type[Interceptor]:
    """An interceptor class from hooks as plain functions without `self`, and class attributes.

    Hooks of streams get a stream class of their own; `opened` is called with each stream's context.
    """
    members = {key: _static(parts.pop(key)) for key in _OF_STREAMS if key in parts}
    base = AsyncStreamInterceptor if is_async else StreamInterceptor
    stream, opened = type(f"{name}Stream", (base,), members), parts.pop("opened", None)

    def open_stream(self: Interceptor, context: StreamContext) -> Any:
        if opened is not None:
            opened(context)
        return stream()

    own = {key: _static(value) for key, value in parts.items()}
    if members or opened is not None:
        own.setdefault("open_stream", open_stream)
    return type(name, (Interceptor,), own)


def with_options(cls: Any, *options: Any, **named: Any) -> type[Interceptor]:
    """A class with options as one without, as `Serve` takes them."""

    def init(self: Any) -> None:
        cls.__init__(self, *options, **named)

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": __name__})


def _static(part: Any) -> Any:
    return staticmethod(part) if isinstance(part, types.FunctionType) else part


def awaiting(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A function as an async one with a checkpoint."""

    async def run(*arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    return run


def on_event(
    hook: Callable[[Event], EventResult], name: str = "Hook", **attributes: Any
) -> type[Interceptor]:
    """An interceptor that is one `on_event`; `attributes` are of its class."""
    return interceptor(name, on_event=lambda event: hook(event), **attributes)


def on_event_async(
    hook: Callable[[Event], Awaitable[EventResult]], name: str = "AsyncHook", **attributes: Any
) -> type[Interceptor]:
    """An interceptor that is one `on_event` to be awaited; `attributes` are of its class."""

    async def run(event: Event) -> EventResult:
        return await hook(event)

    return interceptor(name, is_async=True, on_event=run, **attributes)


class Feed:
    """An upstream that sends what the test wants, when it wants, on its first connection."""

    def __init__(self) -> None:
        self._told, self._tells = trio.open_memory_channel[bytes](1000)
        self.closed = trio.Event()
        """Set once the proxy has closed the connection."""

    def send(self, data: bytes) -> None:
        """Send one chunk."""
        self._told.send_nowait(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        """End the body; the connection stays open."""
        self._told.send_nowait(b"0\r\n\r\n")

    def hang_up(self) -> None:
        """Close the connection."""
        self._told.close()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, peer)
            async for data in self._tells:
                await peer.send(data)
            nursery.cancel_scope.cancel()

    async def _watch(self, peer: Peer) -> None:
        await peer.wait_closed()
        self.closed.set()
        self._told.close()


@dataclass
class Rig:
    """An upstream, the proxy in front of it, and the proxy's log."""

    upstream: Upstream
    proxy: Proxy
    log: Log
    ssl_context: object = None
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        """A new connection, closed with the rig at the latest."""
        client = await open_client(self.proxy.port, self.ssl_context)
        self.clients.append(client)
        return client

    async def fetch(self, target: str = "/", **request: Any) -> Answer:
        """One request on a new connection."""
        with trio.fail_after(10):
            return await fetch(self.proxy.port, target, ssl_context=self.ssl_context, **request)

    async def start(self, target: str = "/", method: str = "GET") -> tuple[Client, Answer]:
        """A request whose response head has arrived."""
        client = await self.client()
        with trio.fail_after(10):
            await client.send(method, target)
            return client, await client.head()

    def lines(self, event: str) -> Log:
        return [line for line in self.log if line["event"] == event]

    async def outcomes(self, count: int = 1) -> list[str]:
        """The outcomes of all exchanges, once there are as many as that."""
        return await outcomes_of(self.log, count)

    def failures(self) -> list[tuple[str, str]]:
        """The interceptor and the hook of each failure in the log."""
        return [(line["interceptor"], line["hook"]) for line in self.lines("interceptor_failed")]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.proxy.worker.metrics.registry.get_sample_value(name, labels)

    async def everything_is_back(self) -> None:
        """Assert: no live exchange, no buffer or connection on loan, no stream in the hub, and no
        internal error.
        """
        worker = self.proxy.worker
        await until(lambda: not worker.live)
        assert set(self.proxy.in_use().values()) == {0}
        assert self.proxy.lent() == 0
        assert worker.hub is None or len(worker.hub) == 0
        assert not self.lines("internal_error")


def limited(serve: Serve, seconds: float = 20) -> Serve:
    """The same, with so much time for what a test does with its rig."""

    @asynccontextmanager
    async def serve_in_time(*args: Any, **kwargs: Any) -> AsyncIterator[Rig]:
        async with serve(*args, **kwargs) as rig:
            with trio.fail_after(seconds):
                yield rig

    return serve_in_time


@dataclass(frozen=True)
class Way:
    """How a proxy runs: with the hub or not, which is over ASGI, and with TLS or not."""

    hub: bool = True
    certificates: Certificates | None = None
    """With them the client uses TLS."""

    def serve(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
        """`async with serve(script, *interceptors, route=..., proxy=...) as rig`."""
        if not self.hub:
            monkeypatch.setattr("proxy.hub.hub.Hub.available", staticmethod(lambda: False))
        elif not Hub.available():
            pytest.skip("no epoll here")
        tls = self.certificates.files if self.certificates is not None else None
        context = self.certificates.client() if self.certificates is not None else None

        @asynccontextmanager
        async def serve(
            script: Script,
            *given: type[Interceptor],
            drains: bool = False,
            upstream_tls: ssl.SSLContext | None = None,
            **settings: str,
        ) -> AsyncIterator[Rig]:
            """`drains`: the proxy ends while streams are live. `upstream_tls`: its own context."""
            async with open_upstream(script, ssl_context=upstream_tls) as upstream:
                async with open_proxy(
                    config_with(upstream.url, *given, **settings), tls=tls
                ) as proxy:
                    assert (proxy.worker.hub is not None) is self.hub
                    rig = Rig(upstream, proxy, log, context)
                    yield rig
                    if not drains:
                        for client in rig.clients:
                            await client.aclose()
                        await rig.everything_is_back()
                await rig.everything_is_back()
                for client in rig.clients:
                    await client.aclose()

        return serve
