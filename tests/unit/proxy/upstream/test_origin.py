"""The one form of a host: A-labels by IDNA 2008, for what is resolved, sent, verified and written."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tables import words

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
    """IDNA 2008 keeps ß and ς; an ASCII name stays, in lower case. TLS gets it without its last dot
    (RFC 6066, section 3).
    """
    assert to_a_labels(name) == labels
    assert to_a_labels(labels) == labels
    assert server_name(name) == labels.removesuffix(".")
    endpoint = Endpoint(f"https://{name}:8443/v1")
    assert endpoint.host == f"{labels}:8443".encode()
    assert endpoint.url.raw_host == labels.encode()
    assert endpoint.place == f"https://{labels} 8443/v1"


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "a\x00", "a" * 64, "a.".join("b" * 130), "ß" * 70),
        *words(". a..b .a a:1 a/b a%41 *.a [::1] I❤.ws"),
    ],
)
def test_what_is_not_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (idna has its own subclasses)
        to_a_labels(name)


@given(st.text(alphabet="aZ09-_.ßäöüéσς日本語\u3002\u0301❤ﬁ", min_size=1, max_size=12))
@settings(max_examples=50)
@example("straße.de")
def test_httpx_writes_the_same_form_of_every_name(name: str) -> None:
    """Where both accept a name, both have the same A-labels."""
    try:
        labels = to_a_labels(name)
    except ValueError:
        return
    assert httpx.URL(f"https://{name}").raw_host.decode() == labels


def test_an_address_is_distinguished_from_a_name() -> None:
    for address in ("127.0.0.1", "::1"):
        assert address_family(address) is not None
        assert server_name(address) == address
    for name in ("127.1", "localhost", "a\x00", "ß"):
        assert address_family(name) is None
    assert str(Origin("https", "::1", 443)) == "https://[::1]:443"
