"""The request target: what it may hold, and when it leaves an endpoint's own path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import words

from proxy.errors import RequestRefused
from proxy.http import is_target, read_target, stays_under

PATH = set(range(0x21, 0x7F)) - set(b"#?\\")
QUERY = set(range(0x21, 0x7F)) - set(b"#")
DOTS = b"/a/../%2e//%62"


@pytest.mark.parametrize(
    ("given", "raw", "path", "query", "normal", "authority"),
    [
        (b"/", b"/", b"/", b"", "/", None),
        (b"/x?", b"/x?", b"/x", b"", "/x", None),
        (b"//a??", b"//a??", b"//a", b"?", "/a", None),
        (DOTS + b"?c=%20+&d", DOTS + b"?c=%20+&d", DOTS, b"c=%20+&d", "/b", None),
        (b"http://h:80/a?b", b"/a?b", b"/a", b"b", "/a", b"h:80"),
        (b"HTTPS://h", b"/", b"/", b"", "/", b"h"),
        (b"https://h?b", b"/?b", b"/", b"b", "/", b"h"),
        (b"https://h?", b"/?", b"/", b"", "/", b"h"),
        (b"http://u@h//a", b"//a", b"//a", b"", "/a", b"u@h"),
        (b"http:///a", b"/a", b"/a", b"", "/a", b""),
    ],
)
def test_a_target_is_taken_apart_byte_for_byte(
    given: bytes, raw: bytes, path: bytes, query: bytes, normal: str, authority: bytes | None
) -> None:
    """An absolute form loses its origin (RFC 9112, section 3.2.2); a bare `?` stays (RFC 3986,
    section 6.2.3).
    """
    assert read_target(given) == (raw, path, query, normal, authority)


NO_TARGETS = words(r"* h:80 a/b ftp://h/ http:/a ? # http://h#/a http://h\a /a\..\b /a# /?#")


@pytest.mark.parametrize("target", [*NO_TARGETS, "", "/ ", " /"])
def test_an_invalid_target_is_refused(target: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        read_target(target.encode())
    assert caught.value.status == 400


def test_each_octet() -> None:
    """`#` nowhere, `\\` in a query only, and nothing but visible ASCII."""
    for code in range(256):
        byte = bytes([code])
        assert is_target(b"/a" + byte + b"b") is (code in PATH or byte == b"?")
        assert is_target(b"/a?" + byte + b"b") is (code in QUERY)


def resolved(path: str) -> list[str]:
    """The segments that a server sees, dot segments resolved and empty ones left out."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return kept


def decoded(text: str, separators: list[str], *, parameters: bool) -> str:
    for escape in ("%2e", "%2E"):
        text = text.replace(escape, ".")
    for escape in separators:
        text = text.replace(escape, "/").replace(escape.upper(), "/")
    if not parameters:
        text = "/".join(segment.partition(";")[0] for segment in text.split("/"))
    return text


PIECES = words("a t .. %2e%2E .%2e . ..%2f.. ..%5C.. x%2Fy ..;p ; ..a %252e%252e")
segments = st.lists(st.sampled_from([*PIECES, ""]), max_size=7)


@given(segments, st.sampled_from(["/t", "/t/u", "/t%2Fu", "/t;p/u"]))
def test_what_stays_under_a_base_does_so_in_each_reading(segments: list[str], base: str) -> None:
    """Escaped separators decoded or not, parameters of segments kept or not: as a plain model
    resolves them.
    """
    path = "/" + "/".join(segments)
    expected = True
    for separators in ([], ["%2f"], ["%5c"], ["%2f", "%5c"]):
        for parameters in (True, False):
            own = resolved(decoded(base, separators, parameters=parameters))
            whole = resolved(decoded(base + path, separators, parameters=parameters))
            expected = expected and whole[: len(own)] == own
    assert stays_under(base.encode(), path.encode()) is expected
