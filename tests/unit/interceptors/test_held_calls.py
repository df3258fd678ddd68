"""Calls that a hook holds: nothing of one leaves before the hook has decided, and the answer stays
valid for its official SDK.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    PATHS,
    RESPONSES,
    anthropic_body,
    call_item,
    chat_body,
    choice,
    chunk,
    chunkings,
    message_end,
    message_item,
    message_start,
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

from interceptors.dialects import MessageInterceptor, MessageStream, ToolCall
from interceptors.testing import run_chain, run_json

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

Calls = list[tuple[str, str]]
"""Each call's name and arguments."""
Result = tuple[str, Calls, str]
"""What an SDK has made of an answer: its text, its calls, and why it ended."""


class Policy(MessageInterceptor):
    """Decides by the tool's name: `drop...`, `refuse...`, `change...`, `finish...`; others pass."""

    def open_messages(self, context: Any) -> MessageStream:
        stream = PolicyStream()
        stream.path = context.path
        return stream


class PolicyStream(MessageStream):
    holds_tool_calls = True
    path = ""

    def on_tool_call(self, call: ToolCall) -> None:
        name = call.name or ""
        if name.startswith("drop"):
            call.drop()
        elif name.startswith("refuse"):
            call.refuse(f"[{name} is not allowed]")
        elif name.startswith("change"):
            call.arguments = '{"changed": true}'
        elif name.startswith("finish"):
            self.finish(REASONS[self.path])


REASONS = {CHAT: "stop", RESPONSES: "completed", ANTHROPIC: "end_turn"}


def events_of(path: str, names: list[str]) -> list[Any]:
    """A text, then calls of these names, and a text after them where the dialect can have one."""
    if path == CHAT:
        made: list[Any] = [chunk(choice({"role": "assistant", "content": "Well."}))]
        for index, name in enumerate(names):
            made.append(chunk(choice(tool_delta(index, "", f"call_{index}", name))))
            made += [chunk(choice(tool_delta(index, piece))) for piece in ('{"sec', 'ret": 1}')]
        return [*made, chunk(choice({}, "tool_calls" if names else "stop")), "[DONE]"]
    if path == RESPONSES:
        return responses_stream(
            text_events(["We", "ll."], 0),
            *(call_events_of(name, index) for index, name in enumerate(names, 1)),
            text_events(["Bye."], len(names) + 1, id="msg_2"),
        )
    blocks = [
        block
        for index, name in enumerate(names, 1)
        for block in tool_block(index, '{"sec', 'ret": 1}', id=f"t_{index}", name=name)
    ]
    return [
        message_start(),
        *text_block(0, "Well."),
        *blocks,
        *text_block(len(names) + 1, "Bye."),
        *message_end("tool_use"),
    ]


def call_events_of(name: str, index: int) -> list[dict[str, Any]]:
    item = call_item('{"secret": 1}', name) | {"id": f"fc_{index}", "call_id": f"call_{index}"}
    where = {"item_id": item["id"], "output_index": index}
    return [
        {
            "type": "response.output_item.added",
            "output_index": index,
            "item": item | {"arguments": "", "status": "in_progress"},
        },
        *(
            {"type": "response.function_call_arguments.delta", **where, "delta": piece}
            for piece in ('{"sec', 'ret": 1}')
        ),
        {"type": "response.function_call_arguments.done", **where, "arguments": item["arguments"]},
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]


def body_of(path: str, names: list[str]) -> bytes:
    if path == CHAT:
        calls = [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": '{"secret": 1}'},
            }
            for index, name in enumerate(names)
        ]
        body = chat_body({"content": "Well.", "tool_calls": calls}, finish_reason="tool_calls")
    elif path == RESPONSES:
        items = [call_item('{"secret": 1}', name) | {"id": f"fc_{name}"} for name in names]
        body = response(
            "completed",
            [message_item(text_part("Well.")), *items, message_item(text_part("Bye."), id="msg_2")],
        )
    else:
        blocks = [
            {"type": "tool_use", "id": f"t_{name}", "name": name, "input": {"secret": 1}}
            for name in names
        ]
        texts = [{"type": "text", "text": text} for text in ("Well.", "Bye.")]
        body = anthropic_body(texts[0], *blocks, texts[1], stop_reason="tool_use")
    return json.dumps(body).encode()


def expected(path: str, names: list[str], original: str, *, streamed: bool) -> Result:
    text, calls = "Well.", []
    for name in names:
        if name.startswith("refuse"):
            text += f"[{name} is not allowed]"
        elif name.startswith("change"):
            calls.append((name, '{"changed": true}'))
        elif not name.startswith("drop"):
            calls.append((name, '{"secret": 1}'))
    reasons = {
        CHAT: ("tool_calls", "stop"),
        ANTHROPIC: ("tool_use", "end_turn"),
        RESPONSES: ("completed", "completed"),
    }
    return text + ("" if path == CHAT else "Bye."), calls, reasons[path][not calls]


def read(path: str, content: bytes, *, streamed: bool) -> Result:
    """What the official SDK makes of it, streams with its helper that accumulates."""
    kind = "text/event-stream" if streamed else "application/json"
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": kind}, content=content)
    )
    http = httpx2.Client(transport=transport)
    if path == ANTHROPIC:
        client = anthropic.Anthropic(api_key="x", http_client=http, base_url="http://test")
        asked: dict[str, Any] = {
            "model": "m",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "?"}],
        }
        if streamed:
            with client.messages.stream(**asked) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**asked)
        text = "".join(block.text for block in message.content if block.type == "text")
        calls = [
            (block.name, json.dumps(block.input))
            for block in message.content
            if block.type == "tool_use"
        ]
        return text, calls, message.stop_reason
    client = openai.OpenAI(api_key="x", http_client=http, base_url="http://test/v1")
    if path == CHAT:
        asked = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
        if streamed:
            with client.chat.completions.stream(**asked) as stream:
                made = stream.get_final_completion()
        else:
            made = client.chat.completions.create(**asked)
        (first,) = made.choices
        calls = [
            (call.function.name, call.function.arguments) for call in first.message.tool_calls or ()
        ]
        return first.message.content or "", calls, first.finish_reason
    if streamed:
        with client.responses.stream(model="m", input="?") as stream:
            made = stream.get_final_response()
    else:
        made = client.responses.create(model="m", input="?")
    calls = [(item.name, item.arguments) for item in made.output if item.type == "function_call"]
    return made.output_text, calls, made.status


SOME = ["pass_1", "drop_1", "refuse_1", "change_1"]
NAMES = [[name] for name in SOME] + [
    list(names) for names in product(SOME, repeat=2) if names[0] != names[1]
]
NAMES += [
    ["drop_1", "refuse_1", "pass_1"],
    ["pass_1", "drop_1", "pass_2", "refuse_2", "change_1"],
    ["drop_1", "drop_2", "change_1"],
]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
@pytest.mark.parametrize("path", PATHS.values())
def test_the_official_sdk_reads_what_is_left_of_a_stream(path: str, names: list[str]) -> None:
    """Its texts, the calls that were let pass, and the reason that fits them; however the stream
    arrives.
    """
    sent = stream_of(events_of(path, names), named=path != CHAT)
    outputs = set()
    for chunks in chunkings(sent):
        result = run_chain([Policy()], chunks, request=request(path))
        assert result.failure is None
        outputs.add(result.output)
    (output,) = outputs
    assert b"drop" not in output
    assert b'"refuse' not in output
    assert read(path, output, streamed=True) == expected(path, names, "", streamed=True)
    if all(name.startswith("pass") for name in names):
        assert output == sent


@pytest.mark.parametrize("names", NAMES, ids="-".join)
@pytest.mark.parametrize("path", PATHS.values())
def test_the_official_sdk_reads_what_is_left_of_a_body(path: str, names: list[str]) -> None:
    """The same, of answers that are not streamed."""
    sent = body_of(path, names)
    output = run_json([Policy()], sent, request=request(path))
    assert b"drop" not in output
    assert b'"refuse' not in output
    assert read(path, output, streamed=False) == expected(path, names, "", streamed=False)


@pytest.mark.parametrize("path", PATHS.values())
def test_nothing_of_a_call_leaves_before_its_hook_has_decided(path: str) -> None:
    """Not its name or id, and nothing that follows it; after every single event, and after a
    connection that breaks off.
    """
    events = events_of(path, ["pass_1"])
    for count in range(len(events)):
        sent = stream_of(events[:count], named=path != CHAT)
        decided: list[str] = []

        class Note(MessageInterceptor):
            def open_messages(self, context: Any) -> MessageStream:
                return NoteStream()

        class NoteStream(MessageStream):
            holds_tool_calls = True

            def on_tool_call(self, call: ToolCall, decided: list[str] = decided) -> None:
                decided.append(call.name or "")

        result = run_chain([Note()], [sent + b"data: unfinished"], request=request(path))
        assert (b"pass_1" in result.output) == bool(decided)
        assert sent.startswith(result.output.removesuffix(b"data: unfinished"))


@pytest.mark.parametrize(
    "names",
    [["finish_1"], ["pass_1", "finish_1"], ["refuse_1", "drop_1", "finish_1", "pass_1"]],
    ids="-".join,
)
@pytest.mark.parametrize("path", PATHS.values())
def test_an_answer_that_ends_at_a_held_call_shows_nothing_of_it(
    path: str, names: list[str]
) -> None:
    """`finish()`: the calls before it are there, and the official SDK reads the answer."""
    sent = stream_of(events_of(path, names), named=path != CHAT)
    output = run_chain([Policy()], [sent], request=request(path)).output
    assert b"finish_1" not in output
    text, calls, reason = read(path, output, streamed=True)
    before = names[: names.index("finish_1")]
    assert [name for name, _ in calls] == [name for name in before if name.startswith("pass")]
    assert ("[refuse_1 is not allowed]" in text) == ("refuse_1" in before)
    assert reason == REASONS[path]
    body = run_json([Policy()], body_of(path, names), request=request(path))
    assert b"finish_1" not in body
    assert [name for name, _ in read(path, body, streamed=False)[1]] == [
        name for name in before if name.startswith("pass")
    ]


def test_a_ping_is_not_kept_waiting() -> None:
    """Anthropic's pings pass while a call is held; everything else keeps its order."""
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    events = [stream_of([event], named=True) for event in events_of(ANTHROPIC, ["pass_1"])]
    at = next(number for number, event in enumerate(events) if b"input_json_delta" in event)
    sent = [*events[:at], ping, *events[at:]]
    result = run_chain([Policy()], sent, request=request(ANTHROPIC))
    assert result.output == b"".join([*events[: at - 1], ping, *events[at - 1 :]])


def test_a_call_that_is_not_held_cannot_be_removed() -> None:
    """The error contains what to do."""

    class Late(MessageInterceptor):
        def open_messages(self, context: Any) -> MessageStream:
            return LateStream()

    class LateStream(MessageStream):
        def on_tool_call(self, call: ToolCall) -> None:
            call.drop()

    with capture_logs():
        result = run_chain(
            [Late()], [stream_of(events_of(CHAT, ["f"]), named=False)], request=request(CHAT)
        )
    assert "set holds_tool_calls = True on the class" in str(result.failure)


# --- Attacks
# ------------------------------------------------------------------------------------------------------------


def test_only_anthropics_pings_overtake_a_call() -> None:
    """A chunk of chat with `ping` waits with its call, and is sent with it."""
    call = chunk(choice(tool_delta(0, '{"secret": 1}', "call_0", "drop_1"))) | {"type": "ping"}
    sent = stream_of([call, chunk(choice({}, "tool_calls")), "[DONE]"], named=False)
    output = run_chain([Policy()], [sent], request=request(CHAT)).output
    assert b"drop_1" not in output
    assert b"secret" not in output


@pytest.mark.parametrize("name", ["drop_1", "refuse_1", "change_1"])
@pytest.mark.parametrize("streamed", [True, False])
def test_the_tokens_of_a_call_that_is_changed_do_not_leave(name: str, streamed: bool) -> None:
    """`logprobs` beside a call, and beside a repetition of it."""
    tokens = {"content": [{"token": '{"secret', "logprob": -1.0}]}
    first = choice({"content": "Well.", **tool_delta(0, '{"secret": 1}', "call_0", name)}) | {
        "logprobs": tokens
    }
    again = {
        "index": 0,
        "delta": {},
        "message": first["delta"],
        "logprobs": tokens,
        "finish_reason": "tool_calls",
    }
    if streamed:
        output = run_chain(
            [Policy()],
            [stream_of([chunk(first), chunk(again), "[DONE]"], named=False)],
            request=request(CHAT),
        ).output
    else:
        body = {"object": "chat.completion", "choices": [{**again, "index": 0}]}
        output = run_json([Policy()], json.dumps(body).encode(), request=request(CHAT))
    assert b"secret" not in output
    assert b"Well." in output


@pytest.mark.parametrize("size", [100_000, 10])
def test_what_waits_for_a_call_is_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Large events, or many small ones: the answer ends, and nothing of the call has left."""
    monkeypatch.setattr("interceptors.dialects.held.MAX_HELD", 300_000)
    first = stream_of([chunk(choice(tool_delta(0, "{", "call_0", "pass_1")))], named=False)
    text = stream_of([chunk(choice({"content": "x" * size}))], named=False)
    for count, fits in ((1, True), (400, False)):
        with capture_logs():
            result = run_chain([Policy()], [first, text * count], request=request(CHAT))
        assert (result.failure is None) == fits
        assert fits or b"pass_1" not in result.output
    assert "wait for a tool call" in str(result.failure)


def test_what_has_left_is_no_more_in_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of calls fits, one after another."""
    monkeypatch.setattr("interceptors.dialects.held.MAX_HELD", 10_000)
    sent = stream_of(events_of(ANTHROPIC, [f"pass_{number}" for number in range(50)]), named=True)
    result = run_chain([Policy()], [sent], request=request(ANTHROPIC))
    assert (result.failure, result.output) == (None, sent)


@pytest.mark.parametrize("holder", [None, {}])
def test_a_call_without_a_function_yet(holder: Any) -> None:
    """`"function": null`, and a name and arguments later."""
    begin = choice(
        {"tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": holder}]}
    )
    sent = stream_of(
        [
            chunk(begin),
            chunk(choice(tool_delta(0, "{}", None, "pass_1"))),
            chunk(choice({}, "tool_calls")),
            "[DONE]",
        ],
        named=False,
    )
    result = run_chain([Policy()], [sent], request=request(CHAT))
    assert (result.failure, result.output) == (None, sent)


def test_a_call_that_goes_on_in_the_event_that_ends_it_leaves_as_it_came() -> None:
    """Two calls at one index, the first of which continues after the second."""
    pieces = [
        tool_delta(0, '{"a":', "call_a", "pass_1"),
        tool_delta(0, "{}", "call_b", "pass_2"),
        tool_delta(0, "1}", "call_a"),
    ]
    together = {"tool_calls": [piece["tool_calls"][0] for piece in pieces[1:]]}
    sent = stream_of(
        [
            chunk(choice(pieces[0])),
            chunk(choice(together)),
            chunk(choice({}, "tool_calls")),
            "[DONE]",
        ],
        named=False,
    )
    result = run_chain([Policy()], [sent], request=request(CHAT))
    assert (result.failure, result.output) == (None, sent)


@pytest.mark.parametrize("decision", ["drop", "refuse", "change", "pass"])
def test_a_shell_that_the_client_runs_is_held_with_all_that_repeats_it(decision: str) -> None:
    """Its commands come as events of their own, which go with the call."""
    item = {
        "type": "shell_call",
        "id": "sh_1",
        "call_id": "call_1",
        "status": "in_progress",
        "action": {"commands": []},
    }
    done = {**item, "status": "completed", "action": {"commands": ["rm -r secret"]}}
    where = {"output_index": 0, "command_index": 0}
    events = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.shell_call_command.added", **where, "command": ""},
        {"type": "response.shell_call_command.delta", **where, "delta": "rm -r secret"},
        {"type": "response.shell_call_command.done", **where, "command": "rm -r secret"},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": response("completed", [done])},
    ]

    class Decide(MessageInterceptor):
        def open_messages(self, context: Any) -> MessageStream:
            return DecideStream()

    class DecideStream(MessageStream):
        holds_tool_calls = True

        def on_tool_call(self, call: ToolCall) -> None:
            assert (call.id, call.name, call.json()) == (
                "call_1",
                "shell",
                {"commands": ["rm -r secret"]},
            )
            if decision == "drop":
                call.drop()
            elif decision == "refuse":
                call.refuse("[no shell]")
            elif decision == "change":
                call.arguments = '{"commands": ["ls"]}'

    sent = stream_of(events, named=True)
    for chunks in chunkings(sent):
        result = run_chain([Decide()], chunks, request=request(RESPONSES))
        assert result.failure is None
        if decision == "pass":
            assert result.output == sent
            continue
        assert b"secret" not in result.output
        assert (b"shell_call" in result.output) == (decision == "change")
        assert (b'{"commands":["ls"]}' in result.output) == (decision == "change")
        assert (b"[no shell]" in result.output) == (decision == "refuse")


@pytest.mark.parametrize("name", ["drop_1", "refuse_1"])
def test_a_text_between_the_pieces_of_a_call_changes_nothing_of_it(name: str) -> None:
    """The call after a removed one moves up with all of its pieces, also those after a text that
    waits with it.
    """
    pieces = [
        tool_delta(1, "", "call_1", "pass_1"),
        {"content": "Well."},
        tool_delta(1, '{"secret"'),
        tool_delta(1, ": 1}"),
    ]
    removed = [chunk(choice(tool_delta(0, "{}", "call_0", name)))]
    events = [
        *removed,
        *(chunk(choice(piece)) for piece in pieces),
        chunk(choice({}, "tool_calls")),
        "[DONE]",
    ]
    sent = stream_of(events, named=False)
    for chunks in chunkings(sent):
        output = run_chain([Policy()], chunks, request=request(CHAT)).output
        assert read(CHAT, output, streamed=True)[1:] == (
            [("pass_1", '{"secret": 1}')],
            "tool_calls",
        )
