"""Mistakes in hooks are named in the log at every level, with the remedy and without content."""

from __future__ import annotations

from typing import Any

import pytest
from support.interceptors import awaiting, interceptor

from interceptors import Event, HookError, Request
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_request
from interceptors.testing import run_chain, run_request

CHAT = Request(method="POST", path="/v1/chat/completions")
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"secret"}}]}\n\n'
CALL = (
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]},'
    b'"finish_reason":"tool_calls"}]}\n\n'
)


def told_by(hook: str, function: Any) -> str:
    """The summary for the log of the failure of a stream with this hook."""
    if hook == "on_event":
        given = interceptor(on_event=function)()
        failure = run_chain([given], [b"data: secret\n\n"]).failure
    else:
        stream = type("Messages", (MessageStream,), {hook: staticmethod(function)})
        opens = {"open_messages": lambda self, context: stream()}
        given = type("Opens", (MessageInterceptor,), opens)()
        failure = run_chain([given], [TEXT, CALL], request=CHAT).failure
    assert isinstance(failure, HookError)
    return failure.summary


@pytest.mark.parametrize(
    ("hook", "function", "told"),
    [
        ("on_event", lambda event: ["secret"], "on_event returned a list of str, expected an Event"),
        ("on_event", lambda event: [Event("a"), {"secret": 1}], "on_event returned a list of Event, dict, expected an Event"),
        ("on_event", lambda event: Event, "on_event returned the class Event, expected an Event"),
        ("on_text_delta", lambda delta: delta.text, "Messages.on_text_delta returned str, expected None: "
         "what is to change is set on what the hook is given"),
        ("on_tool_call", lambda call: call.drop(), "set holds_tool_calls = True on the class"),
        ("on_tool_call", lambda call: call.refuse({"secret": 1}), "is a string, not dict"),
        ("on_tool_call", lambda call: setattr(call, "arguments", {"secret": 1}),
         "the arguments of a tool call are JSON text, not dict"),
    ],
)  # fmt: skip
def test_a_hook_that_breaks_the_rules_is_described(hook: str, function: Any, told: str) -> None:
    summary = told_by(hook, function)
    assert told in summary
    assert "secret" not in summary


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


async def task() -> None: ...


@pytest.mark.parametrize(
    ("on_request", "told"),
    [
        (lambda request: request.start_soon(lambda: "secret"), "<lambda>, which is not async"),
        (lambda request: request.start_soon(task()), "start_soon takes an async function and its arguments, not coroutine: "
         "write start_soon(fn, x), not start_soon(fn(x))"),
        (lambda request: request.json() and None, "set wants_body = True on the interceptor that reads it"),
    ],
)  # fmt: skip
def test_a_request_that_is_misused_is_an_error(on_request: Any, told: str) -> None:
    asks = interceptor(on_request=awaiting(on_request))
    with pytest.raises(HookError) as caught:
        run_request([asks()], Request(method="POST", body=b'"secret"'))
    assert told in caught.value.summary
    assert "secret" not in caught.value.summary
