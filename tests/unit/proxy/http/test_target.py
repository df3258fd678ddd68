"""The target and the host of a request octet by octet (RFC 9112, section 3.2; RFC 9110, section 7.2;
RFC 3986), and when a path leaves an endpoint's own path. `tests/integration/test_targets.py` has what
becomes of them.
"""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import words

from proxy.errors import RequestRefused
from proxy.http import HostList, is_target, parse_host, request_host, stays_under

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


IN_A_NAME = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;="


@pytest.mark.parametrize(
    ("value", "host", "is_address"),
    [
        (b"A.Example", ("a.example", None), False),
        (b"a_b.", ("a_b.", None), False),
        (b"a.example:", ("a.example", None), False),
        (b"a:00080", ("a", 80), False),
        (b"a:65535", ("a", 65535), False),
        (b"a%2Fb", ("a%2fb", None), False),
        (b"1.2.3", ("1.2.3", None), False),
        (b"0x7f.0.0.1", ("0x7f.0.0.1", None), False),
        (b"127.0.0.1", ("127.0.0.1", None), True),
        (b"[2001:DB8:0::1]:8000", ("[2001:db8::1]", 8000), True),
        (b"[::FFFF:1.2.3.4]", (f"[{ipaddress.IPv6Address('::ffff:1.2.3.4')}]", None), True),
    ],
)
def test_what_a_host_is(value: bytes, host: tuple[str, int | None], is_address: bool) -> None:
    parsed = parse_host(value)
    assert parsed == parse_host(value.decode()) == host
    assert parsed is not None
    assert parsed.is_address is is_address


NO_HOSTS = words(
    """
    :80 a:65536 a:100000 a:000080 a:+1 a:-1 a:8o u@a @a a@ a/b a/../b a?b a#b a\\b [::1 ::1 [] [::1]a
    [1.2.3.4] [::1%25e] [::1%e] [v1.a] [:::] [::g] a% a%2 a%zz a:1:2 "a" <a> a:80@b a:x/..//b a,b:x
    """
)


@pytest.mark.parametrize("value", [*NO_HOSTS, "", "a:1 ", " a", "a b", "a\n", "a\x00", "a\xe9"])
def test_what_is_not_a_host(value: str) -> None:
    assert parse_host(value.encode("latin-1")) is parse_host(value) is None


def test_each_octet_of_a_name() -> None:
    for code in range(256):
        assert (parse_host(b"a" + bytes([code]) + b"b") is not None) is (code in IN_A_NAME)


@given(st.ip_addresses(v=6), st.none() | st.integers(0, 65535))
@settings(max_examples=50)
def test_an_address_has_one_spelling(address: ipaddress.IPv6Address, port: int | None) -> None:
    suffix = "" if port is None else f":{port}"
    for spelling in (address.compressed, address.exploded.upper()):
        assert parse_host(f"[{spelling}]{suffix}") == (f"[{address}]", port)


def test_two_hosts_are_refused() -> None:
    """Equal or not (RFC 9112, section 3.2)."""
    with pytest.raises(RequestRefused) as caught:
        request_host([(b"host", b"a"), (b"x", b"y"), (b"host", b"a")], None, "1.1")
    assert caught.value.status == 400


@pytest.mark.parametrize("item", ["", "https://a.example", "a b"])
def test_a_list_of_hosts_has_only_hosts(item: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        HostList([item])
