"""Headers on their way through: what is removed at the hop, what passes unchanged, and reports
about the client.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.tables import words

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
    one_spelling,
    received_request,
    refuse_two_lengths,
    request_headers,
    response_headers,
)

PLAIN = HeaderSettings(host=b"upstream.test", set=(), removed=frozenset())
ADDED = (b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via")


def fields(*lines: str) -> HeaderList:
    """Headers written as `name: value`."""
    parts = [line.encode("latin-1").partition(b": ") for line in lines]
    return [(name, value) for name, _, value in parts]


HOST = fields("host: client.test")


def finished(headers: HeaderList, settings: HeaderSettings = PLAIN, **options: Any) -> HeaderList:
    """The headers that go upstream, from those that interceptors have left."""
    arguments: dict[str, Any] = {
        "client": "192.0.2.1",
        "scheme": "http",
        "identity": False,
        "body": None,
        "via": b"1.1 us",
        **options,
    }
    return request_headers(headers, settings, **arguments)


def sent(
    headers: HeaderList, settings: HeaderSettings = PLAIN, *, trusted: bool = False, **options: Any
) -> HeaderList:
    """The headers that go upstream of a request that arrives with these."""
    return finished(received_request(headers, trusted=trusted), settings, **options)


def passed(headers: HeaderList, settings: HeaderSettings = PLAIN, **options: Any) -> HeaderList:
    """Those of them that the proxy does not write itself."""
    return [item for item in sent(HOST + headers, settings, **options) if item[0] not in ADDED]


def named(headers: HeaderList, name: str) -> list[bytes]:
    return [value for key, value in headers if key == name.encode()]


@pytest.mark.parametrize("trusted", [False, True])
def test_everything_else_passes_in_its_order_with_its_duplicates(trusted: bool) -> None:
    """Values byte for byte, and names with an underscore that the proxy does not read."""
    headers = fields("b: 1", "a: \xff, x", "cookie: a=1", "b: ", "cookie: b=2", "accept: */*")
    headers += fields("x_request_id: 1", "forwarded_to: 2", "xforwarded_for: 3")
    headers += fields("x__forwarded_for: 4")
    assert passed(headers, trusted=trusted) == headers


HOP = words(
    """connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer
    transfer-encoding upgrade http2-settings proxy-authentication-info"""
)


@pytest.mark.parametrize("name", HOP)
def test_hop_by_hop_headers_stay_on_their_hop(name: str) -> None:
    """In both directions, and when an interceptor sets them."""
    headers, rest = fields("a: 1", f"{name}: trailers", "b: 2"), fields("a: 1", "b: 2")
    assert passed(headers) == end_to_end(headers) == rest
    assert finished(headers)[1:3] == rest
    assert response_headers(headers, dropped=frozenset(), sse=False) == rest


def test_headers_that_connection_names_stay_on_their_hop() -> None:
    """In any case, with spaces, in several Connection headers, whichever comes first."""
    headers = fields("x-one: 1", "connection: X-One , close", "x-two: 2", "x-three: 3", "x-two: 4")
    headers += fields("connection: ,x-two,", "close: 5")
    assert passed(headers) == end_to_end(headers) == fields("x-three: 3")


@pytest.mark.parametrize(
    "name",
    words(
        """content-type content-encoding content-length cache-control authorization cookie via
        max-forwards host origin"""
    ),
)
def test_connection_cannot_take_away_what_the_message_means(name: str) -> None:
    """Or a client could strip the credentials that a proxy in front of us had added."""
    headers = fields(f"connection: close, {name.upper()}", f"{name}: x")
    assert received_request(headers, trusted=False) == end_to_end(headers) == headers[1:]


def test_two_hosts_are_refused() -> None:
    """Two servers could take a different one each (RFC 9112, section 3.2)."""
    with pytest.raises(RequestRefused) as caught:
        sent([*HOST, (b"a", b"1"), *HOST])
    assert (caught.value.status, caught.value.kind) == (400, "bad_request")


def test_framing_depends_on_the_body_only() -> None:
    """The client's Content-Length, Transfer-Encoding and Expect are of its hop. `Expect` goes up
    where the proxy leaves the decision to the upstream.
    """
    headers = fields("content-length: 99", "expect: 100-continue", "transfer-encoding: chunked")
    assert passed(headers, body=None) == []
    for body, line in ((b"5", "content-length: 5"), (b"0", "content-length: 0")):
        assert passed(headers, body=body) == fields(line)
    chunked = fields("transfer-encoding: chunked")
    assert passed(headers, body=b"") == chunked
    assert passed(headers, body=b"", expects_continue=True) == [*chunked, *headers[1:2]]


def test_an_interceptor_that_reads_needs_an_unencoded_body() -> None:
    """Whatever the client and the configuration ask for."""
    headers = fields("accept-encoding: gzip", "a: 1", "accept-encoding: br")
    gzip = fields("accept-encoding: gzip")
    settings = HeaderSettings(b"h", gzip, frozenset())
    identity = fields("accept-encoding: identity")
    assert passed(headers) == headers
    assert passed(headers, identity=True) == [(b"a", b"1"), *identity]
    assert passed([], identity=True) == passed([], settings, identity=True) == identity
    assert passed([], settings) == gzip


# Reports about the client

CLAIMS = fields(
    "forwarded: for=203.0.113.9",
    "x-forwarded-for: 203.0.113.9",
    "x-forwarded-for: 203.0.113.10",
    "x-forwarded-host: public.test",
    "x-forwarded-port: 8443",
    "x-forwarded-proto: https",
    "x-forwarded-server: edge",
    "x-forwarded-user: alice",
)


def test_what_an_untrusted_client_reports_of_itself_is_dropped() -> None:
    """Only what we know of it goes up. HTTP/1.0 has no Host, and then none is reported."""
    known = fields("x-forwarded-for: 192.0.2.1", "x-forwarded-proto: http")
    host, via = fields("host: upstream.test"), fields("via: 1.1 us")
    asked = fields("x-forwarded-host: client.test")
    assert sent([*HOST, *CLAIMS, (b"a", b"1")]) == [*host, (b"a", b"1"), *known, *asked, *via]
    assert sent([]) == [*host, *known, *via]


def test_a_trusted_proxys_reports_are_kept_and_its_address_appended() -> None:
    """Its own client's Connection cannot take one away."""
    named = fields("connection: x-forwarded-for, X-Forwarded-User")
    assert sent([*HOST, *CLAIMS, *named, (b"a", b"1")], trusted=True) == fields(
        "host: upstream.test",
        "forwarded: for=203.0.113.9",
        "x-forwarded-port: 8443",
        "x-forwarded-server: edge",
        "x-forwarded-user: alice",
        "a: 1",
        "x-forwarded-for: 203.0.113.9, 203.0.113.10, 192.0.2.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: public.test",
        "via: 1.1 us",
    )


def test_a_client_without_an_address_is_not_named() -> None:
    """On a Unix socket; the report of a trusted proxy stays."""
    assert named(sent(HOST, client=None), "x-forwarded-for") == []
    reported = named(sent([*HOST, *CLAIMS], client=None, trusted=True), "x-forwarded-for")
    assert reported == [b"203.0.113.9, 203.0.113.10"]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "name",
    words(
        """x_forwarded_for x-forwarded_for x_forwarded-for X_Forwarded_Proto x-forwarded_host
        x_real_ip x-real_ip x_forwarded_prefix x-forwarded_user mcp_session_id content_length
        last_event_id keep_alive"""
    ),
)
def test_a_field_that_the_proxy_reads_has_one_spelling(name: str, trusted: bool) -> None:
    """CGI's variable is the same (RFC 3875, section 4.1.18): neither a client nor a client of a
    trusted proxy writes it.
    """
    assert passed(fields(f"{name}: 6.6.6.6"), trusted=trusted) == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::FFFF:7f00:1", "127.0.0.1"),
        *((same, same) for same in ("127.0.0.1", "::1", "2001:db8::ffff:1", "fe80::1%eth0", "")),
        *((same, same) for same in ("::ffff:0:127.0.0.1", "::ffff:nonsense")),
    ],
)
def test_an_ipv4_client_has_one_spelling(address: str, expected: str) -> None:
    """RFC 4291, section 2.5.5.2: also on a socket of both families."""
    assert one_spelling(address) == expected


def test_trusted_proxies_are_addresses_and_networks() -> None:
    """A mapped network is trusted as the IPv4 network that it is."""
    trusted = TrustedProxies(["10.0.0.0/8", "192.0.2.1", "fd00::/8", "172.16.5.4/16"])
    for address in ("10.255.0.1", "192.0.2.1", "fd12::1", "172.16.0.1"):
        assert address in trusted
    for other in ("11.0.0.1", "192.0.2.2", "fe80::1", "", "unix:", "10.0.0", None):
        assert other not in trusted
    assert "10.0.0.1" not in TrustedProxies()
    mapped = TrustedProxies(["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::/0"])
    assert [address in mapped for address in words("10.1.2.3 192.0.2.1 192.0.2.2")] == [1, 1, 0]
    assert "192.0.2.2" in TrustedProxies(["::ffff:0.0.0.0/96"])


XFF, FWD = "x-forwarded-for: ", "forwarded: "


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        # Only the report of a trusted proxy counts.
        ("192.0.2.1", [XFF + "198.51.100.1"], "192.0.2.1"),
        ("192.0.2.1", [FWD + "for=198.51.100.1"], "192.0.2.1"),
        (None, [XFF + "198.51.100.1"], None),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [XFF + "198.51.100.1"], "198.51.100.1"),
        # The client can have written what stands before the first address that is not trusted.
        ("10.0.0.1", [XFF + "6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [XFF + "6.6.6.6", XFF + "198.51.100.1 ,10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [XFF + "10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # One address, one spelling.
        ("10.0.0.1", [XFF + "2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", [XFF + "[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", [XFF + "198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", [XFF + "::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [XFF + "fe80::1%" + "x" * 9000], "fe80::1"),
        ("10.0.0.1", [XFF + "198.51.100.1%1"], "10.0.0.1"),
        # A head has room for more addresses than any way through proxies has.
        ("10.0.0.1", [XFF + "6.6.6.6" + ", 10.0.0.7" * 99], "6.6.6.6"),
        ("10.0.0.1", [XFF + "6.6.6.6" + ", 10.0.0.7" * 100], "10.0.0.7"),
        # Text that is not an address counts as the proxy that wrote it.
        ("10.0.0.1", [XFF + "unknown"], "10.0.0.1"),
        ("10.0.0.1", [XFF + "6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [XFF], "10.0.0.1"),
        ("10.0.0.1", [XFF + "198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", [FWD + "for=198.51.100.1;proto=https"], "198.51.100.1"),
        ("10.0.0.1", [FWD + 'proto=https;For="[2001:db8::1]:4711"'], "2001:db8::1"),
        (
            "10.0.0.1",
            [FWD + "for=6.6.6.6, for=198.51.100.1", FWD + "for=10.0.0.2;by=10.0.0.1"],
            "198.51.100.1",
        ),
        ("10.0.0.1", [FWD + "for=_hidden"], "10.0.0.1"),
        ("10.0.0.1", [FWD + 'for=198.51.100.1, for="6.6.6.6'], "10.0.0.1"),
        ("10.0.0.1", [FWD + "by=6.6.6.6"], "10.0.0.1"),
        ("10.0.0.1", [FWD + "for=6.6.6.6", XFF + "198.51.100.1"], "198.51.100.1"),
        # A quoted parameter may hold what looks like another element, and a client chooses it.
        ("10.0.0.1", [FWD + 'for=2.2.2.2;host="a;for=7.7.7.7"'], "2.2.2.2"),
        ("10.0.0.1", [FWD + 'for=2.2.2.2;host="a,for=7.7.7.7";proto=http'], "2.2.2.2"),
        ("10.0.0.1", [FWD + 'for=2.2.2.2;host="\\",for=7.7.7.7"'], "2.2.2.2"),
        ("10.0.0.1", [FWD + 'for=9.9.9.9, host="x" ; For="2.2.2.2:80"'], "2.2.2.2"),
        ("10.0.0.1", [FWD + "by=x;for=2.2.2.2;xfor=7.7.7.7 , for=10.0.0.1,"], "2.2.2.2"),
        ("10.0.0.1", [FWD + 'for="x, for=7.7.7.7'], "10.0.0.1"),
        ("10.0.0.1", [FWD + 'for="x, for="[2001:db8::7]"'], "10.0.0.1"),
        ("10.0.0.1", [FWD + "for=7.7.7.7 for=7.7.7.8"], "10.0.0.1"),
    ],
)
def test_the_client_is_what_the_outermost_trusted_proxy_saw(
    peer: str | None, headers: list[str], client: str | None
) -> None:
    assert client_of(peer, fields(*headers), TrustedProxies(["10.0.0.0/8"])) == client
    assert client_of(peer, fields(*headers), TrustedProxies()) == peer


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


PREFIX = b"x-forwarded-prefix"
STRIPPED = HeaderSettings(b"h", (), frozenset(), b"/tools")
SET = HeaderSettings(b"h", ((PREFIX, b"/set"),), frozenset([PREFIX]), b"/tools")
REMOVED = HeaderSettings(b"h", (), frozenset([PREFIX]), b"/tools")


@pytest.mark.parametrize(
    ("settings", "values", "untrusted", "trusted"),
    [
        (STRIPPED, [], [b"/tools"], [b"/tools"]),
        (STRIPPED, [b"/gw"], [b"/tools"], [b"/gw/tools"]),
        (STRIPPED, [b"/gw/"], [b"/tools"], [b"/gw/tools"]),
        (STRIPPED, [b"/"], [b"/tools"], [b"/tools"]),
        (STRIPPED, [b"/a, /b/", b"/c"], [b"/tools"], [b"/a/b/c/tools"]),
        (PLAIN, [b"/gw/"], [], [b"/gw/"]),
        (SET, [b"/gw"], [b"/set"], [b"/set"]),
        (REMOVED, [b"/gw"], [], []),
    ],
)
def test_the_server_gets_the_stripped_prefix(
    settings: HeaderSettings, values: list[bytes], untrusted: list[bytes], trusted: list[bytes]
) -> None:
    """After a trusted proxy's; the client's own is dropped; the configuration decides last."""
    headers = [*HOST, *((PREFIX, value) for value in values)]
    assert named(sent(headers, settings), PREFIX.decode()) == untrusted
    assert named(sent(headers, settings, trusted=True), PREFIX.decode()) == trusted


@pytest.mark.parametrize(
    ("host", "reports", "untrusted", "trusted"),
    [
        ("[::1]:8", [], "https://[::1]:8", "https://[::1]:8"),
        ("a", ["host: b:81", "proto: HTTP"], "https://a", "http://b:81"),
        ("a", ["host: b, c", "proto: http,https"], "https://a", "http://b"),
        ("a", ["proto: gopher"], "https://a", "https://a"),
        *((bad, [], None, None) for bad in ('a"b', "a/b", "")),
    ],
)
def test_the_origin_that_the_client_has_used(
    host: str, reports: list[str], untrusted: str | None, trusted: str | None
) -> None:
    """As trusted proxies report it; never what a URL cannot contain, which could end a quoted string."""
    headers = fields(f"host: {host}", *(f"x-forwarded-{report}" for report in reports))
    assert client_origin(received_request(headers, trusted=False), scheme="https") == untrusted
    assert client_origin(received_request(headers, trusted=True), scheme="https") == trusted
    assert client_origin([], scheme="https") is None


# Via, Max-Forwards, and the length


@pytest.mark.parametrize(
    ("lines", "looped"),
    [
        (["via: 1.1 us"], True),
        (["via: 1.1 a, 2 us ,1.0 b"], True),
        (["via: 1.1 a", "via: HTTP/1.1\tus (comment)"], True),
        (["via: 1.1 usa, 1.1 a-us, us 1.1, 1.1 a (us)"], False),
        (["via: us", "via: ", "via: ,", "x-via: 1.1 us"], False),
    ],
)
def test_a_loop_is_known_by_the_pseudonym(lines: list[str], looped: bool) -> None:
    assert Via("us").lists([*HOST, *fields(*lines)]) is looped


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ([], None),
        ([b"0"], 0),
        ([b" 000 "], 0),
        ([b"007"], 7),
        ([b"2147483648"], 2**31 - 1),
        ([b"9" * 9000], 2**31 - 1),
        ([b"0" * 9000 + b"1"], 1),
        ([b"5", b"5"], 400),
        *(([value], 400) for value in b"|-1|5, 4|\xb2|0x5|5.0|1_0".split(b"|")),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_max_forwards_is_a_number(values: list[bytes], left: int | None) -> None:
    headers = [*HOST, *((b"max-forwards", value) for value in values)]
    if left != 400:
        assert forwards_left(headers) == left
        return
    with pytest.raises(RequestRefused) as caught:
        forwards_left(headers)
    assert caught.value.status == 400


@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
def test_a_request_has_one_length(version: str) -> None:
    """RFC 9112, section 6.1: HTTP/1.0 has no Transfer-Encoding."""
    te, length = fields("transfer-encoding: 1"), fields("content-length: 1")
    refuse_two_lengths(length, version)
    for headers in [length + te, te + length] + [te] * (version == "1.0"):
        with pytest.raises(RequestRefused) as caught:
            refuse_two_lengths(headers, version)
        assert caught.value.status == 400
    if version != "1.0":
        refuse_two_lengths(te, version)


# The way down


@pytest.mark.parametrize(
    ("dropped", "sse", "expected"),
    [
        ([], False, ["set-cookie: a", "date: 1", "set-cookie: B", "x-accel-buffering: yes"]),
        ([b"date", b"set-cookie"], False, ["x-accel-buffering: yes"]),
        ([b"date"], True, ["set-cookie: a", "set-cookie: B", "x-accel-buffering: no"]),
    ],
)
def test_response_headers_pass_in_lower_case(
    dropped: list[bytes], sse: bool, expected: list[str]
) -> None:
    """In their order with their duplicates; an event stream asks proxies in front not to buffer."""
    headers = fields("Set-Cookie: a", "Date: 1", "set-cookie: B", "X-Accel-Buffering: yes")
    assert response_headers(headers, dropped=frozenset(dropped), sse=sse) == fields(*expected)
