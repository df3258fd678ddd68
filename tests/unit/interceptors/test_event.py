"""The event as an author of interceptors sees it: its fields, its replacement, and its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from interceptors import Event, HookError, InterceptorError, NotJson, StaleEvent
from interceptors.event import UNSET
from interceptors.sse import parse_fields
from interceptors.wire_event import WireEvent
from pools import BufferPool, BufferScope, PooledOutput

BLOCK = b'event: delta\nid: 7\nretry: 1500\ndata: {"n":1}\n\n'


def wire(block: bytes = BLOCK, *, before: bytes = b"", behind: bytes = b"") -> WireEvent:
    """An event in a window with other bytes around it."""
    return WireEvent(bytearray(before + block + behind), len(before), len(before) + len(block))


async def written(event: Event) -> bytes:
    """What the event looks like on the wire."""
    pool = BufferPool("json", 64, 1)
    async with BufferScope() as scope:
        output = PooledOutput(pool, scope)
        start = event.add_to(output)
        return bytes(output.buffer[start : output.used])


# --- fields
# -------------------------------------------------------------------------------------------------------------


def test_a_wire_event_shows_its_fields_and_its_bytes() -> None:
    """Text, type, id, retry and the raw block; other bytes of the window are not seen."""
    event = wire(before=b"data: stale\n\n", behind=b"data: next\n\n")
    assert (event.event, event.id, event.retry, event.data) == ("delta", "7", 1500, '{"n":1}')
    assert event.raw == BLOCK
    assert event.json() == {"n": 1}


def test_absent_fields_are_none_and_absent_data_is_empty_text() -> None:
    """A block of one unknown field has no type, id or retry, and "" for data."""
    event = wire(b"foo: bar\n\n")
    assert (event.event, event.id, event.retry, event.data) == (None, None, None, "")


def test_raw_is_a_copy() -> None:
    """`raw` may be kept: it does not change with the window."""
    window = bytearray(BLOCK)
    event = WireEvent(window, 0, len(window))
    raw = event.raw
    window[:] = b"x" * len(window)
    assert raw == BLOCK


def test_a_made_event_shows_what_it_was_made_of() -> None:
    """`Event(...)` gives its fields back, and its raw bytes are the whole block."""
    event = Event("a\nb", event="e", id="1", retry=5)
    assert (event.data, event.event, event.id, event.retry) == ("a\nb", "e", "1", 5)
    assert event.raw == b"event: e\nid: 1\nretry: 5\ndata: a\ndata: b\n\n"


@pytest.mark.parametrize(
    ("event", "block"),
    [
        (Event(), b"\n"),
        (Event(""), b"data: \n\n"),
        (Event(id="7"), b"id: 7\n\n"),
        (Event("one"), b"data: one\n\n"),
        (Event("one\r\ntwo\rthree\n"), b"data: one\ndata: two\ndata: three\ndata: \n\n"),
        (Event("x\n\nevent: evil"), b"data: x\ndata: \ndata: event: evil\n\n"),
        (Event(json={"a": "x\ny"}), b'data: {"a":"x\\ny"}\n\n'),
        (Event(json=None), b"data: null\n\n"),
        (Event(json=[1], event="e", id="i", retry=0), b"event: e\nid: i\nretry: 0\ndata: [1]\n\n"),
        (Event("é\u2028"), "data: é\u2028\n\n".encode()),
    ],
)
async def test_raw_and_what_is_written_are_the_same_block(event: Event, block: bytes) -> None:
    """The bytes that leave are those that `raw` shows, whether made from text or from JSON."""
    assert event.raw == block
    assert await written(event) == block


async def test_a_wire_event_is_written_as_it_came() -> None:
    """Odd spacing, comments and line ends stay when an event is sent on beside others."""
    block = b"data:x\r\n:c\r\n data:\ty\r\n\r\n"
    assert await written(wire(block, before=b"zz", behind=b"zz")) == block


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "a\nb"},
        {"event": "a\r"},
        {"id": "a\nb"},
        {"id": "a\rb"},
        {"id": "a\0"},
        {"retry": -1},
    ],
    ids=lambda fields: repr(fields),
)
def test_a_field_that_cannot_be_written_is_refused_where_it_is_given(
    fields: dict[str, Any],
) -> None:
    """Both making and replacing raise ValueError at once, and not when the event leaves."""
    with pytest.raises(ValueError, match="event's"):
        Event("x", **fields)
    with pytest.raises(ValueError, match="event's"):
        wire().replace(**fields)


def test_data_and_json_at_once_are_refused() -> None:
    """One of them would be ignored silently."""
    with pytest.raises(ValueError, match="not both"):
        Event("x", json={})
    with pytest.raises(ValueError, match="not both"):
        wire().replace("x", json={})


# --- json
# ---------------------------------------------------------------------------------------------------------------

JSON_BLOCKS = {
    "one line, read in place": b'data: {"a": [1]}\n\n',
    "without the space": b'data:{"a": [1]}\n\n',
    "with other fields": b'event: e\ndata: {"a": [1]}\n\n',
    "field behind it": b'data: {"a": [1]}\nid: 1\n\n',
    "over several lines": b'data: {"a":\ndata: [1]}\n\n',
    "CRLF": b'data: {"a": [1]}\r\n\r\n',
    "CR": b'data: {"a": [1]}\r\r',
    "LF CR": b'data: {"a": [1]}\n\r',
    "a CR line before the LF": b'data: {"a": [1]}\rid: 1\n\n',
    "unfinished tail": b'data: {"a": [1]}',
    "unfinished tail with LF": b'data: {"a": [1]}\n',
    "two spaces": b'data:  {"a": [1]} \n\n',
}


@pytest.mark.parametrize("block", JSON_BLOCKS.values(), ids=JSON_BLOCKS)
def test_json_is_the_data_decoded_however_the_block_is_written(block: bytes) -> None:
    """`json()` equals the decoded `data`, on the fast way and on the general one, wherever the
    block lies.
    """
    event = wire(block, before=b"data: 1\n\n", behind=b"]}\n\ndata: 2\n\n")
    assert event.json() == json.loads(event.data) == {"a": [1]}


@pytest.mark.parametrize("make", [wire, lambda: Event('{"n":1}')], ids=["wire", "made"])
def test_json_is_decoded_once(make: Callable[[], Event]) -> None:
    """Every call gives the same object, so that hooks along a chain pay for one decoding."""
    event = make()
    assert event.json() is event.json()


def test_json_given_is_the_json_that_comes_back() -> None:
    """An event made from a value hands that very value to the next hook, and shows it as text, too."""
    value = {"n": [1, "é"]}
    event = Event(json=value)
    assert event.json() is value
    assert event.data == '{"n":[1,"é"]}'


def test_a_falsy_json_value_is_a_value() -> None:
    """null, 0 and "" are decoded once and are not taken for "not decoded yet"."""
    for value in (None, 0, "", False):
        assert Event(json=value).json() is value
        assert wire(f"data: {json.dumps(value)}\n\n".encode()).json() == value
    assert not UNSET


def test_decoding_leaves_no_view_of_the_window() -> None:
    """After `json()`, also after one that failed, the window can be resized: nothing of it is
    exported.
    """
    for block in (b'data: {"a":"text"}\n\n', b"data: [DONE]\n\n"):
        window = bytearray(block)
        event = WireEvent(window, 0, len(window))
        try:
            value: Any = event.json()
        except NotJson as error:
            value = error
        window.extend(b"x")  # BufferError if something still saw it
        assert value is not None


SECRET = "sk-verysecret"


@pytest.mark.parametrize(
    "event",
    [
        wire(b"data: [DONE] sk-verysecret\n\n"),
        wire(b'event: e\ndata: {"k": sk-verysecret}\n\n'),
        wire(b'data: "sk-verysecret\xff"\n\n'),
        wire(b"event: no data\n\n"),
        wire(b"data:\n\n"),
        Event("sk-verysecret"),
        Event(),
    ],
    ids=["one line", "general", "not UTF-8", "no data", "empty", "made", "nothing"],
)
def test_not_json_says_so_and_does_not_show_the_data(event: Event) -> None:
    """`NotJson` is a ValueError as authors expect it; its text, which gets into logs, holds no
    data.
    """
    with pytest.raises(NotJson, match="not JSON") as caught:
        event.json()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, InterceptorError)
    assert SECRET not in str(caught.value)


def test_repr_shows_no_data() -> None:
    """An event in a log line or a traceback gives its type and id away, and no data."""
    for event in (
        wire(b"event: e\nid: 7\ndata: sk-verysecret\n\n"),
        Event("sk-verysecret", event="e", id="7"),
    ):
        assert repr(event) == f"<{type(event).__name__} event='e' id='7'>"


# --- replace
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "original", [wire(), Event('{"n":1}', event="delta", id="7", retry=1500)], ids=["wire", "made"]
)
@pytest.mark.parametrize(
    ("change", "raw"),
    [
        ({"data": "x"}, b"event: delta\nid: 7\nretry: 1500\ndata: x\n\n"),
        ({"data": ""}, b"event: delta\nid: 7\nretry: 1500\ndata: \n\n"),
        ({"json": [1]}, b"event: delta\nid: 7\nretry: 1500\ndata: [1]\n\n"),
        ({"json": None}, b"event: delta\nid: 7\nretry: 1500\ndata: null\n\n"),
        ({}, BLOCK),
        ({"event": "other"}, b'event: other\nid: 7\nretry: 1500\ndata: {"n":1}\n\n'),
        ({"event": None}, b'id: 7\nretry: 1500\ndata: {"n":1}\n\n'),
        ({"id": None}, b'event: delta\nretry: 1500\ndata: {"n":1}\n\n'),
        ({"id": ""}, b'event: delta\nid: \nretry: 1500\ndata: {"n":1}\n\n'),
        ({"retry": None}, b'event: delta\nid: 7\ndata: {"n":1}\n\n'),
        ({"retry": 0}, b'event: delta\nid: 7\nretry: 0\ndata: {"n":1}\n\n'),
        ({"data": "x", "event": None, "id": None, "retry": None}, b"data: x\n\n"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_replace_changes_what_is_given_and_keeps_the_rest(
    original: Event, change: dict[str, Any], raw: bytes
) -> None:
    """Given fields change, None removes one, the others stay; the original is as it was."""
    before = original.raw
    replaced = original.replace(**change)
    assert replaced.raw == raw
    assert replaced is not original
    assert original.raw == before


def test_replacing_keeps_absent_data_absent() -> None:
    """An event without data does not get an empty one, which a browser would dispatch."""
    assert wire(b"id: 7\n\n").replace(id="8").raw == b"id: 8\n\n"
    assert Event(id="7").replace(id="8").raw == b"id: 8\n\n"


def test_replacing_a_field_of_a_json_event_keeps_its_value() -> None:
    """The value is carried on without being written and read again."""
    value = {"n": 1}
    assert Event(json=value).replace(id="1").json() is value


def test_a_changed_decoding_leaves_only_when_it_is_given_to_replace() -> None:
    """Changing what `json()` returned changes no bytes by itself; `replace(json=...)` does."""
    event = wire(b'data: {"n":1}\n\n')
    message = event.json()
    message["n"] = 2
    assert event.raw == b'data: {"n":1}\n\n'
    assert event.replace(json=message).raw == b'data: {"n":2}\n\n'


# --- the end
# ------------------------------------------------------------------------------------------------------------

TOUCHES: dict[str, Callable[[Event], object]] = {
    "raw": lambda event: event.raw,
    "data": lambda event: event.data,
    "event": lambda event: event.event,
    "id": lambda event: event.id,
    "retry": lambda event: event.retry,
    "json": lambda event: event.json(),
    "replace data": lambda event: event.replace("x"),
    "replace json": lambda event: event.replace(json={}),
    "replace id": lambda event: event.replace(id="x"),
    "replace nothing": lambda event: event.replace(),
    "detach": lambda event: event.detach(),
}


@pytest.mark.parametrize("touched_before", [False, True], ids=["untouched", "touched before"])
@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_every_touch_of_an_event_that_is_over_is_stale(
    touch: Callable[[Event], object], touched_before: bool
) -> None:
    """`StaleEvent`, also when the same touch worked (and was remembered) before: its window is
    another stream's by now.
    """
    event = wire()
    if touched_before:
        for each in TOUCHES.values():
            each(event)
    event.end_of_life()
    with pytest.raises(StaleEvent, match="detach"):
        touch(event)


async def test_an_event_that_is_over_cannot_be_written() -> None:
    """A kept event that is returned later puts no stranger's bytes on the wire."""
    event = wire()
    event.end_of_life()
    with pytest.raises(StaleEvent):
        await written(event)


def test_an_event_that_is_over_can_still_be_printed() -> None:
    """`repr` does not raise: a debugger and a log line must work."""
    event = wire()
    event.end_of_life()
    assert repr(event) == "<WireEvent, over>"


def test_a_detached_event_survives_its_original_and_its_window() -> None:
    """`detach` owns its bytes: fields, JSON and raw stay when the original is over and the window
    is overwritten.
    """
    window = bytearray(b"zz" + BLOCK)
    event = WireEvent(window, 2, len(window))
    kept = event.detach()
    event.end_of_life()
    window[:] = b"SECRET"
    for copy in (kept, kept.detach()):
        assert (copy.raw, copy.data, copy.event, copy.id, copy.retry) == (
            BLOCK,
            '{"n":1}',
            "delta",
            "7",
            1500,
        )
        assert copy.json() == {"n": 1}
    assert kept.replace(id="8").id == "8"


def test_a_replacement_survives_its_original() -> None:
    """What `replace` returns owns its fields."""
    event = wire()
    replaced = event.replace(event="other")
    event.end_of_life()
    assert (replaced.data, replaced.event, replaced.id) == ('{"n":1}', "other", "7")


def test_a_made_event_never_goes_stale() -> None:
    """An event that an author made is a value: detaching it is no copy."""
    event = Event("x")
    assert event.detach() is event


def test_errors_name_what_went_wrong() -> None:
    """A HookError carries the interceptor and the hook, for the log and for whoever handles it."""
    error = HookError("guard", "on_event", "KeyError: 'x'")
    assert (error.interceptor, error.hook, str(error)) == (
        "guard",
        "on_event",
        "guard.on_event: KeyError: 'x'",
    )


# --- the shapes that are read without being parsed
# ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        b'event: delta\ndata: {"n":1}\n\n',
        b'event:delta\ndata:{"n":1}\n\n',
        b'event:  two spaces\ndata:  {"n":1}\n\n',
        b'event: \ndata: {"n":1}\n\n',
        b'event: \xff\xc3\xa9\ndata: {"n":1}\n\n',
        b"event: a\nevent: b\n\n",
        b'event: a\ndata: {"n":1}\nid: 3\n\n',
        b'event: a\ndata: {"n":\ndata: 1}\n\n',
        b"event: a\ndatax: 2\n\n",
        b'event: a\rdata: {"n":2}\ndata: {"n":1}\n\n',
        b'event: a\ndata: {"n":1}\r\n\n',
        b'event: a\r\ndata: {"n":1}\r\n\r\n',
        b"event: a\n\n",
        b'event\ndata: {"n":1}\n\n',
        b'data: {"n":1}\nevent: a\n\n',
        b'event: a\ndata: {"n":1}\n',
        b'event: a\ndata: {"n":1}',
    ],
)
def test_a_type_and_data_mean_what_the_parser_says(block: bytes) -> None:
    """An event of a type and one line of data, and what only looks like it: type, JSON and
    replacement as from parsed fields.
    """
    fields = parse_fields(block)
    try:
        parsed = json.loads(fields.data or "")
    except ValueError:
        parsed = NotJson
    assert wire(block, before=b"data: 0\n\n", behind=b"data: 9\n\n").event == fields.event
    seen = wire(block, behind=b"data: 9\n\n")
    if parsed is NotJson:
        with pytest.raises(NotJson):
            seen.json()
    else:
        assert seen.json() == parsed
    made = seen.replace(json={"m": 2})
    assert (made.event, made.id, made.retry, made.json()) == (
        fields.event,
        fields.id,
        fields.retry,
        {"m": 2},
    )
