"""Spellings of URIs: whatever a server may understand a URI as, is among them."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interceptors.toolkit.uris import MAX_URI, spellings, trim

SAME: dict[str, tuple[str, str]] = {
    "as it is": ("file:///etc/passwd", "file:///etc/passwd"),
    "scheme and host in capitals": ("HTTPS://Example.COM/A", "https://example.com/A"),
    "dot segments": ("file:///public/../etc/./passwd", "file:///etc/passwd"),
    "dot segments above the root": ("file:///../../etc/passwd", "file:///etc/passwd"),
    "encoded dot segments": ("file:///public/%2e%2E/etc/passwd", "file:///etc/passwd"),
    "encoded slashes": ("file:///public%2F..%2fetc/passwd", "file:///etc/passwd"),
    "encoded twice": ("file:///public/%252e%252e/etc/passwd", "file:///etc/passwd"),
    "encoded letters": ("file:///%65tc/p%61sswd", "file:///etc/passwd"),
    "an encoded colon": ("file%3A///etc/passwd", "file:///etc/passwd"),
    "backslashes": ("file:\\\\\\public\\..\\etc\\passwd", "file:///etc/passwd"),
    "runs of slashes": ("file:////etc//passwd", "file:///etc/passwd"),
    "a file without authority": ("file:/etc/passwd", "file:///etc/passwd"),
    "a file on localhost": ("file://LOCALHOST/etc/passwd", "file:///etc/passwd"),
    "white space that parsers take away": (" fi\tle:///etc/\npasswd\x00", "file:///etc/passwd"),
    "user information": ("https://good.example@internal/x", "https://internal/x"),
    "a port that is the default": ("https://internal:443/x", "https://internal/x"),
    "an empty port": ("https://internal:/x", "https://internal/x"),
    "a dot behind the host": ("https://internal./x", "https://internal/x"),
    "another port stays": ("https://internal:8443/x", "https://internal:8443/x"),
    "a query stays": ("db://t/../u?id=1#f", "db://t/u?id=1#f"),
    "a template": ("file:///a/../{path}", "file:///{path}"),
    "a path that is relative": ("note:a/../b", "note:b"),
    "a closing slash stays": ("file:///a/b/../", "file:///a/"),
    "no URI at all": ("just text", "just text"),
}


@pytest.mark.parametrize(("uri", "understood"), SAME.values(), ids=SAME)
def test_what_a_server_may_understand_is_among_the_spellings(uri: str, understood: str) -> None:
    """First the URI unchanged, last as it is understood when nothing is encoded any more."""
    found = spellings(uri).same
    assert found[0] == uri
    assert found[-1] == understood
    assert len(set(found)) == len(found)


def test_a_uri_that_is_encoded_over_and_over_is_an_error() -> None:
    """It could grow without a bound otherwise, and a client could use up CPU time with it."""
    with pytest.raises(ValueError, match="more than 3 times"):
        spellings("file:///%2525252525252565tc")


@given(st.text(alphabet="ab:/\\.%25eE?#@\t 4", max_size=30))
def test_the_last_spelling_is_understood_as_itself(uri: str) -> None:
    """Any text has spellings, or is that error."""
    try:
        last = spellings(uri).same[-1]
    except ValueError:
        return
    assert isinstance(last, str)
    if "%" not in last and "?" not in last and "#" not in last and last.isprintable():
        assert spellings(last).same[-1] == spellings(spellings(last).same[-1]).same[-1]


@pytest.mark.parametrize(("uri", "understood"), [
    ("file:etc/passwd", "file:///etc/passwd"), ("http:internal/a", "http://internal/a"),
    ("http:/internal/a", "http://internal/a"), ("http:///internal/a", "http://internal/a"),
    ("HTTP:\\internal\\a", "http://internal/a"), ("http://internal:080/a", "http://internal/a"),
    ("http://internal:0080/a", "http://internal/a"),
    ("http://internal:08080/a", "http://internal:8080/a"), ("file:///x%3f/a", "file:///x?/a"),
])  # fmt: skip
def test_what_the_parsers_of_browsers_make_of_it_is_among_the_spellings(
    uri: str, understood: str
) -> None:
    """WHATWG URL."""
    assert understood in spellings(uri).same


@pytest.mark.parametrize("uri", [
    "file:///public/%3f/%2e%2e/%2e%2e/etc/passwd", "file:///public/%23/../../etc/passwd",
    "file:///public/%253f/%252e%252e/%252e%252e/etc/passwd",
    "file:///public/%3f%2f..%2f..%2fetc/passwd", "http://x\\@internal/a", "http://ｉnternal/a",
    "http://%EF%BD%89nternal/a", "file://ｌocalhost/etc/passwd",
])  # fmt: skip
def test_what_two_readers_read_as_two_uris_is_an_error(uri: str) -> None:
    """A server that compares it refuses it."""
    with pytest.raises(ValueError, match="URI"):
        spellings(uri)


def seconds(uri: str) -> float:
    """The least of three: what noise adds, it does not take away."""

    def once() -> float:
        began = process_time()
        with suppress(ValueError):
            spellings(uri)
        return process_time() - began

    return min(once() for _ in range(3))


HOSTILE = {
    "backslashes": ("a:", "\\", ""),
    "slashes and backslashes": ("file:", "/\\", "x"),
    "backslashes and at signs": ("a:/", "\\@", "/"),
    "at signs": ("http://", "@", "/"),
    "colons": ("http://", ":", ""),
    "dots": ("file:///", "../", ""),
    "dots of hosts": ("http://", ".", "x"),
    "percent signs": ("file:///", "%", ""),
    "encoded percent signs": ("file:///", "%25", "3f"),
    "encoded over and over": ("file:///%", "25", "3f/../"),
    "letters of a scheme": ("", "a", ""),
    "zeros of a port": ("http://h:", "0", "1"),
    "white space": ("x", "\u2003", "x"),
    "white space at the end": ("file:///x", "\ufeff ", ""),
    "line ends": ("file:", "\n", "x"),
    "query": ("a:", "?#", ""),
    "hosts that are not ASCII": ("a://", "\u00e9", ""),
}


@pytest.mark.parametrize(("before", "repeated", "after"), HOSTILE.values(), ids=HOSTILE)
def test_the_longest_uri_costs_its_length(before: str, repeated: str, after: str) -> None:
    """Eight times as much is at most some eight times as dear."""

    def uri(characters: int) -> str:
        return (
            before + repeated * ((characters - len(before) - len(after)) // len(repeated)) + after
        )

    short, long = seconds(uri(MAX_URI // 8)), seconds(uri(MAX_URI))
    assert long < 30 * short + 0.002
    assert long < 0.1


def test_a_longer_uri_is_not_looked_at() -> None:
    longest = "file:///" + "a" * (MAX_URI - 8)
    assert spellings(longest).same == (longest,)
    with pytest.raises(ValueError, match="more than 8192 characters"):
        spellings(longest + "a")
    assert seconds("a:" + "\\" * 50_000_000) < 0.05


@given(st.text(alphabet="a:/\\@?#", max_size=14))
def test_a_backslash_before_an_at_sign_is_an_error(rest: str) -> None:
    """Wherever a reader that ends the host at a backslash, and one that does not, would find two hosts. The rule, spelt out: from
    some slash or backslash of the first run on, an @ comes after a backslash, and no slash, ? or # in between."""
    uri = f"s:{rest}"
    run = len(rest) - len(rest.lstrip("/\\"))
    parts = [
        rest[begin:at]
        for begin in range(run + 1)
        for at in range(begin, len(rest))
        if rest[at] == "@"
    ]
    hidden = any("\\" in part and not {*part} & {*"/?#"} for part in parts)
    with pytest.raises(ValueError, match="a URI has") if hidden else nullcontext():
        spellings(uri)


def test_hosts_of_the_web_count() -> None:
    assert spellings("https://x/etc/passwd").careless == ()


def test_white_space_is_what_either_language_removes() -> None:
    """Python's `strip`, of every character."""
    python = [
        character for character in map(chr, range(sys.maxunicode + 1)) if not character.strip()
    ]
    javascript = [
        *"\t\v\f \u00a0\ufeff\n\r\u2028\u2029\u1680\u202f\u205f\u3000",
        *map(chr, range(0x2000, 0x200B)),
    ]
    for character in {*python, *javascript}:
        assert trim(f"{character}x{character * 2}") == "x"
    assert trim("\u200bx") == "\u200bx"
