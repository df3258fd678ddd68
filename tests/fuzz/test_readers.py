"""Any JSON in any event ends no stream, passes unchanged where nothing matches, and lets no secret
out.

The streams are transcripts of each dialect with a few places spoilt, and messages made of the
dialects' own words, as SSE with any line ends, cut anywhere. `WEIRPOOL_FUZZ_EXAMPLES=5000` tries
more of them.

Not searched: comments, and an event's `event`, `id` and `retry`. `guard` does not search
identifiers and words of the protocol either (`PROTOCOL`: a second list, so that a change of
`_PROTOCOL` in `interceptors/dialects/unread.py` shows here), and of a match that is cut, what came
before its last delta has left.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from fuzz.test_sse_fuzz import chunked, read
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.client import fetch
from support.llm_events import block_delta, block_start, block_stop, event, tool_use
from support.proxy import config_for, open_proxy
from support.tables import words
from support.upstream import Peer, open_upstream
from unit.interceptors.dialects.test_contradictions import places
from unit.interceptors.dialects.test_transcripts import BODIES, STREAMS
from unit.interceptors.dialects.transcripts import ANTHROPIC, CHAT, RESPONSES, request

from interceptors import Interceptor
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import ChainResult, run_chain, run_json
from interceptors.unescape import unescape
from interceptors.usage import Usage

EXAMPLES = int(os.environ.get("WEIRPOOL_FUZZ_EXAMPLES", "100"))
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

texts = st.sampled_from(TEXTS)
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | texts | st.sampled_from(WORDS)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, "x", "a b"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def odd(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Usually what belongs there."""
    return st.integers(0, 11).flatmap(lambda number: values if number == 11 else usual)


def fields(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return odd(
        st.fixed_dictionaries({}, optional={name: odd(value) for name, value in optional.items()})
    )


def items(item: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(item, max_size=2)


small = st.integers(0, 1)
ids = st.sampled_from(["a", "b", ""])
objects = st.dictionaries(st.sampled_from(["a", "b"]), scalars, max_size=2)
reasons = st.sampled_from(["", "stop", "tool_calls", "error", "end_turn", "tool_use"]) | st.none()
usages = st.dictionaries(
    st.sampled_from(["prompt_tokens", "input_tokens", "output_tokens"]), scalars, max_size=2
)
errors = texts | fields(message=texts, type=ids, code=scalars)

content_parts = fields(
    type=st.sampled_from(
        ["text", "thinking", "refusal", "output_text", "reasoning_text", "summary_text", "new"]
    ),
    text=texts,
    thinking=texts | items(fields(type=st.just("text"), text=texts)),
    refusal=texts,
)
calls = fields(
    index=small,
    id=ids,
    type=st.sampled_from(["function", "custom"]),
    function=fields(name=ids, arguments=texts | objects),
    custom=fields(name=ids, input=texts),
)
said = {
    "content": texts | items(content_parts),
    "reasoning_content": texts,
    "reasoning": texts,
    "reasoning_details": items(
        fields(
            type=st.sampled_from(["reasoning.text", "reasoning.summary"]),
            text=texts,
            summary=texts,
            index=small,
        )
    ),
    "refusal": texts,
    "tool_calls": items(calls),
    "function_call": fields(name=ids, arguments=texts | objects),
    "audio": fields(transcript=texts, data=texts),
}
of_chat = fields(
    choices=items(
        fields(
            index=small, delta=fields(**said), message=fields(**said), text=texts, finish_reason=reasons, usage=usages,
            error=errors, logprobs=objects,
        )
    ),
    model=ids, usage=usages, error=errors, x_groq=fields(usage=usages, error=errors), object=ids,
    type=st.sampled_from(["error", "ping"]),
)  # fmt: skip
output_items = fields(
    type=st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call", "mcp_call"]),
    id=ids, call_id=ids, name=ids, arguments=texts | objects, input=texts | objects, status=ids,
    content=texts | items(content_parts), summary=texts | items(content_parts),
)  # fmt: skip
responses = fields(
    object=st.just("response"), status=st.sampled_from(["completed", "incomplete", "failed", "in_progress"]),
    output=items(output_items), usage=usages, error=errors, model=ids, incomplete_details=fields(reason=ids),
)  # fmt: skip
RESPONSE_TYPES = words(
    "response.created response.completed response.incomplete response.failed error"
)
for names, ends in (
    ("output_text refusal reasoning_text reasoning_summary_text mcp_call_arguments", "delta done"),
    ("function_call_arguments custom_tool_call_input", "delta done"),
    ("content_part reasoning_summary_part output_item", "added done"),
):
    RESPONSE_TYPES += [f"response.{name}.{end}" for name in words(names) for end in words(ends)]
of_responses = fields(
    type=st.sampled_from(RESPONSE_TYPES),
    output_index=small, item_id=ids, content_index=small, summary_index=small, sequence_number=small, delta=texts,
    text=texts, refusal=texts, arguments=texts | objects, input=texts, item=output_items, part=content_parts, response=responses,
    error=errors, name=ids, logprobs=objects,
)  # fmt: skip
blocks = fields(
    type=st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "web_search_tool_result"]),
    text=texts, thinking=texts, id=ids, name=ids, input=objects, content=values,
)  # fmt: skip
of_anthropic = fields(
    type=st.sampled_from(
        [f"content_block_{name}" for name in ("start", "delta", "stop")]
        + ["message_start", "message_delta", "message_stop", "ping", "error", "message"]
    ),
    index=small,
    content_block=blocks,
    delta=fields(
        type=st.sampled_from(["text_delta", "thinking_delta", "input_json_delta", "compaction_delta", "signature_delta"]),
        text=texts, thinking=texts, partial_json=texts, content=texts, stop_reason=reasons, signature=texts,
    ),
    message=fields(content=items(blocks), model=ids, usage=usages),
    content=items(blocks), usage=usages, error=errors, stop_reason=reasons,
)  # fmt: skip
GRAMMARS = {CHAT: of_chat, RESPONSES: of_responses, ANTHROPIC: of_anthropic}

NOT_JSON = words('[DONE] pong {"choices":[{"delta":{"content":"a NaN {}} "x')
not_json = st.sampled_from([*NOT_JSON, "[DONE] ", "[" * 2000])
paths = st.sampled_from(sorted(GRAMMARS))


@st.composite
def spoilt(draw: st.DrawFn, messages: list[Any]) -> list[Any]:
    """A transcript with a few things in it changed, gone, doubled or out of order."""
    messages = copy.deepcopy(messages)
    for _ in range(draw(st.integers(0, 4))):
        if not messages:
            break
        at = draw(st.integers(0, len(messages) - 1))
        action = draw(
            st.sampled_from(["set", "set", "set", "add", "remove", "double", "move", "drop"])
        )
        inner = places(messages[at])
        if action == "double":
            messages.insert(draw(st.integers(0, len(messages))), copy.deepcopy(messages[at]))
        elif action == "drop":
            del messages[at]
        elif action == "move":
            message = messages.pop(at)
            messages.insert(draw(st.integers(0, len(messages))), message)
        elif inner:
            holder, key = draw(st.sampled_from(inner))
            if action == "set":
                holder[key] = draw(values)
            elif action == "remove":
                del holder[key]
            elif isinstance(holder, dict):
                holder[draw(st.sampled_from(WORDS))] = draw(values)
    return messages


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A path, and what the events of an answer there have as data: decoded JSON, or text in a
    `Text`.
    """
    if draw(st.booleans()):
        transcript = STREAMS[draw(st.sampled_from(sorted(STREAMS)))]
        path = transcript.path
        messages = draw(
            spoilt([Text(item) if isinstance(item, str) else item for item in transcript.messages])
        )
    else:
        path = draw(paths)
        messages = draw(st.lists(odd(GRAMMARS[path]), max_size=6))
    if draw(st.integers(0, 3)) == 3:
        messages.insert(draw(st.integers(0, len(messages))), Text(draw(not_json)))
    return path, messages


class Text(str):
    """An event's data that is not JSON."""

    __slots__ = ()

    def __deepcopy__(self, memo: Any) -> Text:
        return self


# --- as SSE


def escaped(text: str, mask: int) -> str:
    """JSON in which some characters of the secret are written as escapes: of each, as a bit of the
    mask says.
    """
    hidden = "".join(
        f"\\u{ord(char):04x}" if mask >> at & 1 else char for at, char in enumerate(SECRET)
    )
    return text.replace(SECRET, hidden)


@st.composite
def wires(draw: st.DrawFn, messages: list[Any]) -> tuple[bytes, list[int]]:
    """The events as SSE, and how the network cuts it."""
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    indent = draw(st.sampled_from([None, None, 1]))
    plain = draw(st.booleans())
    colon = draw(st.sampled_from([": ", ":"]))
    mask = draw(st.sampled_from([0, 0, 1, 0b1010101010101, 2**13 - 1]))
    written = ""
    for message in messages:
        if isinstance(message, Text):
            data = escaped(message, mask) if '"' in message else message
        else:
            data = escaped(json.dumps(message, indent=indent, ensure_ascii=plain), mask)
        lines = (
            [f"data{colon}{line}" for line in data.split("\n")]
            if data != UNKNOWN
            else [f"x-y: {SECRET}"]
        )
        own = message.get("type") if isinstance(message, dict) else None
        extra = draw(st.integers(0, 15))
        if extra < 4:
            name = (
                own
                if isinstance(own, str) and own.isascii() and not ("\n" in own or SECRET in own)
                else "error"
            )
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


PASSING: dict[str, Callable[[], list[Interceptor]]] = {
    "usage": lambda: [Usage()],
    "every hook": lambda: [Pass(holds=False)],
    "every hook, held": lambda: [Pass(holds=True)],
    "guard": lambda: [Guard(NEVER)],
    "redact": lambda: [Redact(NEVER)],
    "all": lambda: [Usage(), Redact(NEVER), Guard(NEVER), Pass(holds=True)],
}


def run(interceptors: list[Interceptor], path: str, wire: tuple[bytes, list[int]]) -> ChainResult:
    with capture_logs() as lines:
        result = run_chain(interceptors, chunked(*wire), request=request(path))
    assert result.failure is not None or not [
        line for line in lines if line["log_level"] in ("error", "critical")
    ], lines
    return result


def without_tokens(value: Any) -> Any:
    """The same without every `logprobs`."""
    if isinstance(value, list):
        return [without_tokens(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: without_tokens(inner) for name, inner in value.items() if name != "logprobs"}


def besides_tokens(stream: bytes) -> list[Any]:
    """Every event of a stream, without every `logprobs`."""
    reading = read(stream)
    found = []
    for block in [*reading.blocks, reading.tail]:
        data = without_tokens(decoded(block.data_buffer[:-1])) if block.data_buffer else None
        found.append((block.event, block.id, block.retry, data))
    return found


@FEW
@given(data=st.data(), answer=answers())
def test_any_stream_without_a_match_passes_exactly(
    data: st.DataObject, answer: tuple[str, list[Any]]
) -> None:
    """No interceptor ends it, and every byte leaves unchanged."""
    path, messages = answer
    wire = data.draw(wires(messages))
    for name, make in PASSING.items():
        result = run(make(), path, wire)
        assert (name, result.failure, result.ended) == (name, None, False)
        if result.output == wire[0]:
            continue
        if b"logprobs" in wire[0]:  # `redact` takes out tokens that spell no text beside them
            sent, left = besides_tokens(wire[0]), besides_tokens(result.output)
        else:
            sent, left = list(wire[0]), list(result.output)
        # A ping does not wait for a call that is held.
        assert sent == left or (
            b"ping" in wire[0] and sorted(map(repr, sent)) == sorted(map(repr, left))
        ), name


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


def decoded(data: str) -> Any:
    """As a lax reader takes it; text, if it is not JSON. What such a text hides in escapes is
    decoded.
    """
    try:
        return json.loads(data, strict=False)
    except (ValueError, RecursionError):
        return Text(unescape(data) if data.lstrip()[:1] in ("{", "[", '"') else data)


def events_of(stream: bytes) -> list[Any]:
    reading = read(stream)
    return [
        decoded(block.data_buffer[:-1])
        for block in [*reading.blocks, reading.tail]
        if block.data_buffer
    ]


@st.composite
def planted(draw: st.DrawFn, messages: list[Any]) -> list[Any]:
    """The secret in one place: a value, a name, an unknown field, or data that is not JSON."""
    messages = copy.deepcopy(messages)
    where = draw(st.sampled_from(["value", "value", "value", "name", "field", "data", "line"]))
    secret = draw(st.sampled_from(["{}", "a {}.", '{{"k":"{}"}}'])).format(SECRET)
    found = [place for message in messages for place in places(message)]
    holders = [message for message in messages if isinstance(message, dict)]
    holders += [holder[key] for holder, key in found if isinstance(holder[key], dict)]
    texts = [(holder, key) for holder, key in found if isinstance(holder[key], str)]
    if where == "value" and texts:
        holder, key = draw(st.sampled_from(texts))
        holder[key] = secret
    elif where == "value" and found:
        holder, key = draw(st.sampled_from(found))
        holder[key] = secret
    elif where == "name" and holders:
        draw(st.sampled_from(holders))[secret] = draw(values)
    elif where == "field" and holders:
        nested = draw(st.sampled_from([secret, [secret], {"x": [{"y": secret}]}]))
        draw(st.sampled_from(holders))[draw(st.sampled_from(["x", *WORDS]))] = nested
    elif where == "line":
        messages.insert(draw(st.integers(0, len(messages))), Text(UNKNOWN))
    else:
        begins = ["{}", '{{"a": "{}"', '"{}', "[1, {}]", "[DONE] {}"]
        data = draw(st.sampled_from([*begins, '{{"choices":[{{"delta":{{"content":"{}']))
        messages.insert(draw(st.integers(0, len(messages))), Text(data.format(SECRET)))
    return messages


def check_nowhere(output: bytes) -> None:
    """The secret is neither in the bytes nor in a decoded string."""
    assert SECRET.encode() not in output
    for message in events_of(output):
        for text in strings(message):
            assert SECRET not in text


def check_failure(failure: Exception | None) -> None:
    """What a protector may break an answer off for: it cannot take back what has left."""
    assert failure is None or "that left" in str(failure) or "already sent" in str(failure)


def count_text(stream: bytes) -> int:
    """Events whose data is neither JSON nor [DONE]."""
    return sum(
        isinstance(message, Text) and not message.startswith("[DONE]")
        for message in events_of(stream)
    )


@FEW
@given(data=st.data(), answer=answers())
def test_redact_lets_no_secret_out_of_any_place(
    data: st.DataObject, answer: tuple[str, list[Any]]
) -> None:
    """Whatever holds it, it is replaced, JSON stays JSON, and the answer continues."""
    path, messages = answer
    wire = data.draw(wires(data.draw(planted(messages))))
    result = run([Redact(PATTERNS)], path, wire)
    note(repr(result))
    check_nowhere(result.output)
    assert result.failure is None
    assert count_text(result.output) <= count_text(wire[0])


@FEW
@given(data=st.data(), answer=answers())
def test_guard_ends_at_a_secret_in_any_place_that_it_searches(
    data: st.DataObject, answer: tuple[str, list[Any]]
) -> None:
    """It leaves in no string but the protocol's own words, and the dialect's ending is JSON."""
    path, messages = answer
    wire = data.draw(wires(data.draw(planted(messages))))
    result = run([Guard(PATTERNS)], path, wire)
    note(repr(result))
    assert result.failure is None
    if not result.ended:
        assert result.output == wire[0]
    for message in events_of(result.output):
        for text in strings(message, protocol=False):
            assert SECRET not in text
    assert count_text(result.output) <= count_text(wire[0])


# --- a secret that is cut


def chunk(delta: Any = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None, **more}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [choice]}


def part_of(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "refusal" if kind == "refusal" else "text": text}


Answer = tuple[list[Any], list[Any], list[Any]]
"""Of an answer: what begins it, its deltas, and what ends it."""


def chat_answer(draw: st.DrawFn, kind: str, pieces: list[str]) -> Answer:
    whole = "".join(pieces)
    place = {"index": 0} if draw(st.booleans()) else {}
    # The id and the name may come with each piece.
    again = kind in ("function", "custom") and draw(st.booleans())

    def call(piece: str, at: int) -> dict[str, Any]:
        named = {"id": "call_a", "type": "function"} if at == 0 or again else {}
        of, key = ("custom", "input") if kind == "custom" else ("function", "arguments")
        name = {"name": "send"} if at == 0 or again else {}
        return {"tool_calls": [{**place, **named, of: {**name, key: piece}}]}

    def delta(piece: str, at: int) -> dict[str, Any]:
        if kind in ("function", "custom"):
            return chunk(call(piece, at))
        if kind == "function_call":
            name = {"name": "send"} if at == 0 else {}
            return chunk({"function_call": {**name, "arguments": piece}})
        if kind == "completions":
            return chunk(text=piece)
        part = {"type": "text", "text": piece}
        detail = {"type": "reasoning.text", "text": piece, "index": 0}
        made: dict[str, Any] = {
            "list": {"content": [part]},
            "thinking": {"content": [{"type": "thinking", "thinking": [part]}]},
            "details": {"reasoning_details": [detail]},
            "transcript": {"audio": {"id": "x", "transcript": piece}},
        }
        return chunk(made.get(kind, {kind: piece}))

    deltas = [delta(piece, at) for at, piece in enumerate(pieces)]
    if kind in ("content", "reasoning_content", "refusal"):
        if draw(st.booleans()):  # a message that grows
            for at, message in enumerate(deltas):
                message["choices"][0]["message"] = {kind: "".join(pieces[: at + 1])}
        elif draw(st.booleans()):
            deltas.append(chunk({}, message={kind: whole}))
    if again and draw(st.booleans()):  # another call at the same place, in between
        other = {"id": "call_b", "type": "function", "function": {"name": "see", "arguments": "{}"}}
        deltas.insert(1, chunk({"tool_calls": [{**place, **other}]}))
    end, done = chunk({}, finish_reason="stop"), Text("[DONE]")
    return [], deltas, draw(st.sampled_from([[end, done], [done], [end], [], [end, end]]))


def responses_answer(draw: st.DrawFn, kind: str, pieces: list[str]) -> Answer:
    whole = "".join(pieces)
    index = draw(st.integers(0, 1))
    where: dict[str, Any] = {"output_index": index}
    if draw(st.booleans()):
        where["item_id"] = "i"
    inner = {**where, "summary_index" if "summary" in kind else "content_index": 0}
    item: dict[str, Any] = {"id": "i", "type": "new"}
    begins: list[Any] = []
    ends: list[Any] = []
    if kind in ("function_call_arguments", "custom_tool_call_input"):
        key = "arguments" if kind.startswith("function") else "input"
        of = "function_call" if key == "arguments" else "custom_tool_call"
        item = {"id": "i", "type": of, "call_id": "c", "name": "send"}
        begins = [event("output_item.added", output_index=index, item={**item, key: ""})]
        item[key] = whole
        ends = [
            event(f"{kind}.done", **where, **{key: draw(st.sampled_from([whole, ""]))}),
            event("output_item.done", output_index=index, item=dict(item)),
        ]
    elif kind in ("output_text", "refusal", "reasoning_text", "reasoning_summary_text"):
        of = "summary_text" if "summary" in kind else kind
        field = "summary" if "summary" in kind else "content"
        item = {"id": "i", "type": "message" if kind in ("output_text", "refusal") else "reasoning"}
        part = "reasoning_summary_part" if field == "summary" else "content_part"
        begins = [
            event("output_item.added", output_index=index, item={**item, field: []}),
            event(f"{part}.added", **inner, part=part_of(of, "")),
        ]
        item[field] = [part_of(of, whole)]
        text = "refusal" if kind == "refusal" else "text"
        ends = [
            event(f"{kind}.done", **inner, **{text: whole}),
            event(f"{part}.done", **inner, part=part_of(of, whole)),
            event("output_item.done", output_index=index, item=dict(item)),
        ]
    else:
        ends = [{"type": f"response.{kind}.done", **where}]
    output = [{"id": "other", "type": "message", "content": []}][:index]
    response = {"object": "response", "status": "completed", "output": [*output, item]}
    ends.append(event("completed", response=response))
    deltas = [event(f"{kind}.delta", **inner, delta=piece) for piece in pieces]
    if begins and "item_id" in where and draw(st.booleans()):  # another item at the same index
        twin = {**begins[0]["item"], "id": "twin", "call_id": "twin"}
        begins.insert(0, {**begins[0], "item": twin})
        deltas.insert(1, {**deltas[0], "item_id": "twin", "delta": "b"})
    elif not draw(st.integers(0, 3)):
        begins = []
    return begins, deltas, [end for end in ends if draw(st.integers(0, 3))]


SERVER_TOOL = {"type": "server_tool_use", "id": "t", "name": "find", "input": {}}


def anthropic_answer(draw: st.DrawFn, kind: str, pieces: list[str]) -> Answer:
    index = draw(st.integers(0, 1))
    block, key = {
        "text_delta": ({"type": "text", "text": ""}, "text"),
        "thinking_delta": ({"type": "thinking", "thinking": "", "signature": ""}, "thinking"),
        "tool_use": (tool_use("t", "send"), "partial_json"),
        "server_tool_use": (SERVER_TOOL, "partial_json"),
        "compaction_delta": ({"type": "compaction", "content": ""}, "content"),
    }[kind]
    of = "input_json_delta" if key == "partial_json" else kind
    message = {"type": "message", "model": "m", "content": [], "usage": {"input_tokens": 1}}
    begins: list[Any] = [{"type": "message_start", "message": message}, block_start(index, block)]
    if kind in ("text_delta", "thinking_delta") and draw(st.booleans()):
        begins[1]["content_block"] = {**block, key: pieces[0]}
        pieces = pieces[1:]
    elif kind in ("text_delta", "thinking_delta") and not draw(st.integers(0, 3)):
        begins = []
    deltas = [
        {"type": "content_block_delta", "index": index, "delta": {"type": of, key: piece}}
        for piece in pieces
    ]
    usage = {"output_tokens": 1}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    ends = [block_stop(index), end, {"type": "message_stop"}]
    return begins, deltas, [end for end in ends if draw(st.integers(0, 3))]


def other_call(**more: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [{"index": 1, **more}]})


IN_PROGRESS = {"object": "response", "status": "in_progress", "output": []}
OTHER = {"output_index": 5, "item_id": "other", "content_index": 0}
CUT: dict[str, tuple[Callable[[st.DrawFn, str, list[str]], Answer], list[str], list[Any]]] = {
    CHAT: (
        chat_answer,
        words(
            "content reasoning_content reasoning refusal list thinking details completions"
            " transcript function custom function_call"
        ),
        [
            *(chunk({"content": "b"}, index=1), chunk({"role": "assistant"})),
            other_call(id="call_b", function={"name": "see", "arguments": "{"}),
            other_call(function={"arguments": "}"}),
            *(chunk({}, index=1, finish_reason="stop"), chunk({"content": ""}, finish_reason="")),
            {"choices": [], "usage": {"prompt_tokens": 1}},
        ],
    ),
    RESPONSES: (
        responses_answer,
        words(
            "output_text refusal reasoning_text reasoning_summary_text function_call_arguments"
            " custom_tool_call_input mcp_call_arguments code_interpreter_call_code audio.transcript"
        ),
        [
            *(
                event("output_text.delta", **OTHER, delta="b"),
                event("in_progress", response=IN_PROGRESS),
            ),
            event("output_text.done", **OTHER, text="b"),
            event("output_text.annotation.added", output_index=0, annotation={}),
            {"type": "keepalive", "sequence_number": 3},
        ],
    ),
    ANTHROPIC: (
        anthropic_answer,
        words("text_delta thinking_delta tool_use server_tool_use compaction_delta"),
        [
            *({"type": "ping"}, block_start(5, {"type": "text", "text": "b"})),
            *(block_delta(5, text="b"), block_stop(5)),
            *(block_start(6, tool_use("u", "x")), block_delta(6, partial_json="{}")),
            {
                "type": "message_delta",
                "delta": {"stop_reason": None},
                "usage": {"output_tokens": 1},
            },
        ],
    ),
}
NOISE: list[Any] = [Text("pong"), Text(""), Text("{"), [1], None, {"type": "new", "x": ["y"]}]
NOISE += [{"choices": 1, "type": ["z"]}, {"model": 3}]
CASES = [(path, kind) for path, (_, kinds, _) in CUT.items() for kind in kinds]


@st.composite
def cut_answers(draw: st.DrawFn) -> tuple[str, str, list[Any], bool]:
    """A path, the text that is cut without the secret, the messages, and whether the text's end may
    come too early.
    """
    path, kind = draw(st.sampled_from(CASES))
    answer, _, others = CUT[path]
    secret = SECRET
    before, after = draw(
        st.sampled_from([("", ""), ("a ", " b"), ("sk-", "."), ("sk-Zq3 ", " sk-")])
    )
    if kind in words("function function_call function_call_arguments tool_use server_tool_use"):
        before, after = f'{{"k":"{before}', f'{after}"}}'
        # Of tools that the provider runs, `redact` takes the arguments as they are written.
        if kind != "server_tool_use" and draw(st.booleans()):
            secret = escaped(f'"{SECRET}', draw(st.integers(0, 2**13 - 1)))[1:]
    text = before + secret + after
    inside = st.integers(len(before) + 1, len(before) + len(secret) - 1)
    cuts = sorted(draw(st.lists(inside, min_size=1, max_size=3, unique=True)))
    pieces = [text[first:last] for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    begins, deltas, ends = answer(draw, kind, pieces)
    twin = len(deltas) > 1 and "call_b" in json.dumps(deltas[1])  # it completes the call before it
    early = draw(st.integers(0, 3)) == 3
    if early and path == CHAT:
        for message in deltas:
            message["choices"][0]["finish_reason"] = "stop"
    elif early and ends:
        deltas.insert(draw(st.integers(1, len(deltas))), copy.deepcopy(ends[0]))
    middle: list[Any] = []
    for message in deltas:
        middle += draw(st.lists(st.sampled_from([*others, *NOISE]), max_size=2))
        middle.append(message)
    messages = copy.deepcopy([*begins, *middle, *ends])
    return path, f"{before}[redacted]{after}", messages, early or twin


def joined(path: str, events: list[Any]) -> list[str]:
    """Every text and every call's arguments, as clients put them together. What they do not
    understand they pass over.
    """
    found: dict[Any, str] = {}

    def add(key: Any, text: Any) -> None:
        if isinstance(text, str):
            found[key] = found.get(key, "") + text

    {CHAT: join_chat, RESPONSES: join_responses, ANTHROPIC: join_anthropic}[path](events, add)
    return [*found.values(), *map(unescape, found.values())]


def dicts(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(value, list):
        yield from (
            (position, item) for position, item in enumerate(value) if isinstance(item, dict)
        )


def join_chat(events: list[Any], add: Callable[[Any, Any], None]) -> None:
    """By choice and field; calls by place and id."""
    ids: dict[Any, Any] = {}
    for _, message in dicts(events):
        for at, choice in dicts(message.get("choices")):
            index = choice.get("index", at)
            add((str(index), "completions"), choice.get("text"))
            delta = choice.get("delta")
            for name, value in delta.items() if isinstance(delta, dict) else ():
                key = (str(index), name)
                add(key, value)
                for position, item in dicts(value):
                    if name == "tool_calls":
                        place = (*key, str(item.get("index", position)))
                        ids[place] = item.get("id") or ids.get(place)
                        for holder in (item.get("function"), item.get("custom")):
                            for field in ("arguments", "input") if isinstance(holder, dict) else ():
                                add((*place, str(ids[place]), field), holder.get(field))
                    else:
                        add(
                            key if name == "content" else (*key, str(item.get("index"))),
                            item.get("text"),
                        )
                        for _, inner in dicts(item.get("thinking")):
                            add((*key, "thinking"), inner.get("text"))
                if isinstance(value, dict):
                    for field in ("arguments", "transcript"):
                        add((*key, field), value.get(field))


def join_responses(events: list[Any], add: Callable[[Any, Any], None]) -> None:
    """By the type of the delta, by item and by index."""
    for _, message in dicts(events):
        for name in ("item_id", "output_index"):
            if name in message:
                where = (str(message.get("type")), name, str(message[name]))
                add(
                    (*where, str(message.get("content_index")), str(message.get("summary_index"))),
                    message.get("delta"),
                )


def join_anthropic(events: list[Any], add: Callable[[Any, Any], None]) -> None:
    """By block: each start begins one."""
    begun: dict[str, int] = {}
    for number, message in dicts(events):
        index = str(message.get("index"))
        for name in ("content_block", "delta"):
            holder = message.get(name)
            if isinstance(holder, dict):
                if name == "content_block":
                    begun[index] = number
                for field in ("text", "thinking", "partial_json", "content"):
                    add((index, begun.get(index), field), holder.get(field))


def names_other_blocks(answer: tuple[str, str, list[Any], bool]) -> bool:
    """Whether blocks of Anthropic's begin twice at one index while deltas name another.

    The SDK takes the index of a delta for a position in the answer, and so puts the deltas into a
    block that is not the one at their index. `guard` and `redact` do not find a cut secret there.
    """
    path, _, messages, _ = answer
    if path != ANTHROPIC:
        return False
    begun: list[Any] = []
    named: set[Any] = set()
    for _, message in dicts(messages):
        if message.get("type") == "content_block_start":
            begun.append(message.get("index"))
        elif message.get("type") == "content_block_delta":
            named.add(message.get("index"))
    return len(set(begun)) < len(begun) and not named <= set(begun)


CUT_ANSWERS = cut_answers().filter(lambda answer: not names_other_blocks(answer))
"""Cut secrets that `guard` and `redact` find: not those of `names_other_blocks`."""


def check_joined(path: str, output: bytes) -> list[str]:
    texts = joined(path, events_of(output))
    assert not [text for text in texts if SECRET in text]
    return texts


@FEW
@given(data=st.data(), answer=CUT_ANSWERS)
def test_redact_lets_no_secret_out_that_is_cut(
    data: st.DataObject, answer: tuple[str, str, list[Any], bool]
) -> None:
    """In every kind of text and in arguments, whatever comes between the deltas, and nothing else
    of the text is lost.
    """
    path, expected, messages, early = answer
    wire = data.draw(wires(messages))
    result = run([Redact(PATTERNS)], path, wire)
    note(repr(result))
    check_nowhere(result.output)
    texts = check_joined(path, result.output)
    check_failure(result.failure)
    assert result.failure is None or early
    assert result.failure is not None or any(expected in text for text in texts)
    assert count_text(result.output) <= count_text(wire[0])


@FEW
@given(data=st.data(), answer=CUT_ANSWERS)
def test_guard_ends_before_a_cut_secret_is_whole(
    data: st.DataObject, answer: tuple[str, str, list[Any], bool]
) -> None:
    """In every kind of text and in arguments, whatever comes between the deltas."""
    path, _, messages, _ = answer
    wire = data.draw(wires(messages))
    result = run([Guard(PATTERNS)], path, wire)
    note(repr(result))
    assert (result.failure, result.ended) == (None, True)
    check_nowhere(result.output)
    check_joined(path, result.output)
    assert count_text(result.output) <= count_text(wire[0])


# --- answers that are not streamed


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A path, and one body: of a transcript, spoilt; or made of the dialect's words."""
    if draw(st.booleans()):
        path, body, _ = BODIES[draw(st.sampled_from(sorted(BODIES)))]
        return path, draw(spoilt([body]))[:1]
    path = draw(paths)
    return path, [draw(odd(GRAMMARS[path] if path != RESPONSES else responses))]


def body_of(draw: st.DataObject, messages: list[Any]) -> bytes:
    mask = draw.draw(st.sampled_from([0, 0, 1, 0b1010101010101, 2**13 - 1]))
    indent = draw.draw(st.sampled_from([None, 1]))
    (message,) = messages[-1:] or [None]
    if isinstance(message, Text):
        return escaped(message, mask if '"' in message else 0).encode()
    return escaped(json.dumps(message, indent=indent), mask).encode()


def run_body(interceptors: list[Interceptor], path: str, body: bytes) -> bytes:
    with capture_logs() as lines:
        left = run_json(interceptors, body, request=request(path))
    assert not [line for line in lines if line["log_level"] in ("error", "critical")], lines
    return left


@FEW
@given(data=st.data(), answer=bodies())
def test_any_body_without_a_match_passes_exactly(
    data: st.DataObject, answer: tuple[str, list[Any]]
) -> None:
    """No interceptor refuses it, and every byte leaves unchanged."""
    path, messages = answer
    body = body_of(data, messages)
    for name, make in PASSING.items():
        left = run_body(make(), path, body)
        if left != body and b"logprobs" in body:  # as in streams
            assert (name, without_tokens(decoded(left.decode()))) == (
                name,
                without_tokens(decoded(body.decode())),
            )
        else:
            assert (name, left) == (name, body)


@FEW
@given(data=st.data(), answer=bodies())
def test_no_protector_lets_a_secret_out_of_a_body(
    data: st.DataObject, answer: tuple[str, list[Any]]
) -> None:
    """Wherever it is; what was JSON stays JSON."""
    path, messages = answer
    body = body_of(data, data.draw(planted(messages)))
    was_json = not isinstance(decoded(body.decode()), Text)
    redacted = decoded(run_body([Redact(PATTERNS)], path, body).decode())
    guarded = decoded(run_body([Guard(PATTERNS)], path, body).decode())
    note(f"{body!r}\n{redacted!r}\n{guarded!r}")
    for text in [*strings(redacted), *strings(guarded, protocol=False)]:
        assert SECRET not in text
    assert not was_json or not (isinstance(redacted, Text) or isinstance(guarded, Text))


# --- through a proxy, under any content type

TYPES = [b"", b"text/event-stream", b"application/json", b"text/plain; charset=utf-8"]
TYPES += [b"application/octet-stream", b"text/html"]


@st.composite
def responses_of_any_type(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """A path, an uninformative content type, and a stream or a JSON body with a secret."""
    content_type = draw(st.sampled_from(TYPES))
    if draw(st.booleans()):
        path, messages = draw(answers())
        return path, content_type, b": \n\n" + draw(wires(draw(planted(messages))))[0]
    path, messages = draw(bodies())
    message = draw(planted(messages[:1] or [{}]))[-1]
    body = [message] if isinstance(message, (Text, str)) else message
    return path, content_type, json.dumps(body).encode()


@settings(FEW, max_examples=max(2, EXAMPLES // 10))
@given(given_=st.lists(responses_of_any_type(), min_size=6, max_size=12))
@pytest.mark.parametrize("name", ["redact", "guard"])
def test_no_secret_passes_a_proxy_under_any_content_type(
    name: str, given_: list[tuple[str, bytes, bytes]]
) -> None:
    """Streams and JSON bodies, whatever the head declares."""
    upcoming = iter(given_)

    async def script(peer: Peer) -> None:
        await peer.request()
        _, content_type, body = next(upcoming)
        types = [b"Content-Type: " + content_type] if content_type else []
        await peer.send(
            b"\r\n".join([b"HTTP/1.1 200 OK", *types, b"Connection: close", b"", b""]) + body
        )

    async def main() -> None:
        options = json.dumps({"name": name, "use": name, "options": {"patterns": PATTERNS}})
        async with (
            open_upstream(script) as upstream,
            open_proxy(config_for(upstream.url, interceptors=options, names=name)) as proxy,
        ):
            for path, content_type, body in given_:
                with trio.fail_after(10):
                    answer = await fetch(proxy.port, path, method="POST", body=b"{}")
                note(f"{path} {content_type!r} {body!r}\n{answer.status} {answer.body!r}")
                assert (answer.status, answer.complete) == (200, True)
                whole = decoded(answer.body.decode("utf-8", "replace"))
                for message in events_of(answer.body) if isinstance(whole, Text) else [whole]:
                    for text in strings(message, protocol=name == "redact"):
                        assert SECRET not in text

    with capture_logs():
        trio.run(main)
