"""Mistakes in hooks are named in the log at every level, with the remedy and without content."""

from __future__ import annotations

from typing import Any

import pytest

from interceptors import Event, HookError, Interceptor, Request, StreamContext, StreamInterceptor
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_request
from interceptors.testing import run_chain, run_request

CHAT = Request(method="POST", path="/v1/chat/completions")
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"secret"}}]}\n\n'
CALL = (
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]},'
    b'"finish_reason":"tool_calls"}]}\n\n'
)


def told_by(
    stream: StreamInterceptor, chunk: bytes = b"data: secret\n\n", request: Request | None = None
) -> str:
    """The summary of the failure for the log."""

    class Opens(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
            return stream

    class OpensMessages(MessageInterceptor):
        def open_messages(self, context: StreamContext) -> MessageStream | None:
            assert isinstance(stream, MessageStream)
            return stream

    made = OpensMessages() if isinstance(stream, MessageStream) else Opens()
    failure = run_chain([made], [chunk], request=request or Request()).failure
    assert isinstance(failure, HookError)
    assert "secret" not in failure.summary
    return failure.summary


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (["secret"], "on_event returned a list of str, expected an Event"),
        (
            [Event(data="a"), {"secret": 1}],
            "on_event returned a list of Event, dict, expected an Event",
        ),
        (Event, "on_event returned the class Event, expected an Event"),
    ],
)
def test_what_a_hook_returned_is_described(returned: Any, told: str) -> None:
    class Returns(StreamInterceptor):
        def on_event(self, event: Event) -> Any:
            return returned

    assert told in told_by(Returns())


def test_a_hook_of_messages_that_returns_its_change_fails() -> None:
    """Its change would be lost."""

    class Redacting(MessageStream):
        def on_text_delta(self, delta: Any) -> None:
            return delta.text.replace("secret", "***")  # type: ignore[no-any-return]

    told = told_by(Redacting(), TEXT, CHAT)
    assert (
        "Redacting.on_text_delta returned str, expected None: what is to change is set on what the hook is given"
        in told
    )


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (lambda call: call.drop(), "set holds_tool_calls = True on the class"),
        (lambda call: call.refuse({"secret": 1}), "is a string, not dict"),
        (
            lambda call: setattr(call, "arguments", {"secret": 1}),
            "the arguments of a tool call are JSON text, not dict",
        ),
    ],
)
def test_what_cannot_be_done_with_a_call_is_an_error(method: Any, told: str) -> None:
    class Calls(MessageStream):
        def on_tool_call(self, call: Any) -> None:
            method(call)

    assert told in told_by(Calls(), CALL, CHAT)


def test_a_wrong_answer_of_a_hook_for_mcp_names_the_hook() -> None:
    class Answers(McpInterceptor):
        @on_mcp_request("tools/call")
        def decide(self, message: Any) -> Any:
            return "secret"

    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}'
    with pytest.raises(HookError) as caught:
        run_request([Answers()], Request(method="POST", path="/mcp", body=body))
    assert (
        "Answers.decide returned str, expected a dict, an McpError or None" in caught.value.summary
    )


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: "secret", "start_soon was given <lambda>, which is not async"),
        (
            None,
            "start_soon takes an async function and its arguments, not coroutine: "
            "write start_soon(fn, x), not start_soon(fn(x))",
        ),
    ],
)
def test_what_cannot_be_a_task_is_an_error(made: Any, told: str) -> None:
    async def task() -> None: ...

    class Starts(Interceptor):
        async def on_request(self, request: Request) -> None:
            request.start_soon(made or task())

    with pytest.raises(HookError) as caught:
        run_request([Starts()], Request())
    assert told in caught.value.summary
    assert "secret" not in caught.value.summary


def test_a_body_that_is_not_collected_is_reported() -> None:
    class Asks(Interceptor):
        async def on_request(self, request: Request) -> None:
            request.json()

    with pytest.raises(HookError) as caught:
        run_request([Asks()], Request(method="POST", body=b"{}"))
    assert "set wants_body = True on the interceptor that reads it" in caught.value.summary
