"""LLM answers as real servers send them, from the public bug reports that each case names.

Every case runs whole, event by event and byte by byte, with the same result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.llm_events import block_delta, block_start, block_stop, event, function_call, tool_use
from unit.interceptors.dialects.recorder import Made
from unit.interceptors.dialects.transcripts import messages_of, request

from interceptors import Abort, Interceptor, Request
from interceptors.dialects import MessageInterceptor, MessageStream, ToolCall
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import ChainResult, run_chain, run_json

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PATHS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}
KEY, WORDS = "sk-abcdefgh12345", "project nightjar"
"""What `redact` and `guard` look for."""

Maker = Callable[[], Interceptor]


def redact() -> Interceptor:
    return Redact(patterns=["sk-[A-Za-z0-9]{8,}"])


def guard() -> Interceptor:
    return Guard(patterns=[WORDS])


class Calls(MessageInterceptor):
    """Notes every call, and aborts on one of `delete_file` if it is a policy."""

    def __init__(self, holds: bool = False, *, policy: bool = True) -> None:
        self.seen: list[tuple[str | None, str | None, str]] = []
        self.policy = policy
        self.stream = type("Stream", (CallsStream,), {"holds_tool_calls": holds})

    def open_messages(self, context: Any) -> MessageStream:
        self.seen = []
        return self.stream(self)  # type: ignore[no-any-return]


class CallsStream(MessageStream):
    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def on_tool_call(self, call: ToolCall) -> None:
        self.calls.seen.append((call.id, call.name, call.arguments))
        if self.calls.policy and call.name == "delete_file":
            raise Abort("no files are deleted here")


def stream(*events: Any) -> bytes:
    """Each event's data: JSON, or text."""
    texts = (
        item if isinstance(item, str) else json.dumps(item, separators=(",", ":"))
        for item in events
    )
    return b"".join(b"data: " + item.encode() + b"\n\n" for item in texts)


def choices(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **choice}]}


def chunk(delta: Any, reason: Any = None, **more: Any) -> dict[str, Any]:
    return choices(delta=delta, finish_reason=reason) | more


def text(content: Any, reason: Any = None) -> dict[str, Any]:
    return chunk({"content": content}, reason)


def tools(*items: Any, reason: Any = None) -> dict[str, Any]:
    return chunk({"tool_calls": list(items)}, reason)


def item(
    index: Any, id: Any = None, name: str | None = None, arguments: Any = "", kind: str = "function"
) -> dict[str, Any]:
    made: dict[str, Any] = {} if index is None else {"index": index}
    made |= {} if id is None else {"id": id, "type": kind}
    key = "arguments" if kind == "function" else "input"
    return made | {kind: ({} if name is None else {"name": name}) | {key: arguments}}


STOP, CALLED, DONE = chunk({}, "stop"), chunk({}, "tool_calls"), "[DONE]"
MESSAGE_STOP = {"type": "message_stop"}
FILTERED = choices(delta={}, finish_reason="content_filter")


def post(path: str) -> Request:
    return Request(method="POST", path=path)


def run(path: str, sent: bytes, *makers: Maker) -> ChainResult:
    """Of the stream whole, event by event, and byte by byte."""
    events = [event + b"\n\n" for event in sent.split(b"\n\n")[:-1]]
    results = []
    for chunks in ([sent], events, [sent[at : at + 1] for at in range(len(sent))]):
        with capture_logs():
            results.append(run_chain([make() for make in makers], chunks, request=post(path)))
    assert len({(result.output, str(result.failure)) for result in results}) == 1
    return results[0]


def run_body(body: Any, *interceptors: Interceptor, path: str = CHAT) -> Any:
    sent = json.dumps(body).encode()
    return json.loads(run_json(list(interceptors), sent, request=post(path)))


def check_exact(path: str, sent: bytes, *makers: Maker) -> None:
    for make in makers:
        result = run(path, sent, make)
        assert (result.failure, result.output) == (None, sent)


# --- Texts

Split = Callable[[str, str], list[Any]]


def delta(piece: str, **more: Any) -> dict[str, Any]:
    return event("output_text.delta", output_index=0, content_index=0, delta=piece) | more


def grown(piece: str, whole: str, reason: Any = None) -> dict[str, Any]:
    return choices(delta={"content": piece}, message={"content": whole}, finish_reason=reason)


def thinking(piece: str) -> dict[str, Any]:
    return text([{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}])


def call_piece(arguments: Any, **more: Any) -> dict[str, Any]:
    return tools({"index": 0, "function": {"arguments": arguments}, **more})


LAX = '{"choices":[{"index":0,"delta":{"content":"%s"},"x":[-Infinity]}]}'
OTHER_BLOCK = block_start(5, {"type": "text", "text": "b"})
SPLIT: dict[str, tuple[str, Split]] = {
    "finish_reason is empty (sgl-project/sglang#3912)":
        (CHAT, lambda a, b: [text(a, ""), text(b, ""), STOP, DONE]),
    "a finish_reason in every chunk (su-kaka/gcli2api#403)":
        (CHAT, lambda a, b: [chunk({"reasoning_content": "hm"}, "stop"), text("So ", "stop"), text(a, "stop"), text(b, "stop"), DONE]),
    "a list in the content (BerriAI/litellm#16272)":
        (CHAT, lambda a, b: [text("So: "), thinking(a), thinking(b), text("hi"), STOP, DONE]),
    "data that is not JSON in between": (CHAT, lambda a, b: [text(a), "keep-alive", "[1]", text(b), STOP]),
    "JSON that only lax readers take (sgl-project/sglang#2955)":
        (CHAT, lambda a, b: [LAX % a, text(b), STOP]),
    "a text without a start, and another block":
        (MESSAGES, lambda a, b: [block_delta(0, text=a), OTHER_BLOCK, block_delta(0, text=b), MESSAGE_STOP]),
    "unread events between the pieces of a call":
        (CHAT, lambda a, b: [call_piece(f'{{"k":"{a}', id="a"), "pong", {"type": "new", "delta": ""}, call_piece(f'{b}"}}'), STOP]),
}  # fmt: skip

CODE = event("code_interpreter_call_code.delta", item_id="c", output_index=0)
GROWING: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "reasoning twice": (CHAT, lambda text: chunk({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": text}], "reasoning": text})),
    "text beside a delta": (CHAT, lambda text: choices(text=text, delta={"content": text})),
    "a transcript": (CHAT, lambda text: chunk({"audio": {"id": "a", "transcript": text}})),
    "code of the provider": (RESPONSES, lambda text: CODE | {"delta": text}),
    "input of the provider's tool": (MESSAGES, lambda text: block_delta(0, partial_json=text)),
    "a compaction": (MESSAGES, lambda text: block_delta(0, content=text)),
}  # fmt: skip
for _value in (5, "x", [], {"a": 1}):
    for _name in ("model", "id", "created", "usage", "object"):
        GROWING[f"chat: {_name} is {_value}"] = (
            CHAT,
            lambda piece, odd={_name: _value}: text(piece) | odd,  # type: ignore[misc]
        )
    GROWING[f"responses: fields are {_value}"] = (
        RESPONSES,
        lambda piece, odd=_value: delta(piece, sequence_number=odd, item_id=odd, response=odd),  # type: ignore[misc]
    )
    GROWING[f"messages: fields are {_value}"] = (
        MESSAGES,
        lambda piece, odd=_value: (  # type: ignore[misc]
            block_delta(0, text=piece) | {"usage": odd, "message": odd, "model": odd}
        ),
    )
for _name, (_path, _make) in GROWING.items():
    SPLIT[_name] = (_path, lambda a, b, make=_make: [make(a), make(b)])  # type: ignore[misc]


@pytest.mark.parametrize(("path", "make"), SPLIT.values(), ids=SPLIT)
def test_a_secret_that_is_cut_is_found_in_odd_answers(path: str, make: Split) -> None:
    """Nothing else changes, and without one nothing does."""
    check_exact(path, stream(*make("Hello", " there.")), redact, guard)
    redacted = run(path, stream(*make("a sk-abcd", "efgh12345 b")), redact)
    assert redacted.failure is None
    assert b"abcd" not in redacted.output
    assert b"efgh" not in redacted.output
    assert b"[redacted] b" in redacted.output
    guarded = run(path, stream(*make("a project night", "jar b")), guard)
    assert (guarded.failure, guarded.ended) == (None, True)
    assert b"jar" not in guarded.output


def test_a_delta_beside_a_message_that_grows() -> None:
    """open-webui/open-webui#9927, BerriAI/litellm#8455: it counts once."""
    seen: list[str] = []

    def note(_: MessageStream, delta: Any) -> None:
        if not delta.repeated:
            seen.append(delta.text)

    def answer(first: str, second: str) -> bytes:
        return stream(grown(first, first), grown(second, first + second, "stop"), DONE)

    run_chain([Made(on_text_delta=note)], [answer("a", " b")], request=post(CHAT))
    assert seen == ["a", " b"]
    check_exact(CHAT, answer("a", " b"), redact, guard)
    redacted = messages_of(run(CHAT, answer("key sk-abcd", "efgh12345"), redact).output)
    assert redacted[0]["choices"][0]["message"]["content"] == "key "
    assert redacted[1]["choices"][0]["delta"]["content"] == "[redacted]"
    assert redacted[1]["choices"][0]["message"]["content"] == "key [redacted]"
    for first in ("about ", f"about {WORDS}"):
        output = run(CHAT, answer(first, WORDS), guard).output
        assert b"nightjar" not in output
        assert output.endswith(stream(FILTERED, DONE))


def in_message(make: Callable[[str], dict[str, Any]], *, beside: bool) -> Split:
    """A cumulative message in three chunks, with the fields that `make` returns."""

    def made(first: str, second: str) -> list[Any]:
        pieces = [
            (first, first, None),
            (second, first + second, None),
            ("", first + second, "stop"),
        ]
        return [
            choices(
                delta=make(piece) if beside and piece else {},
                message=make(whole),
                finish_reason=reason,
            )
            for piece, whole, reason in pieces
        ]

    return made


CUMULATIVE: dict[str, Callable[[str], dict[str, Any]]] = {
    "content": lambda text: {"content": text},
    "a list in the content": lambda text: {"content": [{"type": "text", "text": text}]},
    "reasoning": lambda text: {"reasoning": text},
    "reasoning_details": lambda text: {
        "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": text}]
    },
}


@pytest.mark.parametrize("beside", [True, False], ids=["beside a delta", "alone"])
@pytest.mark.parametrize("make", CUMULATIVE.values(), ids=CUMULATIVE)
def test_a_growing_message_holds_back(make: Callable[[str], dict[str, Any]], beside: bool) -> None:
    """As the deltas do: until a match is decided, or the choice has finished."""
    answer = in_message(make, beside=beside)
    output = run(CHAT, stream(*answer("key sk-abcd", "efgh12345 b")), redact).output
    assert b"sk-" not in output
    left = [item["choices"][0]["message"] for item in messages_of(output)]
    assert left[1:] == [make("key [redacted] b")] * 2
    held = messages_of(run(CHAT, stream(*answer("key ", "sk-abcd")), redact).output)
    assert held[-1]["choices"][0]["message"] == make("key sk-abcd")


@pytest.mark.parametrize("reason", ["", 5])
def test_an_odd_finish_reason_does_not_end_a_message_that_grows(reason: Any) -> None:
    sent = stream(grown("a sk-abcd", "a sk-abcd", reason), grown("efgh12345", f"a {KEY}", "stop"))
    assert b"sk-" not in run(CHAT, sent, redact).output


def test_a_body_without_a_finish_reason_is_whole() -> None:
    """What repeats a text in it, too."""
    body = {"choices": [{"message": CUMULATIVE["reasoning"](f"{KEY} sk-abcd")}]}
    body["choices"][0]["message"] |= CUMULATIVE["reasoning_details"](f"{KEY} sk-abcd")
    assert run_body(body, redact()) == json.loads(json.dumps(body).replace(KEY, "[redacted]"))


def test_a_message_that_grows_after_the_end_of_its_text() -> None:
    """One that repeats the text is whole; after more deltas it holds again, until the stream ends."""
    first, rest = (
        grown("a sk-abcd", "a sk-abcd", "stop"),
        choices(delta={}, message={"content": "a sk-abcd"}),
    )
    check_exact(CHAT, stream(first, rest, DONE), redact)
    more = [
        grown(" sk-ab", "a sk-abcd sk-ab", "stop"),
        grown("cdefgh12345", "a sk-abcd sk-abcdefgh12345", "stop"),
    ]
    redacted = run(CHAT, stream(first, *more, DONE), redact)
    assert redacted.failure is None
    left = [item["choices"][0] for item in messages_of(redacted.output)[:3]]
    assert [item["message"]["content"] for item in left] == [
        "a sk-abcd",
        "a sk-abcd ",
        "a sk-abcd ",
    ]


def blocks(*texts: str) -> list[dict[str, Any]]:
    start = block_start(1, {"type": "text", "text": ""})
    return [start, *(block_delta(1, text=item) for item in texts), block_stop(1)]


RESULT = block_start(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []})
HALF = "\ud83d"
EXACT: dict[str, tuple[str, list[Any]]] = {
    "half a character (elizaOS/eliza#30904)": (CHAT, [text(HALF), text("\ude00"), STOP, DONE]),
    "half a character in arguments": (CHAT, [call_piece({"a": HALF}, id="a"), CALLED, DONE]),
    "message is null": (CHAT, [choices(delta={"content": "a"}, message=None)]),
    "reasoning_details without a text":
        (CHAT, [chunk({"reasoning_details": [{"type": "reasoning.text", "signature": "s"}, {"type": "new"}]})]),
    "a block where a result is (anthropics/anthropic-sdk-typescript#879)":
        (MESSAGES, [RESULT, *blocks("47 million"), *blocks(" people"), MESSAGE_STOP]),
    "a block that begins where one has not ended":
        (MESSAGES, [*blocks("sk-ab")[:-1], *blocks("cdefgh12345"), MESSAGE_STOP]),
    "usage is a text (BerriAI/litellm#28001)": (CHAT, [text("a") | {"usage": ""}, STOP, DONE]),
    **{
        f"function is {holder}": (CHAT, [tools({"index": 0, "function": holder}), STOP, DONE])
        for holder in (None, [None], {})
    },
}  # fmt: skip


@pytest.mark.parametrize(("path", "events"), EXACT.values(), ids=EXACT)
def test_odd_answers_pass_unchanged(path: str, events: list[Any]) -> None:
    check_exact(path, stream(*events), redact, guard, Calls, lambda: Calls(True))


# --- Tool calls: which call is it, and what is its name


def arguments(step: str, id: str, **more: Any) -> dict[str, Any]:
    return event(f"function_call_arguments.{step}", output_index=0, item_id=id, **more)


def added(id: str) -> dict[str, Any]:
    return event("output_item.added", output_index=0, item=function_call(id, f"c{id}", id, ""))


def done(id: str, arguments: str) -> dict[str, Any]:
    item = function_call(id, f"c{id}", id, arguments)
    return event("output_item.done", output_index=0, item=item)


def by_client(kind: str, step: str, **fields: Any) -> dict[str, Any]:
    """The event of a Responses item that the client runs and that is not a function."""
    item = {"type": kind, "id": "i_1", "call_id": "c_1", **fields}
    return event(f"output_item.{step}", output_index=0, item=item)


def block(index: int, id: str, name: str, input: Any = None) -> dict[str, Any]:
    return block_start(index, tool_use(id, name, input))


def another_id(index: Any, first: Any, second: Any, kind: str = "function") -> tuple[Any, ...]:
    """Two calls at one index (BerriAI/litellm#21331, NousResearch/hermes-agent#62940)."""
    pieces = [
        item(index, first, "f", "{}", kind),
        item(index, second, "delete_file", '{"a":', kind),
    ]
    events = [*map(tools, [*pieces, item(index, None, None, "1}", kind)]), CALLED, DONE]
    return CHAT, events, [(str(first), "f", "{}"), (str(second), "delete_file", '{"a":1}')]


def named(*names: str | None) -> list[Any]:
    first, *rest = names
    pieces = [item(0, "a", first), *(item(0, None, name) for name in rest)]
    return [*map(tools, [*pieces, item(0, None, None, "{}")]), CALLED]


RUN = {"type": "exec", "command": ["rm", "-r", "/"]}
PATCH = {"type": "delete_file", "path": "a"}
RUN_TEXT, PATCH_TEXT = (json.dumps(made, separators=(",", ":")) for made in (RUN, PATCH))
F, G = '{"f":1}', '{"g":1}'
CALLS: dict[str, tuple[str, list[Any], Any]] = {
    "chat: another id at an index": another_id(0, "a", "b"),
    "chat: another id without an index": another_id(None, "a", "b"),
    "chat: another number as the id": another_id(0, 1, 2),
    "chat: another id of a custom tool": another_id(0, "a", "b", "custom"),
    "chat: a name in pieces (continuedev/continue#5849)":
        (CHAT, named("del", "ete", "_file"), [("a", "delete_file", "{}")]),
    "chat: a name twice": (CHAT, named("read_file", "read_file"), [("a", "read_file", "{}")]),
    "chat: a name after an empty one": (CHAT, named("", "read_file"), [("a", "read_file", "{}")]),
    "chat: null after a name (BerriAI/litellm#12513)":
        (CHAT, named("read_file", "null"), [("a", "read_file", "{}")]),
    "chat: a name that continues after the call's end":
        (CHAT, [tools(item(0, "a", "delete", "{}"), reason="tool_calls"), tools(item(0, None, "_file"))],
         [("a", "delete", "{}"), ("a", "delete_file", "{}")]),
    "chat: a name after the end":
        (CHAT, [tools(item(0, "a", None, F), reason="tool_calls"), tools(item(0, None, "f", ""))], ("a", "f", F)),
    "chat: arguments that are an object (ggml-org/llama.cpp#20198)":
        (CHAT, [tools(item(0, "a", "f", {"f": 1})), CALLED, DONE], [("a", "f", F)]),
    "chat: half a character as arguments": (CHAT, [tools(item(0, "a", "f", "\ud800")), CALLED], [("a", "f", "\ud800")]),
    "chat: function_call (can1357/oh-my-pi#1692)":
        (CHAT, [chunk({"function_call": {"name": "f", "arguments": "{"}}), chunk({"function_call": {"arguments": "}"}}),
                chunk({}, "function_call")], [(None, "f", "{}")]),
    "chat: an empty custom beside function (earendil-works/pi#8504)":
        (CHAT, [tools(item(0, "a", "f", "{}") | {"custom": {}}), CALLED], [("a", "f", "{}")]),
    "chat: tool_calls is one object (TGI)":
        (CHAT, [chunk({"tool_calls": item(0, "", "f", "{}")}), CALLED], [(None, "f", "{}")]),
    "chat: an id made up for each piece":
        (CHAT, [tools(item(0, "a", "f", '{"f":')), tools(item(0, "b", None, "1}")), tools(item(0, "c", None, " "))],
         ("a", "f", F + " ")),
    "chat: a message beside the delta begins another call":
        (CHAT, [choices(delta={"role": "assistant"}, message={"tool_calls": [item(0, "z", "read_", "{}")]}),
                tools(item(0, None, "f", "{}"))], (None, "f", "{}")),
    "chat: custom and function at one index":
        (CHAT, [tools(item(0, "a", "read", "{}", "custom")), tools(item(0, "a", "f", "{}"))], ("a", "f", "{}")),
    "responses: empty arguments after deltas (farion1231/cc-switch#6481)":
        (RESPONSES, [added("f"), arguments("delta", "f", delta=F), arguments("done", "f", arguments=""), done("f", F)],
         [("cf", "f", F)]),
    "responses: other arguments after deltas (huggingface/tau#712)":
        (RESPONSES, [added("f"), arguments("delta", "f", delta=F), arguments("done", "f", arguments=G), done("f", G)],
         [("cf", "f", F), ("cf", "f", G), ("cf", "f", G)]),
    "responses: two items at one output_index":
        (RESPONSES, [added("f"), added("g"), arguments("delta", "g", delta=G), arguments("delta", "f", delta=F),
                     arguments("done", "f", arguments=F), arguments("done", "g", arguments=G)],
         [("cf", "f", F), ("cg", "g", G)]),
    "responses: a local shell":
        (RESPONSES, [by_client("local_shell_call", step, action=RUN) for step in ("added", "done")],
         [("c_1", "local_shell", RUN_TEXT)]),
    "responses: a patch":
        (RESPONSES, [by_client("apply_patch_call", "added", operation={}), by_client("apply_patch_call", "done", operation=PATCH)],
         [("c_1", "apply_patch", PATCH_TEXT)]),
    "responses: a computer":
        (RESPONSES, [by_client("computer_call", "done", actions={"type": "click"})], [("c_1", "computer", '{"type":"click"}')]),
    "responses: a shell in the provider's container":
        (RESPONSES, [by_client("shell_call", "done", action=RUN, environment={"type": "container_reference"})], []),
    "messages: a used index, its input complete":
        (MESSAGES, [block(0, "a", "f", {"f": 1}), block(0, "b", "g"), block_delta(0, partial_json="{}"), block_stop(0)],
         [("a", "f", F), ("b", "g", "{}")]),
    "messages: deltas after an input":
        (MESSAGES, [block(0, "a", "f", {"f": 1}), block_delta(0, partial_json=G), block_stop(0)], [("a", "f", G)]),
    "messages: deltas at the position of the block":
        (MESSAGES, [block(3, "t", "f"), block_delta(0, partial_json=F), block_stop(0)], [("t", "f", F)]),
    "messages: deltas after the block's end (agentgateway/agentgateway#2147)":
        (MESSAGES, [block(0, "t", "f"), block_delta(0, partial_json='{"f":'), block_stop(0), block_delta(0, partial_json="1}"),
                    MESSAGE_STOP], ("t", "f", F)),
}  # fmt: skip
"""Path, events, and the calls: all that a hook sees, or one that must be among them."""


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(("path", "events", "seen"), CALLS.values(), ids=CALLS)
def test_a_policy_sees_assembled_calls(
    path: str, events: list[Any], seen: Any, holds: bool
) -> None:
    """With the id, the name and the arguments that the official SDK has in the end."""
    calls, sent = Calls(holds, policy=False), stream(*events)
    check_exact(path, sent, lambda: calls)
    assert calls.seen == seen if isinstance(seen, list) else seen in calls.seen
    check_exact(path, sent, redact, guard)
    failure = run(path, sent, lambda: Calls(holds)).failure
    assert (failure is None) == ("delete_file" not in [name for _, name, _ in calls.seen])


def test_arguments_of_a_body_that_are_an_object() -> None:
    """huggingface/text-generation-inference#2136."""

    def answer(city: str) -> Any:
        call = item(0, "a", "f", {"city": city})
        return choices(message={"tool_calls": [call]}, finish_reason="tool_calls")

    for make in (guard, redact, Calls, lambda: Calls(True)):
        assert run_body(answer("Oslo"), make()) == answer("Oslo")
    assert run_body(answer(KEY), redact()) == answer("[redacted]")


def test_arguments_after_the_blocks_end_are_redacted() -> None:
    pieces = [block_delta(0, partial_json=piece) for piece in ('{"a":', f'"{KEY}"', "}")]
    sent = stream(block(0, "t", "f"), pieces[0], block_stop(0), *pieces[1:], MESSAGE_STOP)
    left = messages_of(run(MESSAGES, sent, redact).output)
    arguments = [message["delta"]["partial_json"] for message in left if "delta" in message]
    assert json.loads("".join(arguments)) == {"a": "[redacted]"}


def test_the_type_in_the_data_counts_and_not_the_events() -> None:
    """A policy must see what clients read that look at either."""
    sent = b"event: ping\n" + stream(block(0, "t", "delete_file"), block_stop(0))
    assert run(MESSAGES, sent, Calls).failure is not None


def test_a_secret_in_a_name_that_is_cut_does_not_leave() -> None:
    """A name cannot be changed, so the answer ends."""
    pieces = item(0, "call_a", "sk-abcd", ""), item(0, None, "efgh12345", "{}")
    result = run(CHAT, stream(*map(tools, pieces)), redact)
    assert b"sk-abcd" not in result.output
    assert result.failure is not None


@pytest.mark.parametrize("index", [5, 1.0, "1", None])
def test_a_body_is_cut_where_its_call_is(index: Any) -> None:
    """With any numbers for its calls and its choice."""

    def stop(stream: MessageStream, call: ToolCall) -> None:
        if call.name == "stop":
            stream.finish("stop")

    calls = [item(0, "a", "first", "{}"), *(item(index, n, n, "{}") for n in ("stop", "last"))]
    message = {"content": "Well.", "tool_calls": calls}
    body = choices(message=message, finish_reason="tool_calls")
    body["choices"][0]["index"] = index
    (choice,) = run_body(body, Made(on_tool_call=stop))["choices"]
    assert choice["message"] == {"content": "Well.", "tool_calls": calls[:1]}
    assert choice["finish_reason"] == "stop"


def test_a_held_event_keeps_its_line_ends_and_an_id_its_place() -> None:
    """CRLF that is cut before its LF, and an event that is nothing but an id."""
    call = stream(call_piece("{", id="call_a"), call_piece("}"))
    sent = call + b"id: 7\n\n" + stream(STOP, DONE)
    for wire in (sent, sent.replace(b"\n", b"\r\n"), sent.replace(b"\n", b"\r")):
        for at in range(len(wire)):
            result = run_chain([redact()], [wire[:at], wire[at:]], request=post(CHAT))
            assert (result.failure, result.output) == (None, wire)


# --- What no hook is shown

UNKNOWN = r"""
chat data: {"choices":[{"delta":{"reasoning_details":[{"type":"reasoning.text","text":"%s"}]}}]}
chat data: {"choices":[{"index":0,"delta":{"content":"a","new_field":{"deep":["%s"]}}}]}
chat data: {"choices":[{"index":0,"delta":{"%s":1},"finish_reason":null}]}
chat data: {"error":{"message":"bad %s"}}
chat data: <html>%s</html>
chat data: {"a": "%s"
chat data: [DONE] %s
chat data: [DONE] %s\ndata: x-y: 1
chat error: %s
chat error: %s\ndata: {"choices":[]}
chat data: {"choices":[{"index":0,"text":"%s","delta":{"content":""}}]}
responses data: {"type":"response.new","output_index":0,"text":"%s"}
responses data: {"type":"response.mcp_call_arguments.delta","item_id":"m","delta":"{\"a\":\"%s\"}"}
messages data: {"type":"content_block_delta","index":0,"delta":{"citation":{"cited_text":"%s"}}}
messages data: {"type":"content_block_delta","index":0,"delta":{"partial_json":"{\"a\":\"%s\"}"}}
messages data: {"type":"content_block_start","content_block":{"type":"tool_use","input":{"a":"%s"}}}
messages data: [{"type":"new","text":"%s"}]
"""


@pytest.mark.parametrize("row", UNKNOWN.strip().split("\n"))
def test_protectors_search_what_readers_do_not_know(row: str) -> None:
    """Unknown fields, events and deltas, errors, data that is not JSON, and lines that are not SSE."""
    api, _, lines = row.partition(" ")
    block, path = lines.replace(r"\n", "\n").encode() + b"\n\n", PATHS[api]
    redacted = run(path, block.replace(b"%s", KEY.encode()), redact)
    assert redacted.failure is None
    assert b"sk-" not in redacted.output
    if block.startswith(b"data: {"):
        escaped = block.replace(b"%s", rb"sk\u002dabcdefgh12345")
        assert b"abcdefgh" not in run(path, escaped, redact).output
        escaped = block.replace(b"%s", rb"pr\u006fject nightjar")
        assert b"nightjar" not in run(path, escaped, guard).output
    stopped = run(path, block.replace(b"%s", WORDS.encode()), guard)
    assert WORDS.encode() not in stopped.output
    assert stopped.ended
    check_exact(path, block.replace(b"%s", b"fine"), redact, guard)


@pytest.mark.parametrize("data", [f"the {WORDS}", f"[DONE] {WORDS}"])
def test_guard_ends_a_begun_answer_at_data_that_is_not_json(data: str) -> None:
    stopped = run(CHAT, stream(text("a"), data), guard)
    assert stopped.output == stream(text("a"), FILTERED, DONE)


def test_words_of_the_protocol_stop_no_answer() -> None:
    """A pattern that matches `stop` or a model's name applies to the model's text."""
    sent = stream(text("fine") | {"model": "gpt-x", "id": "chatcmpl-1234567890123456"}, STOP, DONE)
    patterns = ["stop|gpt|assistant|choices|content|[0-9]{16}"]
    check_exact(CHAT, sent, lambda: Guard(patterns=patterns))


# --- What an ending repeats


@pytest.mark.parametrize("name", ["id", "object", "created", "model", "provider", "service_tier"])
def test_the_ending_does_not_contain_the_match(name: str) -> None:
    """It repeats a chunk's identifiers, and one of them may hold the match."""
    odd = text("a") | {name: [WORDS] if name != "created" else WORDS}
    assert b"nightjar" not in run(CHAT, stream(text("b"), odd), guard).output


@pytest.mark.parametrize(
    ("begun", "repeated"),
    [
        (event("created", response={"object": "response", "x": HALF}), HALF),
        (
            event("output_item.added", output_index=0, item={"id": "i", "type": [], "content": []}),
            [],
        ),
    ],
    ids=["half a character", "an item whose type is not a string"],
)
def test_an_ending_repeats_odd_values(begun: Any, repeated: Any) -> None:
    result = run(RESPONSES, stream(begun, event("new", x=WORDS)), guard)
    assert (result.failure, result.ended) == (None, True)
    assert str([repeated])[1:-1] in str(messages_of(result.output)[-1])


def test_an_ending_has_the_text_that_came_with_its_part_and_is_done_once() -> None:
    where = {"output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "Well "}
    message = {"type": "message", "id": "m", "role": "assistant", "content": []}
    begun = event("output_item.added", output_index=0, item=message)
    sent = stream(begun, event("content_part.added", **where, part=part), delta("a "), delta(WORDS))
    left = messages_of(run(RESPONSES, sent, guard).output)
    done = [item["text"] for item in left if item["type"] == "response.output_text.done"]
    assert done == [left[-1]["response"]["output"][0]["content"][0]["text"]] == ["Well a "]


@pytest.mark.parametrize("data", [{"x": WORDS}, f'{{"x":"{WORDS}'])
def test_an_event_before_the_format_is_known_is_searched(data: Any) -> None:
    result = run_chain([guard()], [stream(data)], request=request("/x", "openai"))
    assert result.ended
    assert b"nightjar" not in result.output


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_an_answer_that_ends_in_its_first_event_has_no_model(path: str) -> None:
    first, *_ = messages_of(run(path, stream({"type": "new", "x": WORDS}), guard).output)
    assert first.get("message", first)["model"] == ""


def test_a_delta_belongs_to_its_part_and_item() -> None:
    """An event without `output_index` belongs to the newest item."""
    blocks: list[tuple[int, int]] = []
    note = Made(
        on_text_delta=lambda _, delta: blocks.append((delta.block.output, delta.block.part))
    )
    items = [{"type": "message", "id": name, "content": []} for name in "ab"]
    begun = [
        event("output_item.added", output_index=at, item=item) for at, item in enumerate(items)
    ]
    deltas = [
        delta("a", output_index=output, content_index=part) for output, part in ((0, 0), (1, 1))
    ]
    summary = event("reasoning_summary_text.delta", output_index=2, summary_index=2, delta="a")
    newest = event("output_text.delta", content_index=3, delta="a")
    run_chain([note], [stream(*begun, *deltas, newest, summary)], request=post(RESPONSES))
    assert blocks == [(0, 0), (1, 1), (1, 3), (2, 2)]


def test_what_is_unread_is_json_only_without_other_lines() -> None:
    seen: list[bool] = []
    note = Made(on_unread=lambda _, unread: seen.append(unread.is_json))
    sent = stream({"x": 1}) + b'data: {"x":1}\nx-y: 1\n\n' + stream("pong")
    run_chain([note], [sent], request=post(MESSAGES))
    assert seen == [True, False, False]


BODIES = f"""
chat {{"choices":[{{"index":0,"message":{{"content":"a"}},"{WORDS}":1}}]}}
chat {{"choices":[{{"message":{{"content":"a"}},"x":{{"y":"{WORDS}"}}}}],"usage":{{"x":"{WORDS}"}}}}
chat {{"choices":[{{"index":0,"message":{{"content":"a"}},"delta":{{"content":"{WORDS}"}}}}]}}
chat {{"choices":[{{"index":0,"text":"{WORDS}"}}]}}
chat {{"choices":[{{"index":"1","message":{{"content":"{WORDS}"}}}}]}}
chat {{"choices":[],"id":["{WORDS}"]}}
chat {{"choices":null,"x":"{WORDS}"}}
responses {{"object":"response","output":[],"model":{{"x":"{WORDS}"}},"usage":{{"{WORDS}":1}}}}
messages {{"type":"message","content":[],"role":["{WORDS}"],"usage":{{"input_tokens":1,"x":["{WORDS}"]}}}}
"""


@pytest.mark.parametrize("row", BODIES.strip().split("\n"))
def test_nothing_of_a_match_is_left_in_a_body(row: str) -> None:
    """What is left is JSON of the dialect."""
    api, _, body = row.partition(" ")
    assert "nightjar" not in str(run_body(json.loads(body), guard(), path=PATHS[api]))


@pytest.mark.parametrize("leaf", ["a", WORDS])
def test_json_as_deep_as_a_decoder_takes_it(leaf: str) -> None:
    """JSON too deep to be encoded is unread: it passes, and is searched."""
    item = {"type": "function_call", "id": "i", "name": "f", "arguments": 0}
    done = stream(event("output_item.done", output_index=0, item=item))
    for depth in range(900, 1000, 7):
        nested = b"[" * depth + json.dumps(leaf).encode() + b"]" * depth
        sent = done.replace(b'"arguments":0', b'"arguments":' + nested)
        for make in (redact, guard, Calls):
            result = run_chain([make()], [sent], request=post(RESPONSES))
            assert result.failure is None
            stopped = make is guard and result.ended and b"nightjar" not in result.output
            assert result.output == sent or stopped
