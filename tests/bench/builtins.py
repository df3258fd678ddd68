"""What each built-in interceptor costs: per event in its own chain, and per request. Prints a
table.

    PYTHONPATH=. .venv/bin/python tests/bench/builtins.py

Medians of CPU time in this process, framing of events included; `(none)` is a chain whose one hook
returns each event unchanged. The threads that write files are not included. The second table is of
the same events as a chat stream, read as messages.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
import trio

from interceptors import (
    Event,
    Interceptor,
    Outcome,
    Request,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.api_keys import hash_key
from interceptors.chain import Chain, enter_lifespans
from interceptors.dialects import MessageInterceptor, MessageStream, TextDelta, Usage
from interceptors.hooks import Owner
from interceptors.loader import load_interceptor
from pools import Pools

EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"token %04d"},"finish_reason":null}],"pad":"%s"}\n\n'
WINDOW = b"".join(EVENT % (number, b"x" * 80) for number in range(70))
EVENTS = WINDOW.count(b"\n\n")
ROUNDS, REPEATS, REQUESTS = 15, 20, 300


class Passing(Interceptor):
    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return PassingStream()


class PassingStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        return event


class Reading(MessageInterceptor):
    """A stream with hooks of messages, and nothing else."""

    def __init__(self, stream: type[MessageStream]) -> None:
        self.stream = stream

    def open_messages(self, context: StreamContext) -> MessageStream:
        return self.stream()


class TextHook(MessageStream):
    def on_text_delta(self, delta: TextDelta) -> None:
        pass


class UsageHook(MessageStream):
    def on_usage(self, usage: Usage) -> None:
        pass


class ChangingHook(MessageStream):
    def on_text_delta(self, delta: TextDelta) -> None:
        delta.text += "!"


def thread_us(since: float = 0.0) -> float:
    return time.thread_time() * 1e6 - since


async def per_event(chain: Chain, request: Request) -> float:
    pools = Pools()
    buffer = bytearray(WINDOW)
    found = []
    for _ in range(ROUNDS):
        async with pools.open_scope() as scope:
            stream = chain.open_stream(request, pools.json, scope, 1 << 20)
            await stream.start(
                ResponseHead(200, [(b"content-type", b"text/event-stream")], request)
            )
            began = thread_us()
            for _ in range(REPEATS):
                parts, _ = stream.process(buffer, 0, len(buffer))
                for part in parts:
                    if isinstance(part, memoryview):
                        part.release()
                stream.release_parts()
            found.append(thread_us(began) / REPEATS / EVENTS)
            await stream.aclose(Outcome.COMPLETED)
        await trio.sleep(0.02)  # the files' task has its turn
    return statistics.median(found)


async def per_request(chain: Chain, make: Callable[[], Request]) -> float:
    found = []
    for _ in range(ROUNDS):
        requests = [make() for _ in range(REQUESTS)]
        began = thread_us()
        for request in requests:
            await chain.on_request(request)
        found.append(thread_us(began) / REQUESTS)
        await trio.sleep(0.02)
    return statistics.median(found)


async def measure(use: Interceptor, make: Callable[[], Request]) -> tuple[float, float]:
    chain = Chain([Owner("it", use)])
    async with AsyncExitStack() as stack:
        await enter_lifespans(chain.owners, stack)
        return await per_event(chain, make()), await per_request(chain, make)


def main() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )  # lines of `usage`

    def request(path: str = "/v1/chat", method: str = "GET") -> Request:
        return Request(
            method=method,
            path=path,
            headers=[(b"authorization", b"Bearer key-1"), (b"user-agent", b"x")],
            client="192.0.2.1",
        )

    def chat() -> Request:
        return request("/v1/chat/completions", "POST")

    def load(name: str, **options: Any) -> Interceptor:
        return load_interceptor(
            f"interceptors.{name}:{''.join(part.title() for part in name.split('_'))}", options
        )

    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "lines.jsonl")
        rows = {
            "(none)": Passing(),
            "redact, one pattern, no match": load("redact", patterns=["sk-[A-Za-z0-9]{20,}"]),
            "redact, one pattern, every event": load("redact", patterns=["token [0-9]+"]),
            "api_keys, one key": load(
                "api_keys", keys={"ann": hash_key("key-1")}, upstream="Bearer x"
            ),
            "rate_limit": load("rate_limit", requests_per_minute=1_000_000, burst=1_000_000),
            "audit, events none": load("audit", path=path, events="none"),
            "audit, events meta": load("audit", path=path, events="meta"),
            "audit, events data": load("audit", path=path, events="data"),
            "record": load("record", directory=directory),
        }
        messages = {
            "(none)": Passing(),
            "a hook of usage that does nothing": Reading(UsageHook),
            "a hook of texts that does nothing": Reading(TextHook),
            "a hook that changes every text": Reading(ChangingHook),
            "usage": load("usage"),
            "guard, one pattern, no match": load("guard", patterns=["internal use only"]),
            "redact, one pattern, no match": load("redact", patterns=["sk-[A-Za-z0-9]{20,}"]),
            "redact, one pattern, every event": load("redact", patterns=["[0-9]{4}"]),
            "redact, one pattern, every text waits": load("redact", patterns=["[0-9]+!"]),
        }
        for title, table, make in (("", rows, request), ("a chat stream", messages, chat)):
            print(f"| {title} | us per event | us per request |")
            print("|---|---:|---:|")
            for name, use in table.items():
                event_us, request_us = trio.run(measure, use, make)
                print(f"| {name} | {event_us:.1f} | {request_us:.1f} |", flush=True)
            print()


if __name__ == "__main__":
    main()
