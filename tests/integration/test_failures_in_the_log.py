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
from support.interceptors import Log, Serve, Way, config_with, on_event, until
from support.proxy import open_proxy
from support.upstream import open_upstream, stream_of

from interceptors import (
    End,
    Event,
    EventResult,
    Interceptor,
    Request,
    Response,
    StreamContext,
    StreamInterceptor,
)
from interceptors.dialects import MessageInterceptor, MessageStream, ToolCall, Unread
from proxy.config.schema import Log as LogSettings
from proxy.worker import logs

SECRET = "opal-7731"
CALL = (
    b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function",'
    b'"function":{"name":"f","arguments":"{}"}}]},"finish_reason":null}]}\n\n'
)
END = (
    b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'
    b"data: [DONE]\n\n"
)
ODD = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":7},"finish_reason":null}]}\n\n'
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture
def serve(log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
    return Way().serve(log, monkeypatch)


def reads_a_number(event: Event) -> EventResult:
    int(event.data)
    return event


def rendered(line: dict[str, Any], level: str) -> str:
    """As the log has it at that level."""
    structlog.reset_defaults()
    logs.configure_logging("json", level)
    return logs.output.process(None, "", dict(line)).decode()


async def test_the_line_has_type_and_place_but_no_message(serve: Serve) -> None:
    """The failure of `int(text)` holds the text."""
    async with serve(
        stream_of(b"data: %b\n\n" % SECRET.encode()), on_event(reads_a_number, "Reads")
    ) as rig:
        await rig.fetch()
        assert await rig.outcomes() == ["intercepted"]
        (line,), (failed,) = rig.lines("exchange"), rig.lines("interceptor_failed")
        assert line["interceptor"] == "Reads"
        assert line["error"].startswith("Reads.on_event: ValueError at ")
        number = reads_a_number.__code__.co_firstlineno + 1
        text = rendered(failed, "info")
        assert SECRET not in str(line)
        assert SECRET not in text
        assert "int(event.data)" not in text
        assert (
            f'File "{__file__}", line {number}, in reads_a_number' in json.loads(text)["exception"]
        )
        assert json.loads(text)["exception"].endswith("ValueError")
        assert SECRET in rendered(failed, "debug")


async def test_at_debug_the_exchange_line_has_the_message(log: Log) -> None:
    async with open_upstream(stream_of(b"data: %b\n\n" % SECRET.encode())) as upstream:
        config = config_with(upstream.url, on_event(reads_a_number, "Reads"))
        async with open_proxy(
            msgspec.structs.replace(config, log=LogSettings(level="debug"))
        ) as proxy:
            await fetch(proxy.port)
            await until(lambda: log[-1]["event"] == "exchange")
            assert SECRET in str(log[-1]["error"])


def returns_nonsense(event: Event) -> Any:
    return 7


async def test_errors_of_the_package_keep_their_text(serve: Serve) -> None:
    """The text of a misuse contains no content."""
    async with serve(stream_of(b"data: 1\n\n"), on_event(returns_nonsense, "Wrong")) as rig:
        await rig.fetch()
        await rig.outcomes()
        assert "returned int, expected an Event" in rig.lines("exchange")[0]["error"]
        assert "returned int, expected an Event" in rendered(
            rig.lines("interceptor_failed")[0], "info"
        )


class Answers(Interceptor):
    async def on_request(self, request: Request) -> Response:
        return Response(status=401)


@pytest.mark.parametrize("cls", [Answers, on_event(lambda event: End(), "Ends")])
async def test_who_intercepted_is_a_field(cls: type[Interceptor], serve: Serve) -> None:
    async with serve(
        stream_of(b"data: 1\n\n"), on_event(lambda event: event, "Passes"), cls
    ) as rig:
        await rig.fetch()
        assert await rig.outcomes() == ["intercepted"]
        assert rig.lines("exchange")[0]["interceptor"] == cls.__name__


async def test_who_needed_an_event_that_is_too_large_is_a_field(serve: Serve) -> None:
    large = b"data: " + b"x" * 2000 + b"\n\n"
    async with serve(
        stream_of(large),
        on_event(lambda event: event, "Sees"),
        route="limits: {max_event_bytes: 100}",
    ) as rig:
        await rig.fetch()
        assert await rig.outcomes() == ["upstream_error"]
        assert rig.lines("exchange")[0]["interceptor"] == "Sees"


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
    cls: type[Interceptor], hook: str, serve: Serve
) -> None:
    async with serve(stream_of(CALL, ODD, END), cls) as rig:
        await rig.fetch(COMPLETIONS, method="POST", body=b"{}")
        await rig.outcomes()
        assert rig.failures() == [(cls.__name__, hook)]
        assert rig.lines("exchange")[0]["error"].startswith(
            f"{cls.__name__}.{hook}: LookupError at "
        )


async def test_an_answer_beyond_the_limits_is_not_a_failure_of_the_interceptor(
    serve: Serve,
) -> None:
    """The provider's doing: a warning with the reason, without a traceback."""
    name = CALL.replace(b'"name":"f"', b'"name":"%b"' % (b"f" * 100_000))
    async with serve(stream_of(name, END), Looks) as rig:
        await rig.fetch(COMPLETIONS, method="POST", body=b"{}")
        assert await rig.outcomes() == ["intercepted"]
        assert rig.failures() == []
        (line,) = rig.lines("unreadable_answer")
        assert (line["interceptor"], "exc_info" in line) == ("Looks", False)
        assert "the name of a tool call is longer than" in line["reason"]


class Notes(Interceptor):
    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        context.note_unread("choices[0].delta")
        return StreamInterceptor()


async def test_an_unread_part_names_its_interceptor(serve: Serve) -> None:
    async with serve(stream_of(b"data: 1\n\n"), Notes) as rig:
        await rig.fetch()
        await rig.outcomes()
        assert [line["interceptor"] for line in rig.lines("unread_part")] == ["Notes"]
