"""The request target octet by octet, and when it leaves an endpoint's own path.
`tests/integration/test_targets.py` has what becomes of a target.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.tables import words

from proxy.http import is_target, stays_under

PATH = set(range(0x21, 0x7F)) - set(b"#?\\")
QUERY = set(range(0x21, 0x7F)) - set(b"#")


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
