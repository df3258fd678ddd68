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
    "an encoded question mark": ("file:///x%3f/a", "file:///x?/a"),
    "backslashes": ("file:\\\\\\public\\..\\etc\\passwd", "file:///etc/passwd"),
    "runs of slashes": ("file:////etc//passwd", "file:///etc/passwd"),
    "a file without authority": ("file:/etc/passwd", "file:///etc/passwd"),
    "a file without slashes": ("file:etc/passwd", "file:///etc/passwd"),
    "a file on localhost": ("file://LOCALHOST/etc/passwd", "file:///etc/passwd"),
    "white space that parsers take away": (" fi\tle:///etc/\npasswd\x00", "file:///etc/passwd"),
    "user information": ("https://good.example@internal/x", "https://internal/x"),
    "a port that is the default": ("https://internal:443/x", "https://internal/x"),
    "an empty port": ("https://internal:/x", "https://internal/x"),
    "a default port with zeros": ("http://internal:0080/a", "http://internal/a"),
    "a port with zeros": ("http://internal:08080/a", "http://internal:8080/a"),
    "a dot after the host": ("https://internal./x", "https://internal/x"),
    "another port stays": ("https://internal:8443/x", "https://internal:8443/x"),
    "a web host without slashes": ("http:internal/a", "http://internal/a"),
    "a web host after three slashes": ("http:///internal/a", "http://internal/a"),
    "a web host after backslashes": ("HTTP:\\internal\\a", "http://internal/a"),
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
    assert (found[0], found[-1]) == (uri, understood)
    assert len(set(found)) == len(found)


@given(st.text(alphabet="ab:/\\.%25eE?#@\t 4", max_size=30))
def test_the_last_spelling_is_understood_as_itself(uri: str) -> None:
    """Any text has spellings, or is an error."""
    with suppress(ValueError):
        last = spellings(uri).same[-1]
        if not set("%?#") & set(last) and last.isprintable():
            again = spellings(last).same[-1]
            assert spellings(again).same[-1] == again


@pytest.mark.parametrize(("uri", "message"), [
    ("file:///%2525252525252565tc", "more than 3 times"), *((uri, "URI") for uri in (
        "file:///public/%3f/%2e%2e/%2e%2e/etc/passwd", "file:///public/%23/../../etc/passwd",
        "file:///public/%253f/%252e%252e/%252e%252e/etc/passwd", "file:///public/%3f%2f..%2f..%2fetc/passwd",
        "http://x\\@internal/a", "http://ｉnternal/a", "http://%EF%BD%89nternal/a", "file://ｌocalhost/etc/passwd",
    )),
])  # fmt: skip
def test_what_two_readers_read_as_two_uris_is_an_error(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spellings(uri)


@given(st.text(alphabet="a:/\\@?#", max_size=14))
def test_a_backslash_before_an_at_sign_is_an_error(rest: str) -> None:
    """Wherever a reader that ends the host at a backslash, and one that does not, would find two hosts. The rule, spelt out: from
    some slash or backslash of the first run on, an @ comes after a backslash, and no slash, ? or # in between."""
    run = len(rest) - len(rest.lstrip("/\\"))
    ends = [at for at, character in enumerate(rest) if character == "@"]
    parts = [rest[begin:at] for begin in range(run + 1) for at in ends]
    hidden = any("\\" in part and not {*part} & {*"/?#"} for part in parts)
    with pytest.raises(ValueError, match="a URI has") if hidden else nullcontext():
        spellings(f"s:{rest}")


def seconds(uri: str) -> float:
    """The least of three: what noise adds, it does not take away."""
    times = []
    for _ in range(3):
        began = process_time()
        with suppress(ValueError):
            spellings(uri)
        times.append(process_time() - began)
    return min(times)


@pytest.mark.parametrize(("before", "repeated", "after"), [
    ("a:", "\\", ""), ("file:", "/\\", "x"), ("a:/", "\\@", "/"), ("http://", "@", "/"), ("http://", ":", ""),
    ("file:///", "../", ""), ("http://", ".", "x"), ("file:///", "%", ""), ("file:///", "%25", "3f"),
    ("file:///%", "25", "3f/../"), ("", "a", ""), ("http://h:", "0", "1"), ("x", "\u2003", "x"), ("file:///x", "\ufeff ", ""),
    ("file:", "\n", "x"), ("a:", "?#", ""), ("a://", "\u00e9", ""),
])  # fmt: skip
def test_the_longest_uri_costs_its_length(before: str, repeated: str, after: str) -> None:
    """Eight times as much is at most some eight times as dear."""

    def uri(characters: int) -> str:
        room = characters - len(before) - len(after)
        return before + repeated * (room // len(repeated)) + after

    short, long = seconds(uri(MAX_URI // 8)), seconds(uri(MAX_URI))
    assert long < 30 * short + 0.002
    assert long < 0.1


def test_a_longer_uri_is_not_looked_at() -> None:
    longest = "file:///" + "a" * (MAX_URI - 8)
    assert spellings(longest).same == (longest,)
    with pytest.raises(ValueError, match="more than 8192 characters"):
        spellings(longest + "a")
    assert seconds("a:" + "\\" * 20_000_000) < 0.05


def test_hosts_of_the_web_count() -> None:
    assert spellings("https://x/etc/passwd").careless == ()


def test_white_space_is_what_either_language_removes() -> None:
    """Python's `strip`, of every character, and JavaScript's `trim`."""
    python = [each for each in map(chr, range(sys.maxunicode + 1)) if not each.strip()]
    javascript = "\t\v\f \u00a0\ufeff\n\r\u2028\u2029\u1680\u202f\u205f\u3000"
    for character in {*python, *javascript, *map(chr, range(0x2000, 0x200B))}:
        assert trim(f"{character}x{character * 2}") == "x"
    assert trim("\u200bx") == "\u200bx"
