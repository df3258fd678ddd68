"""Spellings of URIs: whatever a server may understand a URI as, is among them."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interceptors.toolkit.uris import MAX_URI, spellings, trim

SAME: dict[str, list[str]] = {  # what is understood: how it is spelt
    "file:///etc/passwd": [
        "file:///etc/passwd", "file:///public/../etc/./passwd", "file:///../../etc/passwd", "file:///public/%2e%2E/etc/passwd",
        "file:///public%2F..%2fetc/passwd", "file:///public/%252e%252e/etc/passwd", "file:///%65tc/p%61sswd",
        "file%3A///etc/passwd", "file:\\\\\\public\\..\\etc\\passwd", "file:////etc//passwd", "file:/etc/passwd", "file:etc/passwd",
        "file://LOCALHOST/etc/passwd", " fi\tle:///etc/\npasswd\x00",
    ],
    "https://internal/x": [
        "HTTPS://Internal/x", "https://good.example@internal/x", "https://internal:443/x", "https://internal:/x",
        "https://internal./x", "https://internal:0443/x", "https:internal/x", "https:/internal/x", "https:///internal/x",
        "HTTPS:\\internal\\x",
    ],
    "https://internal:8443/x": ["https://internal:8443/x", "https://internal:08443/x"],
    "http://internal/X": ["http://internal:080/X"],
    "file:///x?/a": ["file:///x%3f/a"],
    "db://t/u?id=1#f": ["db://t/../u?id=1#f"],
    "file:///{path}": ["file:///a/../{path}"],
    "note:b": ["note:a/../b"],
    "file:///a/": ["file:///a/b/../"],
    "just text": ["just text"],
}  # fmt: skip


@pytest.mark.parametrize("understood", SAME)
def test_what_a_server_may_understand_is_among_the_spellings(understood: str) -> None:
    """First the URI unchanged, last as it is understood when nothing is encoded any more."""
    for uri in SAME[understood]:
        found = spellings(uri).same
        assert (found[0], found[-1]) == (uri, understood)
        assert len(set(found)) == len(found)


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
