"""URL references in response headers: what is rewritten, and that everything around it stays byte
for byte.
"""

from __future__ import annotations

import time

import pytest
from support.tables import words

from proxy.http.place import ClientSide, Place
from proxy.http.references import client_headers

HOST = "mcp.example.com"
OWN = "http://127.0.0.1:9000"
TOOLS = Place("/tools", True, "", frozenset(["127.0.0.1:9000"]))
BASED = Place("/tools", True, "/srv", frozenset(["127.0.0.1:9000"]))
PLAIN = Place("/mcp", False, "", frozenset(["127.0.0.1:9000"]))
ROOT = Place("", False, "", frozenset(["up.test", "up.test:443"]))
SIX = Place("/tools", True, "", frozenset(["[::1]:9000"]))
METADATA = "/.well-known/oauth-protected-resource/mcp"


def seen(
    place: Place,
    name: str,
    value: str,
    *,
    path: str = "/tools/mcp/",
    host: str = HOST,
    origin: str | None = f"http://{HOST}",
    outer: str = "",
    asked: str | None = None,
) -> str:
    """One header, as the client of `path` sees it."""
    path = path.removeprefix("/tools") if place is PLAIN else path
    client = ClientSide(path, (host, ""), asked, origin, outer)
    ((kept, result),) = client_headers([(name.encode(), value.encode("latin-1"))], place, client)
    assert kept == name.encode()
    return result.decode("latin-1")


@pytest.mark.parametrize(
    ("place", "reference", "expected"),
    [
        (TOOLS, f"{OWN}/mcp", "/tools/mcp"),
        (TOOLS, "HTTP://127.0.0.1:9000/mcp?a=%2F&b=//x#f?", "/tools/mcp?a=%2F&b=//x#f?"),
        (TOOLS, f"{OWN}/mcp?", "/tools/mcp?"),
        (TOOLS, f"{OWN}?q", "/tools/?q"),
        (TOOLS, OWN, "/tools/"),
        (TOOLS, "//127.0.0.1:9000/mcp", "/tools/mcp"),
        (TOOLS, "/mcp", "/tools/mcp"),
        (TOOLS, "/", "/tools/"),
        (TOOLS, "/a;b=1/c d,e\xe4", "/tools/a;b=1/c d,e\xe4"),
        (TOOLS, "/../mcp", "/tools/mcp"),
        (TOOLS, f"{OWN}//evil.test/x", "/tools//evil.test/x"),
        # The names of the host that the client has used.
        (TOOLS, f"http://{HOST}/mcp", "/tools/mcp"),
        (TOOLS, "https://MCP.Example.COM:443/mcp", "/tools/mcp"),
        (TOOLS, "http://mcp.example.com:80/mcp", "/tools/mcp"),
        (TOOLS, "http://mcp.example.com:/mcp", "/tools/mcp"),
        # The server knows the prefix.
        (TOOLS, "/tools/mcp", "/tools/mcp"),
        (TOOLS, "/tools", "/tools"),
        (TOOLS, f"http://{HOST}/tools/mcp", None),
        (TOOLS, f"http://{HOST.upper()}/tools/mcp?x#y", None),
        (TOOLS, f"https://{HOST}/tools/mcp", "/tools/mcp"),
        (TOOLS, f"{OWN}/tools/mcp?x", "/tools/mcp?x"),
        (TOOLS, "/toolshed", "/tools/toolshed"),
        (TOOLS, "/tools/../mcp", "/tools/mcp"),
        # Relative to the request.
        *((TOOLS, same, None) for same in words("other?page=2 ./other ?page=2 #part ../x")),
        (TOOLS, "../../x", "/tools/x"),
        # Other origins, what is not an HTTP URL, and what browsers would take out of the prefix.
        *(
            (TOOLS, same, None)
            for same in words(
                f"""http://127.0.0.1:9001/mcp http://127.0.0.1/mcp http://other.test/tools/mcp
                http://{HOST}:8443/mcp http://{HOST}:443/mcp http://{HOST}.other.test/mcp
                http://user:pw@127.0.0.1:9000/mcp http://127.0.0.1:9000@other.test/mcp
                ws://127.0.0.1:9000/mcp mailto:a@127.0.0.1:9000 http:mcp http:///mcp http://[/mcp
                /%2e%2e/admin"""
            )
        ),
        (TOOLS, "", None),
        # An endpoint with a path.
        (BASED, f"{OWN}/srv/mcp", "/tools/mcp"),
        (BASED, "/srv/mcp", "/tools/mcp"),
        (BASED, f"{OWN}/srv", "/tools"),
        (BASED, "/tools/mcp", "/tools/mcp"),
        (BASED, "/tools/srv/mcp", "/tools/mcp"),
        (BASED, f"{OWN}/other", None),
        (BASED, "/other", None),
        (BASED, "/srvx", None),
        # A prefix that is not stripped: a path is right already, and an own URL becomes one, also
        # outside of the prefix.
        (PLAIN, f"{OWN}/mcp", "/mcp"),
        (PLAIN, f"{OWN}/login", "/login"),
        (PLAIN, f"http://{HOST}/mcp", None),
        (PLAIN, "/mcp/../login", None),
        (PLAIN, "/login", None),
        (PLAIN, f"{OWN}//evil.test/x", f"http://{HOST}//evil.test/x"),
        (PLAIN, f"{OWN}/\\evil.test", f"http://{HOST}/\\evil.test"),
        (PLAIN, f"{OWN}/\t/evil.test", f"http://{HOST}/\t/evil.test"),
        # Default ports and addresses in other spellings.
        (ROOT, "https://up.test/x", "/x"),
        (ROOT, "https://up.test:443/x", "/x"),
        (ROOT, "http://UP.test:80/x", "/x"),
        (ROOT, "https://up.test:80/x", None),
        (SIX, "http://[::1]:9000/x", "/tools/x"),
        (SIX, "http://[0:0:0:0:0:0:0:1]:9000/x", "/tools/x"),
        (SIX, "http://[::1]/x", None),
        (SIX, "http://[::2]:9000/x", None),
    ],
)
def test_a_reference_keeps_its_resource(place: Place, reference: str, expected: str | None) -> None:
    """None: it stays."""
    for name in ("Location", "content-location"):
        assert seen(place, name, reference) == (reference if expected is None else expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("</api.json>; rel=service-desc", "</tools/api.json>; rel=service-desc"),
        (f"<{OWN}/a,b?x=1,2>;rel=next,  <c> ; rel=prev", "</tools/a,b?x=1,2>;rel=next,  <c> ; rel=prev"),
        (f'<{OWN}/a>; t="x, </b>; \\", </c>"; a="/d" , </e>', '</tools/a>; t="x, </b>; \\", </c>"; a="/d" , </tools/e>'),
        (f'<http://other.test/>; rel="{OWN}/x", ,<{OWN}/>', f'<http://other.test/>; rel="{OWN}/x", ,</tools/>'),
        ('</a>; title="not closed, </b>', '</tools/a>; title="not closed, </b>'),
        ("</not closed", "</not closed"),
        ("<>; rel=self", "<>; rel=self"),
        ("</a'b>; title*=UTF-8''%e2%82%ac, <urn:x>", "</tools/a'b>; title*=UTF-8''%e2%82%ac, <urn:x>"),
    ],
)  # fmt: skip
def test_only_the_targets_of_links_are_rewritten(value: str, expected: str) -> None:
    """RFC 8288: commas, quotes and angle brackets may stand in targets and in quoted parameters."""
    assert seen(TOOLS, "Link", value) == expected


TO = f"http://{HOST}/tools"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f'Bearer a="b", resource_metadata="{OWN}{METADATA}"', f'Bearer a="b", resource_metadata="{TO}{METADATA}"'),
        (f'Bearer resource_metadata="{METADATA}"', f'Bearer resource_metadata="{TO}{METADATA}"'),
        (f'Bearer resource_metadata="https://{HOST}/tools/x"', f'Bearer resource_metadata="{TO}/x"'),
        (f'bearer RESOURCE_Metadata = "{OWN}/x",a="b c"', f'bearer RESOURCE_Metadata = "{TO}/x",a="b c"'),
        (f"Bearer resource_metadata={OWN}/x, a=b", f"Bearer resource_metadata={TO}/x, a=b"),
        ('Bearer resource_metadata="http:\\/\\/127.0.0.1:9000\\/x"', f'Bearer resource_metadata="{TO}/x"'),
        (
            f'Negotiate YWJj==, Basic realm="a\\", resource_metadata=\\"{OWN}/b", DPoP resource_metadata="{OWN}/c", a="b"',
            f'Negotiate YWJj==, Basic realm="a\\", resource_metadata=\\"{OWN}/b", DPoP resource_metadata="{TO}/c", a="b"',
        ),
        (
            f'Bearer resource_metadata="{OWN}/a", Bearer resource_metadata="{OWN}/b"',
            f'Bearer resource_metadata="{TO}/a", Bearer resource_metadata="{TO}/b"',
        ),
        *(
            (unchanged, unchanged)
            for unchanged in (
                f'Bearer resource_metadata="{TO}{METADATA}"',
                f'Bearer resource_metadata="http://{HOST.upper()}/tools/x"',
                'Bearer resource_metadata="http://other.test\\/x"',
                f'Bearer x_resource_metadata="{OWN}/x"',
                f'Bearer realm="{OWN}/x", error_uri="{OWN}/y"',
                'Bearer resource_metadata=""',
                f'Bearer realm="not closed, resource_metadata={OWN}',
                "Bearer",
            )
        ),
    ],
)  # fmt: skip
def test_resource_metadata_becomes_an_absolute_url_at_the_proxy(value: str, expected: str) -> None:
    """RFC 9728, section 5.1: in every challenge; other parameters, and text in quoted strings,
    stay.
    """
    assert seen(TOOLS, "WWW-Authenticate", value) == expected


@pytest.mark.parametrize(
    ("place", "origin", "expected"),
    [
        (PLAIN, f"https://{HOST}", f"https://{HOST}{METADATA}"),
        (TOOLS, "http://[::1]:8000", f"http://[::1]:8000/tools{METADATA}"),
        (BASED, f"https://{HOST}", f"{OWN}{METADATA}"),  # no request on the route reaches it
        (TOOLS, None, f"{OWN}{METADATA}"),
    ],
)
def test_resource_metadata_has_the_clients_origin(
    place: Place, origin: str | None, expected: str
) -> None:
    value = f'Bearer resource_metadata="{OWN}{METADATA}"'
    rewritten = seen(place, "WWW-Authenticate", value, origin=origin)
    assert rewritten == f'Bearer resource_metadata="{expected}"'


@pytest.mark.parametrize(
    ("place", "reference", "expected"),
    [
        (TOOLS, "/mcp", "/gw/tools/mcp"),
        (TOOLS, f"{OWN}/mcp", "/gw/tools/mcp"),
        (TOOLS, f"http://{HOST}/gw/tools/mcp", f"http://{HOST}/gw/tools/mcp"),
        (TOOLS, f"https://{HOST}/gw/tools/mcp", "/gw/tools/mcp"),
        (TOOLS, "/gw/tools/mcp", "/gw/tools/mcp"),
        (TOOLS, "other", "other"),
        (BASED, "/gw/tools/srv/mcp", "/gw/tools/mcp"),
        (PLAIN, f"{OWN}/mcp", "/gw/mcp"),
        (PLAIN, f"{OWN}/gw/mcp", "/gw/mcp"),
        (PLAIN, "/mcp", "/mcp"),
    ],
)
def test_a_trusted_proxys_prefix_comes_first(place: Place, reference: str, expected: str) -> None:
    assert seen(place, "Location", reference, outer="/gw") == expected


def test_references_are_relative_to_what_the_server_was_asked_for() -> None:
    """An interceptor has changed the path."""
    changed = seen(TOOLS, "Location", "other", path="/tools/a/b", asked="/tools/c/d")
    assert changed == "/tools/c/other"


def test_every_line_is_rewritten_and_others_stay() -> None:
    headers = [
        (b"X-Url", OWN.encode()),
        (b"Link", b"</a>"),
        (b"Refresh", b"0; url=/b"),
        (b"link", b"</b>"),
    ]
    assert client_headers(headers, TOOLS, ClientSide("/tools/mcp", (HOST,))) == [
        *(headers[0], (b"Link", b"</tools/a>"), headers[2], (b"link", b"</tools/b>"))
    ]


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("Link", ",   <"),
        ("Link", ', "'),
        ("Link", ", "),
        ("WWW-Authenticate", 'resource_metadata="'),
        ("WWW-Authenticate", 'resource_metadata="\\"'),
        ("WWW-Authenticate", "resource_metadata "),
        ("Location", "/.."),
    ],
)
def test_headers_made_to_be_slow_are_not(name: str, piece: str) -> None:
    """64 kB, the most that a head may have, in linear time: a square would take many seconds."""
    began = time.process_time()
    seen(TOOLS, name, piece * (65536 // len(piece)))
    assert time.process_time() - began < 2
