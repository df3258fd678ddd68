"""The log line of a failure in an interceptor: the interceptor, the hook, the exception and its
place, and no content.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import structlog
from support.client import fetch
from support.interceptors import Log, Rig, Serve, config_with, interceptor, on_event, until
from support.proxy import open_proxy
from support.upstream import Script, open_upstream, stream_of

from interceptors import End, Event, EventResult, Interceptor, Request, Response, StreamContext
from interceptors.dialects import MessageInterceptor, MessageStream, ToolCall, Unread
from proxy.config.schema import Log as LogSettings
from proxy.worker import logs

SECRET = "opal-7731"
SECRET_EVENT = stream_of(b"data: %b\n\n" % SECRET.encode())
ONE_EVENT = stream_of(b"data: 1\n\n")


def choice(delta: str, finish_reason: str = "null") -> bytes:
    """An event of a chat completion."""
    fields = f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish_reason}}}]'
    return f'data: {{"object":"chat.completion.chunk",{fields}}}\n\n'.encode()


def call(name: str) -> bytes:
    function = f'"function":{{"name":"{name}","arguments":"{{}}"}}'
    return choice(f'{{"tool_calls":[{{"index":0,"id":"c","type":"function",{function}}}]}}')


END = choice("{}", '"tool_calls"') + b"data: [DONE]\n\n"
ODD = choice('{"content":7}')


async def exchange(rig: Rig, target: str = "/") -> dict[str, Any]:
    """The `exchange` line of one request."""
    await rig.fetch(target, method="POST", body=b"{}")
    await rig.outcomes()
    return rig.lines("exchange")[0]


def rendered(line: dict[str, Any], level: str) -> str:
    """As the log has it at that level."""
    structlog.reset_defaults()
    logs.configure_logging("json", level)
    return logs.output.process(None, "", dict(line)).decode()


def reads_a_number(event: Event) -> EventResult:
    int(event.data)
    return event


async def test_the_line_has_type_and_place_but_no_message(serve_once: Serve) -> None:
    """The failure of `int(text)` holds the text."""
    async with serve_once(SECRET_EVENT, on_event(reads_a_number, "Reads")) as rig:
        line = await exchange(rig)
        assert (line["outcome"], line["interceptor"]) == ("intercepted", "Reads")
        assert line["error"].startswith("Reads.on_event: ValueError at ")
        assert SECRET not in str(line)
        (failed,) = rig.lines("interceptor_failed")
        text = rendered(failed, "info")
        assert SECRET not in text
        assert "int(event.data)" not in text
        trace = json.loads(text)["exception"]
        number = reads_a_number.__code__.co_firstlineno + 1
        assert f'File "{__file__}", line {number}, in reads_a_number' in trace
        assert trace.endswith("ValueError")
        assert SECRET in rendered(failed, "debug")


async def test_at_debug_the_exchange_line_has_the_message(log: Log) -> None:
    async with open_upstream(SECRET_EVENT) as upstream:
        config = config_with(upstream.url, on_event(reads_a_number, "Reads"))
        config = msgspec.structs.replace(config, log=LogSettings(level="debug"))
        async with open_proxy(config) as proxy:
            await fetch(proxy.port)
            await until(lambda: log[-1]["event"] == "exchange")
            assert SECRET in str(log[-1]["error"])


async def test_errors_of_the_package_keep_their_text(serve_once: Serve) -> None:
    """The text of a misuse contains no content."""
    nonsense: Any = lambda event: 7  # noqa: E731
    async with serve_once(ONE_EVENT, on_event(nonsense, "Wrong")) as rig:
        assert "returned int, expected an Event" in (await exchange(rig))["error"]
        (failed,) = rig.lines("interceptor_failed")
        assert "returned int, expected an Event" in rendered(failed, "info")


class Answers(Interceptor):
    async def on_request(self, request: Request) -> Response:
        return Response(status=401)


@pytest.mark.parametrize(
    ("cls", "script", "outcome"),
    [
        (Answers, ONE_EVENT, "intercepted"),
        (on_event(lambda event: End(), "Ends"), ONE_EVENT, "intercepted"),
        (
            on_event(lambda event: event, "Sees"),
            stream_of(b"data: %2000d\n\n" % 1),
            "upstream_error",
        ),
    ],
)
async def test_the_interceptor_that_ended_it_is_a_field(
    cls: type[Interceptor], script: Script, outcome: str, serve_once: Serve
) -> None:
    """Also the one that needed an event that is too large."""
    limits = "limits: {max_event_bytes: 100}"
    given = [cls] if cls.__name__ == "Sees" else [on_event(lambda event: event, "Passes"), cls]
    async with serve_once(script, *given, route=limits) as rig:
        line = await exchange(rig)
        assert (line["outcome"], line["interceptor"]) == (outcome, cls.__name__)


class FailsAtCall(MessageInterceptor):
    class Stream(MessageStream):
        def on_tool_call(self, call: ToolCall) -> None:
            raise LookupError

    def open_messages(self, context: StreamContext) -> MessageStream:
        return self.Stream()


class FailsAtUnread(FailsAtCall):
    class Stream(MessageStream):
        def on_unread(self, unread: Unread) -> None:
            raise LookupError


class Looks(FailsAtCall):
    class Stream(MessageStream):
        holds_tool_calls = True

        def on_tool_call(self, call: ToolCall) -> None:
            return None


@pytest.mark.parametrize(
    ("cls", "hook"), [(FailsAtCall, "on_tool_call"), (FailsAtUnread, "on_unread")]
)
async def test_a_failure_is_logged_under_its_own_hook(
    cls: type[Interceptor], hook: str, serve_once: Serve
) -> None:
    async with serve_once(stream_of(call("f"), ODD, END), cls) as rig:
        line = await exchange(rig, "/v1/chat/completions")
        assert rig.failures() == [(cls.__name__, hook)]
        assert line["error"].startswith(f"{cls.__name__}.{hook}: LookupError at ")


async def test_an_answer_beyond_the_limits_is_no_failure(serve_once: Serve) -> None:
    """The provider's doing: a warning with the reason, without a traceback."""
    async with serve_once(stream_of(call("f" * 100_000), END), Looks) as rig:
        assert (await exchange(rig, "/v1/chat/completions"))["outcome"] == "intercepted"
        assert rig.failures() == []
        (line,) = rig.lines("unreadable_answer")
        assert (line["interceptor"], "exc_info" in line) == ("Looks", False)
        assert "the name of a tool call is longer than" in line["reason"]


async def test_an_unread_part_names_its_interceptor(serve_once: Serve) -> None:
    notes = interceptor("Notes", opened=lambda context: context.note_unread("choices[0].delta"))
    async with serve_once(ONE_EVENT, notes) as rig:
        await exchange(rig)
        assert [line["interceptor"] for line in rig.lines("unread_part")] == ["Notes"]
