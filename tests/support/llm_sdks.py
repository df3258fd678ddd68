"""The official LLM SDKs as a test uses them: what a caller gets, and the ways to leave an answer.

An SDK runs in one of three ways: `sync` in a thread, `trio` in this loop, `asyncio` in a loop of
its own in a thread.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from typing import Any

import anyio
import httpx2
import trio

from support.chains import KEY

__all__ = [
    *("HEADERS", "LEAVES", "WAYS", "Call", "Leave", "Seen", "anthropic", "leave", "observe"),
    "openai",
]


class _Module:
    """A module that is loaded when it is used: an SDK takes seconds, and few workers need one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks for its own marks
            raise AttributeError(name)
        return getattr(import_module(self._name), name)


anthropic: Any = _Module("anthropic")
openai: Any = _Module("openai")

WAYS = ["sync", "trio", "asyncio"]
HEADERS = {"openai": "authorization", "anthropic": "x-api-key"}
"""Where each SDK sends its key."""

_TLS = ssl.create_default_context()  # unused; to make one takes most of the time of a client

_PASSED = (
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-reset-requests",
    "anthropic-ratelimit-requests-reset",
)
_FINAL = {
    "chat.completions.stream": "get_final_completion",
    "responses.stream": "get_final_response",
    "messages.stream": "get_final_message",
}


@dataclass(frozen=True)
class Call:
    """One call of an SDK's method; `model` selects how the upstream answers."""

    method: str
    model: str
    stream: bool = False
    """Ask for a stream with `stream=True`; a method called `stream` asks for one by itself."""

    @property
    def name(self) -> str:
        return f"{self.method}({self.model}{', stream' if self.stream else ''})"

    @property
    def provider(self) -> str:
        return "anthropic" if self.method.startswith("messages") else "openai"

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {"model": self.model}
        if self.stream:
            given["stream"] = True
        if self.provider == "anthropic":
            given["max_tokens"] = 1000
        question = "What is a weir?"
        if self.method.startswith("responses"):
            return given | {"input": question}
        return given | {"messages": [{"role": "user", "content": question}]}


@dataclass
class Seen:
    """What a caller gets: the chunks or the message in the SDK's types, and how it ended."""

    items: list[Any] = field(default_factory=list)
    request_id: str | None = None
    error: Exception | None = None

    def plain(self) -> dict[str, Any]:
        """To be compared: everything but what differs from run to run."""
        return {"items": self.items, "request_id": self.request_id, "error": _describe(self.error)}


def _describe(error: Exception | None) -> Any:
    if error is None:
        return None
    found: dict[str, Any] = {"type": type(error), "text": str(error)}
    for name in ("status_code", "code", "param", "type", "body", "request_id"):
        found[f".{name}"] = getattr(error, name, None)
    if isinstance(error, (openai.APIStatusError, anthropic.APIStatusError)):
        found["headers"] = {name: error.response.headers.get(name) for name in _PASSED}
    return found


def _client_of(provider: str, url: str, *, is_async: bool, **settings: Any) -> Any:
    """The SDK's client for this address."""
    module: Any = openai if provider == "openai" else anthropic
    prefix = "Async" if is_async else ""
    http_class = getattr(module, f"Default{prefix}HttpxClient")
    client_class = getattr(module, prefix + ("OpenAI" if provider == "openai" else "Anthropic"))
    return client_class(
        base_url=url + "/v1" if provider == "openai" else url,
        api_key=KEY,
        http_client=http_class(verify=_TLS),
        **settings,
    )


async def _run_in(way: str, run: Callable[[], Any], run_async: Callable[[], Awaitable[Any]]) -> Any:
    """`run` or `run_async`, in one of the `WAYS`."""
    if way == "trio":
        return await run_async()
    if way == "sync":
        return await trio.to_thread.run_sync(run)

    async def main() -> Any:
        return await run_async()

    return await trio.to_thread.run_sync(asyncio.run, main())


async def observe(way: str, url: str, calls: list[Call], **settings: Any) -> dict[str, Seen]:
    """Make the calls one after the other, on one client, and return the result of each. All are of
    one provider.
    """
    provider = calls[0].provider
    found = {call.name: Seen() for call in calls}

    def run() -> None:
        with _client_of(provider, url, is_async=False, **settings) as client:
            for call in calls:
                _observe(client, call, found[call.name])

    async def run_async() -> None:
        async with _client_of(provider, url, is_async=True, **settings) as client:
            for call in calls:
                await _observe_async(client, call, found[call.name])

    await _run_in(way, run, run_async)
    return found


def _observe(client: Any, call: Call, seen: Seen) -> None:
    try:
        made = attrgetter(call.method)(client)(**call.arguments())
        if call.method in _FINAL:
            with made as stream:
                seen.items += [event.to_dict() for event in stream]
                seen.items.append(getattr(stream, _FINAL[call.method])().to_dict())
        elif call.stream:
            for chunk in made:
                seen.items.append(chunk.to_dict())
        else:
            seen.items.append(made.to_dict())
            seen.request_id = made._request_id
    except Exception as error:
        seen.error = error


async def _observe_async(client: Any, call: Call, seen: Seen) -> None:
    try:
        made = attrgetter(call.method)(client)(**call.arguments())
        if call.method in _FINAL:
            async with made as stream:
                seen.items += [event.to_dict() async for event in stream]
                seen.items.append((await getattr(stream, _FINAL[call.method])()).to_dict())
        elif call.stream:
            async for chunk in await made:
                seen.items.append(chunk.to_dict())
        else:
            message = await made
            seen.items.append(message.to_dict())
            seen.request_id = message._request_id
    except Exception as error:
        seen.error = error


@dataclass(frozen=True)
class Leave:
    """How a client leaves an answer, and when: before its `head`, its `first` event, its `second`,
    or the end of a JSON `body`.
    """

    way: str
    stage: str
    how: str
    """`cancel`: the task that waits. `close`: the stream. `timeout`: the SDK's own, the only way
    out of a call that blocks.
    """

    @property
    def model(self) -> str:
        return f"wait-{self.stage}"

    def __str__(self) -> str:
        return f"{self.way}-{self.how}-before-{self.stage}"


_STAGES = ["head", "first", "second", "body"]
LEAVES = [
    Leave("sync", "head", "timeout"),
    Leave("sync", "first", "close"),
    Leave("sync", "second", "close"),
    *(Leave(way, stage, "cancel") for way in ("trio", "asyncio") for stage in _STAGES),
    *(Leave(way, stage, "close") for way in ("trio", "asyncio") for stage in ("first", "second")),
]


async def leave(leaving: Leave, provider: str, url: str, is_waiting: Callable[[], bool]) -> float:
    """Ask for an answer and leave it as soon as `is_waiting` reports that the upstream waits.
    Returns that time, by `time.perf_counter`; of a `timeout` the time of its error.
    """
    method = "messages.create" if provider == "anthropic" else "chat.completions.create"
    arguments = Call(method, leaving.model, stream=leaving.stage != "body").arguments()

    def run() -> float:
        with _client_of(provider, url, is_async=False, max_retries=0) as client:
            create = attrgetter(method)(client)
            if leaving.how == "timeout":
                try:
                    create(**arguments, timeout=httpx2.Timeout(10, read=0.5))
                except (openai.APITimeoutError, anthropic.APITimeoutError):
                    return time.perf_counter()
                raise AssertionError("no timeout")
            stream = create(**arguments)
            if leaving.stage == "second":
                next(iter(stream))
            while not is_waiting():
                time.sleep(0.001)
            left_at = time.perf_counter()
            stream.close()
            return left_at

    async def run_async() -> float:
        async with _client_of(provider, url, is_async=True, max_retries=0) as client:
            return await _leave_async(leaving, attrgetter(method)(client), arguments, is_waiting)

    left_at: float = await _run_in(leaving.way, run, run_async)
    return left_at


async def _leave_async(
    leaving: Leave, create: Any, arguments: dict[str, Any], is_waiting: Callable[[], bool]
) -> float:
    is_there = anyio.Event()  # the client has got as far as it will

    async def all_wait() -> None:
        await is_there.wait()
        while not is_waiting():
            await anyio.sleep(0.001)

    async def ask() -> None:
        if leaving.stage in ("head", "body"):
            is_there.set()
        stream = await create(**arguments)
        if leaving.stage == "first":
            is_there.set()
        async for _ in stream:
            is_there.set()

    if leaving.how == "cancel":
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await all_wait()
            left_at = time.perf_counter()
            group.cancel_scope.cancel()
        return left_at
    stream = await create(**arguments)
    if leaving.stage == "second":
        async for _ in stream:
            break
    is_there.set()
    await all_wait()
    left_at = time.perf_counter()
    await stream.close()
    return left_at
