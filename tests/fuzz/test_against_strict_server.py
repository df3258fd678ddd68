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
# -----------------------------------------------------------------------------------------------

HOP = frozenset(
    [
        "connection", "keep-alive", "proxy-connection", "proxy-authenticate",
        "proxy-authentication-info", "proxy-authorization", "te", "trailer", "transfer-encoding",
        "upgrade", "http2-settings",
    ]
)  # fmt: skip
NEVER_NAMED = frozenset(
    [
        "host", "content-length", "content-type", "content-encoding", "cache-control",
        "authorization", "cookie", "origin", "origin", "via", "max-forwards",
    ]
)  # fmt: skip
FORWARDING = frozenset(
    [
        "forwarded", "x-real-ip", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port",
        "x-forwarded-prefix", "x-forwarded-proto", "x-forwarded-server",
    ]
)  # fmt: skip
READ = (
    HOP | NEVER_NAMED | {"expect", "accept-encoding", "last-event-id", "content-range", "if-range"}
)
OURS = {
    "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via", "content-length",
    "transfer-encoding",
}  # fmt: skip
STARTED = re.compile(r'"bind": \["127\.0\.0\.1:(\d+)"\].*"event": "started"')
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
        if name not in HOP
        and name not in named
        and name.replace("_", "-") not in FORWARDING
        and not (
            "_" in name
            and (name.replace("_", "-") in READ or name.replace("_", "-").startswith("mcp-"))
        )
        and name not in {*OURS, "expect"}
    ]
    target = re.sub(r"^https?://[^/?]*", "", direct.target, flags=re.IGNORECASE)
    if not target.startswith("/"):
        target = "/" + target
    return Seen(direct.method.upper(), target, "HTTP/1.1", headers, direct.body)


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
# -----------------------------------------------------------------------------------------------------------

METHODS = st.sampled_from(
    b"GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS|PROPFIND|get|QUERY|M-SEARCH".split(b"|") * 3
    + [b"a!#$%&'*+-.^_`|~9", b"TRACE", b"G\xc9T", b"GET\t", b"", b"G(T"]
)
SEGMENTS = st.sampled_from(
    [
        b"a", b"v1", b"..", b".", b"", b"%2e%2E", b"%2f", b"%5c", b"%00", b"%", b"%zz", b"a%20b",
        b"~!$&'()*+,;=:@", b"%C3%A9", b'"<>^`{|}',
    ]
)  # fmt: skip
ODD_SEGMENTS = st.sampled_from(
    [b"#", b"\\", b"a#b", b"..\\..", b"\xc3\xa9", b"\x00", b"\x7f", b"a b", b"\t"]
)


@st.composite
def targets(draw: st.DrawFn) -> bytes:
    segments = draw(st.lists(SEGMENTS, max_size=4))
    if draw(st.integers(0, 5)) == 0:
        segments.insert(draw(st.integers(0, len(segments))), draw(ODD_SEGMENTS))
    path = b"/" + b"/".join(segments)
    query = draw(st.sampled_from(b'|||?|?a=b&c|??|?a/../b|?\\|?#|?%|?a b|?\xff|?{"a"}'.split(b"|")))
    form = draw(st.integers(0, 19))
    if form == 0:
        return draw(
            st.sampled_from(
                [b"*", b"", b"a", b"h:80", b"ftp://h/a", b"//h/a", b"http:/a", b"http:///a"]
            )
        )
    if form <= 3:
        origin = draw(
            st.sampled_from(
                b"http://h.example|HTTP://h:80|https://[::1]:1|http://u@h|http://h:x|http://a b".split(
                    b"|"
                )
            )
        )
        return origin + (path if draw(st.booleans()) else b"") + query
    return path + query


HOSTS = st.sampled_from(
    (
        b"a.example|A.Example:80|a_b|a.|a:|[::1]:8000|1.2.3.4|a b|u@a|a/../b|[::1|"
        b"a:99999999|<a>|a:80@b||a,b|a%41|a%4|a:8a|[::x]|\xe9"
    ).split(b"|")
)
NAMES = st.one_of(
    st.sampled_from(
        [
            "Accept", "Accept-Encoding", "Authorization", "Cookie", "Content-Type",
            "Content-Encoding", "Range", "If-Range", "X-A", "x_a", "X-a-B", "Via", "Max-Forwards",
            "Expect", "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE",
            "Trailer", "Upgrade", "Forwarded", "X-Forwarded-For", "X_Forwarded_For",
            "X-Forwarded_Proto", "X-Forwarded-Host", "X-Real-IP", "x_real-ip", "X-Forwarded-Prefix",
            "Last-Event-ID", "Origin", "Date", "User-Agent", "HTTP2-Settings",
        ]
    ).map(str.encode),
    st.text("!#$%&'*+-.^_`|~abzABZ019", min_size=1, max_size=8).map(str.encode),
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        (
            b"|a|x-a, close|keep-alive|close|X-A,x_a|content-type, cookie, host|0|5|00|gzip|"
            b'h2c|trailers|6.6.6.6|for=1.2.3.4;proto=https|1.1 other|"quoted, \\" "|a\tb|'
            b"\xc3\xa9\xff|text/event-stream|application/json; charset=utf-8|bytes=0-1|"
            b"websocket|*/*|a;b,c:d"
        ).split(b"|")
    ),
    st.binary(max_size=12).map(
        lambda data: bytes(byte for byte in data if byte >= 32 and byte != 127)
    ),
)
ODD_LINES = st.sampled_from(
    (
        b"X-A : b| folded|\tfolded|no colon|: no name|X\xe9: a|X(: a|X-A: a\x00b|"
        b"X-A: a\rb|X-A: a\nb|X-A: a\x7fb|Host: second|X-A: \x0b|\x00|X A: b"
    ).split(b"|")
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    rare = lambda odds: draw(st.integers(0, odds)) == 0  # noqa: E731
    version = draw(
        st.sampled_from(
            [b"HTTP/1.1"] * 12
            + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/11"]
        )
    )
    method = draw(METHODS)
    lines = [method + b" " + draw(targets()) + b" " + version]
    fields = (
        [b"Host: a.example"] if not rare(4) else [b"Host: " + draw(HOSTS)] if not rare(5) else []
    )
    fields += [
        name
        + b":"
        + draw(st.sampled_from([b" ", b"", b"\t ", b"  "]))
        + value
        + draw(st.sampled_from([b"", b" ", b"\t"]))
        for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    ]
    if rare(6):
        fields.append(draw(ODD_LINES))
    body = b""
    kind = draw(st.integers(0, 9))
    if kind in (1, 2):
        body = draw(st.binary(max_size=40))
        fields.append(b"Content-Length: %d" % len(body))
    elif kind in (3, 4):
        fields.append(
            draw(
                st.sampled_from(
                    [
                        b"Transfer-Encoding: chunked",
                        b"transfer-encoding:chunked",
                        b"Transfer-Encoding: Chunked",
                    ]
                )
            )
        )
        for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3)):
            size = draw(
                st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b"%x ;a", b'%x;a="b"'])
            ) % len(piece)
            body += size + b"\r\n" + piece + b"\r\n"
        body += (
            b"0\r\n"
            + draw(st.sampled_from([b"", b"", b"X-Trailer: a\r\n", b"Content-Length: 5\r\n"]))
            + b"\r\n"
        )
    elif kind == 5:
        spoilt = draw(
            st.sampled_from(
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
                    (b"Transfer-Encoding: chunked", b"g\r\n"),
                    (b"Transfer-Encoding: chunked", b"1\nx\r\n0\r\n\r\n"),
                    (b"Transfer-Encoding: chunked", b"-1\r\n"),
                    (b"Transfer-Encoding: chunked", b"1\r\nxyz\r\n0\r\n\r\n"),
                    (b"Transfer-Encoding: chunked", b"0\r\nbad trailer\r\n\r\n"),
                    (b"Transfer-Encoding: chunked", b"ffffffffffffffffff\r\n"),
                    (b"Content_Length: 3", b""),
                ]
            )
        )
        fields.append(spoilt[0])
        body = spoilt[1]
    draw(st.randoms()).shuffle(fields) if rare(3) else None
    end = b"\r\n" if not rare(40) else b"\n"
    return end.join([*lines, *fields, b"", b""]) + body


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
            [
                *WEIRPOOL,
                "serve",
                "--config",
                str(directory / "weirpool.yaml"),
                "--bind",
                "127.0.0.1:0",
            ],
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
def test_the_server_sees_what_it_would_see_without_the_proxy(
    proxy: int, server: StrictServer, data: bytes
) -> None:
    server.forget()
    direct_status = final_status(server.port, data)
    direct = server.seen[0] if server.seen else None
    server.forget()
    status = final_status(proxy, data, timeout_s=20 if direct else 1)
    note(
        f"{data!r}\ndirectly: {direct_status} {direct}\nthrough the proxy: {status} {server.seen} {server.refusals}"
    )
    event(
        f"{'taken' if direct else 'refused'} directly, {'taken' if server.seen else 'refused'} through the proxy"
    )
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
    assert (seen.method, seen.target, seen.version, seen.body) == (
        wanted.method,
        wanted.target,
        wanted.version,
        wanted.body,
    )
    assert [item for item in seen.headers if item[0] not in OURS] == wanted.headers
    assert seen.values("host") == [f"127.0.0.1:{server.port}"]
    assert seen.values("x-forwarded-for") == ["127.0.0.1"]
    assert seen.values("x-forwarded-proto") == ["http"]
    assert len(seen.values("content-length")) + len(seen.values("transfer-encoding")) <= 1
    *before, last = ", ".join(seen.values("via")).split(", ")
    assert ", ".join(before) == ", ".join(direct.values("via"))
    assert PSEUDONYM.fullmatch(last)
