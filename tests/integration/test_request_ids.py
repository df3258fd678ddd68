"""The id that joins what a client, the proxy and its upstream know of one request, and the fields
of the `exchange` line, over real sockets.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from support.client import Answer, fetch, open_client
from support.http2_client import Http2Requester, open_http2
from support.interceptors import Log, until
from support.proxy import config_for, open_proxy
from support.upstream import Request as Received
from support.upstream import answering, open_upstream

from interceptors import Interceptor, Request, Response
from interceptors.api_keys import hash_key

MADE = "[0-9a-f]{32}"
PAGE = ("Origin", "https://app.example.com")
ID = "X-Request-Id"


class Own(Interceptor):
    """Logs; answers `/own`, refuses `/no`, and sends another id upstream for `/renamed`."""

    async def on_request(self, request: Request) -> Response | None:
        request.log.info("seen", id=request.request_id)
        if request.path == "/own":
            return Response("own")
        if request.path == "/no":
            return request.refuse(403, "not_today", "not today")
        if request.path == "/renamed":
            request.headers["x-request-id"] = "renamed"
        return None


OWN = {"interceptors": f'{{name: own, use: "{__name__}:Own"}}', "names": "own"}


async def ask(
    lines: Log, *headers: tuple[str, str], target: str = "/a", more: str = "", **settings: Any
) -> tuple[Answer, list[Received], dict[str, Any]]:
    """The answer, what the upstream has received, and the `exchange` line. `more`: header lines of
    the upstream.
    """
    script = answering(f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{more}\r\nok".encode())
    with trio.fail_after(10):
        async with open_upstream(script) as upstream:
            async with open_proxy(config_for(upstream.url, **settings)) as proxy:
                answer = await fetch(proxy.port, target, headers=list(headers))
                await until(lambda: lines[-1]["event"] == "exchange")
                return answer, upstream.requests, lines[-1]


@pytest.mark.parametrize(
    ("sent", "target", "more", "upstream_gets", "client_gets", "in_log", "upstreams_own"),
    [
        ([], "/a", "", MADE, "same", MADE, None),
        (["mine-1"], "/a", "", "mine-1", "same", "mine-1", None),
        (["x" * 128], "/a", "", "x{128}", "same", "x{128}", None),
        # not acceptable: too long, empty, a space, two of them
        (["x" * 129], "/a", "", MADE, "same", MADE, None),
        ([""], "/a", "", MADE, "same", MADE, None),
        (["a b"], "/a", "", MADE, "same", MADE, None),
        (["a", "b"], "/a", "", MADE, "same", MADE, None),
        # providers answer with an id of their own, which their SDKs show
        (["mine"], "/a", "X-Request-ID: req_7\r\n", "mine", "req_7", "mine", "req_7"),
        ([], "/a", f"X-Request-ID: {'r' * 200}\u00e9\r\n", MADE, "r{200}.*", MADE, "r{128}"),
        # interceptors
        (["mine"], "/renamed", "", "renamed", "mine", "mine", None),
        (["mine"], "/own", "", None, "mine", "mine", None),
        (["mine"], "/no", "", None, "mine", "mine", None),
        ([], "/%zz/..", "", MADE, "same", MADE, None),
    ],
)
async def test_the_id_is_one_from_client_to_upstream(
    sent: list[str],
    target: str,
    more: str,
    upstream_gets: str | None,
    client_gets: str,
    in_log: str,
    upstreams_own: str | None,
    log: Log,
) -> None:
    headers = [(ID, item) for item in sent]
    answer, requests, line = await ask(log, *headers, target=target, more=more, **OWN)
    assert re.fullmatch(in_log, line["request_id"])
    if upstream_gets is None:
        assert not requests
    else:
        (received,) = requests[0].all("x-request-id")
        assert re.fullmatch(upstream_gets, received.decode())
    (returned,) = answer.all("x-request-id")
    pattern = re.escape(line["request_id"]) if client_gets == "same" else client_gets
    assert re.fullmatch(pattern, returned.decode("latin-1"))
    assert re.fullmatch(upstreams_own or "", line.get("upstream_request_id") or "")
    (seen,) = [item for item in log if item["event"] == "seen"]
    assert seen["id"] == line["request_id"]


async def test_the_header_can_have_another_name_or_none(log: Log) -> None:
    """A second spelling of it does not reach the upstream."""
    headers = [("X-Corr-Id", "mine"), ("X_Corr_Id", "other"), (ID, "passes")]
    answer, requests, line = await ask(log, *headers, log="request_id_header: X-Corr-Id")
    assert (line["request_id"], answer.all("x-corr-id")) == ("mine", [b"mine"])
    assert requests[0].all("x-corr-id") == [b"mine"]
    assert requests[0].all("x_corr_id") == []
    assert (requests[0].all("x-request-id"), answer.all("x-request-id")) == ([b"passes"], [])
    answer, requests, line = await ask(log, (ID, "passes"), log="request_id_header: null")
    assert re.fullmatch(MADE, line["request_id"])
    assert (requests[0].all("x-request-id"), answer.all("x-request-id")) == ([b"passes"], [])


@pytest.mark.parametrize("target", ["/own", "/no", "/a"])
async def test_a_page_can_read_the_id(target: str, log: Log) -> None:
    """Where the response allows its origin."""
    route = f'allowed_origins: ["{PAGE[1]}"]'
    allows = f"Access-Control-Allow-Origin: {PAGE[1]}\r\nAccess-Control-Expose-Headers: X-A\r\n"
    answer, _, _ = await ask(log, PAGE, target=target, more=allows, route=route, **OWN)
    exposed = b",".join(answer.all("access-control-expose-headers")).lower()
    assert b"x-request-id" in [item.strip() for item in exposed.split(b",")]
    if target == "/a":
        assert b"x-a" in exposed
        answer, _, _ = await ask(log, PAGE, more="X-Request-Id: own\r\n", route=route)
        assert answer.all("access-control-expose-headers") == []  # it does not allow the origin


async def test_what_the_parser_refuses_has_a_line_and_an_id(log: Log) -> None:
    """Over HTTP/1.1 and HTTP/2."""
    async with open_proxy(config_for("http://127.0.0.1:9")) as proxy:
        for head, status, kind in (
            (b"GET /a b HTTP/1.1\r\n\r\n", 400, "bad_request"),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 70_000),
                431,
                "head_too_large",
            ),
            (b"GET / HTTP/2.0\r\n\r\n", 505, "version_not_supported"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_supported"),
        ):
            log.clear()
            client = await open_client(proxy.port)
            with trio.fail_after(10):
                await client.stream.send_all(head)
                received = b""
                while data := await client.stream.receive_some(4096):
                    received += data
                await until(lambda: bool(log) and log[-1]["event"] == "exchange")
            await client.aclose()
            line = log[-1]
            assert (line["status"], line["error_type"], line["outcome"]) == (
                status,
                kind,
                "refused",
            )
            assert (line["level"], line["client"]) == ("warning", "127.0.0.1")
            assert b"x-request-id: %b\r\n" % line["request_id"].encode() in received
        async with open_http2(proxy, None) as client:
            http2 = Http2Requester(client)
            await http2.send("GET", "/", [("x-request-id", "mine")])
            assert (await http2.answer()).all("x-request-id") == [b"mine"]


KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("wk-1")}"}}}}}}'
LIMIT = "{name: limit, use: rate_limit, options: {requests_per_minute: 0.001, burst: 1}}"


async def test_the_fields_of_the_line(log: Log) -> None:
    """The client is its key's name, as soon as that is known, and nothing secret is in the line."""
    settings = {"interceptors": f"{KEYS}, {LIMIT}", "names": "keys, limit"}
    async with open_upstream(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    ) as upstream:
        async with open_proxy(config_for(upstream.url, **settings)) as proxy:
            for key in ("wk-1", "wk-1", "wk-2"):
                headers = [("Authorization", f"Bearer {key}"), ("User-Agent", "sdk/1 " + "x" * 400)]
                await fetch(proxy.port, "/v1//chat?token=secret", headers=headers)
            await until(lambda: sum(line["event"] == "exchange" for line in log) == 3)
    lines = [line for line in log if line["event"] == "exchange"]
    names = ("status", "outcome", "client", "level", "error_type", "interceptor")
    assert [tuple(line.get(name) for name in names) for line in lines] == [
        (200, "completed", "ann", "info", None, None),
        (429, "intercepted", "ann", "warning", "rate_limited", "limit"),
        (401, "intercepted", "127.0.0.1", "warning", "invalid_api_key", "keys"),
    ]
    assert {line["path"] for line in lines} == {"/v1/chat"}
    assert {line["user_agent"] for line in lines} == {("sdk/1 " + "x" * 400)[:256]}
    assert "secret" not in str(lines)
    assert "wk-" not in str(lines)


async def test_the_client_behind_a_trusted_proxy(log: Log) -> None:
    """Everything calls it by the address that the trusted proxy reports."""
    claim = ("X-Forwarded-For", "203.0.113.9, 10.0.0.7")
    settings = {"proxy": "  trusted_proxies: [127.0.0.1, 10.0.0.0/8]", **OWN}
    _, requests, line = await ask(log, claim, **settings)
    assert line["client"] == "203.0.113.9"
    assert requests[0].all("x-forwarded-for") == [b"203.0.113.9, 10.0.0.7, 127.0.0.1"]
    _, _, line = await ask(log, claim, **OWN)
    assert line["client"] == "127.0.0.1"
