"""Headers on their way through: what is removed at the hop, what passes unchanged, and reports
about the client.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from proxy.errors import RequestRefused
from proxy.http.headers import (
    HeaderList,
    HeaderSettings,
    TrustedProxies,
    Via,
    client_of,
    client_origin,
    end_to_end,
    forwards_left,
    network_of,
    new_pseudonym,
    one_spelling,
    received_request,
    refuse_two_lengths,
    request_headers,
    response_headers,
    without_doubles,
)

PLAIN = HeaderSettings(host=b"upstream.test", set=(), removed=frozenset())
HOST = (b"host", b"client.test")
VIA = b"1.1 us"


def sent(headers: HeaderList, settings: HeaderSettings = PLAIN, **options: Any) -> HeaderList:
    """The headers that go upstream of a request that arrives with these."""
    trusted = options.pop("trusted", False)
    arguments: dict[str, Any] = {
        "client": "192.0.2.1",
        "scheme": "http",
        "identity": False,
        "body": None,
        "via": VIA,
        **options,
    }
    return request_headers(received_request(headers, trusted=trusted), settings, **arguments)


def passed(headers: HeaderList, settings: HeaderSettings = PLAIN, **options: Any) -> HeaderList:
    """Those of them that are neither Host nor reports about the client."""
    return [
        item
        for item in sent([HOST, *headers], settings, **options)
        if item[0] not in (b"host", *FORWARDING)
    ]


def named(headers: HeaderList, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


FORWARDING = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via")


def test_everything_else_passes_in_its_order_with_its_duplicates() -> None:
    """Values byte for byte."""
    headers = [
        (b"b", b"1"),
        (b"a", b"\xff, x"),
        (b"cookie", b"a=1"),
        (b"b", b""),
        (b"cookie", b"b=2"),
        (b"accept", b"*/*"),
    ]
    assert passed(headers) == headers


@pytest.mark.parametrize(
    "name",
    (
        b"connection|keep-alive|proxy-connection|proxy-authenticate|proxy-authorization|"
        b"te|trailer|transfer-encoding|upgrade|http2-settings|proxy-authentication-info"
    ).split(b"|"),
)
def test_hop_by_hop_headers_stay_on_their_hop(name: bytes) -> None:
    """In both directions, and when an interceptor sets them."""
    headers = [(b"a", b"1"), (name, b"trailers"), (b"b", b"2")]
    assert passed(headers) == end_to_end(headers) == [(b"a", b"1"), (b"b", b"2")]
    set_later = request_headers(
        headers, PLAIN, client=None, scheme="http", identity=False, body=None, via=VIA
    )
    assert set_later[1:3] == [(b"a", b"1"), (b"b", b"2")]
    assert response_headers(headers, dropped=frozenset(), sse=False) == [(b"a", b"1"), (b"b", b"2")]


def test_headers_that_connection_names_stay_on_their_hop() -> None:
    """In any case, with spaces, in several Connection headers, whichever comes first."""
    headers = [
        *[
            (b"x-one", b"1"),
            (b"connection", b"X-One , close"),
            (b"x-two", b"2"),
            (b"x-three", b"3"),
            (b"x-two", b"4"),
        ],
        *[(b"connection", b",x-two,"), (b"close", b"5")],
    ]
    assert passed(headers) == end_to_end(headers) == [(b"x-three", b"3")]


@pytest.mark.parametrize(
    "name",
    (b"content-type|content-encoding|cache-control|authorization|cookie|via|max-forwards").split(
        b"|"
    ),
)
def test_connection_cannot_take_away_what_the_message_means(name: bytes) -> None:
    """Or a client could strip the credentials that a proxy in front of us had added."""
    headers = [(b"connection", b"close, " + name.upper()), (name, b"x")]
    assert received_request(headers, trusted=False) == end_to_end(headers) == [(name, b"x")]


def test_connection_cannot_take_away_host_or_framing() -> None:
    result = sent(
        [
            HOST,
            (b"connection", b"host, content-length, x-forwarded-for"),
            (b"content-length", b"5"),
        ],
        body=b"5",
    )
    assert named(result, b"host") == [b"upstream.test"]
    assert named(result, b"content-length") == [b"5"]
    assert named(result, b"x-forwarded-for") == [b"192.0.2.1"]
    assert end_to_end([(b"connection", b"content-length"), (b"content-length", b"5")]) == [
        (b"content-length", b"5")
    ]


def test_the_framing_of_a_request_stays_readable() -> None:
    """For the reader of the body. It goes neither to interceptors nor upstream."""
    headers = [
        (b"Connection", b"transfer-encoding"),
        (b"Transfer-Encoding", b"chunked"),
        (b"te", b"trailers"),
    ]
    assert received_request(headers, trusted=False) == [(b"transfer-encoding", b"chunked")]


def test_what_is_set_after_the_removal_arrives() -> None:
    """An interceptor's field, although the client's Connection named it, and its words about the
    client.
    """
    headers = received_request(
        [HOST, (b"connection", b"x-user-id"), (b"x-user-id", b"mallory")], trusted=False
    )
    headers += [
        (b"x-user-id", b"alice"),
        (b"x-forwarded-user", b"alice"),
        (b"x-forwarded-proto", b"https"),
    ]
    result = request_headers(
        headers, PLAIN, client="192.0.2.1", scheme="http", identity=False, body=None, via=VIA
    )
    assert named(result, b"x-user-id") == named(result, b"x-forwarded-user") == [b"alice"]
    assert named(result, b"x-forwarded-proto") == [b"https"]


def test_connection_cannot_take_a_trusted_proxys_word_away() -> None:
    """A client of that proxy would otherwise hide where it comes from, or who it is."""
    user = (b"x-forwarded-user", b"alice")
    assert user in sent([HOST, (b"connection", b"X-Forwarded-User"), user], trusted=True)
    headers = [HOST, (b"connection", b"x-forwarded-for"), (b"x-forwarded-for", b"203.0.113.9")]
    assert named(sent(headers, trusted=True), b"x-forwarded-for") == [b"203.0.113.9, 192.0.2.1"]


# Host


@pytest.mark.parametrize(
    ("mode", "host"),
    [
        (b"upstream.test:8080", b"upstream.test:8080"),
        (None, b"client.test"),
        (b"literal", b"literal"),
    ],
)
def test_host_is_the_upstreams_the_clients_or_a_literal(mode: bytes | None, host: bytes) -> None:
    """Once, and first (RFC 9110, section 7.2), wherever the client had it."""
    settings = HeaderSettings(host=mode, set=(), removed=frozenset())
    result = sent([(b"a", b"1"), HOST, (b"b", b"2")], settings)
    assert result[0] == (b"host", host)
    assert len(named(result, b"host")) == 1


def test_two_hosts_are_refused() -> None:
    """Equal or not: two servers could take a different one each (RFC 9112, section 3.2)."""
    for second in (b"client.test", b"other.test"):
        with pytest.raises(RequestRefused) as caught:
            sent([HOST, (b"a", b"1"), (b"host", second)])
        assert (caught.value.status, caught.value.kind) == (400, "bad_request")


def test_a_request_without_host_gets_one() -> None:
    """HTTP/1.0 has none, and there is nothing to say about it then."""
    assert sent([]) == [
        (b"host", b"upstream.test"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-proto", b"http"),
        (b"via", VIA),
    ]


# Framing and encoding


def test_framing_depends_on_the_body_only() -> None:
    """The client's Content-Length, Transfer-Encoding and Expect are of its hop."""
    headers = [
        (b"content-length", b"99"),
        (b"expect", b"100-continue"),
        (b"transfer-encoding", b"chunked"),
    ]
    assert passed(headers, body=None) == []
    assert passed(headers, body=b"5") == [(b"content-length", b"5")]
    assert passed(headers, body=b"0") == [(b"content-length", b"0")]
    assert passed(headers, body=b"") == [(b"transfer-encoding", b"chunked")]


def test_an_interceptor_that_reads_needs_an_unencoded_body() -> None:
    headers = [(b"accept-encoding", b"gzip"), (b"a", b"1"), (b"accept-encoding", b"br")]
    assert passed(headers) == headers
    assert passed(headers, identity=True) == [(b"a", b"1"), (b"accept-encoding", b"identity")]
    assert passed([], identity=True) == [(b"accept-encoding", b"identity")]


# Rules


def test_rules_remove_and_set() -> None:
    """A header that is set replaces all of the client's of its name, and Connection cannot take it
    away.
    """
    settings = HeaderSettings(
        host=b"h",
        set=((b"authorization", b"Bearer ours"), (b"x-new", b"n")),
        removed=frozenset([b"authorization", b"x-new", b"x-in"]),
    )
    headers = [
        (b"x-in", b"1"),
        (b"authorization", b"theirs"),
        (b"a", b"1"),
        (b"x-in", b"2"),
        (b"authorization", b"2"),
    ]
    assert passed([*headers, (b"connection", b"x-new")], settings) == [
        (b"a", b"1"),
        (b"authorization", b"Bearer ours"),
        (b"x-new", b"n"),
    ]


# Reports about the client

CLAIMS = [
    (b"forwarded", b"for=203.0.113.9"),
    (b"x-forwarded-for", b"203.0.113.9"),
    (b"x-forwarded-for", b"203.0.113.10"),
    (b"x-forwarded-host", b"public.test"),
    (b"x-forwarded-port", b"8443"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-server", b"edge"),
]


def test_what_an_untrusted_client_reports_of_itself_is_dropped() -> None:
    """Only what we know of it goes up."""
    assert sent([HOST, *CLAIMS, (b"a", b"1")]) == [
        (b"host", b"upstream.test"),
        (b"a", b"1"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"client.test"),
        (b"via", VIA),
    ]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "name",
    (
        b"x_forwarded_for|x-forwarded_for|x_forwarded-for|X_Forwarded_Proto|"
        b"x-forwarded_host|x_real_ip|x-real_ip|x_forwarded_prefix|x-forwarded_user|"
        b"x_forwarded-ssl"
    ).split(b"|"),
)
def test_an_underscore_makes_no_other_name(name: bytes, trusted: bool) -> None:
    """CGI's variable is the same (RFC 3875, section 4.1.18): neither a client nor a client of a
    trusted proxy writes it.
    """
    assert sent([HOST, (name, b"6.6.6.6")], trusted=trusted) == sent([HOST], trusted=trusted)


@pytest.mark.parametrize("name", b"mcp_session_id content_length last_event_id".split())
def test_a_field_that_the_proxy_reads_has_one_spelling(name: bytes) -> None:
    assert passed([(name, b"1")]) == []


def test_what_the_configuration_removes_is_removed_in_both_spellings() -> None:
    received = [(b"x_user", b"1"), (b"x_other", b"2")]
    assert without_doubles(received, received, frozenset([b"x-user"])) == received[1:]


def test_every_x_forwarded_field_is_believed_from_trusted_proxies_only() -> None:
    headers = [
        (b"x-forwarded-user", b"alice"),
        (b"x-forwarded-ssl", b"on"),
        (b"x-forwarded-client-cert", b"c"),
    ]
    assert passed(headers) == []
    assert passed(headers, trusted=True) == headers


def test_other_names_with_an_underscore_pass() -> None:
    headers = [
        (b"x_request_id", b"1"),
        (b"forwarded_to", b"2"),
        (b"xforwarded_for", b"3"),
        (b"x__forwarded_for", b"4"),
    ]
    assert passed(headers) == headers


def test_a_trusted_proxys_word_is_kept_and_its_address_appended() -> None:
    assert sent([HOST, *CLAIMS, (b"a", b"1")], trusted=True) == [
        (b"host", b"upstream.test"),
        (b"forwarded", b"for=203.0.113.9"),
        (b"x-forwarded-port", b"8443"),
        (b"x-forwarded-server", b"edge"),
        (b"a", b"1"),
        (b"x-forwarded-for", b"203.0.113.9, 203.0.113.10, 192.0.2.1"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"public.test"),
        (b"via", VIA),
    ]


def test_a_trusted_proxy_without_a_report_counts_as_the_client() -> None:
    assert sent([HOST], trusted=True, scheme="https") == sent([HOST], trusted=False, scheme="https")
    assert named(sent([HOST], trusted=True, scheme="https"), b"x-forwarded-proto") == [b"https"]


def test_a_client_without_an_address_is_not_named() -> None:
    """On a Unix socket; the report of a trusted proxy stays."""
    assert named(sent([HOST], client=None), b"x-forwarded-for") == []
    assert named(sent([HOST, *CLAIMS], client=None, trusted=True), b"x-forwarded-for") == [
        b"203.0.113.9, 203.0.113.10"
    ]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::FFFF:7f00:1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("2001:db8::ffff:1", "2001:db8::ffff:1"),
        ("::ffff:0:127.0.0.1", "::ffff:0:127.0.0.1"),
        ("::ffff:nonsense", "::ffff:nonsense"),
        ("", ""),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_ipv4_client_has_one_spelling(address: str, expected: str) -> None:
    """RFC 4291, section 2.5.5.2: whether it came by a socket of both families makes no difference."""
    assert one_spelling(address) == expected


def test_a_mapped_network_is_trusted_as_the_ipv4_network_that_it_is() -> None:
    trusted = TrustedProxies(["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::/0"])
    assert "10.1.2.3" in trusted
    assert "192.0.2.1" in trusted
    assert "192.0.2.2" not in trusted


def test_trusted_proxies_are_addresses_and_networks() -> None:
    trusted = TrustedProxies(["10.0.0.0/8", "192.0.2.1", "fd00::/8", "172.16.5.4/16"])
    for address in ("10.255.0.1", "192.0.2.1", "fd12::1", "172.16.0.1"):
        assert address in trusted
    for address in ("11.0.0.1", "192.0.2.2", "fe80::1", "", "unix:", "10.0.0", None):
        assert address not in trusted
    assert "10.0.0.1" not in TrustedProxies()


# Via and Max-Forwards


def via(*values: bytes) -> HeaderList:
    return [(b"via", value) for value in values]


def test_a_gateway_adds_itself_after_what_is_there() -> None:
    """With the protocol in which the request came (RFC 9110, section 7.6.3)."""
    us = Via("us")
    before = via(b"1.1 a", b"2 b:80 (c, d)")
    assert named(sent([], via=us.entry("1.0")), b"via") == [b"1.0 us"]
    assert named(sent(before, via=us.entry("2")), b"via") == [b"1.1 a, 2 b:80 (c, d), 2 us"]
    assert named(sent([], HeaderSettings(b"h", (), frozenset([b"via"]))), b"via") == []


@pytest.mark.parametrize(
    ("values", "looped"),
    [
        ([b"1.1 us"], True),
        ([b"1.1 a, 2 us ,1.0 b"], True),
        ([b"1.1 a", b"HTTP/1.1\tus (comment)"], True),
        ([], False),
        ([b"1.1 usa, 1.1 a-us, us 1.1, 1.1 a (us)"], False),
        ([b"us", b"", b",", b"1.1 them"], False),
    ],
)
def test_a_request_that_has_passed_is_known_by_the_pseudonym(
    values: list[bytes], looped: bool
) -> None:
    assert Via("us").lists([HOST, *via(*values)]) is looped
    assert not Via("us").lists([(b"x-via", value) for value in values])


def test_two_instances_have_two_pseudonyms() -> None:
    """Tokens, without the name of a host or a version."""
    first, second = new_pseudonym(), new_pseudonym()
    assert first != second
    assert re.fullmatch("weirpool-[0-9a-f]{16}", first)


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ([], None),
        ([b"0"], 0),
        ([b" 000 "], 0),
        ([b"5"], 5),
        ([b"007"], 7),
        ([b"2147483648"], 2**31 - 1),
        ([b"9" * 9000], 2**31 - 1),
        ([b"0" * 9000 + b"1"], 1),
    ],
)
def test_max_forwards_is_a_number(values: list[bytes], left: int | None) -> None:
    assert forwards_left([HOST, *((b"max-forwards", value) for value in values)]) == left


@pytest.mark.parametrize(
    "values", [[b""], [b"-1"], [b"5, 4"], [b"5", b"5"], [b"\xb2"], [b"0x5"], [b"5.0"], [b"1_0"]]
)
def test_any_other_max_forwards_is_refused(values: list[bytes]) -> None:
    with pytest.raises(RequestRefused) as caught:
        forwards_left([(b"max-forwards", value) for value in values])
    assert caught.value.status == 400


# The way down


def test_response_headers_pass_in_their_order_with_their_duplicates_in_lower_case() -> None:
    """ASGI wants lower case; nothing else changes."""
    headers = [
        (b"Set-Cookie", b"a"),
        (b"Server", b"x"),
        (b"set-cookie", b"B"),
        (b"X-Accel-Buffering", b"yes"),
    ]
    assert response_headers(headers, dropped=frozenset(), sse=False) == [
        (b"set-cookie", b"a"),
        (b"server", b"x"),
        (b"set-cookie", b"B"),
        (b"x-accel-buffering", b"yes"),
    ]


def test_response_headers_that_the_server_adds_or_that_are_true_no_more_are_dropped() -> None:
    headers = [(b"Date", b"1"), (b"a", b"2"), (b"Content-Length", b"3")]
    assert response_headers(
        headers, dropped=frozenset([b"date", b"content-length"]), sse=False
    ) == [(b"a", b"2")]


def test_an_event_stream_asks_proxies_in_front_not_to_buffer() -> None:
    """Once, whatever the upstream sent."""
    headers = [
        (b"X-Accel-Buffering", b"yes"),
        (b"content-type", b"text/event-stream"),
        (b"x-accel-buffering", b"no"),
    ]
    assert response_headers(headers, dropped=frozenset(), sse=True) == [
        (b"content-type", b"text/event-stream"),
        (b"x-accel-buffering", b"no"),
    ]


def xff(*values: bytes) -> HeaderList:
    return [(b"x-forwarded-for", value) for value in values]


def forwarded(*values: bytes) -> HeaderList:
    return [(b"forwarded", value) for value in values]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        # Only the report of a trusted proxy counts.
        ("192.0.2.1", xff(b"198.51.100.1"), "192.0.2.1"),
        ("192.0.2.1", forwarded(b"for=198.51.100.1"), "192.0.2.1"),
        (None, xff(b"198.51.100.1"), None),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", xff(b"198.51.100.1"), "198.51.100.1"),
        # What stands before the first address that is not trusted is its own word.
        ("10.0.0.1", xff(b"6.6.6.6, 198.51.100.1"), "198.51.100.1"),
        ("10.0.0.1", xff(b"6.6.6.6", b"198.51.100.1 ,10.0.0.2"), "198.51.100.1"),
        ("10.0.0.1", xff(b"10.0.0.3, 10.0.0.2"), "10.0.0.3"),
        # One address, one spelling.
        ("10.0.0.1", xff(b"2001:DB8:0::1"), "2001:db8::1"),
        ("10.0.0.1", xff(b"[2001:db8::1]:443"), "2001:db8::1"),
        ("10.0.0.1", xff(b"198.51.100.1:4711"), "198.51.100.1"),
        ("10.0.0.1", xff(b"::ffff:198.51.100.1"), "198.51.100.1"),
        # Text that is not an address counts as the proxy that wrote it.
        ("10.0.0.1", xff(b"unknown"), "10.0.0.1"),
        ("10.0.0.1", xff(b"6.6.6.6, unknown, 10.0.0.2"), "10.0.0.2"),
        ("10.0.0.1", xff(b""), "10.0.0.1"),
        ("10.0.0.1", xff(b"198.51.100.1,"), "10.0.0.1"),
        ("10.0.0.1", forwarded(b"for=198.51.100.1;proto=https"), "198.51.100.1"),
        ("10.0.0.1", forwarded(b'proto=https;For="[2001:db8::1]:4711"'), "2001:db8::1"),
        (
            "10.0.0.1",
            forwarded(b"for=6.6.6.6, for=198.51.100.1", b"for=10.0.0.2;by=10.0.0.1"),
            "198.51.100.1",
        ),
        ("10.0.0.1", forwarded(b"for=_hidden"), "10.0.0.1"),
        ("10.0.0.1", forwarded(b'for=198.51.100.1, for="6.6.6.6'), "10.0.0.1"),
        ("10.0.0.1", forwarded(b"by=6.6.6.6"), "10.0.0.1"),
        ("10.0.0.1", [*forwarded(b"for=6.6.6.6"), *xff(b"198.51.100.1")], "198.51.100.1"),
    ],
)
def test_the_client_is_whom_the_outermost_trusted_proxy_saw(
    peer: str | None, headers: HeaderList, client: str | None
) -> None:
    assert client_of(peer, headers, TrustedProxies(["10.0.0.0/8"])) == client


def test_without_trusted_proxies_the_client_is_the_peer() -> None:
    assert client_of("10.0.0.1", xff(b"6.6.6.6"), TrustedProxies()) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_one_clients_addresses_count_as_one(address: str, network: str) -> None:
    """Of IPv6, a host has a /64 to send from."""
    assert network_of(address) == network


# The stripped prefix, and the client's URL

STRIPPED = HeaderSettings(host=b"upstream.test", set=(), removed=frozenset(), prefix=b"/tools")
PREFIX = b"x-forwarded-prefix"


@pytest.mark.parametrize(
    ("settings", "trusted", "values", "expected"),
    [
        (STRIPPED, False, [], [b"/tools"]),
        (STRIPPED, False, [b"/evil"], [b"/tools"]),
        (STRIPPED, True, [], [b"/tools"]),
        (STRIPPED, True, [b"/gw"], [b"/gw/tools"]),
        (STRIPPED, True, [b"/gw/"], [b"/gw/tools"]),
        (STRIPPED, True, [b"/"], [b"/tools"]),
        (STRIPPED, True, [b"/a, /b/", b"/c"], [b"/a/b/c/tools"]),
        (PLAIN, False, [b"/evil"], []),
        (PLAIN, True, [b"/gw/"], [b"/gw/"]),
        (
            HeaderSettings(b"h", ((PREFIX, b"/set"),), frozenset([PREFIX]), b"/tools"),
            True,
            [b"/gw"],
            [b"/set"],
        ),
        (HeaderSettings(b"h", (), frozenset([PREFIX]), b"/tools"), True, [b"/gw"], []),
    ],
)
def test_the_server_gets_the_stripped_prefix(
    settings: HeaderSettings, trusted: bool, values: list[bytes], expected: list[bytes]
) -> None:
    """After a trusted proxy's; the client's own is dropped; `headers.set` and `headers.remove`
    decide last.
    """
    assert (
        named(
            sent([HOST, *((PREFIX, value) for value in values)], settings, trusted=trusted), PREFIX
        )
        == expected
    )


@pytest.mark.parametrize(
    ("headers", "trusted", "expected"),
    [
        ([HOST], False, "https://client.test"),
        ([(b"host", b"[::1]:8000")], False, "https://[::1]:8000"),
        (
            [HOST, (b"x-forwarded-host", b"evil.test"), (b"x-forwarded-proto", b"http")],
            False,
            "https://client.test",
        ),
        (
            [HOST, (b"x-forwarded-host", b"public.test:81"), (b"x-forwarded-proto", b"HTTP")],
            True,
            "http://public.test:81",
        ),
        (
            [HOST, (b"x-forwarded-host", b"a.test, b.test"), (b"x-forwarded-proto", b"http,https")],
            True,
            "http://a.test",
        ),
        ([HOST, (b"x-forwarded-proto", b"gopher")], True, "https://client.test"),
        ([(b"host", b'a"b')], False, None),
        ([(b"host", b"a/b")], False, None),
        ([], False, None),
    ],
)
def test_the_origin_that_the_client_has_used(
    headers: HeaderList, trusted: bool, expected: str | None
) -> None:
    """As trusted proxies report it; never what a URL cannot contain, which could end a quoted string."""
    assert client_origin(received_request(headers, trusted=trusted), scheme="https") == expected


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b'for=2.2.2.2;host="a;for=7.7.7.7"', "2.2.2.2"),
        (b'for=2.2.2.2;host="a,for=7.7.7.7";proto=http', "2.2.2.2"),
        (b'for=2.2.2.2;host="\\",for=7.7.7.7"', "2.2.2.2"),
        (b'for=9.9.9.9, host="x" ; For="2.2.2.2:80"', "2.2.2.2"),
        (b"by=x;for=2.2.2.2;xfor=7.7.7.7 , for=10.0.0.1,", "2.2.2.2"),
        (b'for="x, for=7.7.7.7', "10.0.0.2"),
        (b'for="x, for="[2001:db8::7]"', "10.0.0.2"),
        (b"for=7.7.7.7 for=7.7.7.8", "10.0.0.2"),
    ],
)
def test_a_forwarded_line_is_read_by_its_grammar(value: bytes, client: str) -> None:
    """A quoted parameter may hold what looks like another element, and a client chooses it
    (`host`). What cannot be read counts as the proxy that sent it.
    """
    assert client_of("10.0.0.2", [(b"forwarded", value)], TrustedProxies(["10.0.0.0/8"])) == client


@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
@pytest.mark.parametrize(
    "names",
    [[b"transfer-encoding"], [b"content-length"], [b"content-length", b"transfer-encoding"]],
)
def test_a_request_has_one_length(names: list[bytes], version: str) -> None:
    """RFC 9112, section 6.1: HTTP/1.0 has no Transfer-Encoding."""
    headers = [(name, b"1") for name in names]
    if b"transfer-encoding" in names and (len(names) > 1 or version == "1.0"):
        with pytest.raises(RequestRefused) as caught:
            refuse_two_lengths(headers, version)
        assert caught.value.status == 400
    else:
        refuse_two_lengths(headers, version)
