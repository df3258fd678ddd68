"""MCP messages: their kinds, changes to them, and the request that a response answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError
from support.tables import words

from interceptors import NotJson
from interceptors.dialects.mcp import Kind, McpError, McpMessage, parse
from interceptors.dialects.mcp_calls import Call, Calls
from interceptors.dialects.mcp_kinds import ambiguity


def text_of(row: str) -> str:
    """The JSON text of a row: `V` is the version of JSON-RPC."""
    return row.replace("V", '"jsonrpc":"2.0"')


def only(row: str, *, from_client: bool = True) -> McpMessage:
    (message,) = parse(text_of(row), from_client=from_client).messages
    return message


TWO_AT_ONCE = words("""
    {V,"id":1,"method":"ping","result":{}}
    {V,"id":1,"result":{},"error":{"code":1,"message":"m"}}
""")
KINDS = {
    Kind.REQUEST: words("""
        {V,"id":1,"method":"tools/list"}
        {V,"id":"a","method":"ping","params":{}}
        {V,"id":0,"method":"ping"}
        {V,"id":0,"method":"ping","params":null}
        {V,"id":1,"method":"ping","result":null,"error":null}
    """),
    Kind.NOTIFICATION: words("""
        {V,"method":"notifications/initialized"}
        {V,"id":null,"method":"ping"}
    """),
    Kind.RESPONSE: words("""
        {V,"id":1,"result":{}}
        {V,"id":1,"error":{"code":-32601,"message":"no"}}
        {V,"id":null,"error":{"code":-32700,"message":"no"}}
        {V,"id":1,"error":null,"result":{}}
        {V,"id":1,"error":{"code":1,"message":"m"},"result":null}
        {V,"id":1,"method":null,"result":{}}
    """),
    Kind.MALFORMED: TWO_AT_ONCE
    + words("""
        7
        {}
        {"jsonrpc":"1.0","id":1,"method":"ping"}
        {"id":1,"method":"ping"}
        {V,"id":1,"method":7}
        {V,"id":1,"method":null}
        {V,"id":true,"method":"ping"}
        {V,"id":1.5,"method":"ping"}
        {V,"id":1,"method":"ping","params":[]}
        {V,"id":1,"error":{"message":"m"}}
        {V,"result":{}}
    """),
}


@pytest.mark.parametrize(
    ("kind", "row"), [(kind, row) for kind, rows in KINDS.items() for row in rows]
)
def test_kinds_are_those_of_the_sdk(kind: Kind, row: str) -> None:
    """What is malformed has a reason. The SDK reads every message that is one here."""
    message = only(row)
    assert message.kind is kind
    assert (message.problem is not None) == (kind is Kind.MALFORMED)
    if row in TWO_AT_ONCE:
        return  # the SDK takes the first kind that fits
    try:
        read = jsonrpc_message_adapter.validate_json(text_of(row))
    except ValidationError:
        assert kind is Kind.MALFORMED
    else:
        # The SDK drops an id that it does not take, and sees a notification.
        assert kind is not Kind.MALFORMED or "id" not in read.model_fields_set


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "add"}, "add"),
        ("prompts/get", {"name": "greet"}, "greet"),
        ("resources/read", {"uri": "file:///a"}, "file:///a"),
        ("resources/subscribe", {"uri": "file:///a"}, "file:///a"),
        ("resources/unsubscribe", {"uri": "file:///a"}, "file:///a"),
        ("notifications/resources/updated", {"uri": "file:///a"}, "file:///a"),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet"}}, "greet"),
        ("completion/complete", {"ref": {"type": "ref/resource", "uri": "a:{b}"}}, "a:{b}"),
        ("completion/complete", {"ref": "greet"}, None),
        ("tools/list", {"name": "x"}, None),
        ("tools/call", {"name": 7}, None),
        ("tools/call", {}, None),
    ],
)
def test_a_message_has_the_name_of_its_subject(method: str, params: Any, name: str | None) -> None:
    message = only(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
    assert message.name == name
    if name is not None:
        message.name = "other"
        assert (message.name, message.changed) == ("other", True)


ODD = (
    '{ "jsonrpc" : "2.0", "id":1, "method":"tools\\/call" ,'
    '"params":{"name":"add","arguments":{"a":1.0e2 , "b":"\\u00e9"}},"x":1E5 }'
)


def test_only_a_changed_member_is_written_anew() -> None:
    payload = parse(ODD, from_client=True)
    (message,) = payload.messages
    assert (message.id, message.method, message.name) == (1, "tools/call", "add")
    assert message.params["arguments"] == {"a": 100.0, "b": "é"}
    assert (message.changed, payload.encode()) == (False, ODD.encode())
    message.method = "tools/list"
    message.method = "tools/call"
    assert not message.changed
    message.params["arguments"]["b"] = "e"
    assert payload.encode() == (
        b'{"jsonrpc":"2.0","id":1,"method":"tools\\/call",'
        b'"params":{"name":"add","arguments":{"a":100.0,"b":"e"}},"x":1E5}'
    )


@pytest.mark.parametrize("params", ["", ',"params":null', ',"params":{}'])
def test_absent_params_may_be_filled(params: str) -> None:
    text = text_of(f'{{V,"id":1,"method":"ping"{params}}}')
    payload = parse(text, from_client=True)
    assert payload.messages[0].params == {}
    assert payload.encode() == text.encode()
    payload.messages[0].params["a"] = 1
    assert payload.encode() == text_of('{V,"id":1,"method":"ping","params":{"a":1}}').encode()


def test_a_response_has_a_result_or_an_error() -> None:
    payload = parse(text_of('{V,"id":1,"result":{"a":1}}'), from_client=False)
    payload.messages[0].error = McpError(-32602, "no", data=[1])
    error = '{V,"id":1,"error":{"code":-32602,"message":"no","data":[1]}}'
    assert payload.encode() == text_of(error).encode()
    payload = parse(text_of(error), from_client=False)
    payload.messages[0].result = {"b": 2}
    assert payload.encode() == text_of('{V,"id":1,"result":{"b":2}}').encode()


def test_the_rest_of_a_batch_keeps_its_bytes() -> None:
    items = [
        text_of('{ V,"method":"notifications/x" }'),
        ODD,
        '{"no":1.0e1}',
        text_of('{V,"id":2,"method":"ping"}'),
    ]
    text = "[" + " , ".join(items) + "]"
    payload = parse(text, from_client=True)
    assert payload.encode() == text.encode()
    payload.messages[0].drop()
    payload.messages[3].method = "pong"
    assert payload.encode() == text_of(f'[{ODD},{items[2]},{{V,"id":2,"method":"pong"}}]').encode()
    for message in payload.messages[1:]:
        message.dropped = True
    assert payload.encode() is None


def test_members_belong_to_their_kinds() -> None:
    """Only notifications can be dropped."""
    request, response = only(ODD), only('{V,"id":1,"result":{}}')
    for use in (
        lambda: response.params,
        lambda: setattr(response, "method", "m"),
        lambda: response.call,
    ):
        with pytest.raises(ValueError, match="the message is a response"):
            use()
    with pytest.raises(ValueError, match="for a notification, and the message is a request"):
        request.drop()
    with pytest.raises(ValueError, match="for a response"):
        request.result = {}
    with pytest.raises(ValueError, match="about nothing that has a name"):
        only('{V,"id":1,"method":"ping"}').name = "x"
    assert [response.method, request.result, only("7").id, only("7").method] == [None] * 4


NO_JSON = ["", "{", "\ufeff{}", "nope", '{"a":"\\ud800"}', "[" * 200_000, "1e400", "\ud800"]


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: ascii(text[:9]))
def test_what_is_not_json_is_one_named_error(text: str) -> None:
    """Also a text that UTF-8 cannot write, and lists too deep to be read."""
    with pytest.raises(NotJson, match="this MCP message is"):
        parse(text + "]" * (len(text) if len(text) > 100 else 0), from_client=True)


@pytest.mark.parametrize(
    "row",
    words(r"""
        {V,"id":1,"method":"ping","method":"tools/call"}
        {V,"id":1,"m\u0065thod":"ping","method":"tools/call"}
        {V,"id":1,"method":"ping","Method":"tools/call"}
        {V,"id":1,"METHOD":"tools/call"}
        {V,"id":1,"method":"tools/call","params":{"name":"a"},"paramſ":{"name":"b"}}
        {V,"id":1,"method":"tools/call","params":{"name":"a","NAME":"b"}}
        {V,"id":1,"method":"tools/call","params":{"name":"a","name":"b"}}
        {V,"id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"x":2}}}
        [{V,"id":1,"method":"ping"},{V,"id":1,"method":"a","params":{"ref":{"Uri":"x"}}}]
        {V,"method":"a","params":{"notifications":{"ResourceSubscriptions":["x"]}}}
        {"x":1,"X":2}
        {"params":{"a":1,"A":2}}
    """),
)
def test_what_two_readers_may_take_for_two_messages_is_ambiguous(row: str) -> None:
    """A name that occurs twice, or in another case."""
    assert ambiguity(text_of(row).encode()) is not None


def test_arguments_of_tools_may_have_any_names() -> None:
    assert ambiguity(ODD.encode()) is None
    row = '{V,"id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"X":2}}}'
    assert ambiguity(text_of(row).encode()) is None
    with pytest.raises(NotJson):
        ambiguity(b'{"a":"\xff"}')


@pytest.mark.parametrize("row", ["[]", "[7]", '[{V,"id":1,"method":"a"},{V,"id":1,"method":"b"}]'])
def test_a_batch_has_a_problem(row: str) -> None:
    """It is empty, has something that is not a message, or two requests with one id."""
    payload = parse(text_of(row), from_client=True)
    assert payload.problem is not None
    assert payload.encode() == text_of(row).encode()


# Which request a response answers


def test_a_call_is_found_by_session_direction_and_id() -> None:
    """1 is not "1", and a request of the server is not one of the client with the same id."""
    calls = Calls()
    asked = [
        Call(1, "tools/list", None, True),
        Call("1", "ping", None, True),
        Call(1, "roots/list", None, False),
    ]
    for call in asked:
        calls.remember("s", call)
    assert [calls.find("s", call.id, from_client=call.from_client) for call in asked] == asked
    assert calls.find("other", 1, from_client=True) is None
    assert calls.find("s", "2", from_client=True) is None


def test_calls_are_bounded_in_number_age_and_size() -> None:
    """Over all sessions; the newest with an id counts."""
    now = 0.0
    calls = Calls(max_calls=3, max_age_s=10, clock=lambda: now)

    def known() -> list[int]:
        sessions = range(10)
        return [n for n in sessions if calls.find(f"s{n}", n, from_client=True) is not None]

    for number in range(5):
        calls.remember(f"s{number}", Call(number, "m", None, True))
    assert (len(calls), known()) == (3, [2, 3, 4])
    calls.remember("s2", Call(2, "newer", None, True))
    calls.remember("s5", Call(5, "m", None, True))
    assert (len(calls), known()) == (3, [2, 4, 5])
    now = 10.5
    assert known() == []
    calls.remember("s9", Call(9, "m", None, True))
    calls.remember("s", Call(10, "x" * 5000, None, True))
    assert (len(calls), known()) == (1, [9])


# Any JSON at all

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
METHODS = st.sampled_from(["tools/call", "ping", "completion/complete", "notifications/x"])
PARAMS = st.dictionaries(st.sampled_from(["name", "uri", "ref", "_meta"]), VALUES)
ERRORS = st.fixed_dictionaries({"code": st.integers(), "message": st.text(max_size=3)})
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | VALUES,
        "id": st.integers() | st.text(max_size=3) | VALUES,
        "method": METHODS | VALUES,
        "params": PARAMS | VALUES,
        "result": VALUES,
        "error": ERRORS | VALUES,
    },
)
BODIES = (st.lists(ENVELOPES | VALUES, max_size=4) | ENVELOPES).map(json.dumps)


@given(BODIES | st.text(max_size=20), st.booleans())
def test_any_text_is_read_and_written_unchanged_or_is_not_json(text: str, client: bool) -> None:
    try:
        data = text.encode()
        payload = parse(data, from_client=client)
    except (UnicodeEncodeError, NotJson):
        return
    for message in payload.messages:
        assert (message.kind is Kind.MALFORMED) == (message.problem is not None)
        _ = (message.id, message.method, message.name, message.result, message.error)
        _ = (message.json(), repr(message))
        if message.kind in (Kind.REQUEST, Kind.NOTIFICATION):
            _ = message.params
    assert payload.encode() == data
