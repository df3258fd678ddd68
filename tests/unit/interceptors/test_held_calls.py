"""Calls that a hook holds: nothing of one leaves before the hook has decided, and the answer stays
valid for its official SDK.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from providers import sdks
from structlog.testing import capture_logs
from support.llm_events import event
from unit.interceptors.dialects.recorder import Made
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    PATHS,
    RESPONSES,
    anthropic_body,
    call_events,
    call_item,
    chat_body,
    choice,
    chunk,
    chunkings,
    delta,
    message_end,
    message_item,
    message_start,
    messages_of,
    request,
    response,
    responses_stream,
    stream_of,
    text_block,
    text_events,
    text_part,
    tool_block,
    tool_delta,
)

from interceptors import Interceptor
from interceptors.dialects import MessageStream, ToolCall
from interceptors.testing import ChainResult, run_chain, run_json

Result = tuple[str, list[tuple[str, Any]], str]
"""What an SDK makes of an answer: its text, its calls (names and arguments), and why it ended."""

APIS = {CHAT: "chat", RESPONSES: "responses", ANTHROPIC: "messages"}
REASONS = {CHAT: "stop", RESPONSES: "completed", ANTHROPIC: "end_turn"}
SECRET = '{"secret": 1}'
CHAT_END = [delta("tool_calls"), "[DONE]"]

each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def holding(hook: Callable[[Any, ToolCall], object]) -> Made:
    return Made(on_tool_call=hook, holds_tool_calls=True)


def policy(path: str = CHAT) -> Made:
    """Decides by the tool's name: `drop...`, `refuse...`, `change...`, `finish...`; others pass."""

    def decide(stream: MessageStream, call: ToolCall) -> None:
        name = call.name or ""
        if name.startswith("drop"):
            call.drop()
        elif name.startswith("refuse"):
            call.refuse(f"[{name} is not allowed]")
        elif name.startswith("change"):
            call.arguments = '{"changed": true}'
        elif name.startswith("finish"):
            stream.finish(REASONS[path])

    return holding(decide)


def events_of(path: str, names: list[str]) -> list[Any]:
    """A text, then calls of these names, and a text after them if the dialect can have one."""
    pieces = ['{"sec', 'ret": 1}']
    if path == CHAT:
        made: list[Any] = [delta(role="assistant", content="Well.")]
        for index, name in enumerate(names):
            begin = tool_delta(index, "", f"call_{index}", name)
            made += [delta(**item) for item in (begin, *(tool_delta(index, p) for p in pieces))]
        return [*made, *CHAT_END]
    if path == RESPONSES:
        calls = (call_events(pieces, index, name) for index, name in enumerate(names, 1))
        bye = text_events(["Bye."], len(names) + 1, id="msg_2")
        return responses_stream(text_events(["We", "ll."], 0), *calls, bye)
    blocks = [
        block
        for index, name in enumerate(names, 1)
        for block in tool_block(index, *pieces, id=f"t_{index}", name=name)
    ]
    bye = text_block(len(names) + 1, "Bye.")
    return [message_start(), *text_block(0, "Well."), *blocks, *bye, *message_end("tool_use")]


def stream_for(path: str, names: list[str]) -> bytes:
    return stream_of(events_of(path, names), named=path != CHAT)


def body_of(path: str, names: list[str]) -> bytes:
    if path == CHAT:
        functions = [{"name": name, "arguments": SECRET} for name in names]
        calls = [{"id": f["name"], "type": "function", "function": f} for f in functions]
        body = chat_body({"content": "Well.", "tool_calls": calls}, finish_reason="tool_calls")
    elif path == RESPONSES:
        first, last = message_item(text_part("Well.")), message_item(text_part("Bye."), id="msg_2")
        body = response("completed", [first, *(call_item(SECRET, name) for name in names), last])
    else:
        blocks = [
            {"type": "tool_use", "id": f"t_{name}", "name": name, "input": {"secret": 1}}
            for name in names
        ]
        first, last = ({"type": "text", "text": text} for text in ("Well.", "Bye."))
        body = anthropic_body(first, *blocks, last, stop_reason="tool_use")
    return json.dumps(body).encode()


def expected(path: str, names: list[str]) -> Result:
    text, calls = "Well.", []  # type: ignore[var-annotated]
    for name in names:
        if name.startswith("refuse"):
            text += f"[{name} is not allowed]"
        elif name.startswith("change"):
            calls.append((name, {"changed": True}))
        elif not name.startswith("drop"):
            calls.append((name, {"secret": 1}))
    with_calls = {CHAT: "tool_calls", ANTHROPIC: "tool_use", RESPONSES: "completed"}
    reason = (with_calls if calls else REASONS)[path]
    return text + ("" if path == CHAT else "Bye."), calls, reason


def read(path: str, content: bytes, *, streamed: bool) -> Result:
    """What the official SDK makes of it, streams also with its helper that accumulates."""
    kind = "text/event-stream" if streamed else "application/json"
    found = sdks.read(APIS[path], streamed, 200, kind, content)
    assert found.error is None
    assert not isinstance(found.final, str), found.final
    calls = [(call["name"], call["arguments"]) for call in found.tool_calls()]
    return found.joined("text"), calls, found.reasons[-1]


def run_chat(*messages: Any, interceptor: Interceptor | None = None) -> ChainResult:
    sent = stream_of(messages, named=False)
    with capture_logs():
        return run_chain([interceptor or policy()], [sent], request=request(CHAT))


NAMES = [
    ["pass_1"],
    *(["drop_1"], ["refuse_1"], ["change_1"]),
    *(
        ["drop_1", "pass_1"],
        ["pass_1", "drop_1"],
        ["refuse_1", "change_1"],
        ["change_1", "refuse_1"],
    ),
    ["drop_1", "refuse_1", "pass_1"],
    ["pass_1", "drop_1", "pass_2", "refuse_2", "change_1"],
    ["drop_1", "drop_2", "change_1"],
]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
@each_path
def test_the_official_sdk_reads_the_rest_of_an_answer(path: str, names: list[str]) -> None:
    """Its texts, the calls that pass, and the reason that fits them; however the stream arrives."""
    sent = stream_for(path, names)
    outputs = set()
    for chunks in chunkings(sent):
        result = run_chain([policy()], chunks, request=request(path))
        assert result.failure is None
        outputs.add(result.output)
    (output,) = outputs
    if all(name.startswith("pass") for name in names):
        assert output == sent
    body = run_json([policy()], body_of(path, names), request=request(path))
    for left in (output, body):
        assert b"drop" not in left
        assert b'"refuse' not in left
        assert read(path, left, streamed=left is output) == expected(path, names)


@each_path
def test_nothing_of_a_call_leaves_before_its_hook_has_decided(path: str) -> None:
    """Not its name or id, and nothing after it; whatever event the connection breaks off after."""
    events = events_of(path, ["pass_1"])
    for count in range(len(events)):
        sent = stream_of(events[:count], named=path != CHAT)
        decided: list[ToolCall] = []
        note = holding(lambda _, call, decided=decided: decided.append(call))  # type: ignore[misc]
        result = run_chain([note], [sent + b"data: unfinished"], request=request(path))
        assert (b"pass_1" in result.output) == bool(decided)
        assert sent.startswith(result.output.removesuffix(b"data: unfinished"))


@pytest.mark.parametrize(
    "names",
    [["finish_1"], ["pass_1", "finish_1"], ["refuse_1", "drop_1", "finish_1", "pass_1"]],
    ids="-".join,
)
@each_path
def test_an_ended_answer_has_nothing_of_a_held_call(path: str, names: list[str]) -> None:
    """`finish()`: the calls before it are there, and the official SDK reads the answer."""
    output = run_chain([policy(path)], [stream_for(path, names)], request=request(path)).output
    body = run_json([policy(path)], body_of(path, names), request=request(path))
    before = names[: names.index("finish_1")]
    passed = [name for name in before if name.startswith("pass")]
    for left in (output, body):
        assert b"finish_1" not in left
        text, calls, reason = read(path, left, streamed=left is output)
        assert [name for name, _ in calls] == passed
        assert ("[refuse_1 is not allowed]" in text) == ("refuse_1" in before)
        assert left is body or reason == REASONS[path]


def test_only_anthropics_pings_overtake_a_call() -> None:
    """Everything else keeps its order: a chat chunk of type `ping` waits, and goes with its call."""
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    events = [stream_of([event], named=True) for event in events_of(ANTHROPIC, ["pass_1"])]
    at = next(number for number, event in enumerate(events) if b"input_json_delta" in event)
    sent = [*events[:at], ping, *events[at:]]
    result = run_chain([policy()], sent, request=request(ANTHROPIC))
    assert result.output == b"".join([*events[: at - 1], ping, *events[at - 1 :]])
    call = delta(**tool_delta(0, SECRET, "call_0", "drop_1")) | {"type": "ping"}
    output = run_chat(call, *CHAT_END).output
    assert b"drop_1" not in output
    assert b"secret" not in output


def test_a_call_that_is_not_held_cannot_be_removed() -> None:
    late = Made(on_tool_call=lambda _, call: call.drop())
    failure = run_chat(*events_of(CHAT, ["f"]), interceptor=late).failure
    assert "set holds_tool_calls = True on the class" in str(failure)


@pytest.mark.parametrize("name", ["drop_1", "refuse_1", "change_1"])
@pytest.mark.parametrize("streamed", [True, False])
def test_the_tokens_of_a_call_that_is_changed_do_not_leave(name: str, streamed: bool) -> None:
    """`logprobs` beside a call, and beside a repetition of it."""
    tokens = {"logprobs": {"content": [{"token": '{"secret', "logprob": -1.0}]}}
    first = choice({"content": "Well.", **tool_delta(0, SECRET, "call_0", name)}) | tokens
    again = choice({}, "tool_calls") | tokens | {"message": first["delta"]}
    if streamed:
        output = run_chat(chunk(first), chunk(again), "[DONE]").output
    else:
        body = json.dumps({"object": "chat.completion", "choices": [again]})
        output = run_json([policy()], body.encode(), request=request(CHAT))
    assert b"secret" not in output
    assert b"Well." in output


def test_the_tokens_of_a_changed_call_do_not_leave_with_what_repeats_it_later() -> None:
    call = tool_delta(0, SECRET, "a", "change_1")
    again = {**choice({}), "message": call, "logprobs": {"content": [{"token": SECRET}]}}
    output = run_chat(delta(**call), delta("tool_calls"), chunk(again), "[DONE]").output
    assert b"secret" not in output


@pytest.mark.parametrize("size", [100_000, 10])
def test_what_waits_for_a_call_is_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Large events, or many small ones: the answer ends, and nothing of the call has left."""
    monkeypatch.setattr("interceptors.dialects.held.MAX_HELD", 300_000)
    call, text = delta(**tool_delta(0, "{", "call_0", "pass_1")), delta(content="x" * size)
    assert run_chat(call, text).failure is None
    result = run_chat(call, *[text] * 400)
    assert "wait for a tool call" in str(result.failure)
    assert b"pass_1" not in result.output


def test_the_bound_counts_only_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of calls fits, one after another."""
    monkeypatch.setattr("interceptors.dialects.held.MAX_HELD", 10_000)
    sent = stream_for(ANTHROPIC, [f"pass_{number}" for number in range(50)])
    result = run_chain([policy()], [sent], request=request(ANTHROPIC))
    assert (result.failure, result.output) == (None, sent)


def without_function(holder: Any) -> dict[str, Any]:
    call = {"index": 0, "id": "call_0", "type": "function", "function": holder}
    return delta(tool_calls=[call])


FIRST = delta(**tool_delta(0, '{"a":', "call_a", "pass_1"))
TOGETHER = [
    *tool_delta(0, "{}", "b", "pass_2")["tool_calls"],
    *tool_delta(0, "1}", "call_a")["tool_calls"],
]


@pytest.mark.parametrize(
    "messages",
    [
        [without_function(None), delta(**tool_delta(0, "{}", None, "pass_1"))],
        [without_function({}), delta(**tool_delta(0, "{}", None, "pass_1"))],
        [FIRST, delta(tool_calls=TOGETHER)],
    ],
    ids=["function is null at first", "function is empty at first", "continues after another call"],
)
def test_odd_calls_that_pass_leave_as_they_came(messages: list[Any]) -> None:
    result = run_chat(*messages, *CHAT_END)
    assert (result.failure, result.output) == (None, stream_of([*messages, *CHAT_END], named=False))


@pytest.mark.parametrize("decision", ["drop", "refuse", "change", "pass"])
def test_a_shell_that_the_client_runs_is_held_with_all_that_repeats_it(decision: str) -> None:
    """The events of its commands go with the call."""
    command = "rm -r secret"
    item = {"type": "shell_call", "id": "sh_1", "call_id": "call_1", "action": {"commands": []}}
    done = {**item, "status": "completed", "action": {"commands": [command]}}
    where = {"output_index": 0, "command_index": 0}
    events = [
        event("output_item.added", output_index=0, item=item),
        event("shell_call_command.added", **where, command=""),
        event("shell_call_command.delta", **where, delta=command),
        event("shell_call_command.done", **where, command=command),
        event("output_item.done", output_index=0, item=done),
        event("completed", response=response("completed", [done])),
    ]

    def decide(_: MessageStream, call: ToolCall) -> None:
        assert (call.id, call.name, call.json()) == ("call_1", "shell", {"commands": [command]})
        if decision == "drop":
            call.drop()
        elif decision == "refuse":
            call.refuse("[no shell]")
        elif decision == "change":
            call.arguments = '{"commands": ["ls"]}'

    sent = stream_of(events, named=True)
    for chunks in chunkings(sent):
        result = run_chain([holding(decide)], chunks, request=request(RESPONSES))
        assert result.failure is None
        found = (b"secret", b"shell_call", b'{"commands":["ls"]}', b"[no shell]")
        kept = {"pass": found[:2], "change": found[1:3], "refuse": found[3:], "drop": ()}[decision]
        assert [word for word in found if word in result.output] == list(kept)
        assert (result.output == sent) == (decision == "pass")


@pytest.mark.parametrize("name", ["drop_1", "refuse_1"])
def test_a_text_between_the_pieces_of_a_call_changes_nothing_of_it(name: str) -> None:
    """The call after a removed one moves up with all of its pieces, also those after a text that
    waits with it.
    """
    items = [
        *(tool_delta(0, "{}", "call_0", name), tool_delta(1, "", "call_1", "pass_1")),
        *({"content": "Well."}, tool_delta(1, '{"secret"'), tool_delta(1, ": 1}")),
    ]
    sent = stream_of([*(delta(**item) for item in items), *CHAT_END], named=False)
    for chunks in chunkings(sent):
        output = run_chain([policy()], chunks, request=request(CHAT)).output
        assert read(CHAT, output, streamed=True)[1:] == ([("pass_1", {"secret": 1})], "tool_calls")


def test_a_function_call_is_removed_with_all_of_its_pieces() -> None:
    pieces = {"name": "drop_1", "arguments": "{"}, {"arguments": "}"}
    messages = [delta(content="Well."), *(delta(function_call=piece) for piece in pieces)]
    output = run_chat(*messages, delta("function_call"), "[DONE]").output
    assert messages_of(output) == [messages[0], delta("stop"), "[DONE]"]


def test_a_changed_call_leaves_no_empty_events() -> None:
    begin, end = tool_delta(0, "{", "a", "change_1"), tool_delta(0, "}")
    *left, _, _ = messages_of(run_chat(delta(**begin), delta(**end), *CHAT_END).output)
    assert left == [delta(**tool_delta(0, '{"changed": true}', "a", "change_1"))]


def test_a_body_of_which_the_only_call_is_removed_leaves() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "drop_1", "arguments": "{}"}}
    body = {"choices": [{"index": 0, "message": {"tool_calls": [call]}}]}
    left = run_json([policy()], json.dumps(body).encode(), request=request(CHAT))
    assert json.loads(left) == {"choices": [{"index": 0, "message": {}}]}


@pytest.mark.parametrize("given", [{}, {"function": None}, {"function": [None]}])
def test_a_call_without_a_function_gets_one_only_if_it_is_changed(given: dict[str, Any]) -> None:
    """What is there and is not an object stays."""
    change = holding(lambda _, call: setattr(call, "arguments", "{}"))
    call = {"index": 0, "id": "a", **given}
    expected = call if given.get("function") else {**call, "function": {"arguments": "{}"}}
    left = messages_of(run_chat(delta(tool_calls=[call]), *CHAT_END, interceptor=change).output)
    assert left[0] == delta(tool_calls=[expected])


def test_a_changed_call_keeps_the_id_of_its_event() -> None:
    """A client may resume with it."""
    call = delta(**tool_delta(0, SECRET, "call_0", "change_1"))
    sent = b"id: 7\n" + stream_of([call, *CHAT_END], named=False)
    output = run_chain([policy()], [sent], request=request(CHAT)).output
    assert output.startswith(b"id: 7\ndata: ")
    assert b'{\\"changed\\": true}' in output
