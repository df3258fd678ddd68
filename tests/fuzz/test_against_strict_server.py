"""Random requests through the proxy and directly to a strict server: what the server sees differs
only by the documented rules.

The rules are those of docs/forwarding.md, written here once more. What the server refuses never
reaches it through the proxy: the proxy refuses it itself. `WEIRPOOL_FUZZ_EXAMPLES=10000` tries
more.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from support.process import ROOT, WEIRPOOL
from support.strict_server import Seen, StrictServer, final_status
from support.tables import words

EXAMPLES = int(os.environ.get("WEIRPOOL_FUZZ_EXAMPLES", "50"))

CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["http://127.0.0.1:PORT"]}]
  routes:
    - {path: /, upstream: up}
interceptors: []
"""
CHANGED = CONFIG.replace("upstream: up}", "upstream: up, interceptors: [reader]}").replace(
    "interceptors: []", 'interceptors: [{name: reader, use: "./reader.py:Reader"}]'
)
READER = """
from interceptors import Interceptor


class Reader(Interceptor):
    wants_body = True

    async def on_request(self, request):
        assert request.path.startswith("/")
"""


# --- the documented rules

HOP = frozenset(
    words(
        """connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info
        proxy-authorization te trailer transfer-encoding upgrade http2-settings"""
    )
)
NEVER_NAMED = frozenset(
    words(
        """host content-length content-type content-encoding cache-control authorization cookie
        origin via max-forwards"""
    )
)
FORWARDING = frozenset(
    words(
        """forwarded x-real-ip x-forwarded-for x-forwarded-host x-forwarded-port
        x-forwarded-prefix x-forwarded-proto x-forwarded-server"""
    )
)
READ = (
    HOP
    | NEVER_NAMED
    | set(words("expect accept-encoding last-event-id content-range if-range x-request-id"))
)
OURS = set(
    words(
        """host x-forwarded-for x-forwarded-proto x-forwarded-host via content-length
        transfer-encoding x-request-id"""
    )
)
STARTED = re.compile(r'"bind":\["127\.0\.0\.1:(\d+)"\].*"event":"started"')
PSEUDONYM = re.compile(r"1\.[0-9] weirpool-[0-9a-z]+")


def expected(direct: Seen) -> Seen:
    """What the server must see through the proxy of a request that it has seen directly as
    `direct`.
    """
    named = {
        item.strip().lower() for value in direct.values("connection") for item in value.split(",")
    } - NEVER_NAMED
    headers = [
        (name, _forwarded_value(direct.method, name, value))
        for name, value in direct.headers
        if name not in {*HOP, *named, *OURS, "expect"} and not _is_replaced(name)
    ]
    target = re.sub(r"^https?://[^/?]*", "", direct.target, flags=re.IGNORECASE)
    if not target.startswith("/"):
        target = "/" + target
    return Seen(direct.method.upper(), target, "HTTP/1.1", headers, direct.body)


def _is_replaced(name: str) -> bool:
    dashed = name.replace("_", "-")
    return dashed in FORWARDING or (
        name != dashed and (dashed in READ or dashed.startswith("mcp-"))
    )


def _forwarded_value(method: str, name: str, value: str) -> str:
    if method == "OPTIONS" and name == "max-forwards" and re.fullmatch("[0-9]+", value):
        return str(int(value) - 1)
    return value


def refusal_is_documented(direct: Seen) -> bool:
    """Whether the proxy may answer itself what the server would take."""
    return (
        direct.method in ("TRACE", "CONNECT")
        or direct.target == "*"
        or (
            direct.method.upper() == "OPTIONS"
            and (hops := direct.values("max-forwards")) != []
            and (len(hops) > 1 or not re.fullmatch("[0-9]+", hops[0]) or int(hops[0]) == 0)
        )
    )


# --- requests


def pick(text: bytes, separator: bytes = b"|") -> st.SearchStrategy[bytes]:
    """One of the items of a text."""
    return st.sampled_from(text.split(separator))


METHODS = st.one_of(
    *[pick(b"GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS|PROPFIND|get|QUERY|M-SEARCH")] * 5,
    pick(b"a!#$%&'*+-.^_`|~9 TRACE G\xc9T GET\t  G(T", b" "),
)
SEGMENTS = pick(
    b"""a v1 .. .  %2e%2E %2f %5c %00 % %zz a%20b ~!$&'()*+,;=:@ %C3%A9 "<>^`{|}""", b" "
)
ODD_SEGMENTS = pick(b"#|\\|a#b|..\\..|\xc3\xa9|\x00|\x7f|a b|\t")
QUERIES = pick(b'|||?|?a=b&c|??|?a/../b|?\\|?#|?%|?a b|?\xff|?{"a"}')
ODD_TARGETS = pick(b"*||a|h:80|ftp://h/a|//h/a|http:/a|http:///a")
ORIGINS = pick(b"http://h.example|HTTP://h:80|https://[::1]:1|http://u@h|http://h:x|http://a b")


@st.composite
def targets(draw: st.DrawFn) -> bytes:
    segments = draw(st.lists(SEGMENTS, max_size=4))
    if draw(st.integers(0, 5)) == 0:
        segments.insert(draw(st.integers(0, len(segments))), draw(ODD_SEGMENTS))
    path = b"/" + b"/".join(segments)
    form = draw(st.integers(0, 19))
    if form == 0:
        return draw(ODD_TARGETS)
    if form <= 3:
        path = draw(ORIGINS) + (path if draw(st.booleans()) else b"")
    return path + draw(QUERIES)


HOSTS = pick(
    b"a.example|A.Example:80|a_b|a.|a:|[::1]:8000|1.2.3.4|a b|u@a|a/../b|[::1|"
    b"a:99999999|<a>|a:80@b||a,b|a%41|a%4|a:8a|[::x]|\xe9"
)
NAMES = st.one_of(
    pick(
        b"Accept|Accept-Encoding|Authorization|Cookie|Content-Type|Content-Encoding|Range|"
        b"If-Range|X-A|x_a|X-a-B|Via|Max-Forwards|Expect|Connection|Keep-Alive|Proxy-Connection|"
        b"Proxy-Authorization|TE|Trailer|Upgrade|Forwarded|X-Forwarded-For|X_Forwarded_For|"
        b"X-Forwarded_Proto|X-Forwarded-Host|X-Real-IP|x_real-ip|X-Forwarded-Prefix|"
        b"Last-Event-ID|Origin|Date|User-Agent|HTTP2-Settings"
    ),
    st.text("!#$%&'*+-.^_`|~abzABZ019", min_size=1, max_size=8).map(str.encode),
)
VALUES = st.one_of(
    pick(
        b"|a|x-a, close|keep-alive|close|X-A,x_a|content-type, cookie, host|0|5|00|gzip|"
        b'h2c|trailers|6.6.6.6|for=1.2.3.4;proto=https|1.1 other|"quoted, \\" "|a\tb|'
        b"\xc3\xa9\xff|text/event-stream|application/json; charset=utf-8|bytes=0-1|"
        b"websocket|*/*|a;b,c:d"
    ),
    st.binary(max_size=12).map(lambda data: bytes(set(data) - {127, *range(32)})),
)
ODD_LINES = pick(
    b"X-A : b| folded|\tfolded|no colon|: no name|X\xe9: a|X(: a|X-A: a\x00b|"
    b"X-A: a\rb|X-A: a\nb|X-A: a\x7fb|Host: second|X-A: \x0b|\x00|X A: b"
)
FIELDS = st.lists(
    st.tuples(NAMES, pick(b": |:|:\t |:  "), VALUES, pick(b"| |\t")).map(b"".join), max_size=6
)
VERSIONS = pick(b"HTTP/1.1|" * 12 + b"HTTP/1.0|HTTP/1.2|HTTP/2.0|http/1.1|HTTP/1.1 |HTTP/11")
CHUNKED = b"Transfer-Encoding: chunked"
SPOILT = st.sampled_from(
    [
        (b"Content-Length: 3\r\nContent-Length: 3", b"abc"),
        (b"Content-Length: 3\r\nContent-Length: 4", b"abcd"),
        (b"Content-Length: +3", b"abc"),
        (b"Content-Length: 3,3", b"abc"),
        (b"Content-Length: 0x3", b"abc"),
        (b"Content-Length: ", b""),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        (b"Transfer-Encoding: identity", b""),
        (b"Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
        (b"Transfer-Encoding: xchunked", b"0\r\n\r\n"),
        (b"Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"),
        (b"Transfer-Encoding : chunked", b"0\r\n\r\n"),
        (CHUNKED, b"g\r\n"),
        (CHUNKED, b"1\nx\r\n0\r\n\r\n"),
        (CHUNKED, b"-1\r\n"),
        (CHUNKED, b"1\r\nxyz\r\n0\r\n\r\n"),
        (CHUNKED, b"0\r\nbad trailer\r\n\r\n"),
        (CHUNKED, b"ffffffffffffffffff\r\n"),
        (b"Content_Length: 3", b""),
    ]
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and the field with its length."""
    kind = draw(st.integers(0, 4))
    if kind <= 1:
        body = draw(st.binary(max_size=40))
        return b"Content-Length: %d" % len(body), body
    if kind == 2:
        return draw(SPOILT)
    body = b""
    for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3)):
        size = draw(pick(b'%x|%X|0%x|%x;a=b|%x ;a|%x;a="b"')) % len(piece)
        body += size + b"\r\n" + piece + b"\r\n"
    trailers = draw(pick(b"||X-Trailer: a\r\n|Content-Length: 5\r\n"))
    field = draw(pick(b"Transfer-Encoding: chunked|transfer-encoding:chunked|" + CHUNKED.title()))
    return field, body + b"0\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    rare = lambda odds: draw(st.integers(0, odds)) == 0  # noqa: E731
    line = b" ".join([draw(METHODS), draw(targets()), draw(VERSIONS)])
    fields = [b"Host: a.example"]
    if rare(4):
        fields = [b"Host: " + draw(HOSTS)] if not rare(5) else []
    fields += draw(FIELDS)
    if rare(6):
        fields.append(draw(ODD_LINES))
    body = b""
    if draw(st.booleans()):
        length, body = draw(bodies())
        fields.append(length)
    if rare(3):
        draw(st.randoms()).shuffle(fields)
    end = b"\r\n" if not rare(40) else b"\n"
    return end.join([line, *fields, b"", b""]) + body


@pytest.fixture(scope="module")
def server() -> Iterator[StrictServer]:
    server = StrictServer()
    yield server
    server.close()


@pytest.fixture(scope="module", params=["forwarded", "with an interceptor"])
def proxy(
    request: pytest.FixtureRequest, server: StrictServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of `weirpool serve` before the server."""
    directory = tmp_path_factory.mktemp("weirpool")
    text = CONFIG if request.param == "forwarded" else CHANGED
    (directory / "weirpool.yaml").write_text(text.replace("PORT", str(server.port)))
    (directory / "reader.py").write_text(READER)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*WEIRPOOL, "serve", "--config", "weirpool.yaml", "--bind", "127.0.0.1:0"],
            cwd=directory,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        for _ in range(600):
            if (started := STARTED.search((directory / "log").read_text())) is not None:
                break
            time.sleep(0.05)
        else:
            pytest.fail((directory / "log").read_text())
        yield int(started[1])
    finally:
        process.terminate()
        assert process.wait(20) == 0
    log_text = (directory / "log").read_text()
    assert "internal_error" not in log_text
    assert "Traceback" not in log_text


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests())
def test_a_server_sees_the_same_requests(proxy: int, server: StrictServer, data: bytes) -> None:
    server.forget()
    direct_status = final_status(server.port, data)
    direct = server.seen[0] if server.seen else None
    server.forget()
    status = final_status(proxy, data, timeout_s=20 if direct else 1)
    note(f"{data!r}\ndirectly: {direct_status} {direct}")
    note(f"through the proxy: {status} {server.seen} {server.refusals}")
    event(f"taken directly: {bool(direct)}, through the proxy: {bool(server.seen)}")
    assert not server.refusals, "it has refused what the proxy sent"
    # What the server refuses at once may be the beginning of a line of which the proxy awaits the
    # end.
    assert status > 0 or (status == -1 and direct is None and not server.seen), "no answer"
    if direct is None:
        assert status == -1 or 400 <= status < 600, "the proxy has answered what the server refuses"
        assert not server.seen, "what the server refuses has reached it, repaired"
        return
    if not server.seen:
        assert refusal_is_documented(direct), "the proxy refuses what the server takes"
        return
    (seen,) = server.seen
    assert not refusal_is_documented(direct)
    wanted = expected(direct)
    for name in ("method", "target", "version", "body"):
        assert getattr(seen, name) == getattr(wanted, name)
    assert [item for item in seen.headers if item[0] not in OURS] == wanted.headers
    assert seen.values("host") == [f"127.0.0.1:{server.port}"]
    assert seen.values("x-forwarded-for") == ["127.0.0.1"]
    assert seen.values("x-forwarded-proto") == ["http"]
    assert len(seen.values("x-request-id")) == 1
    assert len(seen.values("content-length")) + len(seen.values("transfer-encoding")) <= 1
    *before, last = ", ".join(seen.values("via")).split(", ")
    assert ", ".join(before) == ", ".join(direct.values("via"))
    assert PSEUDONYM.fullmatch(last)
