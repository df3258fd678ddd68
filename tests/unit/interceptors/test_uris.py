"""Spellings of URIs: whatever a server may understand a URI as, is among them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interceptors.uris import spellings

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
    """First the URI as it came, last as it is understood when nothing is encoded any more."""
    found = spellings(uri)
    assert found[0] == uri
    assert found[-1] == understood
    assert len(set(found)) == len(found)


def test_a_uri_that_is_encoded_over_and_over_is_an_error() -> None:
    """There is no end to it otherwise, and a client could buy time with it."""
    with pytest.raises(ValueError, match="more than 3 times"):
        spellings("file:///%2525252525252565tc")


@given(st.text(alphabet="ab:/\\.%25eE?#@\t 4", max_size=30))
def test_the_last_spelling_is_understood_as_itself(uri: str) -> None:
    """Any text has spellings, or is that error; the last one has no other but what its own parts decode to."""
    try:
        last = spellings(uri)[-1]
    except ValueError:
        return
    assert isinstance(last, str)
    if "%" not in last and "?" not in last and "#" not in last and last.isprintable():
        assert spellings(last)[-1] == spellings(spellings(last)[-1])[-1]


@pytest.mark.parametrize(
    ("uri", "understood"),
    [
        ("file:etc/passwd", "file:///etc/passwd"),
        ("http:internal/a", "http://internal/a"),
        ("http:/internal/a", "http://internal/a"),
        ("http:///internal/a", "http://internal/a"),
        ("HTTP:\\internal\\a", "http://internal/a"),
        ("http://internal:080/a", "http://internal/a"),
        ("http://internal:0080/a", "http://internal/a"),
        ("http://internal:08080/a", "http://internal:8080/a"),
        ("file:///x%3f/a", "file:///x?/a"),
    ],
)
def test_what_the_parsers_of_browsers_make_of_it_is_among_the_spellings(uri: str, understood: str) -> None:
    """WHATWG URL: slashes behind the web's schemes are not counted, a file has an absolute path, a port is a number."""
    assert understood in spellings(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "file:///public/%3f/%2e%2e/%2e%2e/etc/passwd",
        "file:///public/%23/../../etc/passwd",
        "file:///public/%253f/%252e%252e/%252e%252e/etc/passwd",
        "file:///public/%3f%2f..%2f..%2fetc/passwd",
        "http://x\\@internal/a",
        "http://ｉnternal/a",
        "http://%EF%BD%89nternal/a",
        "file://ｌocalhost/etc/passwd",
    ],
)
def test_what_two_readers_read_as_two_uris_is_an_error(uri: str) -> None:
    """Whoever compares it refuses it."""
    with pytest.raises(ValueError, match="URI"):
        spellings(uri)
