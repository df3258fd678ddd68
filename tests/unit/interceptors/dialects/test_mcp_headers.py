"""Headers that mirror an MCP body: checked and rewritten as servers made with the official SDK
understand them.
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
    params = {"_meta": meta, key: name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def headers_of(**named: str) -> Headers:
    named = {"MCP_Protocol_Version": MODERN} | named
    return Headers({name.replace("_", "-"): value for name, value in named.items()})


def refused_by_sdk(body: dict[str, Any], headers: Headers) -> bool:
    verdict = sdk.classify_inbound_request(body, headers=dict(headers))
    return isinstance(verdict, sdk.InboundLadderRejection) and verdict.code == sdk.HEADER_MISMATCH


ADD = {"Mcp_Method": "tools/call", "Mcp_Name": "add"}
RESULT = {"jsonrpc": "2.0", "id": 1, "result": {}}
NOTE = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
X = {"method": "tools/call", "params": {"name": "x"}}


@pytest.mark.parametrize(
    ("revision", "mirrors"),
    [
        *((revision, False) for revision in REVISIONS[:-1]),
        (REVISIONS[-1], True),
        ("2024-10-07", False),  # the official TypeScript SDK knows it
        ("2026-07-27", False),
        # The SDK's servers treat a version that they do not know as a modern one.
        ("2026-07-29", True),
        ("2027-01-01", True),
        ("DRAFT-2026-v1", True),
    ],
)
def test_the_newest_revision_and_unknown_ones_have_mirrors(revision: str, mirrors: bool) -> None:
    assert revision_of(Headers({"MCP-Protocol-Version": revision})) == revision
    assert has_mirrors(revision) is mirrors


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        ([], False),
        ([""], False),
        (["2025-11-25"], False),
        (["2025-11-25, 2025-11-25"], False),
        (["2025-11-25, 2025-06-18"], False),
        (["2025-11-25", "2025-11-25"], False),
        (["2025-11-25", "2026-07-28"], True),
        (["2026-07-28, 2025-11-25"], True),
        (["2025-11-25,x"], True),
        (["x", "2024-11-05"], True),
    ],
)
def test_of_several_revisions_the_newest_counts(lines: list[str], refused: bool) -> None:
    """A server may use any of them. Without one that has mirrors nothing is checked or written."""
    headers = Headers([("Mcp-Method", "x"), *(("MCP-Protocol-Version", line) for line in lines)])
    assert (check(headers, call()) is not None) is refused
    assert has_mirrors(revision_of(headers)) is refused
    if not refused:
        before = headers.raw
        mirror(headers, call())
        assert headers.raw == before


def test_the_methods_with_a_name_are_those_of_the_sdk() -> None:
    assert dict(NAMED_BY) == dict(sdk.NAME_BEARING_METHODS)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (call(), ADD),
        (call(), ADD | {"Mcp_Method": "tools/list"}),
        (call(), {"Mcp_Name": "add"}),
        (call(), ADD | {"Mcp_Method": "TOOLS/CALL"}),
        (call(), ADD | {"Mcp_Name": "sub"}),
        (call(), {"Mcp_Method": "tools/call"}),
        (call("é"), ADD | {"Mcp_Name": "=?base64?w6k=?="}),
        (call("é"), ADD | {"Mcp_Name": "=?base64?w6l=?="}),
        (call("é"), ADD | {"Mcp_Name": "=?base64?%%?="}),
        (call("é"), ADD | {"Mcp_Name": "=?base64?/w==?="}),
        (call(7), ADD | {"Mcp_Name": "7"}),
        (call("a:b", "resources/read", "uri"), {"Mcp_Method": "resources/read", "Mcp_Name": "a:b"}),
        (call("a:b", "resources/read", "uri"), {"Mcp_Method": "resources/read", "Mcp_Name": "a:c"}),
        (call("p", "prompts/get"), {"Mcp_Method": "prompts/get", "Mcp_Name": "q"}),
        (call(method="tools/list"), {"Mcp_Method": "tools/list"}),
        (call(), {"MCP_Protocol_Version": "2027-01-01", "Mcp_Method": "tools/call"}),
    ],
)
def test_the_sdks_servers_refuse_the_same(body: dict[str, Any], headers: dict[str, str]) -> None:
    """A header that is missing, wrong or not decodable is a mismatch; what matches passes."""
    rejection = check(headers_of(**headers), body)
    assert (rejection is not None) is refused_by_sdk(body, headers_of(**headers))
    if rejection is not None:
        error = {"code": HEADER_MISMATCH, "message": rejection.message}
        assert rejection.status == 400
        assert rejection.json() == {"jsonrpc": "2.0", "id": 7, "error": error}


@pytest.mark.parametrize("name", ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"])
def test_a_header_that_occurs_twice_is_refused(name: str) -> None:
    """Also where both are the same."""
    right = headers_of(**ADD)
    rejection = check(Headers([*right.multi_items(), (name, right[name])]), call())
    assert rejection is not None
    assert rejection.code == HEADER_MISMATCH


@pytest.mark.parametrize(
    ("body", "headers", "refused"),
    [
        (NOTE, {}, False),
        (NOTE, {"Mcp_Method": "notifications/progress"}, False),
        (NOTE, {"Mcp_Method": "tools/list"}, True),
        (RESULT, {}, False),
        (RESULT, {"Mcp_Method": "tools/list"}, True),
        (X, {}, False),
        (X, {"Mcp_Name": "y"}, True),
        ({"id": 1, "method": "tools/call"}, {"Mcp_Method": "tools/call", "Mcp_Name": "y"}, True),
    ],
)
def test_messages_with_optional_headers(body: Any, headers: dict[str, str], refused: bool) -> None:
    assert (check(headers_of(**headers), body) is not None) is refused


@pytest.mark.parametrize("body", [[call()], [], "text", 7, None])
def test_what_is_not_a_single_message_is_refused(body: Any) -> None:
    """No header fits a batch."""
    rejection = check(headers_of(**ADD), body)
    assert rejection is not None
    assert (rejection.code, rejection.id) == (INVALID_REQUEST, None)


def test_no_value_is_in_an_error() -> None:
    rejection = check(headers_of(Mcp_Method="secret-1", Mcp_Name="secret-2"), call("secret-3"))
    assert "secret" not in json.dumps(rejection.json() if rejection else "secret")


@given(st.one_of(st.text(), st.from_regex(r"\A=\?base64\?[A-Za-z0-9+/=]{0,12}\?=\Z")))
def test_values_are_encoded_and_decoded_as_the_sdk_does(value: str) -> None:
    """Any text becomes a header value that both sides read alike; or both report that it is
    malformed.
    """
    assert encode_value(value) == sdk.encode_header_value(value)
    assert encode_value(value).isascii()
    assert decode_value(encode_value(value)) == value
    assert decode_value(value) == sdk.decode_header_value(value)


# Headers of a changed body


def test_a_changed_body_gets_its_headers() -> None:
    """Method, name and version follow the body, whatever was there; the SDK's servers accept it."""
    for headers in (
        headers_of(**ADD, X_Other="kept"),
        Headers([("MCP-Protocol-Version", MODERN), *[("Mcp-Name", "a")] * 2, ("X-Other", "kept")]),
    ):
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


LIST = {"id": 1, "method": "tools/list", "params": {}}
RUN = {"id": 1, "method": "x/run", "params": {"job": "job"}}


@pytest.mark.parametrize(
    ("headers", "body", "before", "expected"),
    [
        # A method without a name has no `Mcp-Name`, nor has a call whose name was removed.
        (ADD, LIST, call(), {"Mcp_Method": "tools/list"}),
        (ADD, {"id": 1, "method": "tools/call"}, call(), {"Mcp_Method": "tools/call"}),
        # An extension's methods may have names that only it knows.
        (ADD | {"Mcp_Method": "x/run"}, RUN, RUN | {"id": 2}, ADD | {"Mcp_Method": "x/run"}),
        # A right value in another spelling stays.
        (
            ADD | {"Mcp_Name": "=?base64?YWRk?="},
            call(x=2),
            call(x=1),
            ADD | {"Mcp_Name": "=?base64?YWRk?="},
        ),
        # Nothing asks for headers of a notification; those that are there follow it.
        ({}, NOTE, None, {}),
        ({"Mcp_Name": "y"}, X, None, {"Mcp_Name": "x"}),
    ],
)
def test_a_name_goes_with_the_method_that_had_it(
    headers: dict[str, str], body: Any, before: Any, expected: dict[str, str]
) -> None:
    made = headers_of(**headers)
    mirror(made, body, before)
    assert dict(made) == dict(headers_of(**expected))


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
    """If no argument had it, or several that now differ, the header stays."""
    headers = headers_of(**ADD, Mcp_Param_Region=header)
    mirror(headers, call(**new), call(**old))
    assert headers.get("mcp-param-region") == expected


def test_parameters_that_occur_twice_stay() -> None:
    twice = [("Mcp-Param-X", "1"), ("Mcp-Param-X", "2")]
    headers = Headers([*headers_of(**ADD).multi_items(), *twice])
    mirror(headers, call("sub", a="2"), call(a="1"))
    assert headers.get_list("mcp-param-x") == ["1", "2"]


def test_arguments_may_have_any_depth() -> None:
    """They are walked without recursion."""
    deep: Any = "x"
    for _ in range(3000):
        deep = {"a": deep}
    headers = headers_of(**ADD, Mcp_Param_Region="eu")
    mirror(headers, call(b="us", deep=deep), call(b="eu", deep=deep))
    assert headers["mcp-param-region"] == "us"
