"""The official LLM SDKs as a test uses them: what one observes of a list of calls, and the ways to leave one.

An SDK runs in one of three ways: `sync` in a thread, `trio` in this loop, `asyncio` in a loop of its own in a thread.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import anthropic
import openai
import trio

from support.chains import KEY

__all__ = ["HEADERS", "WAYS", "Call", "Seen", "client_of", "observe", "run_in"]

WAYS = ["sync", "trio", "asyncio"]
HEADERS = {"openai": "authorization", "anthropic": "x-api-key"}
"""Where each SDK sends its key."""

_TLS = ssl.create_default_context()  # never used, and what making a client would take most of its time for

_PASSED = (
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-reset-requests",
    "anthropic-ratelimit-requests-reset",
)


@dataclass(frozen=True)
class Call:
    """One call of an SDK's method; `model` says to the upstream how to answer."""

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
        return {"chat": "get_final_completion", "responses": "get_final_response", "messages": "get_final_message"}[
            self.method.partition(".")[0]
        ]


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
    found = {"type": f"{type(error).__module__}.{type(error).__qualname__}", "text": str(error)}
    for name in ("status_code", "code", "param", "type", "body", "request_id"):
        if hasattr(error, name):
            found[f".{name}"] = getattr(error, name)
    if isinstance(error, openai.APIStatusError | anthropic.APIStatusError):
        found["headers"] = {name: error.response.headers[name] for name in _PASSED if name in error.response.headers}
    return found


def client_of(provider: str, url: str, *, is_async: bool, **settings: Any) -> Any:
    """The SDK's client for this address."""
    module: Any = openai if provider == "openai" else anthropic
    http_class = module.DefaultAsyncHttpxClient if is_async else module.DefaultHttpxClient
    client_class = getattr(module, ("Async" if is_async else "") + ("OpenAI" if provider == "openai" else "Anthropic"))
    base_url = url + "/v1" if provider == "openai" else url
    return client_class(base_url=base_url, api_key=KEY, http_client=http_class(verify=_TLS), **settings)


async def run_in(way: str, run: Callable[[], Any], run_async: Callable[[], Awaitable[Any]]) -> Any:
    """`run` or `run_async`, in one of the `WAYS`."""
    if way == "trio":
        return await run_async()
    if way == "sync":
        return await trio.to_thread.run_sync(run)

    async def main() -> Any:
        return await run_async()

    return await trio.to_thread.run_sync(asyncio.run, main())


async def observe(way: str, url: str, calls: list[Call], **settings: Any) -> dict[str, Seen]:
    """Make the calls one after the other, on one client, and say what came of each. All are of one provider."""
    provider = calls[0].provider

    def run() -> dict[str, Seen]:
        with client_of(provider, url, is_async=False, **settings) as client:
            return {call.name: _observe_sync(client, call) for call in calls}

    async def run_async() -> dict[str, Seen]:
        async with client_of(provider, url, is_async=True, **settings) as client:
            return {call.name: await _observe_async(client, call) for call in calls}

    seen: dict[str, Seen] = await run_in(way, run, run_async)
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
