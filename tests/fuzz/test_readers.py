"""Any JSON in any event ends no stream, passes unchanged where nothing matches, and lets no secret
out.

The streams are those of `tests/providers` with a few places spoilt, as SSE with any line ends, cut
anywhere. `WEIRPOOL_FUZZ_EXAMPLES=5000` tries more of them.

Not searched: comments, and an event's `event`, `id` and `retry`. `guard` does not search
identifiers and words of the protocol either (`PROTOCOL`: a second list, so that a change of
`_PROTOCOL` in `interceptors/dialects/unread.py` shows here), and of a match that is cut, what came
before its last delta has left.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from fuzz.test_sse_fuzz import chunked, read
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from providers.transcripts import data_of, load_cases
from structlog.testing import capture_logs
from support.client import fetch
from support.llm_events import block_delta, block_start, block_stop, event, function_call, tool_use
from support.proxy import config_for, open_proxy
from support.tables import words
from support.upstream import Peer, open_upstream
from unit.interceptors.dialects.recorder import CHANGES
from unit.interceptors.dialects.transcripts import ANTHROPIC, CHAT, RESPONSES, request

from interceptors import HookError, Interceptor
from interceptors.chain import EventCounts
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import ChainResult, run_chain, run_json
from interceptors.unescape import unescape
from interceptors.usage import Usage

EXAMPLES = int(os.environ.get("WEIRPOOL_FUZZ_EXAMPLES", "60"))
FEW = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

SECRET = "sk-Zq3xV81Lp0"
PATTERNS = ["sk-[A-Za-z0-9]{8,}"]
NEVER = ["\u0110sk-[0-9]{8}"]  # no text begins like it, so that `redact` holds nothing back
UNKNOWN = f"a line, {SECRET}"
"""Data that stands for a line that is not a field of an event."""
PROTOCOL = frozenset(
    words(
        "id object type model role finish_reason native_finish_reason stop_reason status item_id"
        " call_id tool_use_id tool_call_id response_id previous_response_id request_id"
        " system_fingerprint service_tier provider obfuscation signature event"
    )
)


# --- messages


class Text(str):
    """An event's data that is not JSON."""

    __slots__ = ()

    def __deepcopy__(self, memo: Any) -> Text:
        return self


def decoded(data: str) -> Any:
    """As a lax reader takes it. What a text that is not JSON hides in escapes is decoded."""
    try:
        return json.loads(data, strict=False)
    except (ValueError, RecursionError):
        return Text(unescape(data) if data.lstrip()[:1] in ("{", "[", '"') else data)


PATHS = {"chat": CHAT, "responses": RESPONSES, "messages": ANTHROPIC}
CASES = [case for case in load_cases() if case.is_sse or case.is_json]
STREAMS = [(PATHS[c.api], [decoded(data) for data in data_of(c.data)]) for c in CASES if c.is_sse]
BODIES = [(PATHS[case.api], [decoded(case.body)]) for case in CASES if case.is_json]

WORDS = words(
    "choices delta message content type index tool_calls function function_call arguments usage error"
    " response output item part text input id name thinking reasoning reasoning_content refusal custom"
    " partial_json content_block output_index item_id content_index summary finish_reason stop_reason"
    " status object model code message_start content_block_delta text_delta tool_use"
    " response.output_text.delta response.completed"
)
TEXTS = ["", "a", "b c", "sk-", "sk-Zq3", '{"a":', '"x"}', "{}", "[DONE]", "\n", "\ud83d", "\ude00"]
TEXTS += ["é\u2028", "\\u0073k-", "x" * 40]
NUMBERS = [0, 1, -1, 2, 1.0, 0.5, 1e400, float("nan"), -0.0, 10**25, 2**53]
NOT_JSON = [*words('[DONE] pong {"choices":[{"delta":{"content":"a NaN {}} "x'), "[" * 2000]

scalars = st.none() | st.booleans() | st.sampled_from([*NUMBERS, *TEXTS, *WORDS])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, "x", "a b"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in it."""
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    found = [(value, key) for key, _ in items]
    for _, inner in items:
        found += places(inner)
    return found


@st.composite
def spoilt(draw: st.DrawFn, *, streamed: bool) -> tuple[str, list[Any]]:
    """A path, and what came there, with a few things changed, gone, doubled, out of order or from
    another answer.
    """
    transcripts = STREAMS if streamed else BODIES
    path, messages = copy.deepcopy(draw(st.sampled_from(transcripts)))
    for _ in range(draw(st.integers(0, 4))):
        if not messages:
            break
        at, to = (draw(st.integers(0, len(messages) - 1)) for _ in range(2))
        action = draw(st.sampled_from(words("set set graft graft add remove double move drop")))
        inner = places(messages[at])
        if action == "double":
            messages.insert(to, copy.deepcopy(messages[at]))
        elif action == "drop":
            del messages[at]
        elif action == "move":
            messages.insert(to, messages.pop(at))
        elif inner:
            holder, key = draw(st.sampled_from(inner))
            if action == "set":
                holder[key] = draw(values)
            elif action == "remove":
                del holder[key]
            elif isinstance(holder, dict):
                other = draw(st.sampled_from(draw(st.sampled_from(transcripts))[1]))
                if action == "add" or not places(other):
                    holder[draw(st.sampled_from(WORDS))] = draw(values)
                else:
                    source, name = draw(st.sampled_from(places(other)))
                    new = name if isinstance(name, str) else key
                    holder[new] = copy.deepcopy(source[name])
    if streamed and not draw(st.integers(0, 3)):
        messages.insert(
            draw(st.integers(0, len(messages))), Text(draw(st.sampled_from([*NOT_JSON, "[DONE] "])))
        )
    return path, messages


# --- as SSE


def escaped(text: str, mask: int) -> str:
    """JSON in which some characters of the secret are written as escapes: of each, as a bit of the
    mask says.
    """
    hidden = "".join(
        f"\\u{ord(char):04x}" if mask >> at & 1 else char for at, char in enumerate(SECRET)
    )
    return text.replace(SECRET, hidden)


MASKS = st.sampled_from([0, 0, 1, 0b1010101010101, 2**13 - 1])


@st.composite
def wires(draw: st.DrawFn, messages: list[Any]) -> tuple[bytes, list[int]]:
    """The events as SSE, and how the network cuts it."""
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    indent = draw(st.sampled_from([None, None, 1]))
    plain = draw(st.booleans())
    colon = draw(st.sampled_from([": ", ":"]))
    mask = draw(MASKS)
    written = ""
    for message in messages:
        if isinstance(message, Text):
            data = escaped(message, mask) if '"' in message else message
        else:
            data = escaped(json.dumps(message, indent=indent, ensure_ascii=plain), mask)
        lines = [f"data{colon}{line}" for line in data.split("\n")]
        if data == UNKNOWN:
            lines = [f"x-y: {SECRET}"]
        own = message.get("type") if isinstance(message, dict) else None
        extra = draw(st.integers(0, 15))
        if extra < 4:
            fits = isinstance(own, str) and own.isascii() and "\n" not in own and SECRET not in own
            name = own if fits else "error"
            lines.insert(0, f"event: {[name, name, 'x', 'error'][extra]}")
        elif extra < 8:
            lines.append([": ping", "id: 7", "retry: 10", "Data: x"][extra - 4])
        written += end.join([*lines, "", ""])
    wire = written.encode("utf-8", "surrogatepass")
    cuts = [len(wire) + 1]
    if draw(st.booleans()):
        most = max(1, len(wire) // 20)  # some dozens of chunks
        cuts = draw(st.lists(st.integers(max(1, most // 4), most), min_size=1, max_size=4))
    return wire, cuts


@st.composite
def written(draw: st.DrawFn, messages: list[Any]) -> tuple[bytes, list[int]]:
    """The last message as a body, which is not cut."""
    mask, indent = draw(MASKS), draw(st.sampled_from([None, 1]))
    (message,) = messages[-1:] or [None]
    if isinstance(message, Text):
        return escaped(message, mask if '"' in message else 0).encode(), []
    return escaped(json.dumps(message, indent=indent), mask).encode(), []


# --- what runs


class Pass(MessageInterceptor):
    """Has every hook, and changes nothing."""

    def __init__(self, *, holds: bool) -> None:
        self.stream = type("Holding", (PassStream,), {"holds_tool_calls": holds})

    def open_messages(self, context: Any) -> MessageStream:
        return self.stream()


class PassStream(MessageStream):
    sees_other_texts = True

    def look(self, part: Any) -> None:
        repr(part)

    on_text_delta = on_text_end = on_tool_call_delta = on_tool_call = on_finish = on_usage = look
    on_provider_error = on_unread = look


def passing() -> Iterator[list[Interceptor]]:
    yield [Usage()]
    yield [Guard(NEVER), Pass(holds=False)]
    yield [Pass(holds=True)]
    yield [Usage(), Redact(NEVER), Guard(NEVER), Pass(holds=True)]


def run(interceptors: list[Interceptor], path: str, wire: tuple[bytes, list[int]]) -> ChainResult:
    """Of a stream in chunks of these sizes, or, without sizes, of a body."""
    with capture_logs() as lines:
        if wire[1]:
            result = run_chain(interceptors, chunked(*wire), request=request(path))
        else:
            output = run_json(interceptors, wire[0], request=request(path))
            result = ChainResult(output, EventCounts(), None)
    note(repr(result))
    errors = [line for line in lines if line["log_level"] in ("error", "critical")]
    assert result.failure is not None or not errors, lines
    return result


def without_tokens(value: Any) -> Any:
    """The same without every `logprobs`."""
    if isinstance(value, list):
        return [without_tokens(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: without_tokens(inner) for name, inner in value.items() if name != "logprobs"}


def besides_tokens(wire: bytes, *, streamed: bool) -> list[Any]:
    """Every event of a stream, or a body, without every `logprobs`."""
    if not streamed:
        return [without_tokens(decoded(wire.decode()))]
    reading, found = read(wire), []
    for block in [*reading.blocks, reading.tail]:
        data = without_tokens(decoded(block.data_buffer[:-1])) if block.data_buffer else None
        found.append((block.event, block.id, block.retry, data))
    return found


@settings(FEW, max_examples=2 * EXAMPLES)
@given(data=st.data(), streamed=st.booleans())
def test_any_answer_without_a_match_passes_exactly(data: st.DataObject, streamed: bool) -> None:
    """No interceptor ends it, and every byte leaves unchanged."""
    path, messages = data.draw(spoilt(streamed=streamed))
    wire = data.draw(wires(messages) if streamed else written(messages))
    for interceptors in passing():
        result = run(interceptors, path, wire)
        assert (result.failure, result.ended) == (None, False)
        if result.output == wire[0]:
            continue
        if b"logprobs" in wire[0]:  # `redact` takes out tokens that spell no text beside them
            sent, left = (
                besides_tokens(item, streamed=streamed) for item in (wire[0], result.output)
            )
        else:
            sent, left = list(wire[0]), list(result.output)
        # A ping does not wait for a call that is held.
        pings = b"ping" in wire[0] and sorted(map(repr, sent)) == sorted(map(repr, left))
        assert sent == left or pings


@settings(FEW, max_examples=2 * EXAMPLES)
@given(data=st.data(), change=st.sampled_from(sorted(CHANGES)), streamed=st.booleans())
def test_changes_fail_with_named_errors(data: st.DataObject, change: str, streamed: bool) -> None:
    """Every change, on answers that are not as they should be: whole events and bodies, or the named
    error.
    """
    path, messages = data.draw(spoilt(streamed=streamed))
    interceptors, failure = [CHANGES[change]()], None
    with capture_logs():
        if streamed:
            wire = "".join(f"data: {json.dumps(message)}\n\n" for message in messages)
            result = run_chain(interceptors, [wire.encode()], request=request(path))
            failure = result.failure
            assert result.output[-2:] in (b"", b"\n\n")
        else:
            body = json.dumps((messages or [None])[0]).encode()
            try:
                json.loads(run_json(interceptors, body, request=request(path)))
            except HookError as error:
                failure = error
    assert failure is None or "DialectError: " in str(failure)


# --- a secret


def strings(value: Any, *, protocol: bool = True) -> Iterator[str]:
    """Every name and string in it; without `protocol`, only those that `guard` searches."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            if protocol or not (name in PROTOCOL and isinstance(inner, str)):
                yield from strings(inner, protocol=protocol)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, protocol=protocol)


def events_of(stream: bytes) -> list[Any]:
    reading = read(stream)
    blocks = [block for block in [*reading.blocks, reading.tail] if block.data_buffer]
    return [decoded(block.data_buffer[:-1]) for block in blocks]


def check_nowhere(messages: list[Any], *, protocol: bool = True) -> None:
    for text in strings(messages, protocol=protocol):
        assert SECRET not in text


def count_text(stream: bytes) -> int:
    """Events whose data is neither JSON nor [DONE]."""
    texts = (message for message in events_of(stream) if isinstance(message, Text))
    return sum(not text.startswith("[DONE]") for text in texts)


@st.composite
def planted(draw: st.DrawFn, messages: list[Any]) -> list[Any]:
    """The secret in one place: a value, a name, an unknown field, or data that is not JSON."""
    messages = copy.deepcopy(messages)
    where = draw(st.sampled_from(words("value value value name field data line")))
    secret = draw(st.sampled_from(["{}", "a {}.", '{{"k":"{}"}}'])).format(SECRET)
    found = [place for message in messages for place in places(message)]
    holders = [message for message in messages if isinstance(message, dict)]
    holders += [holder[key] for holder, key in found if isinstance(holder[key], dict)]
    texts = [(holder, key) for holder, key in found if isinstance(holder[key], str)]
    if where == "value" and found:
        holder, key = draw(st.sampled_from(texts or found))
        holder[key] = secret
    elif where == "name" and holders:
        draw(st.sampled_from(holders))[secret] = draw(values)
    elif where == "field" and holders:
        nested = draw(st.sampled_from([secret, [secret], {"x": [{"y": secret}]}]))
        draw(st.sampled_from(holders))[draw(st.sampled_from(["x", *WORDS]))] = nested
    else:
        begins = ["{}", '{{"a": "{}"', '"{}', "[1, {}]", "[DONE] {}"]
        data = draw(st.sampled_from([*begins, '{{"choices":[{{"delta":{{"content":"{}']))
        text = UNKNOWN if where == "line" else data.format(SECRET)
        messages.insert(draw(st.integers(0, len(messages))), Text(text))
    return messages


@settings(FEW, max_examples=2 * EXAMPLES)
@given(data=st.data(), streamed=st.booleans())
def test_no_protector_lets_a_secret_out(data: st.DataObject, streamed: bool) -> None:
    """`redact` replaces it wherever it is, and the answer continues; `guard` ends the answer at any
    string but the protocol's own words. What was JSON stays JSON. An answer that clients read
    differently fails.
    """
    path, messages = data.draw(spoilt(streamed=streamed))
    messages = data.draw(planted(messages))
    wire = data.draw(wires(messages) if streamed else written(messages))
    redacted, guarded = (run([made], path, wire) for made in (Redact(PATTERNS), Guard(PATTERNS)))
    for result, protocol in ((redacted, True), (guarded, False)):
        assert result.failure is None or "AnswerError: " in str(result.failure)
        if streamed:
            check_nowhere(events_of(result.output), protocol=protocol)
            assert count_text(result.output) <= count_text(wire[0])
        else:
            left = decoded(result.output.decode())
            check_nowhere([left], protocol=protocol)
            assert not isinstance(left, Text) or isinstance(decoded(wire[0].decode()), Text)
    if streamed:
        assert SECRET.encode() not in redacted.output
        assert guarded.ended or guarded.failure or guarded.output == wire[0]


# --- a secret that is cut

PIECE, SO_FAR, WHOLE = "%piece", "%so far", "%whole"
"""What stands in an answer for one piece of the text, all until now, and all. A field whose name
begins with `!` is in the first delta only.
"""


def filled(value: Any, pieces: list[str], at: int) -> Any:
    if isinstance(value, dict):
        return {
            name.removeprefix("!"): filled(inner, pieces, at)
            for name, inner in value.items()
            if at == 0 or not name.startswith("!")
        }
    if isinstance(value, list):
        return [filled(inner, pieces, at) for inner in value]
    texts = {PIECE: pieces[at], SO_FAR: "".join(pieces[: at + 1]), WHOLE: "".join(pieces)}
    return texts.get(value, value) if isinstance(value, str) else value


def chunk(index: int = 0, **choice: Any) -> dict[str, Any]:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [{"index": index, "finish_reason": None, **choice}]}


def chat(*, arguments: bool = False, **choice: Any) -> tuple[Any, ...]:
    ends = [chunk(delta={}, finish_reason="stop"), Text("[DONE]")]
    if "message" in choice:
        ends.insert(0, chunk(delta={}, message={"content": WHOLE}))
    return CHAT, [], chunk(**choice), ends, arguments


def chat_call(call: dict[str, Any], *, arguments: bool = True) -> tuple[Any, ...]:
    return chat(arguments=arguments, delta={"tool_calls": [call]})


FUNCTION = {"name": "send", "arguments": PIECE}
ONCE = {"!name": "send", "arguments": PIECE}


def response(kind: str, item: Any = None, begun: Any = None, part: Any = None, **done: Any) -> Any:
    """Of a kind of text: its item at the end and at the beginning, and its part at the end."""
    index = "summary_index" if "summary" in kind else "content_index"
    parts = "reasoning_summary_part" if "summary" in kind else "content_part"
    where = {"output_index": 0, "item_id": "i", index: 0}
    item = item or {"id": "i", "type": "new"}
    begins = [event("output_item.added", output_index=0, item=begun)] if begun else []
    ends = [event(f"{kind}.done", **where, **done)]
    if part:
        empty = {**part, "refusal" if "refusal" in part else "text": ""}
        begins.append(event(f"{parts}.added", **where, part=empty))
        ends.append(event(f"{parts}.done", **where, part=part))
    ends += [
        event("output_item.done", output_index=0, item=item),
        event(
            "completed", response={"object": "response", "status": "completed", "output": [item]}
        ),
    ]
    arguments = kind == "function_call_arguments"
    return RESPONSES, begins, event(f"{kind}.delta", **where, delta=PIECE), ends, arguments


def response_text(kind: str, part: dict[str, Any], of: str, field: str) -> Any:
    item = {"id": "i", "type": of}
    whole = {"refusal" if kind == "refusal" else "text": WHOLE}
    return response(kind, {**item, field: [part]}, {**item, field: []}, part, **whole)


def block(kind: str, field: str, start: dict[str, Any], *, arguments: bool = False) -> Any:
    message = {"type": "message", "model": "m", "content": [], "usage": {"input_tokens": 1}}
    begins = [{"type": "message_start", "message": message}, block_start(0, start)]
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: PIECE}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    return ANTHROPIC, begins, delta, [block_stop(0), end, {"type": "message_stop"}], arguments


CUSTOM = {"id": "i", "type": "custom_tool_call", "call_id": "c", "name": "send"}
SERVER_TOOL = {"type": "server_tool_use", "id": "t", "name": "find", "input": {}}
CUT: list[tuple[str, list[Any], Any, list[Any], bool]] = [
    *(chat(delta={name: PIECE}) for name in words("content reasoning_content reasoning refusal")),
    chat(delta={"content": PIECE}, message={"content": SO_FAR}),
    chat(delta={"content": [{"type": "text", "text": PIECE}]}),
    chat(delta={"content": [{"type": "thinking", "thinking": [{"type": "text", "text": PIECE}]}]}),
    chat(delta={"reasoning_details": [{"type": "reasoning.text", "text": PIECE, "index": 0}]}),
    chat(delta={"audio": {"id": "x", "transcript": PIECE}}),
    chat(text=PIECE),
    chat_call({"index": 0, "!id": "a", "!type": "function", "function": ONCE}),
    chat_call({"!id": "a", "function": ONCE}),
    chat_call({"index": 0, "id": "a", "type": "function", "function": FUNCTION}),
    chat_call({"index": 0, "!id": "a", "custom": {"!name": "x", "input": PIECE}}, arguments=False),
    chat(arguments=True, delta={"function_call": ONCE}),
    response_text("output_text", {"type": "output_text", "text": WHOLE}, "message", "content"),
    response_text("refusal", {"type": "refusal", "refusal": WHOLE}, "message", "content"),
    response_text("reasoning_text", {"type": "reasoning_text", "text": WHOLE}, "reasoning", "content"),
    response_text("reasoning_summary_text", {"type": "summary_text", "text": WHOLE}, "reasoning", "summary"),
    response(
        "function_call_arguments",
        function_call("i", "c", "send", WHOLE),
        function_call("i", "c", "send", ""),
        arguments=WHOLE,
    ),
    response("function_call_arguments", function_call("i", "c", "send", WHOLE), arguments=""),
    response("custom_tool_call_input", {**CUSTOM, "input": WHOLE}, {**CUSTOM, "input": ""}, input=WHOLE),
    *map(response, words("mcp_call_arguments code_interpreter_call_code audio.transcript")),
    block("text_delta", "text", {"type": "text", "text": ""}),
    block("thinking_delta", "thinking", {"type": "thinking", "thinking": "", "signature": ""}),
    block("input_json_delta", "partial_json", tool_use("t", "send"), arguments=True),
    block("input_json_delta", "partial_json", SERVER_TOOL),
    block("compaction_delta", "content", {"type": "compaction", "content": ""}),
]  # fmt: skip
"""Path, what begins an answer, a delta, what ends it, and whether the text is a call's arguments."""

OTHER = {"output_index": 5, "item_id": "other", "content_index": 0}
TEXT = {"type": "text", "text": "b"}
NOISE: dict[str, list[list[Any]]] = {
    CHAT: [
        [chunk(1, delta={"content": "b"}), chunk(1, delta={}, finish_reason="stop")],
        [chunk(delta={"tool_calls": [{"index": 1, "id": "b", "function": {"name": "see"}}]})],
        [chunk(delta={"role": "assistant"}), chunk(delta={"content": ""}, finish_reason="")],
        [{"choices": [], "usage": {"prompt_tokens": 1}}],
    ],
    RESPONSES: [
        [event("output_text.delta", **OTHER, delta="b"), event("output_text.done", **OTHER, text="b")],
        [event("in_progress", response={"object": "response", "output": []})],
        [event("output_text.annotation.added", output_index=0, annotation={})],
        [{"type": "keepalive", "sequence_number": 3}],
    ],
    ANTHROPIC: [
        [{"type": "ping"}],
        [block_start(5, TEXT), block_delta(5, text="b"), block_stop(5)],
        [block_start(6, tool_use("u", "x")), block_delta(6, partial_json="{}")],
        [{"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 1}}],
    ],
}  # fmt: skip
ANY_NOISE: list[Any] = [Text("pong"), Text(""), Text("{"), [1], None, {"type": "new", "x": ["y"]}]
ANY_NOISE += [{"choices": 1, "type": ["z"]}, {"model": 3}]


@st.composite
def cut_answers(draw: st.DrawFn) -> tuple[str, str, list[Any], bool]:
    """A path, the text that is cut without the secret, the messages, and whether the text's end comes
    too early.
    """
    path, begins, delta, ends, arguments = draw(st.sampled_from(CUT))
    around = [("", ""), ("a ", " b"), ("sk-", "."), ("sk-Zq3 ", " sk-")]
    before, after = draw(st.sampled_from(around))
    secret = SECRET
    if arguments:
        before, after = f'{{"k":"{before}', f'{after}"}}'
        secret = escaped(SECRET, draw(MASKS))
    text = before + secret + after
    inside = st.integers(len(before) + 1, len(before) + len(secret) - 1)
    cuts = sorted(draw(st.lists(inside, min_size=1, max_size=3, unique=True)))
    pieces = [text[first:last] for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    deltas = [filled(delta, pieces, at) for at in range(len(pieces))]
    begins, ends = filled(begins, pieces, 0), filled(ends, pieces, 0)
    ends = [end for end in ends if draw(st.integers(0, 3))]
    if path == RESPONSES and not draw(st.integers(0, 3)):
        begins = []
    early = draw(st.integers(0, 3)) == 3
    if early and path == CHAT:
        for message in deltas:
            message["choices"][0]["finish_reason"] = "stop"
    elif early and ends:
        deltas.insert(draw(st.integers(1, len(deltas))), ends[0])
    messages = begins
    for message in deltas:
        for noise in draw(st.lists(st.sampled_from([*NOISE[path], ANY_NOISE]), max_size=2)):
            messages += [draw(st.sampled_from(noise))] if noise is ANY_NOISE else noise
        messages.append(message)
    return path, f"{before}[redacted]{after}", copy.deepcopy([*messages, *ends]), early


PLACES = words("index output_index item_id content_index summary_index")


def joined(events: list[Any]) -> list[str]:
    """Every text, as clients join it: by its place in the event, its block and its call."""
    found: Counter[Any] = Counter()
    ids: dict[Any, Any] = {}
    begun: Counter[str] = Counter()

    def join(value: Any, place: tuple[Any, ...]) -> None:
        if isinstance(value, str):
            found[place] = (found[place] or "") + value  # type: ignore[assignment]
        elif isinstance(value, list):
            for at, item in enumerate(value):
                number = item.get("index", at) if isinstance(item, dict) else at
                if place[-1] == "content" and isinstance(item, dict) and "text" in item:
                    join(item["text"], place)  # as text that is not in a list
                else:
                    join(item, (*place, str(number)))
        elif isinstance(value, dict):
            if "tool_calls" in place:  # an id begins a call, and what has none continues the last
                ids[place] = value.get("id") or ids.get(place)
                place = (*place, str(ids[place]))
            for name, inner in value.items():
                join(inner, (*place, "delta" if name == "content_block" else name))

    for message in filter(lambda item: isinstance(item, dict), events):
        kind, index = str(message.get("type")), str(message.get("index"))
        begun[index] += kind == "content_block_start"
        where = (*(str(message.get(name)) for name in PLACES), begun[index])
        join(message, (kind if kind.startswith("response.") else "", *where))
    texts: list[str] = [*found.values()]  # type: ignore[list-item]
    return [*texts, *map(unescape, texts)]


@FEW
@given(data=st.data(), answer=cut_answers())
def test_no_protector_lets_a_secret_out_that_is_cut(
    data: st.DataObject, answer: tuple[str, str, list[Any], bool]
) -> None:
    """In every kind of text and in arguments, whatever comes between the deltas. `redact` loses
    nothing else of the text.
    """
    path, expected, messages, early = answer
    wire = data.draw(wires(messages))
    redacted = run([Redact(PATTERNS)], path, wire)
    guarded = run([Guard(PATTERNS)], path, wire)
    for result in (redacted, guarded):
        assert SECRET.encode() not in result.output
        assert not [text for text in joined(events_of(result.output)) if SECRET in text]
        assert count_text(result.output) <= count_text(wire[0])
    assert (guarded.failure, guarded.ended) == (None, True)
    if redacted.failure is None:
        assert any(expected in text for text in joined(events_of(redacted.output)))
    else:  # it cannot take back what has left
        assert early
        assert "that left" in str(redacted.failure) or "already sent" in str(redacted.failure)


# --- through a proxy, under any content type

TYPES = [b"", b"text/event-stream", b"application/json", b"text/plain; charset=utf-8"]
TYPES += [b"application/octet-stream", b"text/html"]


@st.composite
def responses_of_any_type(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """A path, an uninformative content type, and a stream or a JSON body with a secret."""
    content_type = draw(st.sampled_from(TYPES))
    if draw(st.booleans()):
        path, messages = draw(spoilt(streamed=True))
        return path, content_type, b": \n\n" + draw(wires(draw(planted(messages))))[0]
    path, messages = draw(spoilt(streamed=False))
    message = draw(planted(messages[:1] or [{}]))[-1]
    body = [message] if isinstance(message, str) else message
    return path, content_type, json.dumps(body).encode()


@settings(FEW, max_examples=max(2, EXAMPLES // 10))
@given(answers=st.lists(responses_of_any_type(), min_size=6, max_size=12))
@pytest.mark.parametrize("name", ["redact", "guard"])
def test_no_secret_under_any_content_type(
    name: str, answers: list[tuple[str, bytes, bytes]]
) -> None:
    """Streams and JSON bodies, whatever the head declares."""
    upcoming = iter(answers)

    async def script(peer: Peer) -> None:
        await peer.request()
        _, content_type, body = next(upcoming)
        types = [b"Content-Type: " + content_type] if content_type else []
        head = [b"HTTP/1.1 200 OK", *types, b"Connection: close", b"", b""]
        await peer.send(b"\r\n".join(head) + body)

    async def main() -> None:
        options = json.dumps({"name": name, "use": name, "options": {"patterns": PATTERNS}})
        async with (
            open_upstream(script) as upstream,
            open_proxy(config_for(upstream.url, interceptors=options, names=name)) as proxy,
        ):
            for path, content_type, body in answers:
                with trio.fail_after(10):
                    answer = await fetch(proxy.port, path, method="POST", body=b"{}")
                note(f"{path} {content_type!r} {body!r}\n{answer.status} {answer.body!r}")
                assert (answer.status, answer.complete) == (200, True)
                whole = decoded(answer.body.decode("utf-8", "replace"))
                left = events_of(answer.body) if isinstance(whole, Text) else [whole]
                check_nowhere(left, protocol=name == "redact")

    with capture_logs():
        trio.run(main)
