"""Events as authors see them: fields, replacement, and the end of their life."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from interceptors import Event, NotJson, StaleEvent
from interceptors.sse import parse_fields
from interceptors.wire_event import WireEvent
from pools import BufferPool, BufferScope, PooledOutput

BLOCK = b'event: delta\nid: 7\nretry: 1500\ndata: {"n":1}\n\n'
SECRET = "sk-verysecret"


def wire(block: bytes = BLOCK, *, before: bytes = b"", behind: bytes = b"") -> WireEvent:
    """An event in a window with other bytes around it."""
    return WireEvent(bytearray(before + block + behind), len(before), len(before) + len(block))


async def written(event: Event) -> bytes:
    """The event as it is sent."""
    pool = BufferPool("json", 64, 1)
    async with BufferScope() as scope:
        output = PooledOutput(pool, scope)
        start = event.add_to(output)
        return bytes(output.buffer[start : output.used])


def test_a_wire_event_shows_its_fields_and_its_bytes() -> None:
    event = wire(before=b"data: stale\n\n", behind=b"data: next\n\n")
    assert (event.event, event.id, event.retry, event.data) == ("delta", "7", 1500, '{"n":1}')
    assert (event.raw, event.json()) == (BLOCK, {"n": 1})
    absent = wire(b"foo: bar\n\n")
    assert (absent.event, absent.id, absent.retry, absent.data) == (None, None, None, "")


@pytest.mark.parametrize(
    ("event", "block"),
    [
        (Event(), b"\n"),
        (Event(""), b"data: \n\n"),
        (Event(id="7"), b"id: 7\n\n"),
        (Event("one"), b"data: one\n\n"),
        (Event("one\r\ntwo\rthree\n"), b"data: one\ndata: two\ndata: three\ndata: \n\n"),
        (Event("x\n\nevent: evil"), b"data: x\ndata: \ndata: event: evil\n\n"),
        (Event("a", event="e", id="1", retry=5), b"event: e\nid: 1\nretry: 5\ndata: a\n\n"),
        (Event(json={"a": "x\ny"}), b'data: {"a":"x\\ny"}\n\n'),
        (Event(json=None), b"data: null\n\n"),
        (Event(json=[1], event="e", id="i", retry=0), b"event: e\nid: i\nretry: 0\ndata: [1]\n\n"),
        (Event("é\u2028"), "data: é\u2028\n\n".encode()),
        (wire(b"data:x\r\n:c\r\n data:\ty\r\n\r\n", before=b"z"), b"data:x\r\n:c\r\n data:\ty\r\n\r\n"),
    ],
)  # fmt: skip
async def test_what_is_written_is_raw(event: Event, block: bytes) -> None:
    assert event.raw == block
    assert await written(event) == block


@pytest.mark.parametrize(
    "fields",
    [{"event": "a\nb"}, {"event": "a\r"}, {"id": "a\nb"}, {"id": "a\rb"}, {"id": "a\0"}, {"retry": -1},
     {"data": "x", "json": {}}],
    ids=repr,
)  # fmt: skip
def test_fields_that_cannot_be_written_are_refused_at_once(fields: dict[str, Any]) -> None:
    for make in (Event, wire().replace):
        with pytest.raises(ValueError, match=r"event's|not both"):
            make(**fields)


# JSON

BLOCKS = [
    *(b'data: {"n": 1}\n\n', b'data:{"n": 1}\n\n', b'data:  {"n": 1} \n\n', b'data: {"n": 1}\nid: 1\n\n'),
    *(b'data: {"n":\ndata: 1}\n\n', b'data: {"n": 1}\r\n\r\n', b'data: {"n": 1}\r\r', b'data: {"n": 1}\n\r'),
    *(b'data: {"n": 1}\rid: 1\n\n', b'data: {"n": 1}', b'data: {"n": 1}\n', b'data: {"n":1}\nevent: a\n\n'),
    *(b'event: delta\ndata: {"n":1}\n\n', b'event:delta\ndata:{"n":1}\n\n', b'event:  a b\ndata:  {"n":1}\n\n'),
    *(b'event: \ndata: {"n":1}\n\n', b'event: \xff\xc3\xa9\ndata: {"n":1}\n\n', b"event: a\nevent: b\n\n"),
    *(b'event: a\ndata: {"n":1}\nid: 3\n\n', b'event: a\ndata: {"n":\ndata: 1}\n\n', b"event: a\ndatax: 2\n\n"),
    *(b'event: a\rdata: {"n":2}\ndata: {"n":1}\n\n', b'event: a\ndata: {"n":1}\r\n\n', b"event: a\n\n"),
    *(b'event: a\r\ndata: {"n":1}\r\n\r\n', b'event\ndata: {"n":1}\n\n', b'event: a\ndata: {"n":1}\n'),
    b'event: a\ndata: {"n":1}',
]  # fmt: skip
"""Events of a type and one line of data, which are read in place, and what only looks like one."""


@pytest.mark.parametrize("block", BLOCKS)
def test_an_event_is_what_the_parser_finds(block: bytes) -> None:
    """In whichever order it is asked, and with other events around it."""
    fields = parse_fields(block)
    assert wire(block, before=b"data: 0\n\n", behind=b"data: 9\n\n").event == fields.event
    seen = wire(block, before=b"data: 1\n\n", behind=b"]}\n\ndata: 9\n\n")
    try:
        parsed = json.loads(fields.data or "")
    except ValueError:
        with pytest.raises(NotJson):
            seen.json()
    else:
        assert seen.json() == parsed == {"n": 1}
        assert seen.json() is seen.json()
    made = seen.replace(json={"m": 2})
    assert (made.event, made.id, made.retry) == (fields.event, fields.id, fields.retry)
    assert made.json() == {"m": 2}
    assert (seen.event, seen.data, seen.id) == (fields.event, fields.data or "", fields.id)


def test_json_that_is_given_comes_back() -> None:
    """Also null, 0, "" and false, which are values."""
    value = {"n": [1, "é"]}
    event = Event(json=value)
    assert event.json() is event.replace(id="1").json() is value
    assert event.data == '{"n":[1,"é"]}'
    for falsy in (None, 0, "", False):
        assert Event(json=falsy).json() is falsy
        assert wire(f"data: {json.dumps(falsy)}\n\n".encode()).json() == falsy


@pytest.mark.parametrize("block", [b'data: {"a":"text"}\n\n', b"data: [DONE]\n\n"])
def test_decoding_leaves_no_view_of_the_window(block: bytes) -> None:
    window = bytearray(block)
    try:
        kept: Any = WireEvent(window, 0, len(window)).json()
    except NotJson as error:
        kept = error
    window.extend(b"x")  # BufferError if something still exports it
    assert kept is not None


@pytest.mark.parametrize(
    "event",
    [
        wire(b"data: [DONE] sk-verysecret\n\n"),
        wire(b'event: e\ndata: {"k": sk-verysecret}\n\n'),
        wire(b'data: "sk-verysecret\xff"\n\n'),
        wire(b"event: no data\n\n"),
        wire(b"data:\n\n"),
        Event(SECRET),
        Event(),
    ],
)
def test_not_json_does_not_show_the_data(event: Event) -> None:
    with pytest.raises(NotJson, match="not JSON") as caught:
        event.json()
    assert isinstance(caught.value, ValueError)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(event)


# Replacement


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
def test_replace_changes_what_is_given(original: Event, change: dict[str, Any], raw: bytes) -> None:
    before = original.raw
    assert original.replace(**change).raw == raw
    assert original.raw == before


@pytest.mark.parametrize("event", [wire(b"id: 7\n\n"), Event(id="7")])
def test_replace_adds_no_data(event: Event) -> None:
    """An empty `data` line would become a message in browsers."""
    assert event.replace(id="8").raw == event.replace("", id="8").raw == b"id: 8\n\n"


def test_changing_the_decoded_value_changes_no_bytes() -> None:
    event = wire(b'data: {"n":1}\n\n')
    message = event.json()
    message["n"] = 2
    assert event.raw == b'data: {"n":1}\n\n'
    assert event.replace(json=message).raw == b'data: {"n":2}\n\n'


# The end of life

TOUCHES: dict[str, Callable[[Event], object]] = {
    "raw": lambda event: event.raw,
    "data": lambda event: event.data,
    "event": lambda event: event.event,
    "id": lambda event: event.id,
    "retry": lambda event: event.retry,
    "unknown": lambda event: event.unknown,
    "json": lambda event: event.json(),
    "replace data": lambda event: event.replace("x"),
    "replace json": lambda event: event.replace(json={}),
    "replace id": lambda event: event.replace(id="x"),
    "replace nothing": lambda event: event.replace(),
    "detach": lambda event: event.detach(),
}


@pytest.mark.parametrize("touched_before", [False, True])
@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
async def test_every_use_after_the_end_is_stale(
    touch: Callable[[Event], object], touched_before: bool
) -> None:
    """Also where the same access worked before; but a debugger can print the event."""
    event = wire()
    for each in TOUCHES.values() if touched_before else ():
        each(event)
    event.end_of_life()
    with pytest.raises(StaleEvent, match="detach"):
        touch(event)
    with pytest.raises(StaleEvent):
        await written(event)
    assert repr(event) == "<WireEvent, over>"


def test_copies_survive_the_original_and_its_window() -> None:
    window = bytearray(b"zz" + BLOCK)
    event = WireEvent(window, 2, len(window))
    raw, kept, replaced = event.raw, event.detach(), event.replace(event="other")
    event.end_of_life()
    window[:] = b"SECRET"
    for copy in (kept, kept.detach()):
        fields = (copy.raw, copy.data, copy.event, copy.id, copy.retry, copy.json())
        assert fields == (raw, '{"n":1}', "delta", "7", 1500, {"n": 1})
    assert (replaced.data, replaced.event, replaced.id) == ('{"n":1}', "other", "7")
    assert replaced.detach() is replaced
