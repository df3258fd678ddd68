"""Event framing and encoding against the rules of WHATWG HTML 9.2.6, case by case; `tests/fuzz`
does it at random.
"""

from __future__ import annotations

import pytest

from interceptors.sse import (
    BOM,
    MAX_BLANK_BYTES,
    Fields,
    encode_data,
    encode_event,
    encode_head,
    looks_like_sse,
    parse_fields,
)

NOTHING = Fields(None, None, None, None)


def data(text: str) -> Fields:
    return Fields(None, text, None, None)


FIELDS: dict[bytes, Fields] = {
    b"event: e\nid: 7\nretry: 1500\ndata: d\n\n": Fields("e", "d", "7", 1500),
    b": comment\n\n": NOTHING,
    b"data:  two spaces\n\n": data(" two spaces"),
    b"data:\tx: a:c\n\n": data("\tx: a:c"),
    b"data\n\n": data(""),
    b"data:\n\n": data(""),
    b"data: a\ndata\nid: 1\ndata: c\n\n": Fields(None, "a\n\nc", "1", None),
    b"data: a\rdata: b\r\ndata: c\r\r": data("a\nb\nc"),
    b"event: a\nevent: b\n\n": Fields("b", None, None, None),
    b"event\ndata: x\nid\n\n": Fields("", "x", "", None),
    b"id: a\nid: b\0c\ndata: a\0b\n\n": Fields(None, "a\0b", "a", None),
    b"Data: a\nDATA: b\ndata : a\n data: a\ndatax: a\ndat: b\n\n": NOTHING,
    b"retry: 0\n\n": Fields(None, None, None, 0),
    b"retry: 10\nretry: +5\nretry: -5\nretry: 5s\nretry: 1_0\nretry: 1.5\nretry: 5 \nretry\nretry:\n\n": Fields(None, None, None, 10),
    "retry: \u0665\n\n".encode(): NOTHING,
    b"data: a\xffb\n\n": data("a\ufffdb"),
    b"data: \xc3\ndata: \xa9\n\n": data("\ufffd\n\ufffd"),
    BOM + b"data: a\n\n": NOTHING,  # not the stream's
    b"data: " + BOM + b"a\n\n": data("\ufeffa"),
    b"data: a": data("a"),
}  # fmt: skip


@pytest.mark.parametrize(("block", "fields"), FIELDS.items())
def test_fields_are_read_as_whatwg_says(block: bytes, fields: Fields) -> None:
    assert parse_fields(block) == fields


@pytest.mark.parametrize(
    ("fields", "block"),
    [
        (Fields("e", "a\nb", "7", 1500), b"event: e\nid: 7\nretry: 1500\ndata: a\ndata: b\n\n"),
        (NOTHING, b"\n"),
        (data(""), b"data: \n\n"),
        (Fields("", None, "", 0), b"event: \nid: \nretry: 0\n\n"),
        (
            Fields("a\0", "é\u2028\0: b ", None, None),
            "event: a\0\ndata: é\u2028\0: b \n\n".encode(),
        ),
        (data("\na\n\n"), b"data: \ndata: a\ndata: \ndata: \n\n"),
    ],
)
def test_fields_are_written_in_one_order(fields: Fields, block: bytes) -> None:
    """None is absent, and an empty text is present and empty."""
    assert encode_event(fields) == block
    assert parse_fields(block) == fields


def test_a_line_end_in_data_begins_a_new_line() -> None:
    """A CR cannot stand in a line. A lone surrogate, which UTF-8 has not, becomes a question mark."""
    for end in ("\r", "\r\n", "\n"):
        text = f"a{end}id: evil{end}{end}data: b"
        assert encode_data(text) == b"data: a\ndata: id: evil\ndata: \ndata: data: b\n"
    assert encode_data("a\ud800b") == b"data: a?b\n"
    assert encode_head("\ud800", None, None) == b"event: ?\n"


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\r\nb", "\n", "a\n\ndata: evil"])
def test_a_value_that_would_be_read_otherwise_is_refused(value: str) -> None:
    """It would end the line and let the rest be read as a field. The value is not in the message."""
    for event, event_id, name in ((value, None, "event"), (None, value, "id"), (None, "a\0", "id")):
        with pytest.raises(ValueError, match=f"event's {name} cannot hold a line end") as caught:
            encode_head(event, event_id, None)
        assert value not in str(caught.value)
    with pytest.raises(ValueError, match="retry"):
        encode_head(None, None, -1)


YES = [
    *(b"data: x\n\n", b"data:x", b"event: e\n", b"id:\n", b"retry: 5\n", b":\n", b": comment"),
    *(BOM + b"data: x", b"\n\r\n\rdata: x", BOM + b"\n\n: x", b"\n" * 4000 + b"id: 1"),
    b"\n" * MAX_BLANK_BYTES + b"{",
]
NO = [
    *(b"", BOM, BOM[:2], BOM[:2] + b"data: x", BOM + BOM + b"data: x", b"\n\n", b"data\n"),
    *(b"data :x", b"Data: x", b" data: x", b"dat", b"retr", b"idea: x", b"id 1", b"{}", b"<html>"),
    *(b"foo: x\ndata: x\n\n", b"\n" * (MAX_BLANK_BYTES - 1) + b"{"),
]


@pytest.mark.parametrize("body", [*YES, *NO])
def test_what_looks_like_an_event_stream(body: bytes) -> None:
    """Byte by byte."""
    looks = body in YES
    assert looks_like_sse(body, whole=True) is looks
    answers = [looks_like_sse(body[:end], whole=False) for end in range(len(body) + 1)]
    decided = next((at for at, answer in enumerate(answers) if answer is not None), len(answers))
    assert set(answers[decided:]) <= {looks}
    if looks:
        assert decided < len(answers)
