"""The one form of a host: A-labels by IDNA 2008, for what is resolved, sent, verified and written."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.upstream import Endpoint
from proxy.upstream.origin import Origin, address_family, server_name, to_a_labels


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("straße.de", "xn--strae-oqa.de"),
        ("www.Straße.DE", "www.xn--strae-oqa.de"),
        ("xn--strae-oqa.de", "xn--strae-oqa.de"),
        ("faß.example.", "xn--fa-hia.example."),
        ("ας.example", "xn--mxa8a.example"),
        ("日本語。jp", "xn--wgv71a119e.jp"),
        ("API.Example.com", "api.example.com"),
        ("my_service", "my_service"),
        ("localhost", "localhost"),
        ("xn--i-7iq.ws", "xn--i-7iq.ws"),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
    ],
)
def test_a_name_has_one_form(name: str, labels: str) -> None:
    """IDNA 2008 keeps ß and ς; an ASCII name stays, in lower case."""
    assert to_a_labels(name) == labels
    assert to_a_labels(labels) == labels
    endpoint = Endpoint(f"https://{name}:8443/v1")
    assert endpoint.host == f"{labels}:8443".encode()
    assert endpoint.url.raw_host == labels.encode()
    assert endpoint.place == f"https://{labels} 8443/v1"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "a:1",
        "a/b",
        "a%41",
        "*.a",
        "[::1]",
        "a" * 64,
        "a.".join("b" * 130),
        "I❤.ws",
        "a\x00",
        "ß" * 70,
    ],
)
def test_what_is_not_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (idna has its own subclasses)
        to_a_labels(name)


@given(st.text(alphabet="aZ09-_.ßäöüéσς日本語\u3002\u0301❤ﬁ", min_size=1, max_size=12))
@settings(deadline=None, max_examples=100)
@example("straße.de")
def test_httpx_writes_the_same_form_of_every_name(name: str) -> None:
    """A URL's host comes from httpx: where both accept a name, both have the same A-labels."""
    try:
        labels = to_a_labels(name)
    except ValueError:
        return
    assert httpx.URL(f"https://{name}").raw_host.decode() == labels


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("straße.de.", "xn--strae-oqa.de"),
        ("backend.example", "backend.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_tls_gets_a_name_without_its_last_dot_or_an_address(host: str, name: str) -> None:
    """RFC 6066, section 3."""
    assert server_name(host) == name


def test_an_address_is_distinguished_from_a_name() -> None:
    assert [
        address_family(host) is None
        for host in ("127.0.0.1", "::1", "127.1", "localhost", "a\x00", "ß")
    ] == [
        *(False, False),
        *(True, True, True, True),
    ]
    assert str(Origin("https", "::1", 443)) == "https://[::1]:443"
