"""LLM answers as real servers send them, from public bug reports: the sources stand beside each
case.

Every case runs whole, event by event and byte by byte, with the same result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from structlog.testing import capture_logs
from support.llm_events import block_delta, block_start, block_stop, event, function_call, tool_use
from unit.interceptors.dialects.transcripts import messages_of

from interceptors import Abort, Interceptor, Request
from interceptors.dialects import MessageInterceptor, MessageStream, TextDelta, ToolCall
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import ChainResult, run_chain, run_json
from interceptors.usage import Usage

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
KEY = "sk-abcdefgh12345"
Made = Callable[[], Interceptor]


def redact() -> Interceptor:
    return Redact(patterns=["sk-[A-Za-z0-9]{8,}"])


def guard() -> Interceptor:
    return Guard(patterns=["project nightjar"])


class Calls(MessageInterceptor):
    """Notes every call, and aborts on one of `delete_file`."""

    def __init__(self, holds: bool = False) -> None:
        self.seen: list[tuple[str | None, str | None, str]] = []
        self.holds = holds

    def open_messages(self, context: Any) -> MessageStream:
        self.seen = []
        return (HoldingStream if self.holds else CallsStream)(self.seen)


class CallsStream(MessageStream):
    def __init__(self, seen: list[tuple[str | None, str | None, str]]) -> None:
        self.seen = seen

    def on_tool_call(self, call: ToolCall) -> None:
        self.seen.append((call.id, call.name, call.arguments))
        if call.name == "delete_file":
            raise Abort("no files are deleted here")


class HoldingStream(CallsStream):
    holds_tool_calls = True


def stream(*events: Any) -> bytes:
    """Each event's data: JSON, or text."""
    return b"".join(
        b"data: "
        + (item if isinstance(item, str) else json.dumps(item, separators=(",", ":"))).encode()
        + b"\n\n"
        for item in events
    )


def chunk(delta: Any, reason: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def text(content: Any, reason: Any = None) -> dict[str, Any]:
    return chunk({"content": content}, reason)


def cut(sent: bytes) -> list[list[bytes]]:
    """Whole, event by event, byte by byte."""
    events = [event + b"\n\n" for event in sent.split(b"\n\n")[:-1]]
    return [[sent], events, [sent[at : at + 1] for at in range(len(sent))]]


def run(path: str, sent: bytes, *makers: Made) -> ChainResult:
    results = []
    for chunks in cut(sent):
        with capture_logs():
            results.append(
                run_chain(
                    [make() for make in makers], chunks, request=Request(method="POST", path=path)
                )
            )
    assert len({(result.output, str(result.failure)) for result in results}) == 1
    return results[0]


def check_exact(path: str, sent: bytes, *makers: Made) -> None:
    for make in makers:
        result = run(path, sent, make)
        assert (result.failure, result.output) == (None, sent)


def said(output: bytes) -> str:
    """The text of the first choice that a chat client has."""
    found = ""
    for message in messages_of(output):
        for choice in message["choices"] if isinstance(message, dict) else ():
            content = choice["delta"].get("content")
            found += content if isinstance(content, str) else ""
    return found


def usage_of(
    path: str, sent: bytes, *, json_body: bool = False
) -> tuple[dict[str, Any], dict[str, float]]:
    """The log line, and the metrics by name."""
    usage = Usage()
    request = Request(method="POST", path=path)
    with capture_logs() as lines:
        if json_body:
            assert run_json([usage], sent, request=request) == sent
        else:
            result = run_chain([usage], [sent], request=request)
            assert (result.failure, result.output) == (None, sent)
    metrics: dict[str, float] = {}
    collected: list[Metric] = [
        metric for collector in usage.collectors() for metric in collector.collect()
    ]
    for metric in collected:
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                metrics[sample.name] = metrics.get(sample.name, 0) + sample.value
    (line,) = [line for line in lines if line["event"] == "usage"]
    assert not [line for line in lines if line["log_level"] == "error"]
    return line, metrics


# --- A. An odd field ends the whole answer
# ------------------------------------------------------------------------------


def test_a1_an_empty_finish_reason_is_none() -> None:
    """sgl-project/sglang#3912, ollama/ollama#4357, qualcomm/GenieX#1243."""
    sent = stream(text("key sk-abcd", ""), text("efgh12345 ok", ""), chunk({}, "stop"), "[DONE]")
    assert said(run(CHAT, sent, redact).output) == "key [redacted] ok"
    check_exact(CHAT, sent, guard)
    assert usage_of(CHAT, sent)[0]["finish_reason"] == "stop"


def test_a2_a_finish_reason_in_every_chunk_ends_nothing() -> None:
    """su-kaka/gcli2api#403, open-webui/open-webui#16377."""

    def answer(*texts: str) -> bytes:
        return stream(
            chunk({"reasoning_content": "hm"}, "stop"),
            *(text(item, "stop") for item in texts),
            "[DONE]",
        )

    check_exact(CHAT, answer("It is ", "436", "."), redact, guard)
    assert (
        said(run(CHAT, answer("It ", "is sk-abcd", "efgh12345", "."), redact).output)
        == "It is [redacted]."
    )
    for texts in (("sk-abcd", "efgh12345"), ("sk-a", "bcd", "efg", "h12345")):
        assert KEY[:11] not in said(run(CHAT, answer(*texts), redact).output)
    assert said(run(CHAT, answer("sk-abcdefgh", "12345", " ok"), redact).output) == "[redacted] ok"
    stopped = run(CHAT, answer("a ", "project night", "jar", "."), guard)
    assert said(stopped.output) == "a project night"
    assert stopped.ended


@pytest.mark.parametrize("nested", [True, False])
def test_a3_a_list_in_the_content(nested: bool) -> None:
    """BerriAI/litellm#16272: Mistral's thinking; a secret in it is redacted also when it is cut."""

    def answer(*words: str) -> bytes:
        parts = [[{"type": "text", "text": word}] if nested else word for word in words]
        thoughts = [text([{"type": "thinking", "thinking": part}]) for part in parts]
        return stream(text("So: "), *thoughts, text("hi"), chunk({}, "stop"), "[DONE]")

    for words in ((KEY,), ("a sk-abcd", "efgh12345 b")):
        output = run(CHAT, answer(*words), redact).output
        assert b"sk-" not in output
        assert said(output) == "So: hi"
    check_exact(CHAT, answer("hm", "hm"), redact, guard)
    stopped = run(CHAT, answer("project nightjar"), guard)
    assert stopped.output == stream(
        text("So: "),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]},
        "[DONE]",
    )


def test_a4_usage_that_is_no_object_or_not_whole_numbers() -> None:
    """BerriAI/litellm#28001."""
    sent = stream(
        text("A picture") | {"usage": ""},
        {"choices": [], "usage": {"prompt_tokens": 57.0, "completion_tokens": 14417.92}},
        "[DONE]",
    )
    check_exact(CHAT, sent, redact, guard)
    line, metrics = usage_of(CHAT, sent)
    assert (line["input"], line["output"]) == (57, 14417.92)
    assert metrics["weirpool_llm_tokens_total"] == pytest.approx(57 + 14417.92)


@pytest.mark.parametrize("streamed", [True, False])
def test_a5_arguments_that_are_an_object(streamed: bool) -> None:
    """ggml-org/llama.cpp#20198, huggingface/text-generation-inference#2136."""

    def answer(city: str) -> bytes:
        call = {
            "index": 0,
            "id": "call_a",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": city}},
        }
        if streamed:
            return stream(chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), "[DONE]")
        return json.dumps(
            {
                "choices": [
                    {"index": 0, "message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
                ]
            }
        ).encode()

    def left(sent: bytes, *makers: Made) -> bytes:
        if streamed:
            return run(CHAT, sent, *makers).output
        return run_json(
            [make() for make in makers], sent, request=Request(method="POST", path=CHAT)
        )

    for make in (guard, redact):
        assert left(answer("Oslo"), make) == answer("Oslo")
    assert b"sk-" not in left(answer(KEY), redact)
    for holds in (True, False):
        calls = Calls(holds)
        assert left(answer("Oslo"), lambda calls=calls: calls) == answer("Oslo")
        assert [(name, json.loads(arguments)) for _, name, arguments in calls.seen] == [
            ("get_weather", {"city": "Oslo"})
        ]


def call_of_responses(arguments: str, *, done: str, item: str) -> bytes:
    added = function_call("fc_1", "call_1", "read", "")
    where = {"output_index": 0, "item_id": "fc_1"}
    return stream(
        event("output_item.added", output_index=0, item=added),
        {"type": "response.function_call_arguments.delta", **where, "delta": arguments},
        {"type": "response.function_call_arguments.done", **where, "arguments": done},
        event("output_item.done", output_index=0, item={**added, "arguments": item}),
    )


@pytest.mark.parametrize("holds", [True, False])
def test_a6_empty_arguments_after_deltas_change_nothing_and_others_are_one_more_call(
    holds: bool,
) -> None:
    """farion1231/cc-switch#6481, huggingface/tau#712."""
    path = '{"path":"/a"}'
    sent = call_of_responses(path, done="", item=path)
    check_exact(RESPONSES, sent, redact, guard)
    calls = Calls(holds)
    assert run(RESPONSES, sent, lambda: calls).output == sent
    assert calls.seen == [("call_1", "read", path)]
    other = '{"path":"/b"}'
    sent = call_of_responses(path, done=other, item=other)
    assert run(RESPONSES, sent, lambda: calls).output == sent
    assert calls.seen == [
        ("call_1", "read", path),
        ("call_1", "read", other),
        ("call_1", "read", other),
    ]


@pytest.mark.parametrize("holds", [True, False])
def test_a7_arguments_after_the_blocks_end(holds: bool) -> None:
    """agentgateway/agentgateway#2147."""

    def delta(piece: str) -> dict[str, Any]:
        return block_delta(0, partial_json=piece)

    block = tool_use("toolu_1", "Bash")
    stop = block_stop(0)

    def answer(*pieces: str) -> bytes:
        first, *others = map(delta, pieces)
        start = block_start(0, block)
        return stream(start, first, stop, *others, {"type": "message_stop"})

    sent = answer('{"command":', '"ls"}')
    check_exact(MESSAGES, sent, redact, guard)
    calls = Calls(holds)
    assert run(MESSAGES, sent, lambda: calls).output == sent
    assert calls.seen[-1] == ("toolu_1", "Bash", '{"command":"ls"}')
    late = run(MESSAGES, answer('{"command":', f'"{KEY}"', "}"), redact)
    assert b"sk-" not in late.output
    pieces = [
        message["delta"]["partial_json"]
        for message in messages_of(late.output)
        if message["type"] == "content_block_delta"
    ]
    assert json.loads("".join(pieces)) == {"command": "[redacted]"}


def test_a8_a_block_that_begins_where_another_is() -> None:
    """anthropics/anthropic-sdk-typescript#879, Oaklight/llm-rosetta#246."""

    def block(index: int, *texts: str) -> list[dict[str, Any]]:
        deltas = [block_delta(index, text=item) for item in texts]
        start = block_start(index, {"type": "text", "text": ""})
        return [start, *deltas, block_stop(index)]

    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    first = block_start(1, result)
    for blocks in ([first, *block(1, "47 million")], block(1, "47 million")):
        check_exact(
            MESSAGES, stream(*blocks, *block(1, " people"), {"type": "message_stop"}), redact, guard
        )
    opened = block(1, "sk-ab")[:-1]  # it does not stop: the next block ends it
    output = run(
        MESSAGES, stream(*opened, *block(1, "cdefgh12345"), {"type": "message_stop"}), redact
    ).output
    assert [message["delta"]["text"] for message in messages_of(output) if "delta" in message] == [
        "sk-ab",
        "cdefgh12345",
    ]


def test_a9_half_a_character_and_what_else_only_lax_readers_take() -> None:
    """elizaOS/eliza#30904, elie222/rakazo#416; sgl-project/sglang#2955 has `-Infinity`."""
    odd = '{"choices":[{"index":0,"delta":{"content":"HALF"},"finish_reason":null}]}'
    halves = [odd.replace("HALF", half) for half in (r"\ud83d", r"\ude00")]
    sent = stream(*halves, chunk({}, "stop"), "[DONE]")
    check_exact(CHAT, sent, redact, guard, Calls)
    odd = r'{"choices":[{"index":0,"delta":{"content":"a sk-abcd"},"x":[-Infinity]}]}'
    output = run(CHAT, stream(odd, text("efgh12345 b"), chunk({}, "stop")), redact).output
    assert b"sk-" not in output
    assert b"-Infinity" in output
    function = r'{"name":"delete_file","arguments":"\ud800"}'
    call = f'{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":0,"id":"a","function":{function}}}]}}}}]}}'
    assert run(CHAT, stream(call, chunk({}, "tool_calls")), Calls).failure is not None


def test_a_text_that_is_held_back_stays_so_across_what_cannot_be_read() -> None:
    """Text that is no JSON, in the middle of a secret; and a secret in it."""
    sent = stream(
        text("sk-abcd"), "keep-alive", "[1]", text("efgh12345"), chunk({}, "stop"), "[DONE]"
    )
    output = run(CHAT, sent, redact).output
    assert said(output) == "[redacted]"
    assert b"data: keep-alive\n\ndata: [1]\n\n" in output
    assert b"sk-" not in run(CHAT, stream(f"upstream said {KEY}"), redact).output
    assert run(CHAT, stream(text("a"), "the project nightjar"), guard).output == stream(
        text("a"),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]},
        "[DONE]",
    )


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, name, value)
        for name in ("model", "id", "created", "usage", "object")
        for value in (5, [], {"a": 1}, "x", True)
    ]
    + [
        (RESPONSES, name, value)
        for name in ("sequence_number", "item_id", "response")
        for value in ("x", [], 1.5, True)
    ]
    + [
        (MESSAGES, name, value)
        for name in ("usage", "message", "model")
        for value in ("x", [], 1.5, True)
    ],
)
def test_a_field_of_the_wrong_type_hides_no_text(path: str, field: str, value: Any) -> None:
    """A secret that is cut over two such events is still redacted."""

    def delta(piece: str) -> dict[str, Any]:
        return {
            CHAT: text(piece),
            RESPONSES: event("output_text.delta", output_index=0, content_index=0, delta=piece),
            MESSAGES: block_delta(0, text=piece),
        }[path] | {field: value}

    result = run(path, stream(delta("a sk-abcd"), delta("efgh12345 b")), redact)
    assert result.failure is None
    assert b"abcd" not in result.output
    assert b"[redacted]" in result.output


def test_the_type_in_the_data_counts_and_not_the_events() -> None:
    """A policy must see what clients by either read."""
    block = tool_use("t", "delete_file")
    sent = b"event: ping\ndata: " + json.dumps(block_start(0, block)).encode() + b"\n\n"
    assert run(MESSAGES, sent + stream(block_stop(0)), Calls).failure is not None


# --- B. Which call is it, and what is its name
# --------------------------------------------------------------------------

Item = dict[str, Any]


def item(
    index: int | None,
    id: Any = None,
    name: str | None = None,
    arguments: str = "",
    kind: str = "function",
) -> Item:
    made: Item = {} if index is None else {"index": index}
    made |= {} if id is None else {"id": id, "type": kind}
    key = "arguments" if kind == "function" else "input"
    return made | {kind: ({} if name is None else {"name": name}) | {key: arguments}}


def by_id(output: bytes, kind: str = "function") -> list[tuple[Any, str, str]]:
    """The calls of a client that keeps them apart by id; an item without one goes on with the last
    call.
    """
    calls: list[list[Any]] = []
    for message in messages_of(output):
        for choice in message["choices"] if isinstance(message, dict) else ():
            for made in choice["delta"].get("tool_calls", ()):
                if made.get("id") is not None and made["id"] not in [call[0] for call in calls]:
                    calls.append([made["id"], "", ""])
                call = next((call for call in calls if call[0] == made.get("id")), calls[-1])
                call[1] += made[kind].get("name", "")
                call[2] += made[kind].get("arguments", made[kind].get("input", ""))
    return [tuple(call) for call in calls]


@pytest.mark.parametrize("kind", ["function", "custom"])
@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("ids", [("call_a", "call_b"), (1, 2)])
@pytest.mark.parametrize("holds", [True, False])
def test_b1_another_id_at_an_index_is_another_call(
    holds: bool, ids: Sequence[Any], index: int | None, kind: str
) -> None:
    """BerriAI/litellm#21331, NousResearch/hermes-agent#62940, su-kaka/gcli2api#406."""
    first = item(index, ids[0], "get_weather", '{"city":"Oslo"}', kind)
    second = [
        item(index, ids[1], "read_file", '{"path":', kind),
        item(index, None, None, '"/a"}', kind),
    ]
    sent = stream(
        *(chunk({"tool_calls": [made]}) for made in (first, *second)),
        chunk({}, "tool_calls"),
        "[DONE]",
    )
    calls = Calls(holds)
    assert run(CHAT, sent, lambda: calls).output == sent
    made = [
        (str(ids[0]), "get_weather", '{"city":"Oslo"}'),
        (str(ids[1]), "read_file", '{"path":"/a"}'),
    ]
    assert calls.seen == made
    check_exact(CHAT, sent, redact)
    secret = sent.replace(b"Oslo", KEY.encode())
    assert [
        (str(call[0]), *call[1:]) for call in by_id(run(CHAT, secret, redact).output, kind)
    ] == [
        (made[0][0], made[0][1], '{"city":"[redacted]"}'),
        made[1],
    ]
    assert (
        run(CHAT, sent.replace(b"read_file", b"delete_file"), lambda: Calls(holds)).failure
        is not None
    )


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("delete", "_file"), "delete_file"),
        (("del", "ete", "_file"), "delete_file"),
        (("read_file", "read_file"), "read_file"),
        (("", "read_file"), "read_file"),
        (("read_file", "null"), "read_file"),
    ],
)
def test_b2_a_name_in_pieces(names: Sequence[str], name: str) -> None:
    """continuedev/continue#5849, NVIDIA-NeMo/Switchyard#785, NousResearch/hermes-agent#11984;
    `null`: BerriAI/litellm#12513.
    """
    pieces = [
        item(0, "call_a", names[0]),
        *(item(0, None, piece) for piece in names[1:]),
        item(0, None, None, "{}"),
    ]
    calls = Calls()
    result = run(
        CHAT,
        stream(*(chunk({"tool_calls": [piece]}) for piece in pieces), chunk({}, "tool_calls")),
        lambda: calls,
    )
    assert calls.seen == [("call_a", name, "{}")]
    assert (result.failure is not None) == (name == "delete_file")


@pytest.mark.parametrize("holds", [True, False])
def test_b_a_name_that_goes_on_after_the_calls_end_is_shown_to_the_hook(holds: bool) -> None:
    """A policy must see the name that a client has in the end."""
    first, second = item(0, "call_a", "delete", "{}"), item(0, None, "_file")
    sent = stream(
        chunk({"tool_calls": [first]}, "tool_calls"), chunk({"tool_calls": [second]}), "[DONE]"
    )
    calls = Calls(holds)
    assert run(CHAT, sent, lambda: calls).failure is not None
    assert [name for _, name, _ in calls.seen] == ["delete", "delete_file"]


@pytest.mark.parametrize(
    ("path", "events", "seen"),
    [
        pytest.param(
            MESSAGES,
            [
                block_start(0, tool_use("a", "f", {"x": 1})),
                block_start(0, tool_use("b", "g")),
                block_delta(0, partial_json="{}"),
                block_stop(0),
            ],
            [("a", "f", '{"x":1}'), ("b", "g", "{}")],
            id="anthropic: a used index, its input complete",
        ),
        pytest.param(
            MESSAGES,
            [
                block_start(0, tool_use("a", "f", {"x": 1})),
                block_delta(0, partial_json='{"y":2}'),
                block_stop(0),
            ],
            [("a", "f", '{"y":2}')],
            id="anthropic: deltas after an input",
        ),
        pytest.param(
            RESPONSES,
            [
                event(
                    "output_item.added",
                    output_index=0,
                    item=function_call(name, f"c{name}", name, ""),
                )
                for name in "fg"
            ]
            + [
                event(
                    "function_call_arguments.delta", output_index=0, item_id=name, delta=f'"{name}"'
                )
                for name in "gf"
            ]
            + [
                event(
                    "function_call_arguments.done",
                    output_index=0,
                    item_id=name,
                    arguments=f'"{name}"',
                )
                for name in "fg"
            ],
            [("cf", "f", '"f"'), ("cg", "g", '"g"')],
            id="responses: two items at one output_index",
        ),
        pytest.param(
            CHAT,
            [
                chunk({"function_call": {"name": "f", "arguments": "{"}}),
                chunk({"function_call": {"arguments": "}"}}),
                chunk({}, "function_call"),
            ],
            [(None, "f", "{}")],
            id="chat: function_call, from before tool calls (can1357/oh-my-pi#1692)",
        ),
        pytest.param(
            CHAT,
            [
                chunk({"tool_calls": [item(0, "a", "f", "{}") | {"custom": {}}]}),
                chunk({}, "tool_calls"),
            ],
            [("a", "f", "{}")],
            id="chat: an empty custom beside function (earendil-works/pi#8504)",
        ),
        pytest.param(
            CHAT,
            [chunk({"tool_calls": item(0, "", "f", "{}")}), chunk({}, "tool_calls")],
            [(None, "f", "{}")],
            id="chat: tool_calls is one object (TGI)",
        ),
    ],
)
@pytest.mark.parametrize("holds", [True, False])
def test_b_calls_are_told_apart(path: str, events: list[Any], seen: list[Any], holds: bool) -> None:
    """Each once, with its own id, name and arguments; unchanged, they leave as they came."""
    calls = Calls(holds)
    sent = stream(*events)
    assert run(path, sent, lambda: calls).output == sent
    assert calls.seen == seen


# --- C. A chunk taken for a body
# ----------------------------------------------------------------------------------------


def cumulative(*deltas: str) -> bytes:
    events, whole = [], ""
    for number, delta in enumerate(deltas):
        whole += delta
        reason = "stop" if number == len(deltas) - 1 else None
        message = {"role": "assistant", "content": whole}
        events.append(
            {
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": reason,
                        "message": message,
                        "delta": {"content": delta},
                    }
                ]
            }
        )
    return stream(*events, "[DONE]")


def test_c1_a_delta_beside_a_message_that_grows() -> None:
    """open-webui/open-webui#9927, BerriAI/litellm#8455."""
    for deltas in (("about ", "project nightjar", " now"), ("about project nightjar", " now")):
        output = run(CHAT, cumulative(*deltas), guard).output
        assert b"nightjar" not in output
        ending = {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}
        assert output.endswith(stream(ending, "[DONE]"))
    check_exact(CHAT, cumulative("about ", "project nightjar", " now"), redact)
    output = run(CHAT, cumulative("key ", "sk-abcd", "efgh12345"), redact).output
    assert said(output) == "key [redacted]"
    assert messages_of(output)[-2]["choices"][0]["message"]["content"] == "key [redacted]"
    check_exact(
        CHAT,
        stream({"choices": [{"index": 0, "delta": {"content": "a"}, "message": None}]}),
        redact,
        guard,
    )


def test_c_a_hook_counts_an_answer_once() -> None:
    """What is not `repeated` is the answer."""
    counted: list[str] = []

    class Counting(MessageStream):
        def on_text_delta(self, delta: TextDelta) -> None:
            if not delta.repeated:
                counted.append(delta.text)

    class Count(MessageInterceptor):
        def open_messages(self, context: Any) -> MessageStream:
            counted.clear()
            return Counting()

    check_exact(CHAT, cumulative("about ", "it", " now"), Count)
    assert counted == ["about ", "it", " now"]


# --- D. Usage in other places and words, E. failures
# --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (
            {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16, "cached_tokens": 8},
            (11, 5, 8, None, None),
        ),
        ({"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}, (11, 5, None, None, None)),
        (
            {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 11, "output_tokens": 5},
            (11, 5, None, None, None),
        ),
        (
            {"prompt_tokens": 11, "completion_tokens": 5, "input_tokens": 0, "output_tokens": 0},
            (11, 5, None, None, None),
        ),
        (
            {
                "prompt_tokens": 11,
                "completion_tokens": 5,
                "prompt_cache_hit_tokens": 8,
                "prompt_cache_miss_tokens": 3,
            },
            (11, 5, 8, None, None),
        ),
        (
            {"prompt_tokens": 11, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 2},
            (11, None, 8, 2, None),
        ),
        (
            {
                "input_tokens_details": {"cached_tokens": 8},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            (None, None, 8, None, 3),
        ),
        ({"prompt_tokens": 11, "completion_tokens": 0}, (11, 0, None, None, None)),
        (
            {
                "prompt_tokens": None,
                "completion_tokens": "5",
                "prompt_tokens_details": [],
                "reasoning_tokens": 2.5,
            },
            (None, 5, None, None, 2.5),
        ),
    ],
)
@pytest.mark.parametrize("place", ["top", "choice", "x_groq", "body"])
def test_d_usage_is_counted_wherever_and_however_it_is_told(
    usage: dict[str, Any], counts: Any, place: str
) -> None:
    """earendil-works/pi#2017, #2326, #8119, NousResearch/hermes-agent#61871."""
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    message: dict[str, Any] = {"choices": [choice]}
    if place == "choice":
        choice["usage"] = usage
    elif place == "x_groq":
        message["x_groq"] = {"id": "req_1", "usage": usage}
    else:
        message["usage"] = usage
    sent = json.dumps(message).encode() if place == "body" else stream(message, "[DONE]")
    line, metrics = usage_of(CHAT, sent, json_body=place == "body")
    assert (
        tuple(line[kind] for kind in ("input", "output", "cached", "cache_written", "reasoning"))
        == counts
    )
    assert metrics["weirpool_llm_tokens_total"] == pytest.approx(
        sum(count for count in counts if count)
    )


def test_d5_a_later_zero_erases_nothing() -> None:
    """envoyproxy/ai-gateway#1631; and usage in two places of one stream counts once."""
    usage = {"input_tokens": 1500, "cache_read_input_tokens": 900, "output_tokens": 1}
    later = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7}
    start = {"type": "message", "model": "claude-x", "content": [], "usage": usage}
    sent = stream(
        {"type": "message_start", "message": start},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": later},
        {"type": "message_stop"},
    )
    line, _ = usage_of(MESSAGES, sent)
    assert (line["input"], line["cached"], line["output"]) == (1500, 900, 7)
    usage = {"prompt_tokens": 11, "completion_tokens": 5}
    choice = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}
    _, metrics = usage_of(
        CHAT, stream({"choices": [choice], "usage": usage}, {"choices": [], "usage": usage})
    )
    assert metrics["weirpool_llm_tokens_total"] == 16


@pytest.mark.parametrize(
    ("path", "events", "error"),
    [
        (
            CHAT,
            [
                text("Half"),
                chunk({"content": ""}, "error", error={"code": 502, "message": "gone"}),
                "[DONE]",
            ],
            "502",
        ),
        (
            CHAT,
            [
                text("Half"),
                {"choices": [{"index": 0, "delta": {}, "error": {"code": 502}}]},
                chunk({}, "stop"),
            ],
            "502",
        ),
        (
            CHAT,
            [text("Half"), {"error": {"type": "server_error"}}, chunk({}, "stop"), "[DONE]"],
            "server_error",
        ),
        (CHAT, [text("Half"), chunk({}, "error"), "[DONE]"], None),
        (
            CHAT,
            [{"object": "error", "message": "no", "type": "BadRequestError", "code": 400}],
            "BadRequestError",
        ),
        (
            RESPONSES,
            [
                {
                    "type": "error",
                    "error": {
                        "type": "server_error",
                        "code": "server_error",
                        "message": "an error",
                    },
                },
                event(
                    "failed",
                    response={
                        "status": "failed",
                        "output": [],
                        "error": {"code": "server_error"},
                    },
                ),
            ],
            "server_error",
        ),
        (
            RESPONSES,
            [event("failed", response={"status": "failed", "output": []})],
            None,
        ),
        (
            MESSAGES,
            [{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}],
            "overloaded_error",
        ),
    ],
)
def test_e_a_failure_inside_a_200_is_a_failure(
    path: str, events: list[Any], error: str | None
) -> None:
    """damianvtran/local-operator#223, gethouston/houston#1211, decolua/9router#4104."""
    line, metrics = usage_of(path, stream(*events))
    assert line["error"] == error
    assert metrics["weirpool_llm_requests_total"] == 1
    assert "weirpool_llm_answers_without_usage_total" not in metrics


@pytest.mark.parametrize("reason", ["length", "content_filter", "stop"])
def test_e_other_reasons_are_no_failures(reason: str) -> None:
    """An answer that tells no usage is counted as one."""
    _, metrics = usage_of(CHAT, stream(text("Half"), chunk({}, reason), "[DONE]"))
    assert metrics["weirpool_llm_answers_without_usage_total"] == 1
    incomplete = {
        "status": "incomplete",
        "output": [],
        "incomplete_details": {"reason": "max_output_tokens"},
    }
    _, metrics = usage_of(RESPONSES, stream(event("incomplete", response=incomplete)))
    assert metrics["weirpool_llm_answers_without_usage_total"] == 1


# --- What no hook is shown
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "block"),
    [
        (CHAT, stream(chunk({"reasoning_details": [{"type": "reasoning.text", "text": "%s"}]}))),
        (CHAT, stream(chunk({"content": "a", "new_field": {"deep": ["%s"]}}))),
        (CHAT, stream(chunk({"%s": 1}))),
        (CHAT, stream({"error": {"message": "bad %s"}})),
        (CHAT, stream("<html>%s</html>")),
        (CHAT, b"error: %s\n\n"),
        (CHAT, b'error: %s\ndata: {"choices":[]}\n\n'),
        (CHAT, stream({"choices": [{"index": 0, "text": "%s", "delta": {"content": ""}}]})),
        (RESPONSES, stream(event("new", output_index=0, text="%s"))),
        (
            RESPONSES,
            stream(
                event("mcp_call_arguments.delta", item_id="m", output_index=0, delta='{"a":"%s"}')
            ),
        ),
        (
            MESSAGES,
            stream(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "citations_delta", "citation": {"cited_text": "%s"}},
                }
            ),
        ),
        (
            MESSAGES,
            stream(block_delta(0, partial_json='{"a":"%s"}')),
        ),
        (
            MESSAGES,
            stream(block_start(0, tool_use("t", "f", {"a": "%s"}))),
        ),
        (MESSAGES, stream([{"type": "new", "text": "%s"}])),
    ],
)
def test_protectors_search_what_readers_do_not_know(path: str, block: bytes) -> None:
    """Unknown fields, events and deltas, errors, data that is not JSON, and lines that are no SSE."""
    words = b"project nightjar"
    redacted = run(path, block.replace(b"%s", KEY.encode()), redact)
    assert redacted.failure is None
    assert b"sk-" not in redacted.output
    if block.startswith(b"data: {"):
        assert (
            b"abcdefgh"
            not in run(path, block.replace(b"%s", rb"sk\u002dabcdefgh12345"), redact).output
        )
    stopped = run(path, block.replace(b"%s", words), guard)
    assert words not in stopped.output
    assert stopped.ended
    check_exact(path, block.replace(b"%s", b"fine"), redact, guard)


@pytest.mark.parametrize(
    ("path", "make"),
    [
        (
            CHAT,
            lambda piece: chunk(
                {
                    "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": piece}],
                    "reasoning": piece,
                }
            ),
        ),
        (
            CHAT,
            lambda piece: {"choices": [{"index": 0, "text": piece, "delta": {"content": piece}}]},
        ),
        (CHAT, lambda piece: chunk({"audio": {"id": "a", "transcript": piece}})),
        (
            RESPONSES,
            lambda piece: event(
                "code_interpreter_call_code.delta", item_id="c", output_index=0, delta=piece
            ),
        ),
        (
            MESSAGES,
            lambda piece: block_delta(0, partial_json=piece),
        ),
        (
            MESSAGES,
            lambda piece: block_delta(0, content=piece),
        ),
    ],
)
def test_secrets_that_are_cut_are_found_in_every_text_that_grows(
    path: str, make: Callable[[str], Any]
) -> None:
    """Texts that repeat others, transcripts, and the input of tools that the provider runs."""
    result = run(path, stream(make("a sk-abcd"), make("efgh12345 b")), redact)
    assert result.failure is None
    assert b"abcd" not in result.output
    assert b"efgh" not in result.output
    stopped = run(path, stream(make("project night"), make("jar"), make(".")), guard)
    assert stopped.ended
    assert b"jar" not in stopped.output


def test_words_of_the_protocol_stop_no_answer() -> None:
    """A pattern that matches `stop` or a model's name is about what the model says."""
    sent = stream(
        text("fine") | {"model": "gpt-x", "id": "chatcmpl-1234567890123456"},
        chunk({}, "stop"),
        "[DONE]",
    )
    check_exact(
        CHAT, sent, lambda: Guard(patterns=["stop|gpt|assistant|choices|content|[0-9]{16}"])
    )


# --- found by tests/fuzz/test_readers.py
# --------------------------------------------------------------------------------


def delta_of_call(piece: Any, **more: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}, **more}]})


WORDS = "project nightjar"


@pytest.mark.parametrize(
    "data", ['{"a": "pr\\u006fject nightjar"', f"[DONE] {WORDS}", f"[DONE] {WORDS}\nx-y: 1"]
)
@pytest.mark.parametrize("begun", [True, False])
def test_guard_searches_data_that_is_half_json_or_follows_done(data: str, begun: bool) -> None:
    """With its escapes decoded, and before any event that tells which format the answer has."""
    result = run(
        CHAT, stream(*([text("a")] if begun else []), data.replace("\n", "\ndata: ")), guard
    )
    assert (result.failure, result.ended) == (None, True)
    assert b"nightjar" not in result.output


@pytest.mark.parametrize("name", ["id", "object", "created", "model", "provider", "service_tier"])
def test_the_ending_shows_nothing_of_what_it_is_for(name: str) -> None:
    """It repeats a chunk's identifiers, and what stands in their place may hold the match."""
    odd = text("a") | {name: [WORDS] if name != "created" else WORDS}
    assert b"nightjar" not in run(CHAT, stream(text("b"), odd), guard).output


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"choices": [{"index": 0, "message": {"content": "a"}, WORDS: 1}]}),
        (
            CHAT,
            {
                "choices": [{"index": 0, "message": {"content": "a"}, "x": {"y": WORDS}}],
                "usage": {"x": WORDS},
            },
        ),
        (
            CHAT,
            {"choices": [{"index": 0, "message": {"content": "a"}, "delta": {"content": WORDS}}]},
        ),
        (CHAT, {"choices": [{"index": 0, "text": WORDS}]}),
        (CHAT, {"choices": [{"index": "1", "message": {"content": WORDS}}]}),
        (CHAT, {"choices": [], "id": [WORDS]}),
        (
            RESPONSES,
            {"object": "response", "output": [], "model": {"x": WORDS}, "usage": {WORDS: 1}},
        ),
        (
            MESSAGES,
            {
                "type": "message",
                "content": [],
                "role": [WORDS],
                "usage": {"input_tokens": 1, "x": [WORDS]},
            },
        ),
    ],
)
def test_nothing_of_a_match_is_left_in_a_body(path: str, body: Any) -> None:
    """Wherever it was: what is left is JSON of the dialect."""
    left = run_json([guard()], json.dumps(body).encode(), request=Request(method="POST", path=path))
    assert "nightjar" not in json.dumps(json.loads(left))


@pytest.mark.parametrize("between", ["pong", "[1]", '{"type":"new","delta":""}'])
def test_unread_events_between_the_pieces_of_a_held_call(between: str) -> None:
    """They keep their place, whatever becomes of the call."""
    sent = stream(
        delta_of_call('{"k":"sk-abcd', id="call_a"),
        between,
        delta_of_call('efgh12345"}'),
        chunk({}, "stop"),
        "[DONE]",
    )
    result = run(CHAT, sent, redact)
    assert result.failure is None
    first, second, *_ = result.output.split(b"\n\n")
    assert b'{\\"k\\":\\"[redacted]\\"}' in first
    assert second == b"data: " + between.encode()


@pytest.mark.parametrize("function", [None, [None], {}])
def test_a_call_without_a_function(function: Any) -> None:
    """It passes, held or not."""
    sent = stream(
        chunk({"tool_calls": [{"index": 0, "function": function}]}), chunk({}, "stop"), "[DONE]"
    )
    check_exact(CHAT, sent, redact, guard, Calls, lambda: Calls(True))


def test_half_a_character_in_arguments_and_in_what_an_ending_repeats() -> None:
    """JSON can say it, and so can what is written anew."""
    half = "\ud83d"
    sent = stream(delta_of_call({"a": half}, id="call_a"), chunk({}, "stop"), "[DONE]")
    check_exact(CHAT, sent, redact, guard, Calls, lambda: Calls(True))
    output = run(
        CHAT, sent.replace(half.encode("unicode-escape"), b"sk-abcdefgh12345 \\ud83d"), redact
    ).output
    assert messages_of(output)[0]["choices"][0]["delta"]["tool_calls"][0]["function"][
        "arguments"
    ] == {"a": f"[redacted] {half}"}
    created = event("created", response={"object": "response", "x": half})
    result = run(RESPONSES, stream(created, {"type": "new", "x": WORDS}), guard)
    assert (result.failure, messages_of(result.output)[-1]["response"]["x"]) == (None, half)


def test_a_held_event_keeps_its_line_ends_and_an_id_its_place() -> None:
    """CRLF that is cut before its LF, and an event that is nothing but an id."""
    sent = (
        stream(delta_of_call("{", id="call_a"), delta_of_call("}"))
        + b"id: 7\n\n"
        + stream(chunk({}, "stop"), "[DONE]")
    )
    for wire in (sent, sent.replace(b"\n", b"\r\n"), sent.replace(b"\n", b"\r")):
        for at in range(len(wire)):
            result = run_chain(
                [redact()], [wire[:at], wire[at:]], request=Request(method="POST", path=CHAT)
            )
            assert (result.failure, result.output) == (None, wire)


def test_json_as_deep_as_a_decoder_takes_it() -> None:
    """What is then too deep to be encoded is unread: it passes, and is searched."""
    for depth in range(900, 1000):
        for leaf in ("a", WORDS):
            nested = "[" * depth + json.dumps(leaf) + "]" * depth
            item = {"type": "function_call", "id": "i", "name": "f", "arguments": 0}
            done = json.dumps(event("output_item.done", output_index=0, item=item))
            sent = (
                b"data: "
                + done.replace('"arguments": 0', f'"arguments": {nested}').encode()
                + b"\n\n"
            )
            for make in (redact, guard, Calls):
                result = run_chain([make()], [sent], request=Request(method="POST", path=RESPONSES))
                assert result.failure is None
                assert result.output == sent or (
                    make is guard and result.ended and b"nightjar" not in result.output
                )


# --- Attacks
# ------------------------------------------------------------------------------------------------------------


def client_call(
    kind: str, field: str, action: dict[str, Any], done: bool, **more: Any
) -> dict[str, Any]:
    """The event of an item of Responses that the client runs without a function."""
    return {
        "type": f"response.output_item.{'done' if done else 'added'}",
        "output_index": 0,
        "item": {"type": kind, "id": "i_1", "call_id": "c_1", field: action, **more},
    }


RUN = {"type": "exec", "command": ["rm", "-r", "/"]}


@pytest.mark.parametrize(
    ("path", "events", "call"),
    [
        pytest.param(
            CHAT,
            [
                chunk({"tool_calls": [item(0, "call_a", None, '{"path":"/a"}')]}, "tool_calls"),
                chunk({"tool_calls": [item(0, None, "delete_file", "")]}),
            ],
            ("call_a", "delete_file", '{"path":"/a"}'),
            id="a name after the end",
        ),
        pytest.param(
            CHAT,
            [
                chunk({"tool_calls": [item(0, "call_a", "delete_file", '{"path":')]}),
                chunk({"tool_calls": [item(0, "call_b", None, '"/a"}')]}),
                chunk({"tool_calls": [item(0, "call_c", None, " ")]}),
            ],
            ("call_a", "delete_file", '{"path":"/a"} '),
            id="an id made up for each piece",
        ),
        pytest.param(
            CHAT,
            [
                {
                    "choices": [
                        {
                            "index": 0,
                            "delta": {"role": "assistant"},
                            "message": {"tool_calls": [item(0, "call_z", "read_", "{}")]},
                            "finish_reason": None,
                        }
                    ]
                },
                chunk({"tool_calls": [item(0, None, "delete_file", "{}")]}),
            ],
            (None, "delete_file", "{}"),
            id="a message beside the delta begins another call",
        ),
        pytest.param(
            CHAT,
            [
                chunk({"tool_calls": [item(0, "call_a", "read", "{}", "custom")]}),
                chunk({"tool_calls": [item(0, "call_a", "delete_file", "{}")]}),
            ],
            ("call_a", "delete_file", "{}"),
            id="custom and function at one index",
        ),
        pytest.param(
            RESPONSES,
            [
                client_call("local_shell_call", "action", RUN, done=False),
                client_call("local_shell_call", "action", RUN, done=True),
            ],
            ("c_1", "local_shell", json.dumps(RUN, separators=(",", ":"))),
            id="a local shell",
        ),
        pytest.param(
            RESPONSES,
            [
                client_call("apply_patch_call", "operation", {}, done=False),
                client_call(
                    "apply_patch_call", "operation", {"type": "delete_file", "path": "a"}, done=True
                ),
            ],
            ("c_1", "apply_patch", '{"type":"delete_file","path":"a"}'),
            id="a patch",
        ),
        pytest.param(
            RESPONSES,
            [client_call("computer_call", "actions", {"type": "click"}, done=True)],
            ("c_1", "computer", '{"type":"click"}'),
            id="a computer",
        ),
        pytest.param(
            MESSAGES,
            [
                block_start(3, tool_use("t_1", "delete_file")),
                block_delta(0, partial_json='{"a":1}'),
                block_stop(0),
            ],
            ("t_1", "delete_file", '{"a":1}'),
            id="deltas at the position of the block",
        ),
    ],
)
@pytest.mark.parametrize("holds", [True, False])
def test_a_policy_sees_what_a_client_assembles(
    path: str, events: list[Any], call: Any, holds: bool
) -> None:
    """Each with the name and all the arguments that the official SDK has in the end, or the client
    runs.
    """
    seen: list[Any] = []

    class Stream(MessageStream):
        holds_tool_calls = holds

        def on_tool_call(self, call: ToolCall) -> None:
            seen.append((call.id, call.name, call.arguments))

    class Watch(MessageInterceptor):
        def open_messages(self, context: Any) -> MessageStream:
            seen.clear()
            return Stream()

    sent = stream(*events)
    check_exact(path, sent, Watch)
    assert call in seen


def test_a_shell_of_the_provider_is_no_call() -> None:
    """Its container is the provider's."""
    hosted = {"environment": {"type": "container_reference", "container_id": "c"}}
    calls = Calls()
    sent = stream(client_call("shell_call", "action", RUN, done=True, **hosted))
    check_exact(RESPONSES, sent, lambda: calls)
    assert calls.seen == []


class Stop(MessageInterceptor):
    """Ends an answer at a call of `stop`, with what was there before."""

    def open_messages(self, context: Any) -> MessageStream:
        return StopStream()


class StopStream(MessageStream):
    def on_tool_call(self, call: ToolCall) -> None:
        if call.name == "stop":
            self.finish("stop")


@pytest.mark.parametrize("index", [5, 1.0, "1", None])
def test_a_body_is_cut_where_its_call_is(index: Any) -> None:
    """Whatever numbers its calls and its choice have."""
    calls = [
        item(0, "call_a", "first", "{}"),
        item(index, "call_b", "stop", "{}"),
        item(index, "call_c", "last", "{}"),
    ]
    body = {
        "choices": [
            {
                "index": index,
                "message": {"content": "Well.", "tool_calls": calls},
                "finish_reason": "tool_calls",
            }
        ]
    }
    output = run_json(
        [Stop()], json.dumps(body).encode(), request=Request(method="POST", path=CHAT)
    )
    (choice,) = json.loads(output)["choices"]
    assert choice["message"] == {"content": "Well.", "tool_calls": calls[:1]}
    assert choice["finish_reason"] == "stop"


def test_a_secret_in_a_name_that_is_cut_does_not_leave() -> None:
    """A name cannot be changed, so the answer ends."""
    sent = stream(
        chunk({"tool_calls": [item(0, "call_a", "sk-abcd", "")]}),
        chunk({"tool_calls": [item(0, None, "efgh12345", "{}")]}),
    )
    result = run(CHAT, sent, redact)
    assert b"sk-abcd" not in result.output
    assert result.failure is not None


def test_half_a_character_in_a_name_leaves_the_metrics_readable() -> None:
    """A model's name is a label: Prometheus's text is UTF-8, which cannot write it."""
    usage = Usage()
    sent = stream(chunk({}, "\ud83d"), "[DONE]").replace(
        b"{", b'{"model": "gpt-\\ud83d", "usage": {"prompt_tokens": 3}, ', 1
    )
    registry = CollectorRegistry()
    for collector in usage.collectors():
        registry.register(collector)
    with capture_logs() as lines:
        assert run_chain([usage], [sent], request=Request(method="POST", path=CHAT)).output == sent
    assert b'model="gpt-?"' in generate_latest(registry)
    assert [line["model"] for line in lines if line["event"] == "usage"] == ["gpt-?"]


def test_thousands_of_reasons_make_no_log_line_of_thousands() -> None:
    """And one that tells of a failure counts, whenever it comes."""
    sent = stream(
        *[chunk({}, f"reason-{number}") for number in range(3000)], chunk({}, "error"), "[DONE]"
    )
    line, metrics = usage_of(CHAT, sent)
    assert len(line["finish_reason"].split(",")) == 11
    assert metrics.get("weirpool_llm_answers_without_usage_total", 0) == 0


def test_a_text_without_a_start_stays_one_text_when_another_block_begins() -> None:
    """Clients that join by index have the same text."""
    delta = block_delta(0, text="sk-abcd")
    start = block_start(5, {"type": "text", "text": "b"})
    rest = {**delta, "delta": {"type": "text_delta", "text": "efgh12345"}}
    output = run(MESSAGES, stream(delta, start, rest, {"type": "message_stop"}), redact).output
    assert b"abcd" not in output
    assert b"efgh" not in output


def test_an_ending_repeats_an_item_whose_type_is_none() -> None:
    """An item of an odd type is open when `guard` ends the answer."""
    added = event("output_item.added", output_index=0, item={"id": "i", "type": [], "content": []})
    result = run(RESPONSES, stream(added, {"type": "new", "x": WORDS}), guard)
    assert (result.failure, result.ended) == (None, True)
