"""The official LLM SDKs as a test uses them: what one observes of a list of calls, and the ways to
leave one.

An SDK runs in one of three ways: `sync` in a thread, `trio` in this loop, `asyncio` in a loop of
its own in a thread.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import anthropic
import anyio
import httpx2
import openai
import trio

from support.chains import KEY

__all__ = ["HEADERS", "LEAVES", "WAYS", "Call", "Leave", "Seen", "leave", "observe"]

WAYS = ["sync", "trio", "asyncio"]
HEADERS = {"openai": "authorization", "anthropic": "x-api-key"}
"""Where each SDK sends its key."""

_TLS = (
    ssl.create_default_context()
)  # never used, and what making a client would take most of its time for

_PASSED = (
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-reset-requests",
    "anthropic-ratelimit-requests-reset",
)


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
        arguments: dict[str, Any] = {"model": self.model}
        if self.stream:
            arguments["stream"] = True
        if self.method.startswith("responses"):
            return arguments | {"input": "What is a weir?"}
        if self.provider == "anthropic":
            arguments["max_tokens"] = 1000
        return arguments | {"messages": [{"role": "user", "content": "What is a weir?"}]}

    @property
    def final(self) -> str | None:
        """What a helper for streams makes of everything."""
        if not self.method.endswith(".stream"):
            return None
        return {
            "chat": "get_final_completion",
            "responses": "get_final_response",
            "messages": "get_final_message",
        }[self.method.partition(".")[0]]


@dataclass
class Seen:
    """What a caller gets: the chunks or the message in the SDK's types, and how it ended."""

    items: list[Any] = field(default_factory=list)
    request_id: str | None = None
    error: Exception | None = None

    def plain(self) -> dict[str, Any]:
        """To be compared: everything but what differs from run to run."""
        return {"items": self.items, "request_id": self.request_id, "error": _describe(self.error)}

    def result(self) -> dict[str, Any]:
        """As `plain`, but however the texts and the arguments were cut: joined, block by block, and
        what came with them once.
        """
        texts: dict[str, str] = {}
        others = set()
        for item in self.items:
            blank = _take_texts(item, texts)
            others.add(repr(blank))
        return {**self.plain(), "items": (texts, others)}


_CUT = (
    "content",
    "reasoning_content",
    "refusal",
    "arguments",
    "arguments_delta",
    "text",
    "thinking",
    "partial_json",
    "delta",
)
# An event's number, what has come so far, and what belongs to the cut: there are as many as there
# are pieces.
_OF_THE_CUT = ("sequence_number", "snapshot", "parsed_arguments", "obfuscation", "logprobs")
_PLACES = ("type", "index", "output_index", "content_index", "summary_index")


def _take_texts(tree: Any, texts: dict[str, str], place: str = "") -> Any:
    """A message without what a stream may cut anywhere, which goes to `texts`, and without what is
    null.
    """
    if isinstance(tree, list):
        return [_take_texts(item, texts, place) for item in tree]
    if not isinstance(tree, dict):
        return tree
    place += "/" + ",".join(f"{name}={tree[name]}" for name in _PLACES if name in tree)
    left = {}
    for name, value in tree.items():
        if (
            value is None
            or name in _OF_THE_CUT
            or (name == "arguments" and "arguments_delta" in tree)
        ):
            continue
        if name in _CUT and isinstance(value, str):
            texts[f"{place}.{name}"] = texts.get(f"{place}.{name}", "") + value
        else:
            left[name] = _take_texts(value, texts, f"{place}.{name}")
    return left


def _describe(error: Exception | None) -> Any:
    if error is None:
        return None
    found: dict[str, Any] = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "text": str(error),
    }
    for name in ("status_code", "code", "param", "type", "body", "request_id"):
        if hasattr(error, name):
            found[f".{name}"] = getattr(error, name)
    if isinstance(error, openai.APIStatusError | anthropic.APIStatusError):
        found["headers"] = {
            name: error.response.headers[name] for name in _PASSED if name in error.response.headers
        }
    return found


def _client_of(provider: str, url: str, *, is_async: bool, **settings: Any) -> Any:
    """The SDK's client for this address."""
    module: Any = openai if provider == "openai" else anthropic
    http_class = module.DefaultAsyncHttpxClient if is_async else module.DefaultHttpxClient
    client_class = getattr(
        module, ("Async" if is_async else "") + ("OpenAI" if provider == "openai" else "Anthropic")
    )
    base_url = url + "/v1" if provider == "openai" else url
    return client_class(
        base_url=base_url, api_key=KEY, http_client=http_class(verify=_TLS), **settings
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
    """Make the calls one after the other, on one client, and return the result of each. All are of one
    provider.
    """
    provider = calls[0].provider

    def run() -> dict[str, Seen]:
        with _client_of(provider, url, is_async=False, **settings) as client:
            return {call.name: _observe_sync(client, call) for call in calls}

    async def run_async() -> dict[str, Seen]:
        async with _client_of(provider, url, is_async=True, **settings) as client:
            return {call.name: await _observe_async(client, call) for call in calls}

    seen: dict[str, Seen] = await _run_in(way, run, run_async)
    return seen


def _observe_sync(client: Any, call: Call) -> Seen:
    seen = Seen()
    try:
        result = attrgetter(call.method)(client)(**call.arguments())
        if call.final is not None:
            with result as stream:
                for event in stream:
                    seen.items.append(event.to_dict())
                seen.items.append(getattr(stream, call.final)().to_dict())
        elif call.stream:
            for chunk in result:
                seen.items.append(chunk.to_dict())
        else:
            seen.items.append(result.to_dict())
            seen.request_id = result._request_id
    except Exception as error:
        seen.error = error
    return seen


async def _observe_async(client: Any, call: Call) -> Seen:
    seen = Seen()
    try:
        made = attrgetter(call.method)(client)(**call.arguments())
        if call.final is not None:
            async with made as stream:
                async for event in stream:
                    seen.items.append(event.to_dict())
                seen.items.append((await getattr(stream, call.final)()).to_dict())
            return seen
        result = await made
        if call.stream:
            async for chunk in result:
                seen.items.append(chunk.to_dict())
        else:
            seen.items.append(result.to_dict())
            seen.request_id = result._request_id
    except Exception as error:
        seen.error = error
    return seen


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
    Returns that time, by `time.perf_counter`.

    A client's `timeout` has no such moment: the time is then that of its error, when everything is
    over.
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

    async def ask() -> None:
        if leaving.stage in ("head", "body"):
            is_there.set()
        stream = await create(**arguments)
        if leaving.stage == "first":
            is_there.set()
        async for _ in stream:
            is_there.set()

    async def all_wait() -> None:
        await is_there.wait()
        while not is_waiting():
            await anyio.sleep(0.001)

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
