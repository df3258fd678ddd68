"""Headers that mirror an MCP body: read, checked, and rewritten, as servers made with the official
SDK understand them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared import inbound as sdk

from interceptors import Headers
from interceptors.dialects.mcp_headers import (
    HEADER_MISMATCH,
    INVALID_REQUEST,
    NAMED_BY,
    REVISIONS,
    VERSION_KEY,
    check,
    decode_value,
    encode_value,
    has_mirrors,
    mirror,
    revision_of,
)

MODERN = "2026-07-28"


def call(
    name: Any = "add", method: str = "tools/call", key: str = "name", **arguments: Any
) -> dict[str, Any]:
    meta = {VERSION_KEY: MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    return {
        "jsonrpc": "2.0",
        "id": 7,
        "method": method,
        "params": {"_meta": meta, key: name, "arguments": arguments},
    }


def headers_of(**named: str) -> Headers:
    return Headers(
        {"MCP-Protocol-Version": MODERN}
        | {name.replace("_", "-"): value for name, value in named.items()}
    )


def refused_by_sdk(body: dict[str, Any], headers: Headers) -> bool:
    verdict = sdk.classify_inbound_request(body, headers=dict(headers))
    return isinstance(verdict, sdk.InboundLadderRejection) and verdict.code == sdk.HEADER_MISMATCH


def test_a_revision_is_that_of_the_header() -> None:
    """Without the header a request is of 2025-03-26 or older, and there is nothing to name."""
    assert revision_of(Headers({"MCP-Protocol-Version": "2025-06-18"})) == "2025-06-18"
    assert revision_of(Headers()) is None


def test_the_newest_revision_and_unknown_ones_have_mirrors() -> None:
    """The SDK's servers treat a version that they do not know as a modern one."""
    assert [has_mirrors(revision) for revision in REVISIONS] == [False] * 4 + [True]
    assert has_mirrors("2027-01-01")
    assert not has_mirrors(None)


@pytest.mark.parametrize(
    "lines",
    [["2025-11-25, 2025-11-25"], ["2025-11-25, 2025-06-18"], ["2025-11-25", "2025-11-25"], [""]],
)
def test_what_clients_send_instead_of_one_older_revision_is_not_a_newer_one(
    lines: list[str],
) -> None:
    """Several values in a list or in lines, of which none has mirrors: the server names what it
    thinks of that.
    """
    headers = Headers([("MCP-Protocol-Version", line) for line in lines])
    assert check(headers, call()) is None
    assert not has_mirrors(revision_of(headers))


@pytest.mark.parametrize(
    "lines",
    [
        ["2025-11-25", "2026-07-28"],
        ["2026-07-28, 2025-11-25"],
        ["2025-11-25,x"],
        ["x", "2024-11-05"],
    ],
)
def test_a_newer_revision_beside_an_older_one_is_not_overlooked(lines: list[str]) -> None:
    """A server may go by either."""
    assert check(Headers([("MCP-Protocol-Version", line) for line in lines]), call()) is not None


def test_an_earlier_date_has_no_mirrors() -> None:
    """The official TypeScript SDK knows 2024-10-07."""
    assert [
        has_mirrors(date) for date in ("2024-10-07", "2026-07-27", "2026-07-29", "DRAFT-2026-v1")
    ] == [
        False,
        False,
        True,
        True,
    ]


def test_what_names_a_method_is_as_in_the_sdk() -> None:
    """The methods that have an `Mcp-Name`, and its parameter, are the SDK's."""
    assert dict(NAMED_BY) == dict(sdk.NAME_BEARING_METHODS)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (call(), headers_of(Mcp_Method="tools/call", Mcp_Name="add")),
        (call(), headers_of(Mcp_Method="tools/list", Mcp_Name="add")),
        (call(), headers_of(Mcp_Name="add")),
        (call(), headers_of(Mcp_Method="TOOLS/CALL", Mcp_Name="add")),
        (call(), headers_of(Mcp_Method="tools/call", Mcp_Name="sub")),
        (call(), headers_of(Mcp_Method="tools/call")),
        (call("é"), headers_of(Mcp_Method="tools/call", Mcp_Name="=?base64?w6k=?=")),
        (call("é"), headers_of(Mcp_Method="tools/call", Mcp_Name="=?base64?w6l=?=")),
        (call("é"), headers_of(Mcp_Method="tools/call", Mcp_Name="=?base64?%%?=")),
        (call("é"), headers_of(Mcp_Method="tools/call", Mcp_Name="=?base64?/w==?=")),
        (call(7), headers_of(Mcp_Method="tools/call", Mcp_Name="7")),
        (
            call("file:///a", "resources/read", "uri"),
            headers_of(Mcp_Method="resources/read", Mcp_Name="file:///a"),
        ),
        (
            call("file:///a", "resources/read", "uri"),
            headers_of(Mcp_Method="resources/read", Mcp_Name="file:///b"),
        ),
        (call("p", "prompts/get"), headers_of(Mcp_Method="prompts/get", Mcp_Name="q")),
        (call(method="tools/list"), headers_of(Mcp_Method="tools/list")),
        (call(), Headers({"MCP-Protocol-Version": "2027-01-01", "Mcp-Method": "tools/call"})),
    ],
)
def test_a_request_is_refused_where_the_sdks_servers_refuse_it(
    body: dict[str, Any], headers: Headers
) -> None:
    """A header that is missing, wrong or not decodable is a mismatch; what matches passes."""
    rejection = check(headers, body)
    assert (rejection is not None) is refused_by_sdk(body, headers)
    if rejection is not None:
        assert rejection.status == 400
        assert rejection.json() == {
            "jsonrpc": "2.0",
            "id": 7,
            "error": {"code": HEADER_MISMATCH, "message": rejection.message},
        }


@pytest.mark.parametrize("name", ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"])
def test_a_header_that_occurs_twice_is_refused(name: str) -> None:
    """Who reads the first and who reads the last would disagree, also where both are the same."""
    right = headers_of(Mcp_Method="tools/call", Mcp_Name="add")
    rejection = check(Headers([*right.multi_items(), (name, right[name])]), call())
    assert rejection is not None
    assert rejection.code == HEADER_MISMATCH


def test_older_revisions_have_no_mirrors() -> None:
    """Before 2026-07-28 such headers mean nothing, and nothing is checked or written."""
    for headers in (
        Headers({"Mcp-Method": "x"}),
        Headers({"MCP-Protocol-Version": "2025-11-25", "Mcp-Method": "x"}),
    ):
        before = headers.raw
        assert check(headers, call()) is None
        mirror(headers, call())
        assert headers.raw == before


def test_notifications_and_responses_need_no_headers_but_must_not_lie() -> None:
    """The revision asks for none there; one that is there is a router's to believe."""
    note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
    assert check(headers_of(), note) is None
    assert check(headers_of(Mcp_Method="notifications/progress"), note) is None
    assert check(headers_of(Mcp_Method="tools/list"), note) is not None
    assert check(headers_of(), {"jsonrpc": "2.0", "id": 1, "result": {}}) is None
    assert (
        check(headers_of(Mcp_Method="tools/list"), {"jsonrpc": "2.0", "id": 1, "result": {}})
        is not None
    )
    assert check(headers_of(), {"method": "tools/call", "params": {"name": "x"}}) is None
    assert (
        check(headers_of(Mcp_Name="y"), {"method": "tools/call", "params": {"name": "x"}})
        is not None
    )
    assert (
        check(headers_of(Mcp_Method="tools/call", Mcp_Name="y"), {"id": 1, "method": "tools/call"})
        is not None
    )


@pytest.mark.parametrize("body", [[call()], [], "text", 7, None])
def test_what_is_not_a_single_message_is_refused(body: Any) -> None:
    """No header fits a batch."""
    rejection = check(headers_of(Mcp_Method="tools/call", Mcp_Name="add"), body)
    assert rejection is not None
    assert (rejection.code, rejection.id) == (INVALID_REQUEST, None)


def test_no_value_is_in_an_error() -> None:
    """Texts of errors name headers, and hold neither their values nor the body's."""
    rejection = check(headers_of(Mcp_Method="secret-1", Mcp_Name="secret-2"), call("secret-3"))
    assert "secret" not in json.dumps(rejection.json() if rejection else "secret")


@given(st.text())
def test_values_are_encoded_as_the_sdk_encodes_them(value: str) -> None:
    """Any text becomes a header value that both sides read alike."""
    assert encode_value(value) == sdk.encode_header_value(value)
    assert encode_value(value).isascii()
    assert decode_value(encode_value(value)) == value


@given(st.one_of(st.text(), st.from_regex(r"\A=\?base64\?[A-Za-z0-9+/=]{0,12}\?=\Z")))
def test_values_are_decoded_as_the_sdk_decodes_them(value: str) -> None:
    """Any value: the same text, or both report that it is malformed."""
    assert decode_value(value) == sdk.decode_header_value(value)


def test_a_changed_body_gets_its_headers() -> None:
    """Method, name and version follow the body; and the SDK's servers take it."""
    headers = headers_of(Mcp_Method="tools/call", Mcp_Name="add", X_Other="kept")
    for body in (
        call("sub"),
        call("é "),
        call("file:///a", "resources/read", "uri"),
        call(method="prompts/get"),
    ):
        mirror(headers, body)
        assert not refused_by_sdk(body, headers)
        assert check(headers, body) is None
    assert headers["x-other"] == "kept"


def test_a_name_goes_with_the_method_that_had_it() -> None:
    """A method without a name has no `Mcp-Name`, nor has a call whose name was taken away."""
    headers = headers_of(Mcp_Method="tools/call", Mcp_Name="add")
    mirror(headers, {"id": 1, "method": "tools/list", "params": {}}, call())
    assert (headers["mcp-method"], "mcp-name" in headers) == ("tools/list", False)
    headers = headers_of(Mcp_Method="tools/call", Mcp_Name="add")
    mirror(headers, {"id": 1, "method": "tools/call", "params": {}}, call())
    assert "mcp-name" not in headers


def test_the_name_of_an_unknown_method_stays() -> None:
    """An extension's methods may have names, too, that only it knows."""
    headers = headers_of(Mcp_Method="x/run", Mcp_Name="job")
    mirror(
        headers,
        {"id": 1, "method": "x/run", "params": {"job": "job", "n": 2}},
        {"id": 1, "method": "x/run", "params": {}},
    )
    assert headers["mcp-name"] == "job"


def test_right_headers_stay_byte_for_byte() -> None:
    """A value that is right in another spelling is not written anew."""
    raw = [
        (b"MCP-Protocol-Version", MODERN.encode()),
        (b"Mcp-Method", b"tools/call"),
        (b"Mcp-Name", b"=?base64?YWRk?="),
    ]
    headers = Headers(raw)
    mirror(headers, call(x=2), call(x=1))
    assert headers.raw == raw


def test_a_missing_header_is_written_and_twice_becomes_once() -> None:
    """After `mirror`, whatever was there, the headers are right."""
    headers = Headers([("MCP-Protocol-Version", MODERN), ("Mcp-Name", "add"), ("Mcp-Name", "add")])
    mirror(headers, call())
    assert check(headers, call()) is None


def test_notifications_get_no_headers_that_they_had_not() -> None:
    """Nothing asks for them."""
    headers = headers_of()
    mirror(headers, {"method": "notifications/progress"})
    assert "mcp-method" not in headers


@pytest.mark.parametrize(
    ("header", "old", "new", "expected"),
    [
        ("eu", {"region": "eu"}, {"region": "us"}, "us"),
        ("eu", {"at": {"region": "eu"}}, {"at": {"region": "é"}}, "=?base64?w6k=?="),
        ("=?base64?w6k=?=", {"region": "é"}, {"region": "us"}, "us"),
        ("42", {"n": 42}, {"n": 43}, "43"),
        ("true", {"b": True}, {"b": False}, "false"),
        ("eu", {"region": "eu"}, {}, None),
        ("eu", {"region": "eu"}, {"region": None}, None),
        ("eu", {"a": "eu", "b": "eu"}, {"a": "us", "b": "us"}, "us"),
        ("eu", {"a": "eu", "b": "eu"}, {"a": "us", "b": "eu"}, "eu"),
        ("eu", {"a": "eu", "b": "eu"}, {"a": "eu", "b": "eu", "c": 1}, "eu"),
        ("xx", {"a": "eu"}, {"a": "us"}, "xx"),
        ("=?base64?%?=", {"a": "eu"}, {"a": "us"}, "=?base64?%?="),
        ("eu", {"a": ["eu"]}, {"a": ["us"]}, "eu"),
    ],
)
def test_a_parameters_header_follows_the_argument_that_had_its_value(
    header: str, old: dict[str, Any], new: dict[str, Any], expected: str | None
) -> None:
    """One argument had the header's value: the header follows it. None had, or several that differ
    now: it stays as it is.
    """
    headers = headers_of(Mcp_Method="tools/call", Mcp_Name="add", Mcp_Param_Region=header)
    mirror(headers, call(**new), call(**old))
    assert headers.get("mcp-param-region") == expected


def test_parameters_stay_when_the_arguments_do() -> None:
    """Unknown headers are forwarded, once or twice."""
    headers = Headers(
        [
            *headers_of(Mcp_Method="tools/call", Mcp_Name="add").multi_items(),
            ("Mcp-Param-X", "1"),
            ("Mcp-Param-X", "2"),
        ]
    )
    mirror(headers, call("sub", a="1"), call(a="1"))
    mirror(headers, call("sub", a="2"), call(a="1"))
    assert headers.get_list("mcp-param-x") == ["1", "2"]


def test_arguments_may_be_as_deep_as_they_like() -> None:
    """A client decides how deep its arguments are; they are walked without recursion."""
    deep: Any = "x"
    for _ in range(3000):
        deep = {"a": deep}
    headers = headers_of(Mcp_Method="tools/call", Mcp_Name="add", Mcp_Param_Region="eu")
    mirror(headers, call(b="us", deep=deep), call(b="eu", deep=deep))
    assert headers["mcp-param-region"] == "us"
