"""LLM answers as real servers send them, from the public bug reports that each test names.

Every case runs whole, event by event and byte by byte, with the same result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs
from support.llm_events import block_delta, block_start, block_stop, event, function_call, tool_use
from unit.interceptors.dialects.recorder import Made
from unit.interceptors.dialects.transcripts import messages_of

from interceptors import Abort, Interceptor, Request
from interceptors.dialects import MessageInterceptor, MessageStream, ToolCall
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import ChainResult, run_chain, run_json
from interceptors.usage import Usage

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


STOP, DONE, MESSAGE_STOP = chunk({}, "stop"), "[DONE]", {"type": "message_stop"}
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


def check_calls(path: str, sent: bytes, seen: list[Any], holds: bool) -> None:
    """Each call once, and the stream unchanged."""
    calls = Calls(holds, policy=False)
    check_exact(path, sent, lambda: calls)
    assert calls.seen == seen


def text_of(output: bytes) -> str:
    """The text of the first choice that a chat client has."""
    found = ""
    for message in messages_of(output):
        for choice in message["choices"] if isinstance(message, dict) else ():
            content = choice["delta"].get("content")
            found += content if isinstance(content, str) else ""
    return found


def usage_of(path: str, sent: bytes, *, json_body: bool = False) -> tuple[Any, dict[str, float]]:
    """The log line, and the metrics by name."""
    usage = Usage()
    with capture_logs() as lines:
        if json_body:
            assert run_json([usage], sent, request=post(path)) == sent
        else:
            result = run_chain([usage], [sent], request=post(path))
            assert (result.failure, result.output) == (None, sent)
    metrics: dict[str, float] = {}
    for collector in usage.collectors():
        for metric in collector.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    metrics[sample.name] = metrics.get(sample.name, 0) + sample.value
    (line,) = [line for line in lines if line["event"] == "usage"]
    assert not [line for line in lines if line["log_level"] == "error"]
    return line, metrics


# --- An odd field does not end the answer


def test_an_empty_finish_reason_does_not_count() -> None:
    """sgl-project/sglang#3912, ollama/ollama#4357, qualcomm/GenieX#1243."""
    sent = stream(text("key sk-abcd", ""), text("efgh12345 ok", ""), STOP, DONE)
    assert text_of(run(CHAT, sent, redact).output) == "key [redacted] ok"
    check_exact(CHAT, sent, guard)
    assert usage_of(CHAT, sent)[0]["finish_reason"] == "stop"


def test_a_finish_reason_in_every_chunk_ends_nothing() -> None:
    """su-kaka/gcli2api#403, open-webui/open-webui#16377."""

    def answer(*texts: str) -> bytes:
        thought = chunk({"reasoning_content": "hm"}, "stop")
        return stream(thought, *(text(item, "stop") for item in texts), DONE)

    check_exact(CHAT, answer("It is ", "436", "."), redact, guard)
    output = run(CHAT, answer("It ", "is sk-abcd", "efgh12345", "."), redact).output
    assert text_of(output) == "It is [redacted]."
    for texts in (("sk-abcd", "efgh12345"), ("sk-a", "bcd", "efg", "h12345")):
        assert KEY[:11] not in text_of(run(CHAT, answer(*texts), redact).output)
    output = run(CHAT, answer("sk-abcdefgh", "12345", " ok"), redact).output
    assert text_of(output) == "[redacted] ok"
    stopped = run(CHAT, answer("a ", "project night", "jar", "."), guard)
    assert (text_of(stopped.output), stopped.ended) == ("a project night", True)


@pytest.mark.parametrize("nested", [True, False])
def test_a_list_in_the_content(nested: bool) -> None:
    """BerriAI/litellm#16272: Mistral's thinking; a secret cut over two of them is redacted."""

    def answer(*words: str) -> bytes:
        parts = [[{"type": "text", "text": word}] if nested else word for word in words]
        thoughts = [text([{"type": "thinking", "thinking": part}]) for part in parts]
        return stream(text("So: "), *thoughts, text("hi"), STOP, DONE)

    for words in ((KEY,), ("a sk-abcd", "efgh12345 b")):
        output = run(CHAT, answer(*words), redact).output
        assert b"sk-" not in output
        assert text_of(output) == "So: hi"
    check_exact(CHAT, answer("hm", "hm"), redact, guard)
    stopped = run(CHAT, answer(WORDS), guard)
    assert stopped.output == stream(text("So: "), FILTERED, DONE)


@pytest.mark.parametrize("streamed", [True, False])
def test_arguments_that_are_an_object(streamed: bool) -> None:
    """ggml-org/llama.cpp#20198, huggingface/text-generation-inference#2136."""

    def answer(city: str) -> Any:
        function = {"name": "get_weather", "arguments": {"city": city}}
        call = {"index": 0, "id": "call_a", "type": "function", "function": function}
        if streamed:
            return stream(tools(call), chunk({}, "tool_calls"), DONE)
        return choices(message={"tool_calls": [call]}, finish_reason="tool_calls")

    def left(sent: Any, made: Interceptor) -> Any:
        return run(CHAT, sent, lambda: made).output if streamed else run_body(sent, made)

    for make in (guard, redact):
        assert left(answer("Oslo"), make()) == answer("Oslo")
    assert "sk-" not in str(left(answer(KEY), redact()))
    for holds in (True, False):
        calls = Calls(holds)
        assert left(answer("Oslo"), calls) == answer("Oslo")
        ((_, name, arguments),) = calls.seen
        assert (name, json.loads(arguments)) == ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize("holds", [True, False])
def test_empty_arguments_after_deltas_change_nothing_and_others_are_one_more_call(
    holds: bool,
) -> None:
    """farion1231/cc-switch#6481, huggingface/tau#712."""

    def answer(arguments: str, *, done: str, item: str) -> bytes:
        added = function_call("fc_1", "call_1", "read", "")
        where = {"output_index": 0, "item_id": "fc_1"}
        return stream(
            event("output_item.added", output_index=0, item=added),
            event("function_call_arguments.delta", **where, delta=arguments),
            event("function_call_arguments.done", **where, arguments=done),
            event("output_item.done", output_index=0, item={**added, "arguments": item}),
        )

    path, other = '{"path":"/a"}', '{"path":"/b"}'
    check_exact(RESPONSES, answer(path, done="", item=path), redact, guard)
    first, second = ("call_1", "read", path), ("call_1", "read", other)
    check_calls(RESPONSES, answer(path, done="", item=path), [first], holds)
    check_calls(RESPONSES, answer(path, done=other, item=other), [first, second, second], holds)


@pytest.mark.parametrize("holds", [True, False])
def test_arguments_after_the_blocks_end(holds: bool) -> None:
    """agentgateway/agentgateway#2147."""

    def answer(*pieces: str) -> bytes:
        first, *others = (block_delta(0, partial_json=piece) for piece in pieces)
        start = block_start(0, tool_use("toolu_1", "Bash"))
        return stream(start, first, block_stop(0), *others, MESSAGE_STOP)

    sent = answer('{"command":', '"ls"}')
    check_exact(MESSAGES, sent, redact, guard)
    calls = Calls(holds)
    check_exact(MESSAGES, sent, lambda: calls)
    assert calls.seen[-1] == ("toolu_1", "Bash", '{"command":"ls"}')
    late = messages_of(run(MESSAGES, answer('{"command":', f'"{KEY}"', "}"), redact).output)
    pieces = [message["delta"]["partial_json"] for message in late if "delta" in message]
    assert json.loads("".join(pieces)) == {"command": "[redacted]"}


def test_a_block_that_begins_where_another_is() -> None:
    """anthropics/anthropic-sdk-typescript#879, Oaklight/llm-rosetta#246."""

    def block(*texts: str) -> list[dict[str, Any]]:
        start = block_start(1, {"type": "text", "text": ""})
        return [start, *(block_delta(1, text=item) for item in texts), block_stop(1)]

    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    for blocks in ([block_start(1, result), *block("47 million")], block("47 million")):
        sent = stream(*blocks, *block(" people"), MESSAGE_STOP)
        check_exact(MESSAGES, sent, redact, guard)
    unended = block("sk-ab")[:-1]
    sent = stream(*unended, *block("cdefgh12345"), MESSAGE_STOP)
    deltas = [item for item in messages_of(run(MESSAGES, sent, redact).output) if "delta" in item]
    assert [item["delta"]["text"] for item in deltas] == ["sk-ab", "cdefgh12345"]


def test_half_a_character_and_json_that_only_lax_readers_take() -> None:
    """elizaOS/eliza#30904, elie222/rakazo#416; sgl-project/sglang#2955 has `-Infinity`."""
    odd = '{"choices":[{"index":0,"delta":{"content":"HALF"},"finish_reason":null}]}'
    halves = [odd.replace("HALF", half) for half in (r"\ud83d", r"\ude00")]
    check_exact(CHAT, stream(*halves, STOP, DONE), redact, guard, Calls)
    odd = r'{"choices":[{"index":0,"delta":{"content":"a sk-abcd"},"x":[-Infinity]}]}'
    output = run(CHAT, stream(odd, text("efgh12345 b"), STOP), redact).output
    assert b"sk-" not in output
    assert b"-Infinity" in output
    function = {"name": "delete_file", "arguments": "\ud800"}
    call = stream(tools({"index": 0, "id": "a", "function": function}), chunk({}, "tool_calls"))
    assert run(CHAT, call, Calls).failure is not None


def test_held_text_stays_held_across_events_that_cannot_be_read() -> None:
    """Text that is not JSON in the middle of a secret, and a secret in such text."""
    sent = stream(text("sk-abcd"), "keep-alive", "[1]", text("efgh12345"), STOP, DONE)
    output = run(CHAT, sent, redact).output
    assert text_of(output) == "[redacted]"
    assert b"data: keep-alive\n\ndata: [1]\n\n" in output
    assert b"sk-" not in run(CHAT, stream(f"upstream said {KEY}"), redact).output
    stopped = run(CHAT, stream(text("a"), f"the {WORDS}"), guard)
    assert stopped.output == stream(text("a"), FILTERED, DONE)


@pytest.mark.parametrize("value", [5, "x", [], 1.5, True, {"a": 1}], ids=str)
@pytest.mark.parametrize(
    ("path", "make", "fields"),
    [
        (CHAT, text, "model id created usage object"),
        (
            RESPONSES,
            lambda piece: event("output_text.delta", output_index=0, content_index=0, delta=piece),
            "sequence_number item_id response",
        ),
        (MESSAGES, lambda piece: block_delta(0, text=piece), "usage message model"),
    ],
    ids=PATHS,
)
def test_a_field_of_the_wrong_type_hides_no_text(
    path: str, make: Callable[[str], Any], fields: str, value: Any
) -> None:
    """A secret that is cut over two such events is still redacted."""
    for field in fields.split():
        sent = stream(*(make(piece) | {field: value} for piece in ("a sk-abcd", "efgh12345 b")))
        result = run(path, sent, redact)
        assert result.failure is None
        assert b"abcd" not in result.output
        assert b"[redacted]" in result.output


def test_the_type_in_the_data_counts_and_not_the_events() -> None:
    """A policy must see what clients read that look at either."""
    sent = b"event: ping\n" + stream(block_start(0, tool_use("t", "delete_file")), block_stop(0))
    assert run(MESSAGES, sent, Calls).failure is not None


# --- Tool calls: which call is it, and what is its name


def item(
    index: Any, id: Any = None, name: str | None = None, arguments: str = "", kind: str = "function"
) -> dict[str, Any]:
    made: dict[str, Any] = {} if index is None else {"index": index}
    made |= {} if id is None else {"id": id, "type": kind}
    key = "arguments" if kind == "function" else "input"
    return made | {kind: ({} if name is None else {"name": name}) | {key: arguments}}


def by_id(output: bytes, kind: str) -> list[tuple[str, str, str]]:
    """The calls of a client that keeps them apart by id; without one, the last call continues."""
    calls: dict[Any, list[str]] = {}
    last = None
    for message in messages_of(output):
        for choice in message["choices"] if isinstance(message, dict) else ():
            for made in choice["delta"].get("tool_calls", ()):
                last = made.get("id", last)
                call = calls.setdefault(last, ["", ""])
                call[0] += made[kind].get("name", "")
                call[1] += made[kind].get("arguments", made[kind].get("input", ""))
    return [(str(key), *call) for key, call in calls.items()]


@pytest.mark.parametrize("kind", ["function", "custom"])
@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("ids", [("call_a", "call_b"), (1, 2)])
@pytest.mark.parametrize("holds", [True, False])
def test_another_id_at_an_index_is_another_call(
    holds: bool, ids: Sequence[Any], index: int | None, kind: str
) -> None:
    """BerriAI/litellm#21331, NousResearch/hermes-agent#62940, su-kaka/gcli2api#406."""
    first = item(index, ids[0], "get_weather", '{"city":"Oslo"}', kind)
    second = item(index, ids[1], "read_file", '{"path":', kind)
    rest = item(index, None, None, '"/a"}', kind)
    sent = stream(tools(first), tools(second), tools(rest), chunk({}, "tool_calls"), DONE)
    weather, file = str(ids[0]), (str(ids[1]), "read_file", '{"path":"/a"}')
    check_calls(CHAT, sent, [(weather, "get_weather", '{"city":"Oslo"}'), file], holds)
    check_exact(CHAT, sent, redact)
    redacted = run(CHAT, sent.replace(b"Oslo", KEY.encode()), redact).output
    assert by_id(redacted, kind) == [(weather, "get_weather", '{"city":"[redacted]"}'), file]
    deleting = sent.replace(b"read_file", b"delete_file")
    assert run(CHAT, deleting, lambda: Calls(holds)).failure is not None


@pytest.mark.parametrize(
    "names",
    ["delete|_file", "del|ete|_file", "read_file|read_file", "|read_file", "read_file|null"],
)
def test_a_name_in_pieces(names: str) -> None:
    """continuedev/continue#5849, NVIDIA-NeMo/Switchyard#785, NousResearch/hermes-agent#11984;
    `null`: BerriAI/litellm#12513.
    """
    first, *rest = names.split("|")
    pieces = [item(0, "call_a", first), *(item(0, None, piece) for piece in rest)]
    sent = stream(*map(tools, [*pieces, item(0, None, None, "{}")]), chunk({}, "tool_calls"))
    calls = Calls()
    failure = run(CHAT, sent, lambda: calls).failure
    name = "delete_file" if first.startswith("del") else "read_file"
    assert calls.seen == [("call_a", name, "{}")]
    assert (failure is not None) == (name == "delete_file")


@pytest.mark.parametrize("holds", [True, False])
def test_a_name_that_continues_after_the_calls_end_is_shown_to_the_hook(holds: bool) -> None:
    """A policy must see the name that a client has in the end."""
    first, second = item(0, "call_a", "delete", "{}"), item(0, None, "_file")
    calls = Calls(holds)
    sent = stream(tools(first, reason="tool_calls"), tools(second), DONE)
    assert run(CHAT, sent, lambda: calls).failure is not None
    assert [name for _, name, _ in calls.seen] == ["delete", "delete_file"]


def arguments(step: str, id: str, **more: Any) -> dict[str, Any]:
    return event(f"function_call_arguments.{step}", output_index=0, item_id=id, **more)


def added(id: str) -> dict[str, Any]:
    item = function_call(id, f"c{id}", id, "")
    return event("output_item.added", output_index=0, item=item)


def run_by_client(kind: str, step: str, **fields: Any) -> dict[str, Any]:
    """The event of a Responses item that the client runs and that is not a function."""
    item = {"type": kind, "id": "i_1", "call_id": "c_1", **fields}
    return event(f"output_item.{step}", output_index=0, item=item)


RUN = {"type": "exec", "command": ["rm", "-r", "/"]}
PATCH = {"type": "delete_file", "path": "a"}
CALLED = chunk({}, "tool_calls")

CALLS: dict[str, tuple[str, list[Any], Any]] = {
    "messages: a used index, its input complete": (
        MESSAGES,
        [
            *(block_start(0, tool_use("a", "f", {"x": 1})), block_start(0, tool_use("b", "g"))),
            *(block_delta(0, partial_json="{}"), block_stop(0)),
        ],
        [("a", "f", '{"x":1}'), ("b", "g", "{}")],
    ),
    "messages: deltas after an input": (
        MESSAGES,
        [
            *(block_start(0, tool_use("a", "f", {"x": 1})), block_delta(0, partial_json='{"y":2}')),
            block_stop(0),
        ],
        [("a", "f", '{"y":2}')],
    ),
    "messages: deltas at the position of the block": (
        MESSAGES,
        [
            *(block_start(3, tool_use("t", "f")), block_delta(0, partial_json='{"a":1}')),
            block_stop(0),
        ],
        [("t", "f", '{"a":1}')],
    ),
    "responses: two items at one output_index": (
        RESPONSES,
        [
            *map(added, "fg"),
            *(arguments("delta", name, delta=f'"{name}"') for name in "gf"),
            *(arguments("done", name, arguments=f'"{name}"') for name in "fg"),
        ],
        [("cf", "f", '"f"'), ("cg", "g", '"g"')],
    ),
    "responses: a local shell": (
        RESPONSES,
        [run_by_client("local_shell_call", step, action=RUN) for step in ("added", "done")],
        [("c_1", "local_shell", json.dumps(RUN, separators=(",", ":")))],
    ),
    "responses: a patch": (
        RESPONSES,
        [
            run_by_client("apply_patch_call", "added", operation={}),
            run_by_client("apply_patch_call", "done", operation=PATCH),
        ],
        [("c_1", "apply_patch", json.dumps(PATCH, separators=(",", ":")))],
    ),
    "responses: a computer": (
        RESPONSES,
        [run_by_client("computer_call", "done", actions={"type": "click"})],
        [("c_1", "computer", '{"type":"click"}')],
    ),
    "responses: a shell in the provider's container is not the client's": (
        RESPONSES,
        [
            run_by_client(
                "shell_call", "done", action=RUN, environment={"type": "container_reference"}
            )
        ],
        [],
    ),
    "chat: function_call, from before tool calls (can1357/oh-my-pi#1692)": (
        CHAT,
        [
            chunk({"function_call": {"name": "f", "arguments": "{"}}),
            chunk({"function_call": {"arguments": "}"}}),
            chunk({}, "function_call"),
        ],
        [(None, "f", "{}")],
    ),
    "chat: an empty custom beside function (earendil-works/pi#8504)": (
        CHAT,
        [tools(item(0, "a", "f", "{}") | {"custom": {}}), CALLED],
        [("a", "f", "{}")],
    ),
    "chat: tool_calls is one object (TGI)": (
        CHAT,
        [chunk({"tool_calls": item(0, "", "f", "{}")}), CALLED],
        [(None, "f", "{}")],
    ),
    "chat: a name after the end": (
        CHAT,
        [tools(item(0, "a", None, '{"b":1}'), reason="tool_calls"), tools(item(0, None, "f", ""))],
        ("a", "f", '{"b":1}'),
    ),
    "chat: an id made up for each piece": (
        CHAT,
        [
            tools(item(0, "a", "f", '{"b":')),
            *(tools(item(0, "b", None, "1}")), tools(item(0, "c", None, " "))),
        ],
        ("a", "f", '{"b":1} '),
    ),
    "chat: a message beside the delta begins another call": (
        CHAT,
        [
            choices(
                delta={"role": "assistant"},
                message={"tool_calls": [item(0, "z", "read_", "{}")]},
                finish_reason=None,
            ),
            tools(item(0, None, "f", "{}")),
        ],
        (None, "f", "{}"),
    ),
    "chat: custom and function at one index": (
        CHAT,
        [tools(item(0, "a", "read", "{}", "custom")), tools(item(0, "a", "f", "{}"))],
        ("a", "f", "{}"),
    ),
}
"""Path, events, and the calls: all that a hook sees, or one that must be among them."""


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(("path", "events", "seen"), CALLS.values(), ids=CALLS)
def test_a_policy_sees_the_calls_that_a_client_assembles(
    path: str, events: list[Any], seen: Any, holds: bool
) -> None:
    """With the id, the name and the arguments that the official SDK has in the end."""
    calls = Calls(holds, policy=False)
    check_exact(path, stream(*events), lambda: calls)
    assert calls.seen == seen if isinstance(seen, list) else seen in calls.seen


# --- A chunk that has a message, too


def cumulative(*deltas: str) -> bytes:
    events, whole = [], ""
    for number, delta in enumerate(deltas, 1):
        whole += delta
        message = {"role": "assistant", "content": whole}
        reason = "stop" if number == len(deltas) else None
        events.append(choices(finish_reason=reason, message=message, delta={"content": delta}))
    return stream(*events, DONE)


def test_a_delta_beside_a_message_that_grows() -> None:
    """open-webui/open-webui#9927, BerriAI/litellm#8455."""
    for deltas in (("about ", WORDS, " now"), (f"about {WORDS}", " now")):
        output = run(CHAT, cumulative(*deltas), guard).output
        assert b"nightjar" not in output
        assert output.endswith(stream(FILTERED, DONE))
    check_exact(CHAT, cumulative("about ", WORDS, " now"), redact)
    output = run(CHAT, cumulative("key ", "sk-abcd", "efgh12345"), redact).output
    assert text_of(output) == "key [redacted]"
    assert messages_of(output)[-2]["choices"][0]["message"]["content"] == "key [redacted]"
    check_exact(CHAT, stream(choices(delta={"content": "a"}, message=None)), redact, guard)
    counted: list[str] = []

    def count(_: MessageStream, delta: Any) -> None:
        if not delta.repeated:
            counted.append(delta.text)

    run_chain([Made(on_text_delta=count)], [cumulative("about ", "it", " now")], request=post(CHAT))
    assert counted == ["about ", "it", " now"]


# --- Usage and failures

COUNTS = """
11 5 8 - -     {"prompt_tokens":11,"completion_tokens":5,"total_tokens":16,"cached_tokens":8}
11 5 - - -     {"input_tokens":11,"output_tokens":5,"total_tokens":16}
11 5 - - -     {"prompt_tokens":0,"completion_tokens":0,"input_tokens":11,"output_tokens":5}
11 5 - - -     {"prompt_tokens":11,"completion_tokens":5,"input_tokens":0,"output_tokens":0}
- 5 8 - -      {"completion_tokens":5,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":3}
11 - 8 2 -     {"prompt_tokens":11,"cache_read_input_tokens":8,"cache_creation_input_tokens":2}
- - 8 - -      {"input_tokens_details":{"cached_tokens":8}}
- - - - 3      {"output_tokens_details":{"reasoning_tokens":3}}
11 0 - - -     {"prompt_tokens":11,"completion_tokens":0}
- 5 - - 2.5    {"prompt_tokens":null,"completion_tokens":"5","reasoning_tokens":2.5}
11 - - - -     {"prompt_tokens":11,"prompt_tokens_details":[]}
57 14417.92 - - -  {"prompt_tokens":57.0,"completion_tokens":14417.92}
"""
"""Input, output, cached, cache_written and reasoning tokens, and the usage that a server sends."""


@pytest.mark.parametrize("place", ["top", "choice", "x_groq", "body"])
@pytest.mark.parametrize("row", COUNTS.strip().split("\n"))
def test_usage_is_counted_in_every_place_and_spelling(row: str, place: str) -> None:
    """earendil-works/pi#2017, #2326, #8119, NousResearch/hermes-agent#61871, BerriAI/litellm#28001."""
    counts = [None if word == "-" else float(word) for word in row.partition("{")[0].split()]
    usage = json.loads(row[row.index("{") :])
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
    message: dict[str, Any] = {"choices": [choice]}
    if place == "x_groq":
        message["x_groq"] = {"id": "req_1", "usage": usage}
    else:
        (choice if place == "choice" else message)["usage"] = usage
    sent = json.dumps(message).encode() if place == "body" else stream(message, DONE)
    line, metrics = usage_of(CHAT, sent, json_body=place == "body")
    kinds = ("input", "output", "cached", "cache_written", "reasoning")
    assert [line[kind] for kind in kinds] == counts
    assert metrics["weirpool_llm_tokens_total"] == pytest.approx(sum(filter(None, counts)))


def test_usage_that_is_not_an_object_and_a_later_zero_erase_nothing() -> None:
    """BerriAI/litellm#28001, envoyproxy/ai-gateway#1631. Usage told twice counts once."""
    usage = {"prompt_tokens": 11, "completion_tokens": 5}
    sent = stream(text("a") | {"usage": ""}, {"choices": [], "usage": usage}, DONE)
    check_exact(CHAT, sent, redact, guard)
    assert usage_of(CHAT, sent)[1]["weirpool_llm_tokens_total"] == 16
    twice = choices(delta={}, finish_reason="stop", usage=usage) | {"usage": usage}
    sent = stream(twice, {"choices": [], "usage": usage})
    assert usage_of(CHAT, sent)[1]["weirpool_llm_tokens_total"] == 16
    usage = {"input_tokens": 1500, "cache_read_input_tokens": 900, "output_tokens": 1}
    later = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7}
    start = {"type": "message", "model": "claude-x", "content": [], "usage": usage}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": later}
    sent = stream({"type": "message_start", "message": start}, end, MESSAGE_STOP)
    line, _ = usage_of(MESSAGES, sent)
    assert (line["input"], line["cached"], line["output"]) == (1500, 900, 7)


HALF = text("Half")
FAILED = {"status": "failed", "output": []}
SERVER_ERROR = {"type": "server_error", "code": "server_error", "message": "an error"}
FAILURES: list[tuple[str, list[Any], str | None]] = [
    (CHAT, [HALF, chunk({"content": ""}, "error", error={"code": 502}), DONE], "502"),
    (CHAT, [HALF, choices(delta={}, error={"code": 502}), STOP], "502"),
    (CHAT, [HALF, {"error": {"type": "server_error"}}, STOP, DONE], "server_error"),
    (CHAT, [HALF, chunk({}, "error"), DONE], None),
    (CHAT, [{"object": "error", "message": "no", "type": "BadRequest", "code": 4}], "BadRequest"),
    (
        RESPONSES,
        [
            {"type": "error", "error": SERVER_ERROR},
            event("failed", response={**FAILED, "error": {"code": "server_error"}}),
        ],
        "server_error",
    ),
    (RESPONSES, [event("failed", response=FAILED)], None),
    (MESSAGES, [{"type": "error", "error": {"type": "overloaded_error"}}], "overloaded_error"),
]


@pytest.mark.parametrize(("path", "events", "error"), FAILURES)
def test_a_failure_inside_a_200_is_a_failure(path: str, events: list[Any], error: Any) -> None:
    """damianvtran/local-operator#223, gethouston/houston#1211, decolua/9router#4104."""
    line, metrics = usage_of(path, stream(*events))
    assert line["error"] == error
    assert metrics["weirpool_llm_requests_total"] == 1
    assert "weirpool_llm_answers_without_usage_total" not in metrics


INCOMPLETE = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


@pytest.mark.parametrize(
    ("path", "events"),
    [
        *((CHAT, [HALF, chunk({}, why), DONE]) for why in ("length", "content_filter", "stop")),
        (RESPONSES, [event("incomplete", response={"output": [], **INCOMPLETE})]),
    ],
)
def test_an_incomplete_answer_is_not_a_failure(path: str, events: list[Any]) -> None:
    """It has no usage, and is counted as such an answer."""
    _, metrics = usage_of(path, stream(*events))
    assert metrics["weirpool_llm_answers_without_usage_total"] == 1


def test_half_a_character_in_a_name_leaves_the_metrics_readable() -> None:
    """A model's name is a label, and Prometheus's text is UTF-8, which cannot encode it."""
    usage, registry = Usage(), CollectorRegistry()
    sent = stream(chunk({}, "\ud83d", model="gpt-\ud83d", usage={"prompt_tokens": 3}), DONE)
    for collector in usage.collectors():
        registry.register(collector)
    with capture_logs() as lines:
        assert run_chain([usage], [sent], request=post(CHAT)).output == sent
    assert b'model="gpt-?"' in generate_latest(registry)
    assert [line["model"] for line in lines if line["event"] == "usage"] == ["gpt-?"]


def test_thousands_of_reasons_make_no_long_log_line() -> None:
    """A reason that means failure counts wherever it comes."""
    reasons = [f"reason-{number}" for number in range(3000)] + ["error"]
    line, metrics = usage_of(CHAT, stream(*(chunk({}, reason) for reason in reasons), DONE))
    assert len(line["finish_reason"].split(",")) == 11
    assert metrics.get("weirpool_llm_answers_without_usage_total", 0) == 0


# --- What no hook is shown

UNKNOWN = r"""
chat data: {"choices":[{"delta":{"reasoning_details":[{"type":"reasoning.text","text":"%s"}]}}]}
chat data: {"choices":[{"index":0,"delta":{"content":"a","new_field":{"deep":["%s"]}}}]}
chat data: {"choices":[{"index":0,"delta":{"%s":1},"finish_reason":null}]}
chat data: {"error":{"message":"bad %s"}}
chat data: <html>%s</html>
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
    stopped = run(path, block.replace(b"%s", WORDS.encode()), guard)
    assert WORDS.encode() not in stopped.output
    assert stopped.ended
    check_exact(path, block.replace(b"%s", b"fine"), redact, guard)


GROWING = """
chat {"delta":{"reasoning_details":[{"type":"reasoning.text","index":0,"text":"%s"}],"reasoning":"%s"}}
chat {"text":"%s","delta":{"content":"%s"}}
chat {"delta":{"audio":{"id":"a","transcript":"%s"}}}
responses {"type":"response.code_interpreter_call_code.delta","item_id":"c","output_index":0,"delta":"%s"}
messages {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"%s"}}
messages {"type":"content_block_delta","index":0,"delta":{"type":"compaction_delta","content":"%s"}}
"""


@pytest.mark.parametrize("row", GROWING.strip().split("\n"))
def test_secrets_that_are_cut_are_found_in_every_text_that_grows(row: str) -> None:
    """Texts that repeat others, transcripts, and the input of tools that the provider runs."""
    api, _, data = row.partition(" ")

    def sent(*pieces: str) -> bytes:
        made = (json.loads(data.replace("%s", piece)) for piece in pieces)
        return stream(*(choices(**item) if api == "chat" else item for item in made))

    result = run(PATHS[api], sent("a sk-abcd", "efgh12345 b"), redact)
    assert result.failure is None
    assert b"abcd" not in result.output
    assert b"efgh" not in result.output
    stopped = run(PATHS[api], sent("project night", "jar", "."), guard)
    assert stopped.ended
    assert b"jar" not in stopped.output


def test_words_of_the_protocol_stop_no_answer() -> None:
    """A pattern that matches `stop` or a model's name applies to the model's text."""
    sent = stream(text("fine") | {"model": "gpt-x", "id": "chatcmpl-1234567890123456"}, STOP, DONE)
    patterns = ["stop|gpt|assistant|choices|content|[0-9]{16}"]
    check_exact(CHAT, sent, lambda: Guard(patterns=patterns))


# --- Found by tests/fuzz/test_readers.py and by attacks


def delta_of_call(piece: Any, **more: Any) -> dict[str, Any]:
    return tools({"index": 0, "function": {"arguments": piece}, **more})


@pytest.mark.parametrize(
    "data", ['{"a": "pr\\u006fject nightjar"', f"[DONE] {WORDS}", f"[DONE] {WORDS}\ndata: x-y: 1"]
)
@pytest.mark.parametrize("begun", [True, False])
def test_guard_searches_data_that_is_half_json_or_follows_done(data: str, begun: bool) -> None:
    """With its escapes decoded, also before any event that shows the answer's format."""
    result = run(CHAT, stream(*([text("a")] if begun else []), data), guard)
    assert (result.failure, result.ended) == (None, True)
    assert b"nightjar" not in result.output


@pytest.mark.parametrize("name", ["id", "object", "created", "model", "provider", "service_tier"])
def test_the_ending_does_not_contain_the_match(name: str) -> None:
    """It repeats a chunk's identifiers, and one of them may hold the match."""
    odd = text("a") | {name: [WORDS] if name != "created" else WORDS}
    assert b"nightjar" not in run(CHAT, stream(text("b"), odd), guard).output


BODIES = f"""
chat {{"choices":[{{"index":0,"message":{{"content":"a"}},"{WORDS}":1}}]}}
chat {{"choices":[{{"message":{{"content":"a"}},"x":{{"y":"{WORDS}"}}}}],"usage":{{"x":"{WORDS}"}}}}
chat {{"choices":[{{"index":0,"message":{{"content":"a"}},"delta":{{"content":"{WORDS}"}}}}]}}
chat {{"choices":[{{"index":0,"text":"{WORDS}"}}]}}
chat {{"choices":[{{"index":"1","message":{{"content":"{WORDS}"}}}}]}}
chat {{"choices":[],"id":["{WORDS}"]}}
responses {{"object":"response","output":[],"model":{{"x":"{WORDS}"}},"usage":{{"{WORDS}":1}}}}
messages {{"type":"message","content":[],"role":["{WORDS}"],"usage":{{"input_tokens":1,"x":["{WORDS}"]}}}}
"""


@pytest.mark.parametrize("row", BODIES.strip().split("\n"))
def test_nothing_of_a_match_is_left_in_a_body(row: str) -> None:
    """What is left is JSON of the dialect."""
    api, _, body = row.partition(" ")
    assert "nightjar" not in str(run_body(json.loads(body), guard(), path=PATHS[api]))


@pytest.mark.parametrize("between", ["pong", "[1]", '{"type":"new","delta":""}'])
def test_unread_events_between_the_pieces_of_a_held_call(between: str) -> None:
    """They keep their place, whatever becomes of the call."""
    pieces = delta_of_call('{"k":"sk-abcd', id="call_a"), between, delta_of_call('efgh12345"}')
    result = run(CHAT, stream(*pieces, STOP, DONE), redact)
    assert result.failure is None
    first, second, *_ = result.output.split(b"\n\n")
    assert b'{\\"k\\":\\"[redacted]\\"}' in first
    assert second == b"data: " + between.encode()


@pytest.mark.parametrize("function", [None, [None], {}])
def test_a_call_without_a_function_passes(function: Any) -> None:
    sent = stream(tools({"index": 0, "function": function}), STOP, DONE)
    check_exact(CHAT, sent, redact, guard, Calls, lambda: Calls(True))


def test_half_a_character_in_arguments_and_in_what_an_ending_repeats() -> None:
    """JSON can encode it, so what is written anew can, too."""
    half = "\ud83d"
    sent = stream(delta_of_call({"a": half}, id="call_a"), STOP, DONE)
    check_exact(CHAT, sent, redact, guard, Calls, lambda: Calls(True))
    output = run(CHAT, sent.replace(rb"\ud83d", rb"sk-abcdefgh12345 \ud83d"), redact).output
    (call,) = messages_of(output)[0]["choices"][0]["delta"]["tool_calls"]
    assert call["function"]["arguments"] == {"a": f"[redacted] {half}"}
    created = event("created", response={"object": "response", "x": half})
    result = run(RESPONSES, stream(created, event("new", x=WORDS)), guard)
    assert (result.failure, messages_of(result.output)[-1]["response"]["x"]) == (None, half)


def test_a_held_event_keeps_its_line_ends_and_an_id_its_place() -> None:
    """CRLF that is cut before its LF, and an event that is nothing but an id."""
    call = stream(delta_of_call("{", id="call_a"), delta_of_call("}"))
    sent = call + b"id: 7\n\n" + stream(STOP, DONE)
    for wire in (sent, sent.replace(b"\n", b"\r\n"), sent.replace(b"\n", b"\r")):
        for at in range(len(wire)):
            result = run_chain([redact()], [wire[:at], wire[at:]], request=post(CHAT))
            assert (result.failure, result.output) == (None, wire)


@pytest.mark.parametrize("leaf", ["a", WORDS])
def test_json_as_deep_as_a_decoder_takes_it(leaf: str) -> None:
    """JSON too deep to be encoded is unread: it passes, and is searched."""
    item = {"type": "function_call", "id": "i", "name": "f", "arguments": 0}
    done = stream(event("output_item.done", output_index=0, item=item))
    for depth in range(900, 1000):
        nested = b"[" * depth + json.dumps(leaf).encode() + b"]" * depth
        sent = done.replace(b'"arguments":0', b'"arguments":' + nested)
        for make in (redact, guard, Calls):
            result = run_chain([make()], [sent], request=post(RESPONSES))
            assert result.failure is None
            stopped = make is guard and result.ended and b"nightjar" not in result.output
            assert result.output == sent or stopped


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


def test_a_secret_in_a_name_that_is_cut_does_not_leave() -> None:
    """A name cannot be changed, so the answer ends."""
    pieces = item(0, "call_a", "sk-abcd", ""), item(0, None, "efgh12345", "{}")
    result = run(CHAT, stream(*map(tools, pieces)), redact)
    assert b"sk-abcd" not in result.output
    assert result.failure is not None


def test_a_text_without_a_start_stays_one_text_when_another_block_begins() -> None:
    """Clients that join by index have the same text."""
    other = block_start(5, {"type": "text", "text": "b"})
    cut = block_delta(0, text="sk-abcd"), other, block_delta(0, text="efgh12345")
    output = run(MESSAGES, stream(*cut, MESSAGE_STOP), redact).output
    assert b"abcd" not in output
    assert b"efgh" not in output


def test_an_ending_repeats_an_item_whose_type_is_not_a_string() -> None:
    """An item of an odd type is open when `guard` ends the answer."""
    added = event("output_item.added", output_index=0, item={"id": "i", "type": [], "content": []})
    result = run(RESPONSES, stream(added, event("new", x=WORDS)), guard)
    assert (result.failure, result.ended) == (None, True)
