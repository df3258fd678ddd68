"""A host as RFC 9110 (section 7.2) and RFC 3986 (section 3.2.2) have it, and lists of hosts."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import RequestRefused
from proxy.http import Host, HostList, parse_host, request_host

IN_A_NAME = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=")


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"A.Example", ("a.example", None)),
        (b"a_b.", ("a_b.", None)),
        (b"a.example:", ("a.example", None)),
        (b"a:00080", ("a", 80)),
        (b"a:65535", ("a", 65535)),
        (b"[2001:DB8:0::1]:8000", ("[2001:db8::1]", 8000)),
        (b"[::FFFF:1.2.3.4]", (f"[{ipaddress.IPv6Address('::ffff:1.2.3.4')}]", None)),
        (b"a%2Fb", ("a%2fb", None)),
        (b"127.0.0.1", ("127.0.0.1", None)),
    ],
)
def test_what_a_host_is(value: bytes, host: tuple[str, int | None]) -> None:
    assert parse_host(value) == parse_host(value.decode()) == host


NO_HOSTS = """
    :80 a:65536 a:100000 a:000080 a:+1 u@a a/b a?b a#b a\\b [::1 ::1 [] [::1]a [1.2.3.4] [::1%25e] [::1%e] [v1.a] [:::] a% a%zz
    a:1:2 "a" <a> a:80@b
"""


@pytest.mark.parametrize(
    "value", [*NO_HOSTS.encode().split(), b"", b"a:1 ", b" a", b"a b", b"a\n", b"a\x00", b"a\xe9"]
)
def test_what_is_not_a_host(value: bytes) -> None:
    assert parse_host(value) is None


def test_each_octet_of_a_name() -> None:
    for code in range(256):
        assert (parse_host(b"a" + bytes([code]) + b"b") is not None) is (code in IN_A_NAME)


@given(st.ip_addresses(v=6), st.none() | st.integers(0, 65535))
def test_an_address_has_one_spelling(address: ipaddress.IPv6Address, port: int | None) -> None:
    suffix = "" if port is None else f":{port}"
    short, long = (
        parse_host(f"[{address.compressed}]{suffix}"),
        parse_host(f"[{address.exploded.upper()}]{suffix}"),
    )
    assert short == long == (f"[{address}]", port)
    assert short is not None
    assert short.is_address


def test_what_is_an_address() -> None:
    for name, expected in [
        ("127.0.0.1", True),
        ("[::1]", True),
        ("localhost", False),
        ("1.2.3", False),
        ("0x7f.0.0.1", False),
    ]:
        assert Host(name, None).is_address is expected


def test_a_host_without_a_port_allows_each_of_its_ports() -> None:
    hosts = HostList(["A.example", "b.example:81", "[::1]"])
    for value in ("a.EXAMPLE", "a.example:1", "b.example:81", "[0::1]:5"):
        assert parse_host(value) in hosts
    for value in ("b.example", "b.example:82", "c.example", "[::2]"):
        assert parse_host(value) not in hosts
    assert None not in hosts
    for item in ("", "https://a.example", "a b"):
        with pytest.raises(ValueError, match="is not a host"):
            HostList([item])


def test_the_host_of_a_request() -> None:
    """The authority of an absolute-form target, else the one Host header (RFC 9112, section 3.2.2)."""
    assert request_host([(b"host", b"A:1")], None, "1.1") == (b"A:1", ("a", 1))
    assert request_host([(b"host", b"a")], b"B", "1.1") == (b"B", ("b", None))
    assert (
        request_host([(b"host", b"")], None, "1.1") == request_host([], None, "1.0") == (b"", None)
    )
    for headers, authority in [
        ([b"a", b"a"], None),
        ([b"a b"], None),
        ([b"a"], b"u@b"),
        ([b"a"], b""),
        ([b"a b"], b"b"),
    ]:
        with pytest.raises(RequestRefused) as caught:
            request_host([(b"host", value) for value in headers], authority, "1.2")
        assert caught.value.status == 400
