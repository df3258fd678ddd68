"""Redact: what matches is gone however JSON spells it, and what does not match keeps its bytes."""

from __future__ import annotations

import json

import pytest
from unit.interceptors.dialects.transcripts import CHAT, request

from interceptors import Request
from interceptors.redact import Redact
from interceptors.testing import run_chain, run_json


def redacted(patterns: list[str], data: str, replacement: str = "[redacted]") -> str:
    """The data of the one event that leaves."""
    stream = b"".join(b"data: " + line.encode() + b"\n" for line in data.split("\n")) + b"\n"
    output = run_chain([Redact(patterns, replacement)], [stream]).output
    assert output.endswith(b"\n\n")
    lines = output[:-2].decode().split("\n")
    assert all(line.startswith("data: ") for line in lines)
    return "\n".join(line[6:] for line in lines)


JSON_CASES: dict[str, tuple[str, str, str]] = {
    "a value": ("secret", '{"a":"my secret!"}', '{"a":"my [redacted]!"}'),
    "every occurrence": ("secret", '["secret secret","secret"]', '["[redacted] [redacted]","[redacted]"]'),
    "deep inside": ("secret", '{"a":[{"b":[["secret"]]}]}', '{"a":[{"b":[["[redacted]"]]}]}'),
    "a key": ("secret", '{"secret":1}', '{"[redacted]":1}'),
    "a whole string": ("secret", '"secret"', '"[redacted]"'),
    "one escaped letter": ("secret", r'{"a":"\u0073ecret"}', '{"a":"[redacted]"}'),
    "all letters escaped": ("secret", r'{"a":"\u0073\u0065\u0063\u0072\u0065\u0074"}', '{"a":"[redacted]"}'),
    "escapes in either case": ("/k~", r'{"a":"\u002f\u006b\u007E\u007e"}', '{"a":"[redacted]~"}'),
    "an escaped key": ("secret", r'{"s\u0065cret":1}', '{"[redacted]":1}'),
    "an escaped slash": ("a/b", r'["a\/b"]', '["[redacted]"]'),
    "a pair of surrogates": ("\U0001f511", r'["\ud83d\udd11"]', '["[redacted]"]'),
    "a quote inside": ('pass"word', r'["pass\"word"]', '["[redacted]"]'),
    "a backslash inside": (r"C:\\key", r'["C:\\key"]', '["[redacted]"]'),
    "a line end inside": ("a\nb", r'["a\nb"]', '["[redacted]"]'),
    "after an escaped quote": ("secret", r'["\"","\u0073ecret"]', r'["\"","[redacted]"]'),
    "after an escaped backslash": ("secret", r'["\\","\u0073ecret"]', r'["\\","[redacted]"]'),
    "a number": ("4111[0-9]{4}", '{"card":41110000}', '{"card":"[redacted]"}'),
    "a negative number": ("-42", "[-42]", '["[redacted]"]'),
    "part of a number": ("4111", '{"card":41110000}', '{"card":"[redacted]0000"}'),
    "the end of a long number": ("4111", f'{{"card":{"1" * 40}24111}}', f'{{"card":"{"1" * 40}2[redacted]"}}'),
    "a number with exponent": (r"1\.5e3", "[1.5e3]", '["[redacted]"]'),
    "spaces before the JSON": ("secret", ' \t{"a":"\\u0073ecret"}', ' \t{"a":"[redacted]"}'),
    "JSON over data lines": ("secret", '{"a":\n"\\u0073ecret"}', '{"a":\n"[redacted]"}'),
    "not ASCII": ("sécret", '{"a":"s\\u00e9cret sécret"}', '{"a":"[redacted] [redacted]"}'),
    "beside what does not match": (
        "secret", r'{ "a" : "\u00e9\/",  "b":1.0e+2 , "k": "\u0073ecret" ,"c":[ ],"d":"\ud83d\ude00" , "e":true}',
        r'{ "a" : "\u00e9\/",  "b":1.0e+2 , "k": "[redacted]" ,"c":[ ],"d":"\ud83d\ude00" , "e":true}'),
}  # fmt: skip


@pytest.mark.parametrize(("pattern", "data", "expected"), JSON_CASES.values(), ids=JSON_CASES)
def test_a_match_in_json_is_gone(pattern: str, data: str, expected: str) -> None:
    """Strings, keys and numbers are matched decoded; the result is JSON of the same shape."""
    assert redacted([pattern], data) == expected


@pytest.mark.parametrize("data", [
    r'{ "a" : "\u00e9\/\u0073afe", "b":1.0e+2 }', "plain", "", '{"cut off":"in the mid', r"\u0073afe", "[DONE]",
])  # fmt: skip
def test_an_event_without_a_match_leaves_as_the_very_bytes(data: str) -> None:
    stream = b"data:" + data.encode() + b"\r\n:c\r\nid:7\r\n\r\n"
    result = run_chain([Redact(["secret"])], [stream])
    assert result.output == stream
    assert (result.counts.passed, result.counts.changed) == (1, 0)


TEXT = "a\nBEGIN\nkey\nEND\nb"
USER = '{"user":"ann","password":"hunter2","x":1}'
TEXT_CASES: dict[str, tuple[list[str], str, str]] = {
    "plain text": (["secret"], "my secret is secret", "my [redacted] is [redacted]"),
    "several lines": (["secret"], "one\nsecret\nthree", "one\n[redacted]\nthree"),
    "JSON that is cut off": (["secret"], '{"cut off":"secret', '{"cut off":"[redacted]'),
    "what only begins like JSON": (["secret"], '{not json} "secret"', '{not json} "[redacted]"'),
    "a link": (["secret"], "[secret]", "[[redacted]]"),
    "a dot is no line end": (["BEGIN.*END"], TEXT, TEXT),
    "over data lines": (["(?s)BEGIN.*END"], TEXT, "a\n[redacted]\nb"),
    # What a pattern finds only across values is matched against the text as a whole.
    "over several values": ([r'"user":"\w+","password":"\w+"'], USER, '{[redacted],"x":1}'),
    # That pass comes after the one over the strings: an escaped match is part of what it sees.
    "a string and what spans it": (["secret", '"k":"[^"]*"'], r'{"k":"\u0073ecret","x":1}', '{[redacted],"x":1}'),
}  # fmt: skip


@pytest.mark.parametrize(("patterns", "data", "expected"), TEXT_CASES.values(), ids=TEXT_CASES)
def test_a_match_in_the_whole_text_is_gone(patterns: list[str], data: str, expected: str) -> None:
    """The data is one text, its lines joined with LF."""
    assert redacted(patterns, data) == expected


@pytest.mark.parametrize(("patterns", "replacement", "data", "expected"), [
    ([r"(sk-)\w+"], r"\1***", '{"k":"sk-abc"}', '{"k":"sk-***"}'),
    ([r"(sk-)\w+"], r"\1***", '{"k":"\\u0073k-abc"}', '{"k":"sk-***"}'),
    ([r"(?P<user>\w+)@(?P<host>\w+)"], r"\g<host>", "ann@home", "home"),
    ([r"(\w)(\d+)"], r"\2\1", "a12", "12a"), (["secret"], "", '["a secret"]', '["a "]'),
    (["secret"], 'say "no"\\\\', '["a secret"]', r'["a say \"no\"\\"]'),
    (["secret"], r"\n", '["a secret"]', r'["a \n"]'), (["secret"], r"\n", "a secret b", "a \n b"),
    # A line end becomes another data line, and not a field or the event's end.
    (["secret"], "x\n\nevent: evil", "a secret", "a x\n\nevent: evil"),
    # Each pattern sees what the one before it left.
    (["ab", "cd"], "c", "abcd acbd", "cc acbd"), (["ab", "xd"], "x", "abd", "x"),
])  # fmt: skip
def test_the_replacement_is_a_template(
    patterns: list[str], replacement: str, data: str, expected: str
) -> None:
    """Groups by number and name as in `re.sub`; inside JSON strings what it gives is escaped."""
    assert redacted(patterns, data, replacement) == expected


def test_the_other_fields_of_a_redacted_event_stay() -> None:
    """Type, id and retry are not data; they are kept."""
    result = run_chain([Redact(["secret"])], [b"event: e\nid: secret\nretry: 5\ndata: secret\n\n"])
    assert result.output == b"event: e\nid: secret\nretry: 5\ndata: [redacted]\n\n"
    assert result.counts.changed == 1


_HIDDEN = "\\u0073k-" + "A" * 24


@pytest.mark.parametrize("data", [
    f'{{"k":"{_HIDDEN}', f'{{"k":"a\r{_HIDDEN}"}}', f'{{"k":"{_HIDDEN}","k":"x"}}', f'{{"k":"\\x{_HIDDEN}"}}',
    f'{{"k":"{_HIDDEN}\\u00', f'{{"k":"{_HIDDEN}\\"', f'["{_HIDDEN}", NaN, undefined]',
])  # fmt: skip
def test_an_escape_hides_nothing_in_what_is_not_quite_json(data: str) -> None:
    """Cut off, with a name twice, with what only lax readers take."""
    redacted = Redact(patterns=["sk-[A-Za-z0-9]{20,}"]).redact(data)
    assert "[redacted]" in redacted
    assert "A" * 24 not in redacted


@pytest.mark.parametrize("line", [b"secret: x", b"x: a secret", b"secret"])
@pytest.mark.parametrize("path", ["/events", CHAT])
def test_fields_that_no_client_knows_hide_nothing(line: bytes, path: str) -> None:
    event = b'id: 7\n%sdata: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    result = run_chain([Redact(["secret"])], [event % (line + b"\n")], request=request(path))
    assert result.output == event % b""


def test_a_json_body_of_mcp_is_redacted() -> None:
    body = b'{"jsonrpc":"2.0","id":1,"result":{"a":"s\\u0065cret"}}'
    shown = run_json([Redact(["secret"])], body, request=Request(dialect="mcp"))
    assert json.loads(shown)["result"] == {"a": "[redacted]"}
