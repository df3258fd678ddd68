"""MCP messages: every kind is recognised, in both directions; untouched messages keep their bytes;
responses find their requests.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

from interceptors import NotJson
from interceptors.dialects.mcp import Kind, McpError, McpMessage, parse
from interceptors.dialects.mcp_calls import Call, Calls
from interceptors.dialects.mcp_kinds import ambiguity

KINDS: dict[str, tuple[str, Kind]] = {
    "a request": ('{"jsonrpc":"2.0","id":1,"method":"tools/list"}', Kind.REQUEST),
    "an id that is text": ('{"jsonrpc":"2.0","id":"a","method":"ping","params":{}}', Kind.REQUEST),
    "an id that is zero": ('{"jsonrpc":"2.0","id":0,"method":"ping"}', Kind.REQUEST),
    "params that are null": (
        '{"jsonrpc":"2.0","id":0,"method":"ping","params":null}',
        Kind.REQUEST,
    ),
    "a notification": ('{"jsonrpc":"2.0","method":"notifications/initialized"}', Kind.NOTIFICATION),
    "a result": ('{"jsonrpc":"2.0","id":1,"result":{}}', Kind.RESPONSE),
    "an error": ('{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}', Kind.RESPONSE),
    "an error about nothing": (
        '{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}',
        Kind.RESPONSE,
    ),
    "no object": ("7", Kind.MALFORMED),
    "an empty object": ("{}", Kind.MALFORMED),
    "another version": ('{"jsonrpc":"1.0","id":1,"method":"ping"}', Kind.MALFORMED),
    "no version": ('{"id":1,"method":"ping"}', Kind.MALFORMED),
    "a method that is no text": ('{"jsonrpc":"2.0","id":1,"method":7}', Kind.MALFORMED),
    "an id that is null": ('{"jsonrpc":"2.0","id":null,"method":"ping"}', Kind.NOTIFICATION),
    "a result beside an error that is null": (
        '{"jsonrpc":"2.0","id":1,"error":null,"result":{}}',
        Kind.RESPONSE,
    ),
    "an error beside a result that is null": (
        '{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"},"result":null}',
        Kind.RESPONSE,
    ),
    "a result beside a method that is null": (
        '{"jsonrpc":"2.0","id":1,"method":null,"result":{}}',
        Kind.RESPONSE,
    ),
    "a request beside nulls": (
        '{"jsonrpc":"2.0","id":1,"method":"ping","result":null,"error":null}',
        Kind.REQUEST,
    ),
    "a method that is null": ('{"jsonrpc":"2.0","id":1,"method":null}', Kind.MALFORMED),
    "an id that is true": ('{"jsonrpc":"2.0","id":true,"method":"ping"}', Kind.MALFORMED),
    "an id that is a fraction": ('{"jsonrpc":"2.0","id":1.5,"method":"ping"}', Kind.MALFORMED),
    "params that are a list": (
        '{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}',
        Kind.MALFORMED,
    ),
    "a request that is a result": (
        '{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}',
        Kind.MALFORMED,
    ),
    "a result that is an error": (
        '{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":"m"}}',
        Kind.MALFORMED,
    ),
    "an error without code": ('{"jsonrpc":"2.0","id":1,"error":{"message":"m"}}', Kind.MALFORMED),
    "a result without id": ('{"jsonrpc":"2.0","result":{}}', Kind.MALFORMED),
}


def only(text: str, *, from_client: bool = True) -> McpMessage:
    (message,) = parse(text, from_client=from_client).messages
    return message


@pytest.mark.parametrize(("text", "kind"), KINDS.values(), ids=KINDS)
def test_each_kind_is_distinguished_from_the_others(text: str, kind: Kind) -> None:
    """Requests, notifications, results, errors; anything else has a reason."""
    message = only(text)
    assert message.kind is kind
    assert (message.problem is not None) == (kind is Kind.MALFORMED)


@pytest.mark.parametrize(("text", "kind"), KINDS.values(), ids=KINDS)
def test_what_is_a_message_here_is_one_for_the_sdk(text: str, kind: Kind) -> None:
    """The official SDK reads every message that we take for one."""
    if kind is not Kind.MALFORMED:
        jsonrpc_message_adapter.validate_json(text)
    elif text not in (
        KINDS["a request that is a result"][0],
        KINDS["a result that is an error"][0],
    ):  # it takes the first that fits
        try:
            read = jsonrpc_message_adapter.validate_json(text)
        except ValidationError:
            return
        assert (
            "id" not in read.model_fields_set
        )  # it drops an id that it does not take, and sees a notification


NAMES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "a tool": ("tools/call", {"name": "add"}, "add"),
    "a prompt": ("prompts/get", {"name": "greet"}, "greet"),
    "a resource": ("resources/read", {"uri": "file:///a"}, "file:///a"),
    "a subscription": ("resources/subscribe", {"uri": "file:///a"}, "file:///a"),
    "an update": ("notifications/resources/updated", {"uri": "file:///a"}, "file:///a"),
    "a completion of a prompt": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "greet"}},
        "greet",
    ),
    "a completion of a resource": (
        "completion/complete",
        {"ref": {"type": "ref/resource", "uri": "file:///{a}"}},
        "file:///{a}",
    ),
    "a list": ("tools/list", {"name": "x"}, None),
    "a name that is no text": ("tools/call", {"name": 7}, None),
    "no name": ("tools/call", {}, None),
    "a completion of nothing": ("completion/complete", {"ref": "greet"}, None),
}


@pytest.mark.parametrize(("method", "params", "name"), NAMES.values(), ids=NAMES)
def test_a_message_has_the_name_of_its_subject(
    method: str, params: dict[str, Any], name: str | None
) -> None:
    """The name of a tool or a prompt, the URI of a resource."""
    assert (
        only(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})).name
        == name
    )
    if name is None:
        return
    message = only(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
    message.name = "other"
    assert message.name == "other"
    assert message.changed


ODD = (
    '{ "jsonrpc" : "2.0", "id":1, "method":"tools\\/call" ,'
    '"params":{"name":"add","arguments":{"a":1.0e2 , "b":"\\u00e9"}},"x":1E5 }'
)


def test_looking_changes_nothing() -> None:
    """A hook that only reads keeps every byte, also of numbers and escapes in an unusual form."""
    payload = parse(ODD, from_client=True)
    (message,) = payload.messages
    assert (message.id, message.method, message.name) == (1, "tools/call", "add")
    assert message.params["arguments"] == {"a": 100.0, "b": "é"}
    assert not payload.messages[0].changed
    assert payload.encode() == ODD.encode()


def test_a_change_in_place_is_found_and_the_other_members_keep_their_bytes() -> None:
    """Nothing need be marked; what is written anew is the one member."""
    payload = parse(ODD, from_client=True)
    payload.messages[0].params["arguments"]["b"] = "e"
    expected = b'{"jsonrpc":"2.0","id":1,"method":"tools\\/call","params":{"name":"add","arguments":{"a":100.0,"b":"e"}},"x":1E5}'
    assert payload.encode() == expected


def test_a_reverted_change_does_not_count() -> None:
    """What counts is what would be sent."""
    payload = parse(ODD, from_client=True)
    message = payload.messages[0]
    message.method = "tools/list"
    message.method = "tools/call"
    del message.params["name"]
    message.params["name"] = "add"
    assert message.changed  # another order of the members
    message = only(ODD)
    message.method = "tools/list"
    message.method = "tools/call"
    assert not message.changed


@pytest.mark.parametrize("params", ["", ',"params":null', ',"params":{}'])
def test_params_that_are_absent_may_be_filled(params: str) -> None:
    """They are an empty dict, which is written when somebody fills it, and only then."""
    text = f'{{"jsonrpc":"2.0","id":1,"method":"ping"{params}}}'
    payload = parse(text, from_client=True)
    assert payload.messages[0].params == {}
    assert payload.encode() == text.encode()
    payload.messages[0].params["a"] = 1
    assert payload.encode() == b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1}}'


def test_a_result_becomes_an_error_and_an_error_a_result() -> None:
    """A response has one of them."""
    payload = parse('{"jsonrpc":"2.0","id":1,"result":{"a":1}}', from_client=False)
    payload.messages[0].error = McpError(-32602, "no", data=[1])
    assert (
        payload.encode()
        == b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no","data":[1]}}'
    )
    payload = parse('{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}', from_client=False)
    payload.messages[0].result = {"b": 2}
    assert payload.encode() == b'{"jsonrpc":"2.0","id":1,"result":{"b":2}}'


def test_of_a_batch_the_others_keep_their_bytes() -> None:
    """One is changed, one dropped, one is not a message at all; a batch stays a batch."""
    items = [
        '{ "jsonrpc":"2.0","method":"notifications/x" }',
        ODD,
        '{"no":1.0e1}',
        '{"jsonrpc":"2.0","id":2,"method":"ping"}',
    ]
    payload = parse("[" + " , ".join(items) + "]", from_client=True)
    assert payload.encode() == ("[" + " , ".join(items) + "]").encode()
    payload.messages[0].drop()
    payload.messages[3].method = "pong"
    assert (
        payload.encode()
        == f'[{ODD},{items[2]},{{"jsonrpc":"2.0","id":2,"method":"pong"}}]'.encode()
    )
    for message in payload.messages:
        message.dropped = True
    assert payload.encode() is None


def test_what_somebody_waits_for_cannot_be_dropped() -> None:
    """Only notifications can; and members belong to their kinds."""
    with pytest.raises(ValueError, match="for a notification, and the message is a request"):
        only(ODD).drop()
    response = only('{"jsonrpc":"2.0","id":1,"result":{}}')
    for use in (
        lambda: response.params,
        lambda: setattr(response, "method", "m"),
        lambda: response.call,
    ):
        with pytest.raises(ValueError, match="the message is a response"):
            use()
    with pytest.raises(ValueError, match="for a response"):
        only(ODD).result = {}
    with pytest.raises(ValueError, match="about nothing that has a name"):
        only('{"jsonrpc":"2.0","id":1,"method":"ping"}').name = "x"
    assert (response.method, only(ODD).result, only("7").id, only("7").method) == (
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\ufeff{}",
        "nope",
        '{"a":"\\ud800"}',
        "[" * 200_000 + "]" * 200_000,
        "1e400",
        "\ud800",
    ],
)
def test_what_is_not_json_is_one_named_error(text: str) -> None:
    """Also a text that UTF-8 cannot write. Its message shows nothing of it."""
    with pytest.raises(NotJson, match="this MCP message is"):
        parse(text, from_client=True)


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}',
        '{"jsonrpc":"2.0","id":1,"m\\u0065thod":"ping","method":"tools/call"}',
        '{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}',
        '{"jsonrpc":"2.0","id":1,"METHOD":"tools/call"}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"param\u017f":{"name":"b"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","NAME":"b"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"x":2}}}',
        '[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"a","params":{"ref":{"Uri":"x"}}}]',
        '{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"ResourceSubscriptions":["x"]}}}',
    ],
)
def test_what_two_readers_may_take_for_two_messages_is_reported(text: str) -> None:
    """Names that occur twice, or that some reader would find although they are spelt in another
    case.
    """
    assert ambiguity(text.encode()) is not None


def test_what_every_reader_takes_for_one_message_is_not_ambiguous() -> None:
    """Arguments of tools may have what names they like."""
    assert ambiguity(ODD.encode()) is None
    assert (
        ambiguity(
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"X":2}}}'
        )
        is None
    )
    with pytest.raises(NotJson):
        ambiguity(b'{"a":"\xff"}')


@pytest.mark.parametrize(
    "text",
    ["[]", "[7]", '[{"jsonrpc":"2.0","id":1,"method":"a"},{"jsonrpc":"2.0","id":1,"method":"b"}]'],
)
def test_a_batch_says_what_is_wrong_with_it(text: str) -> None:
    """None in it, one that is not a message, two with one id: whose response would it be?"""
    assert parse(text, from_client=True).problem is not None
    assert parse(text, from_client=True).encode() == text.encode()


# --- which request a response answers
# -----------------------------------------------------------------------------------


def test_ids_are_their_types_too_and_directions_have_their_own() -> None:
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


def test_the_table_forgets_the_oldest_and_the_old() -> None:
    """It is bounded in number and in age, over all sessions; the newest with an id counts."""
    now = 0.0
    calls = Calls(max_calls=3, max_age_s=10, clock=lambda: now)
    for number in range(5):
        calls.remember(f"s{number}", Call(number, "m", None, True))
    assert len(calls) == 3
    assert [
        calls.find(f"s{number}", number, from_client=True) is not None for number in range(5)
    ] == [False] * 2 + [True] * 3
    calls.remember("s2", Call(2, "newer", None, True))
    assert len(calls) == 3
    now = 10.5
    assert calls.find("s2", 2, from_client=True) is None
    calls.remember("s9", Call(9, "m", None, True))
    assert len(calls) == 1
    calls.remember("s", Call(10, "x" * 5000, None, True))
    assert len(calls) == 1


# --- any JSON at all
# ----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | VALUES,
        "id": st.integers() | st.text(max_size=3) | VALUES,
        "method": st.sampled_from(["tools/call", "ping", "completion/complete", "notifications/x"])
        | VALUES,
        "params": st.dictionaries(st.sampled_from(["name", "uri", "ref", "_meta"]), VALUES)
        | VALUES,
        "result": VALUES,
        "error": st.fixed_dictionaries({"code": st.integers(), "message": st.text(max_size=3)})
        | VALUES,
    },
)
BODIES = (st.lists(ENVELOPES | VALUES, max_size=4) | ENVELOPES | VALUES).map(
    lambda value: json.dumps(value)
) | st.text(max_size=20)


@given(BODIES, st.booleans())
def test_any_text_is_read_and_written_unchanged_or_is_not_json(
    text: str, from_client: bool
) -> None:
    """Any input gives messages or the documented error, nothing else; reading it changes nothing."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    try:
        payload = parse(data, from_client=from_client)
    except NotJson:
        return
    for message in payload.messages:
        assert (message.kind is Kind.MALFORMED) == (message.problem is not None)
        _ = (
            message.id,
            message.method,
            message.name,
            message.result,
            message.error,
            message.json(),
            repr(message),
        )
        if message.kind in (Kind.REQUEST, Kind.NOTIFICATION):
            _ = message.params
    assert payload.encode() == data


def test_names_that_differ_in_their_case_only_are_ambiguous() -> None:
    """Also unknown ones: a reader that ignores case takes either."""
    for text in ('{"x":1,"X":2}', '{"params":{"a":1,"A":2}}'):
        assert ambiguity(text.encode()) is not None
