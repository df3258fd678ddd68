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

# --- silent blocks
# ------------------------------------------------------------------------------------------------------


# --- fields
# -------------------------------------------------------------------------------------------------------------

FIELDS = {
    "all fields": (b"event: e\nid: 7\nretry: 1500\ndata: d\n\n", Fields("e", "d", "7", 1500)),
    "no field at all": (b": comment\n\n", Fields(None, None, None, None)),
    "one space goes": (b"data:  two spaces\n\n", Fields(None, " two spaces", None, None)),
    "no space is fine": (b"data:x\n\n", Fields(None, "x", None, None)),
    "a tab stays": (b"data:\tx\n\n", Fields(None, "\tx", None, None)),
    "colons in the value stay": (b"data: a: b:c\n\n", Fields(None, "a: b:c", None, None)),
    "no colon, empty value": (b"data\n\n", Fields(None, "", None, None)),
    "colon, empty value": (b"data:\n\n", Fields(None, "", None, None)),
    "data lines are joined": (b"data: a\ndata\ndata: c\n\n", Fields(None, "a\n\nc", None, None)),
    "also across others": (b"data: a\nid: 1\ndata: b\n\n", Fields(None, "a\nb", "1", None)),
    "also with CR and CRLF": (
        b"data: a\rdata: b\r\ndata: c\r\r",
        Fields(None, "a\nb\nc", None, None),
    ),
    "the last event wins": (b"event: a\nevent: b\n\n", Fields("b", None, None, None)),
    "an empty event is given": (b"event\ndata: x\n\n", Fields("", "x", None, None)),
    "an empty id is given": (b"id\n\n", Fields(None, None, "", None)),
    "an id with NUL is ignored": (b"id: a\nid: b\0c\n\n", Fields(None, None, "a", None)),
    "NUL in data stays": (b"data: a\0b\n\n", Fields(None, "a\0b", None, None)),
    "names are case-sensitive": (b"Data: a\nDATA: b\n\n", Fields(None, None, None, None)),
    "a space before the colon": (b"data : a\n\n", Fields(None, None, None, None)),
    "a space before the name": (b" data: a\n\n", Fields(None, None, None, None)),
    "a name that begins alike": (b"datax: a\ndat: b\n\n", Fields(None, None, None, None)),
    "retry of 0": (b"retry: 0\n\n", Fields(None, None, None, 0)),
    "retry with a sign": (b"retry: +5\nretry: -5\n\n", Fields(None, None, None, None)),
    "retry with more": (
        b"retry: 5s\nretry: 1_0\nretry: 1.5\nretry: 5 \n\n",
        Fields(None, None, None, None),
    ),
    "retry of nothing": (b"retry\nretry:\n\n", Fields(None, None, None, None)),
    "retry in other digits": ("retry: \u0665\n\n".encode(), Fields(None, None, None, None)),
    "a bad retry keeps a good one": (b"retry: 10\nretry: x\n\n", Fields(None, None, None, 10)),
    "not UTF-8": (b"data: a\xffb\n\n", Fields(None, "a\ufffdb", None, None)),
    "a character over two lines": (
        b"data: \xc3\ndata: \xa9\n\n",
        Fields(None, "\ufffd\n\ufffd", None, None),
    ),
    "a BOM that is not the stream's": (BOM + b"data: a\n\n", Fields(None, None, None, None)),
    "a BOM in the data": (b"data: " + BOM + b"a\n\n", Fields(None, "\ufeffa", None, None)),
    "no empty line at the end": (b"data: a", Fields(None, "a", None, None)),
}


@pytest.mark.parametrize(("block", "fields"), FIELDS.values(), ids=FIELDS)
def test_fields_are_read_as_whatwg_says(block: bytes, fields: Fields) -> None:
    """One rule of the specification a case."""
    assert parse_fields(block) == fields


# --- encoding
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a\nb",
        "a\n",
        "\na",
        "a\n\nb",
        "\n",
        " leading",
        "trailing ",
        "é\u2028x",
        "\0",
        "a: b",
    ],
)
def test_encoded_data_reads_back_as_it_was(text: str) -> None:
    """Text with any LF, spaces and odd characters survives writing and reading."""
    assert parse_fields(encode_data(text) + b"\n").data == text


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_cr_and_crlf_in_data_begin_a_new_line(end: str) -> None:
    """A CR cannot stand in a line."""
    text = f"a{end}id: evil{end}{end}data: b"
    written = encode_data(text)
    assert written == b"data: a\ndata: id: evil\ndata: \ndata: data: b\n"
    assert parse_fields(written).data == text.replace(end, "\n")


def test_a_whole_event_is_written_in_one_order() -> None:
    """event, id, retry, data, empty line; each on its own line."""
    assert (
        encode_event(Fields("e", "a\nb", "7", 1500))
        == b"event: e\nid: 7\nretry: 1500\ndata: a\ndata: b\n\n"
    )


def test_fields_without_a_value_are_not_written() -> None:
    """None is absent, and an empty text is present and empty."""
    assert encode_event(Fields(None, None, None, None)) == b"\n"
    assert encode_event(Fields(None, "", None, None)) == b"data: \n\n"
    assert encode_event(Fields("", None, "", 0)) == b"event: \nid: \nretry: 0\n\n"


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\r\nb", "\n", "a\n\ndata: evil"])
@pytest.mark.parametrize("name", ["event", "id"])
def test_a_line_end_in_event_or_id_is_refused(name: str, value: str) -> None:
    """It would end the line and let the rest be read as a field."""
    with pytest.raises(ValueError, match=f"event's {name} cannot hold") as caught:
        encode_head(value if name == "event" else None, value if name == "id" else None, None)
    assert value not in str(caught.value)


def test_nul_is_refused_in_an_id_and_nowhere_else() -> None:
    """Readers ignore an id with NUL, so writing one would lose it silently."""
    with pytest.raises(ValueError, match="id cannot hold a line end or NUL"):
        encode_head(None, "a\0", None)
    assert encode_head("a\0", None, None) == b"event: a\0\n"


def test_a_negative_retry_is_refused() -> None:
    """`retry` is a number of milliseconds."""
    with pytest.raises(ValueError, match="retry"):
        encode_head(None, None, -1)


def test_a_lone_surrogate_is_written_as_a_question_mark() -> None:
    """Text that UTF-8 cannot encode does not break the stream."""
    assert encode_data("a\ud800b") == b"data: a?b\n"
    assert encode_head("\ud800", None, None) == b"event: ?\n"


LOOKS = {
    b"data: x\n\n": True,
    b"data:x": True,
    b"event: e\n": True,
    b"id:\n": True,
    b"retry: 5\n": True,
    b":\n": True,
    b": comment": True,
    BOM + b"data: x": True,
    b"\n\r\n\rdata: x": True,
    BOM + b"\n\n: x": True,
    b"\n" * 4000 + b"id: 1": True,
    b"\n" * MAX_BLANK_BYTES + b"{": True,
    b"\n" * (MAX_BLANK_BYTES - 1) + b"{": False,
    b"": False,
    BOM: False,
    BOM[:2]: False,
    BOM[:2] + b"data: x": False,
    BOM + BOM + b"data: x": False,
    b"\n\n": False,
    b"data\n": False,
    b"data :x": False,
    b"Data: x": False,
    b" data: x": False,
    b"dat": False,
    b"retr": False,
    b"idea: x": False,
    b"id 1": False,
    b"{}": False,
    b"<html>": False,
    b"foo: x\ndata: x\n\n": False,
}


@pytest.mark.parametrize(("body", "looks"), LOOKS.items())
def test_what_looks_like_an_event_stream(body: bytes, looks: bool) -> None:
    """Byte by byte."""
    assert looks_like_sse(body, whole=True) is looks
    answers = [looks_like_sse(body[:end], whole=False) for end in range(len(body) + 1)]
    decided = next((at for at, answer in enumerate(answers) if answer is not None), len(answers))
    assert set(answers[decided:]) <= {looks}
    if looks:
        assert decided < len(answers)
