"""The policy: what is denied never reaches the server, however it is spelt, and no list shows it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interceptors import Request, Response, ResponseHead, StreamAborted
from interceptors.dialects.mcp_headers import VERSION_KEY
from interceptors.loader import load_interceptor
from interceptors.mcp_lists import VisibleLists
from interceptors.mcp_policy import McpPolicy
from interceptors.testing import run_chain, run_json, run_request, run_response

MODERN = "2026-07-28"


def policy(**options: Any) -> McpPolicy:
    loaded = load_interceptor("mcp_policy", options)
    assert isinstance(loaded, McpPolicy)
    return loaded


NO_SHELL = policy(tools={"deny": ["shell"]})


def rpc(method: str, id: Any = 1, **params: Any) -> dict[str, Any]:
    head = {"jsonrpc": "2.0", "method": method, "params": params}
    return head if id is None else head | {"id": id}


def call(name: Any, id: Any = 1) -> dict[str, Any]:
    return rpc("tools/call", id, name=name, arguments={})


def read(uri: str) -> dict[str, Any]:
    return rpc("resources/read", uri=uri)


def listen(*uris: Any, name: str = "resourceSubscriptions") -> dict[str, Any]:
    return rpc("subscriptions/listen", notifications={name: [*uris]})


def complete(kind: str, **named: str) -> dict[str, Any]:
    return rpc("completion/complete", ref={"type": f"ref/{kind}", **named}, argument={})


def updated(uri: str, **more: Any) -> bytes:
    """An event."""
    message = rpc("notifications/resources/updated", None, uri=uri) | more
    return f"data: {json.dumps(message)}\n\n".encode()


def post(body: Any, **headers: str) -> Request:
    named = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = body if isinstance(body, (bytes, str)) else json.dumps(body)
    data = text.encode() if isinstance(text, str) else text
    pairs = [(name.encode(), value.encode()) for name, value in named.items()]
    return Request(method="POST", path="/mcp", headers=pairs, body=data)


LISTING = post(rpc("tools/list"))


def modern(body: dict[str, Any], **headers: str) -> Request:
    body["params"]["_meta"] = {VERSION_KEY: MODERN}
    return post(body, mcp_protocol_version=MODERN, mcp_method=body["method"], **headers)


def error_of(response: Response | None) -> tuple[int, int]:
    """The HTTP status and the JSON-RPC code of a refusal."""
    assert response is not None
    return response.status, json.loads(response.body)["error"]["code"]


def passes(interceptor: McpPolicy, body: Any) -> bool:
    """Whether it goes upstream, which then means: as the very bytes."""
    request = post(body)
    before = request.body
    if run_request([interceptor], request) is not None:
        return False
    assert request.body == before
    return True


def shown(interceptor: McpPolicy, **result: Any) -> Any:
    """What a client sees of a result."""
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result})
    return json.loads(run_json([interceptor], text.encode(), request=LISTING))["result"]


NAMES = ["add", "adder", "read_file", "ADD", "write", ""]
RULES: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {  # options, what passes, what does not
    "deny wins": ({"tools": {"allow": ["read_*", "add"], "deny": ["*_secret"]}},
        [call("add"), call("read_file")], [*map(call, ("adder", "read_secret", "ADD", "write", ""))]),
    "without allow": ({"tools": {"deny": ["*_secret", "Shell"]}},
        [*map(call, NAMES)], [*map(call, ("read_secret", "shell", "SHELL", " shell "))]),
    "its own kind": ({"tools": {"allow": []}},
        [rpc("prompts/get", name="greet"), read("file:///a"), rpc("tools/list")], [call("add")]),
    "case is folded": ({"tools": {"deny": ["fi*"]}},
        [call("\uff46ix"), call("refix")], [call("F\u0130X"), call("f\u0131x")]),
    "prompts": ({"prompts": {"deny": ["greet"]}},
        [call("greet"), complete("prompt", name="other")],
        [rpc("prompts/get", name="greet"), complete("prompt", name="greet")]),
    "methods": ({"methods": {"allow": ["tools/*"], "deny": ["tools/call"]}},
        [*map(rpc, ("initialize", "server/discover", "ping", "tools/list")), rpc("notifications/initialized", None),
         {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "a"}]}}],
        [call("a"), rpc("prompts/list")]),
    # To subscribe, to unsubscribe, to listen and to complete needs the resource to be allowed.
    "resources": ({"resources": {"deny": ["file:///etc/*"]}},
        [read("file:///public/a%20b?c"), rpc("resources/subscribe", uri="file:///home/a"), listen("file:///home/a"), listen(),
         rpc("subscriptions/listen", notifications={"toolsListChanged": True}), complete("resource", uri="file:///home/{a}")],
        [read("file:///etc/a"), rpc("resources/subscribe", uri="file:///etc/a"), rpc("resources/unsubscribe", uri="file:///etc/a"),
         listen("file:///home/a", "file:///etc/b"), listen(7), complete("resource", uri="file:///etc/{a}", name="x"),
         rpc("subscriptions/listen", notifications={"resourceSubscriptions": "file:///etc/b"}),
         # The official Python SDK reads snake case as well.
         listen("file:///etc/b", name="resource_subscriptions"), listen("file:///etc/b", name="Resource_Subscriptions"),
         complete("other", uri="file:///home/{a}"), rpc("completion/complete", ref="ref", argument={})]),
    "a host": ({"resources": {"allow": ["file://nas/pub/*"]}}, [read("file://nas/pub/a")], [read("file:///pub/a")]),
    "neighbours": ({"resources": {"deny": ["file:///srv/a", "file:///info/*", "http://127.0.0.1/*", "file://nas/*"]}},
        [*map(read, (
            "file:///srv/a:b", "file:///srv/a.", "file:///srv/ab", "file:///srv/a /b", "file:///\uff49nfo/x",
            "http://127.0.0.2/x", "http://127.0.0.1.example/x", "http://1.2.3.4.5/x", "http://[::1]/x", "file:///nas/x",
            "data:text/plain,/nas/x", "urn:x", "http://0x/x", "http://4294967296/x", "https://127.0.0.1/x",
            "file://x/pub/a", "https://x/srv/a",
        ))], []),
    # What only some readers read as allowed is not allowed.
    "readers": ({"resources": {"allow": ["file:///c:/pub/*", "http://127.0.0.1/*", "note:///pub/*", "file:///pub/*"]}},
        [], [*map(read, ("C:\\pub\\x", "url:file:///pub/x", "/pub/x", "http://127.1/x", "note:/pub/x", "file:////pub/x",
                         "file:///c|/pub/x"))]),
}  # fmt: skip


@pytest.mark.parametrize(("options", "passing", "refused"), RULES.values(), ids=RULES)
def test_what_a_rule_allows(
    options: dict[str, Any], passing: list[Any], refused: list[Any]
) -> None:
    interceptor = policy(**options)
    assert [body for body in (*passing, *refused) if passes(interceptor, body)] == passing


@pytest.mark.parametrize("uri", [
    "https://example.com", "https://example.com/", "https://example.com?q=1", "http://10.0.0.1:8080", "http://10.0.0.1/x",
    "http://[2001:db8::1]/x", "http://[fe80::1%25eth0]/x", "note:a", "note:/a", "note://b/a", "file:///srv/a:b",
    "file:///c:/pub/x", "file://nas/pub/x", "file:///srv/caf\u00e9", "file:///srv/cafe\u0301", "urn:isbn:0451450523",
    "data:text/plain,a", "/a",
])  # fmt: skip
def test_what_is_allowed_as_it_is_written_is_allowed(uri: str) -> None:
    """Whatever else some reader makes of a usual URI: that is for `deny` alone."""
    glob = uri.replace("[", "[[]")
    assert passes(policy(resources={"allow": [glob, glob.replace("%25", "%")]}), read(uri))


def test_what_the_server_asks_passes_and_a_denied_notification_is_accepted() -> None:
    asked = b'data: {"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}\n\n'
    allowing = policy(methods={"allow": ["tools/*"], "deny": ["notifications/*"]})
    assert run_chain([allowing], [asked], request=post(b"")).output == asked
    response = run_request([allowing], post(rpc("notifications/x", None)))
    assert response is not None
    assert (response.status, response.body) == (202, b"")


def test_a_change_of_a_hidden_resource_is_not_announced() -> None:
    """The official Python client accepts a notification that has a result, too."""
    interceptor = policy(resources={"deny": ["file:///etc/*"]})
    for event in (updated("file:///etc/passwd"), updated("file:///etc/passwd", result={})):
        result = run_chain([interceptor], [event], request=post(b""))
        assert (result.output, result.failure) == (b"", None)
    assert run_chain([interceptor], [updated("file:///a")], request=post(b"")).counts.passed == 1


@pytest.mark.parametrize(("body", "code", "modern_code", "modern_status"), [
    (call("x"), -32602, -32602, 400), (rpc("prompts/get", name="x"), -32602, -32602, 400), (read("x:y"), -32002, -32602, 400),
    (rpc("logging/setLevel", level="debug"), -32601, -32601, 404),
])  # fmt: skip
def test_a_refusal_has_the_form_of_the_revision(
    body: dict[str, Any], code: int, modern_code: int, modern_status: int
) -> None:
    """The code of what is not there, up to 2025-11-25 and from 2026-07-28 on."""
    nothing = {kind: {"allow": []} for kind in ("tools", "prompts", "resources")}
    interceptor = policy(**nothing, methods={"deny": ["logging/*"]})
    old = run_request([interceptor], post(body, mcp_protocol_version="2025-11-25"))
    assert error_of(old) == (200, code)
    named = body["params"].get("name") or body["params"].get("uri")
    request = modern(body, **({"mcp_name": named} if named else {}))
    assert error_of(run_request([interceptor], request)) == (modern_status, modern_code)


def test_of_a_batch_only_what_is_denied_is_taken_out() -> None:
    """The server gets the rest, the client one answer for each."""
    request = post([call("add", 1), call("shell", 2), rpc("ping", 3)])
    assert run_request([NO_SHELL], request) is None
    assert [item["id"] for item in request.json()] == [1, 3]
    server = b'[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","id":3,"result":{}}]'
    answered = json.loads(run_json([NO_SHELL], server, request=request))
    assert [item["id"] for item in answered] == [1, 3, 2]
    assert answered[2]["error"]["code"] == -32602
    response = run_request([NO_SHELL], post([call("shell", 1), call("shell", "1")]))
    assert response is not None
    assert [item["id"] for item in json.loads(response.body)] == [1, "1"]


SHELL = '"params":{"name":"shell"}'
CALL = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%s}'
BYPASSES: dict[str, bytes | str] = {
    "as it is": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}',
    "in a batch": f'[{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}]',
    "an escaped name": CALL % '{"name":"\\u0073hell"}',
    "an escaped method": f'{{"jsonrpc":"2.0","id":1,"method":"tools\\/\\u0063all",{SHELL}}}',
    "an escaped key": CALL % '{"n\\u0061me":"shell"}',
    "a second method": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping",{SHELL}}}',
    "a second name": CALL % '{"name":"shell","name":"add"}',
    "second params": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL},"params":{{"name":"add"}}}}',
    "a key in another case": CALL % '{"name":"add","Name":"shell"}',
    "a method's key in another case": f'{{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call",{SHELL}}}',
    "a method in another case": f'{{"jsonrpc":"2.0","id":1,"method":"Tools/Call",{SHELL}}}',
    "a method with spaces": f'{{"jsonrpc":"2.0","id":1,"method":" tools/call ",{SHELL}}}',
    "a name with spaces": CALL % '{"name":" shell\\n"}',
    "a name in another case": CALL % '{"name":"SHELL"}',
    "a name that is a list": CALL % '{"name":["shell"]}',
    "params that are a list": CALL % '["shell"]',
    "no version": f'{{"id":1,"method":"tools/call",{SHELL}}}',
    "a null result": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL},"result":null,"error":null}}',
    "a result": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL},"result":{{}}}}',
    "an id that is null": f'{{"jsonrpc":"2.0","id":null,"method":"tools/call",{SHELL}}}',
    "without an id": f'{{"jsonrpc":"2.0","method":"tools/call",{SHELL}}}',
    "a batch in a batch": f'[[{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}]]',
    "rubbish beside it": f'[7,{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}]',
    "a BOM": f'\ufeff{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}',
    "UTF-16": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}'.encode("utf-16"),
    "UTF-32": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}'.encode("utf-32-le"),
    "not UTF-8": f'{{"jsonrpc":"2.0","id":1,"x":"\xff","method":"tools/call",{SHELL}}}'.encode("latin-1"),
    "a number that is none": f'{{"jsonrpc":"2.0","id":1,"x":NaN,"method":"tools/call",{SHELL}}}',
    "a lone surrogate": f'{{"jsonrpc":"2.0","id":1,"x":"\\ud800","method":"tools/call",{SHELL}}}',
    "two texts": f'{{"jsonrpc":"2.0","id":1,"method":"ping"}}{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}',
    "compressed": gzip.compress(f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}'.encode()),
}  # fmt: skip


@pytest.mark.parametrize("body", BYPASSES.values(), ids=BYPASSES)
def test_no_spelling_of_a_denied_call_reaches_the_server(body: bytes | str) -> None:
    assert run_request([NO_SHELL], post(body)) is not None


def test_a_compressed_body_is_refused() -> None:
    """It cannot be read here, and the server could."""
    for coding in ("gzip", "identity, gzip", "x-unknown", "deflate"):
        request = post(call("add"), content_encoding=coding)
        assert error_of(run_request([NO_SHELL], request))[0] == 415


def test_headers_do_not_lead_around_it() -> None:
    """2026-07-28: a server that goes by `Mcp-Name` would run another tool than the body names."""
    assert run_request([NO_SHELL], modern(call("add"), mcp_name="add")) is None
    disguised = run_request([NO_SHELL], modern(call("add"), mcp_name="shell"))
    assert error_of(disguised) == (400, -32020)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_get_and_a_delete_pass(method: str) -> None:
    """They have no body, and so ask for nothing; one that has a body is looked at like any."""
    assert run_request([NO_SHELL], Request(method=method, path="/mcp")) is None
    request = post(call("shell"))
    request.method = method
    assert error_of(run_request([NO_SHELL], request)) == (200, -32602)


OPAQUE = "a:" + "\\" * 5000
SPELLINGS = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd",
    "file:///public/../etc/passwd", "file:///public/%2e%2e/etc/passwd", "file:///public/%252e%252e/etc/passwd",
    "file:///%65tc/passwd", "file:///ETC/passwd", "file:////etc/passwd", "file:///public\\..\\etc\\passwd",
    "file:///etc/passwd?x", "file:///etc/passwd#public", " file:///etc/passwd", "file:///e\ttc/passwd",
    "file:///%25252525252565tc/passwd", "file://x/etc/passwd", "file://127.0.0.1/etc/passwd", "file://[::1]/etc/passwd",
    "file://localhost:80/etc/passwd", "file://me:word@x/etc/passwd", "file:\\\\x\\etc\\passwd",
    "file://x/pub/%2e%2e/etc/passwd", "\ufefffile:///etc/passwd", "file:///etc/passwd\u3000", "file:///etc/passwd%E3%80%80",
    OPAQUE, "a:" + "\\" * 500 + "@", "file:///pub/" + "a" * 8192,
]  # fmt: skip


@pytest.mark.parametrize("uri", SPELLINGS, ids=lambda uri: uri[:30])
def test_a_resource_is_denied_and_hidden_in_every_spelling(uri: str) -> None:
    """Wherever a client asks for it, and wherever a server names it."""
    exact = policy(resources={"deny": ["file:///etc/passwd"]})
    beside = policy(resources={"allow": ["file:///public/*"]})
    for interceptor in (exact, beside):
        is_open = interceptor is exact and uri is OPAQUE  # a URI of another scheme
        assert passes(interceptor, read(uri)) is is_open
        assert passes(interceptor, complete("resource", uri=uri)) is is_open
        assert not passes(interceptor, listen("file:///etc/passwd", uri))
    visible = [uri, "file:///pub/a"] if uri is OPAQUE else ["file:///pub/a"]
    for member, key in (("resources", "uri"), ("resourceTemplates", "uriTemplate")):
        entries = shown(exact, **{member: [{key: uri}, {key: "file:///pub/a"}]})[member]
        assert [entry[key] for entry in entries] == visible
    assert bool(run_chain([exact], [updated(uri)], request=post(b"")).output) is (uri is OPAQUE)


OTHER_READERS = {
    "file:///c:/secret/*": ["file:///C|/secret/x", "file:C|/secret/x", "file:///C%7C/secret/x",
        "file://C|/secret/x", "file:///x/../C:/secret/x", "file:///C:/../secret/x",
        "file:///C:/x/..\\..\\..\\secret\\x", "C:\\secret\\x", "c:/SECRET/x", "/C:/secret/x",
        "file:///C:/secret./x", "file:///C:/secret%20/x",
        "file:///C:/secret:$I30:$INDEX_ALLOCATION/x", "file://?/C:/secret/x",
        "\\\\?\\C:\\secret\\x", "file:///%3F/C:/secret/x", "file://any/C:/../secret/x",],
    "file:///c:/secret/x": ["file:///C:/secret/x::$DATA", "file:///C:/secret/x...",
        "file:///C:/secret/x. ?y",],
    "file://server/share/*": ["file:////server/share/x", "file://///SERVER//share/x",
        "\\\\server\\share\\x", "//server/share/x", "file:///\\server/share/x",
        "file:%5C%5Cserver%5Cshare/x", "file:////?/UNC/server/share/x",
        "file://server:445/share/x", "file:////server/share/../share/x",],
    "file:///etc/*": ["url:file:///etc/passwd", "<URL:file:///etc/passwd>",
        " < url: file:/etc/passwd > ", "uRL%3Afile:///etc/passwd", "/etc/passwd",
        "//etc/passwd", "/pub/../etc/passwd", "/%65tc/passwd", "file:%2F%2F%2Fetc/passwd",],
    "file:///pr\u00edvate/*": ["file:///pri\u0301vate/x", "file:///PR\u00cdVATE/x",
        "file:///pri%CC%81vate/x",],
    "file:///pri\u0301vate/*": ["file:///pr\u00edvate/x"],
    "file:///info/*": ["file:///\u0131nfo/x", "file:///\u0130NFO/x", "file:///I\u0307nfo/x"],
    "http://127.0.0.1/*": ["http://2130706433/x", "http://0x7f.1/x", "http://127.1/x",
        "http://0177.0.0.1/x", "http://127.0.0.1./x", "http://%32130706433:80/x",
        "http://[::ffff:127.0.0.1]/x", "http://[::FFFF:7f00:1]/x", "http:0x7F000001",
        "http://127.0.0.1", "http://127.0.0.1?x", "http://127.0.0.1#x",],
    "http://127.0.0.1": ["http://127.0.0.1/", "http://127.0.0.1/?x"],
    "http://127.0.0.1:8080/*": ["http://2130706433:8080/x", "http://[::ffff:7f00:1]:8080/x"],
    "http://[[]::1]/*": ["http://[0:0:0:0:0:0:0:1]/x", "http://[::0:1]:80/x",
        "http://[::1%25lo]/x", "http://[::0.0.0.1]/x",],
    "note:///secret/*": ["note:/secret/x", "note:secret/x", "NOTE:\\secret\\x"],
    "db://*/users/*": ["db:/users/x", "db:users/x"],
}  # fmt: skip


@pytest.mark.parametrize("glob", OTHER_READERS)
def test_a_denied_resource_is_denied_for_every_reader(glob: str) -> None:
    """Windows, browsers, Python's urllib and Java's `URL`, `inet_aton`, file systems, and servers
    that take paths.
    """
    interceptor, uris = policy(resources={"deny": [glob]}), OTHER_READERS[glob]
    assert [uri for uri in uris if passes(interceptor, read(uri))] == []
    entries = [{"uri": uri} for uri in (*uris, "a:b")]
    assert shown(interceptor, resources=entries) == {"resources": [{"uri": "a:b"}]}


@pytest.mark.parametrize("space", ["\ufeff", "\u00a0", "\u2029", "\x85", "\x1c", " \ufeff\t"])
def test_white_space_at_the_ends_hides_no_name(space: str) -> None:
    """What JavaScript's `trim` removes and what Python's `strip` does."""
    methods = ["ext/*", "notifications/x"]
    rules: dict[str, Any] = {"tools": ["shell"], "prompts": ["shell"], "methods": methods}
    interceptor = policy(**{kind: {"deny": globs} for kind, globs in rules.items()})
    names = [f"shell{space}", f"{space}shell", f"{space}SHELL{space}"]
    methods = [f"tools/call{space}", f"{space}tools/call", f"ext/a{space}", f"{space}ext/a"]
    asked = [rpc(method, name="add") for method in methods]
    for name in names:
        asked += [call(name), rpc("prompts/get", name=name), complete("prompt", name=name)]
    assert [body for body in asked if passes(interceptor, body)] == []
    assert not passes(interceptor, rpc(f"notifications/x{space}", None))
    for member in ("tools", "prompts"):
        entries = [{"name": name} for name in (*names, "reshell")]
        assert shown(interceptor, **{member: entries}) == {member: [{"name": "reshell"}]}


UTF_7 = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"+AHMAaABlAGwAbA-","arguments":{}}}'
REFUSED: list[list[str]] = [
    *([f"application/json{rest}"] for rest in (
        "; charset=utf-7", "; charset=utf-16", "; charset=utf8", "; charset=latin1", "; charset=", "; charset",
        '; charset="utf-7"', '; charset="utf-8', "; charset='utf-8'", "; charset = utf-8", ";;charset=utf-7",
        "; charset=utf-8; charset=utf-7", "; charset=utf-8; charset=utf-8", "; x=1", "; charset=utf-8; x=1",
        "; charset*=utf-8''utf-7", '; x="; charset=utf-8"', ", application/json", ", text/plain", ",",
        " charset=utf-8", "-rpc", "p",
    )),
    *([value] for value in (
        "text/plain", "text/json", "multipart/form-data; boundary=application/json", "application",
        "application/x-www-form-urlencoded", "/json", "+json", "application/", "", " ",
    )),
    ["application/json", "text/plain"], ["application/json", "application/json"], ["application/json", ""], [],
]  # fmt: skip
PASSING = [
    "application/json", "Application/JSON;charset=UTF-8", 'application/json; charset="utf-8"',
    'APPLICATION/JSON ; CHARSET="Utf-8"', "application/json;charset=utf-8;", " application/json ",
    "application/vnd.mcp+json", "application/vnd.mcp+JSON; charset=utf-8",
]  # fmt: skip


def test_a_body_that_a_server_could_read_in_another_way_is_refused() -> None:
    """It has one Content-Type: JSON in UTF-8."""

    def refused(types: list[str], body: bytes) -> tuple[int, int] | None:
        headers = [(b"content-type", item.encode()) for item in types]
        request = Request(method="POST", path="/mcp", headers=headers, body=body)
        response = run_request([NO_SHELL], request)
        assert request.headers.get_list("content-type") == types
        return response and error_of(response)

    allowed, denied = (json.dumps(call(name)).encode() for name in ("ok", "shell"))
    for types in REFUSED:
        for body in (UTF_7, allowed):
            assert refused(types, body) == (415, -32600), types
        assert refused(types, b"") is None
    for value in PASSING:
        assert refused([value], allowed) is None, value
        assert refused([value], denied) == (200, -32602), value


@pytest.mark.parametrize(("types", "shown"), [
    (["application/json-rpc"], "application/json"), (["Text/Event-Stream2"], "text/event-stream"),
    (["text/plain", "application/json"], "application/json"), (["text/html"], "text/html"),
    (["application/json; charset=utf-8"], "application/json; charset=utf-8"),
    (["application/json", "text/event-stream"], None), (["application/json; x=text/event-stream"], None),
])  # fmt: skip
def test_the_media_type_clients_read(types: list[str], shown: str | None) -> None:
    """The official clients search the header for their types; with both it could be read twice."""
    head = ResponseHead(200, [(b"content-type", item.encode()) for item in types], LISTING)
    if shown is None:
        with pytest.raises(StreamAborted, match="two content types"):
            run_response([NO_SHELL], head)
    else:
        assert run_response([NO_SHELL], head) is None
        assert head.headers.get_list("content-type") == [shown]


@pytest.mark.parametrize(("method", "member", "key", "rule", "names"), [
    ("tools/list", "tools", "name", "tools", ["add", "shell"]),
    ("prompts/list", "prompts", "name", "prompts", ["add", "shell"]),
    ("resources/list", "resources", "uri", "resources", ["x:add", "x:shell"]),
    ("resources/templates/list", "resourceTemplates", "uriTemplate", "resources", ["x:add/{a}", "x:shell/{a}"]),
])  # fmt: skip
def test_a_list_shows_only_what_is_allowed(
    method: str, member: str, key: str, rule: str, names: list[str]
) -> None:
    """In a body and in a stream, page by page, also when the request is no longer known."""
    interceptor = policy(**{rule: {"deny": ["*shell*"]}})
    entries = [{key: name, "title": name} for name in names]
    result: dict[str, Any] = {member: entries, "nextCursor": "b2", "_meta": {"x": 1.0}}
    page = {"jsonrpc": "2.0", "id": 1, "result": result}
    expected = page | {"result": result | {member: entries[:1]}}
    text = json.dumps(page).encode()
    for request in (post(rpc(method)), post(rpc("ping", 7))):
        assert run_request([interceptor], request) is None
        assert json.loads(run_json([interceptor], text, request=request)) == expected
        batch = run_json([interceptor], b"[" + text + b"]", request=request)
        assert json.loads(batch) == [expected]
        output = run_chain(
            [interceptor], [b"id: 3\ndata: " + text + b"\n\n"], request=request
        ).output
        assert output.startswith(b"id: 3\ndata: ")
        assert json.loads(output[12:]) == expected


def test_a_list_of_allowed_entries_and_what_is_not_a_list_stay_byte_for_byte() -> None:
    """So do lists that no rule is about."""
    for result in (
        '{ "tools" : [{"name":"a", "n":1e2}] }', '{"tools":"all"}', '{"prompts":[{"name":"shell"}, 7]}', "[]", '{"content":[]}',
    ):  # fmt: skip
        text = b'{"jsonrpc":"2.0", "id":1,"result":%s}' % result.encode()
        assert run_json([NO_SHELL], text, request=LISTING) == text


def test_a_list_costs_little_more_than_its_json() -> None:
    """A megabyte of empty objects beside an entry that is taken out held the loop for a second."""
    text = '{"result":{"tools":[{"name":"shell"}],"x":[' + "{}," * 100_000 + "0]}}"
    lists = VisibleLists({"tools": lambda name: name != "shell"})

    def seconds(action: Callable[[], object]) -> float:
        """The least of five: what noise adds, it does not take away."""
        times = []
        for _ in range(5):
            began = process_time()
            action()
            times.append(process_time() - began)
        return min(times)

    assert lists.show(text) == text.replace('{"name":"shell"}', "")
    assert seconds(lambda: lists.show(text)) < 18 * seconds(lambda: json.loads(text))


LISTS: dict[str, tuple[str, Any]] = {
    # Readers differ in which of two members with one name they take.
    "an object with one name twice": (
        '{"tools":{"a":{"name":"shell"},"a":{"name":"ok"},"b":{"name":"ok","NAME":"shell"},"c":{"name":"ok"}}}',
        {"tools": {"c": {"name": "ok"}}}),
    "entries that are text in an object": ('{"tools":{"a":"shell","b":["shell"],"c":{"name":"ok"}}}', {"tools": {"c": {"name": "ok"}}}),
    "entries without a name": ('{"tools":[{"name":7},{},8,{"name":"a"},{"name":"sh\\u0065ll"}]}', {"tools": [{"name": "a"}]}),
    # The official Python client reads snake case as well as camel case.
    "other spellings": (
        '{"prompts":[{"name":"x1"}],"RESOURCES":[{"Uri":"x:2"}],"resource_templates":[{"uri_template":"x:3"}],'
        '"resourceTemplates":[{"uriTemplate":"x:4"},{"uriTemplate":"y:{a}"}]}',
        {"prompts": [], "RESOURCES": [], "resource_templates": [], "resourceTemplates": [{"uriTemplate": "y:{a}"}]}),
}  # fmt: skip


@pytest.mark.parametrize(("result", "expected"), LISTS.values(), ids=LISTS)
def test_every_entry_of_a_list_is_judged(result: str, expected: Any) -> None:
    rules: dict[str, Any] = {"tools": ["shell"], "prompts": ["x*"], "resources": ["x:*"]}
    interceptor = policy(**{kind: {"deny": globs} for kind, globs in rules.items()})
    output = run_json([interceptor], f'{{"id":1,"result":{result}}}'.encode(), request=LISTING)
    assert json.loads(output)["result"] == expected


def test_a_reused_id_does_not_hide_a_list() -> None:
    """A client that asks for the list, then for something else with the same id, and resumes, gets
    no more of it.
    """
    both = run_request([NO_SHELL], post([rpc("tools/list", 1), rpc("ping", 1)]))
    assert error_of(both) == (400, -32600)
    run_request([NO_SHELL], post(rpc("tools/list", 1), mcp_session_id="s"))
    run_request([NO_SHELL], post(rpc("ping", 1), mcp_session_id="s"))
    stream = b'data: {"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"shell"}]}}\n\n'
    get = Request(path="/mcp", headers=[(b"mcp-session-id", b"s")])
    assert b"shell" not in run_chain([NO_SHELL], [stream], request=get).output


@pytest.mark.parametrize("text", [
    '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"add","description":"\\ud800"},{"name":"shell"}]}}',
    '{"jsonrpc":"2.0","id":1,"x":NaN,"result":{"tools":[{"name":"shell"}]}}',
    '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"shell"}]}}{}',
    '\ufeff{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"shell"}]}}',
])  # fmt: skip
def test_a_list_that_cannot_be_read_is_not_shown(text: str) -> None:
    """What is not JSON for us might be for the client."""
    for status in (200, 404):
        head = ResponseHead(status, [(b"content-type", b"application/json")], LISTING)
        if text.startswith("\ufeff"):  # a body's BOM is not part of its JSON
            left = run_json([NO_SHELL], text.encode(), request=LISTING, head=head)
            assert b"shell" not in left
        else:
            with pytest.raises(StreamAborted):
                run_json([NO_SHELL], text.encode(), request=LISTING, head=head)
    result = run_chain([NO_SHELL], [f"data: {text}\n\n".encode()], request=LISTING)
    assert b"shell" not in result.output


RESULT = '{"tools":[{"name":"read_file"},{"name":"run_shell","inputSchema":{"type":"object"}}],"nextCursor":"b"}'
ENVELOPES: dict[str, str] = {
    "an error that is null": f'{{"jsonrpc":"2.0","id":1,"error":null,"result":{RESULT}}}',
    "an error, too": f'{{"jsonrpc":"2.0","id":1,"error":{{"code":1,"message":"x"}},"result":{RESULT}}}',
    "a method that is null": f'{{"jsonrpc":"2.0","id":1,"method":null,"result":{RESULT}}}',
    "a method": f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{{}},"result":{RESULT}}}',
    "no version": f'{{"id":1,"result":{RESULT}}}',
    "another version": f'{{"jsonrpc":2.0,"id":1,"result":{RESULT}}}',
    **{f"the id {each}": f'{{"jsonrpc":"2.0","id":{each},"result":{RESULT}}}' for each in ("1.0", '"1"', "null", "true", "[1]")},
    "no id": f'{{"jsonrpc":"2.0","result":{RESULT}}}',
    "unknown members": f'{{"jsonrpc":"2.0","id":1,"x":{{"y":[1.10]}},"result":{RESULT}}}',
    "a batch": f'[{{"jsonrpc":"2.0","id":2,"result":{{}}}},{{"id":1.5,"result":{RESULT}}}]',
    "a batch in a batch": f'[[{{"jsonrpc":"2.0","id":1,"result":{RESULT}}}]]',
    "two results, the second counts": f'{{"jsonrpc":"2.0","id":1,"result":{{}},"result":{RESULT}}}',
    "two results, the first counts": f'{{"jsonrpc":"2.0","id":1,"result":{RESULT},"result":{{}}}}',
    "two lists": '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"run_shell"}],"tools":[{"name":"read_file"}]}}',
    "two names": '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read_file"},{"name":"run_shell","name":"a"}]}}',
    "a result in another case": f'{{"jsonrpc":"2.0","id":1,"Result":{RESULT}}}',
    "a list in another case": '{"jsonrpc":"2.0","id":1,"result":{"TOOLS":[{"name":"read_file"},{"name":"run_shell"}]}}',
    "a letter that folds": '{"jsonrpc":"2.0","id":1,"re\u017fult":{"tool\u017f":[{"name":"read_file"},{"name":"run_shell"}]}}',
    "a name in another case": '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read_file"},{"name":"a","Name":"run_shell"}]}}',
    "escapes": '{"jsonrpc":"2.0","id":1,"result":{"\\u0074ools":[{"name":"read_file"},{"n\\u0061me":"run_\\u0073hell"}]}}',
    "an object in place of the list": '{"id":1,"result":{"tools":{"0":{"name":"read_file"},"2":{"name":"run_shell"}}}}',
    "entries that are text": '{"jsonrpc":"2.0","id":1,"result":{"tools":["run_shell",["run_shell"],{"name":"read_file"}]}}',
    "an entry with a number for a name": '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":7,"x":"run_shell"}]}}',
    "spaces before it": f' \t{{"jsonrpc":"2.0","id":1,"result":{RESULT}}}',
    "a result in a result": f'{{"jsonrpc":"2.0","id":1,"result":{{"status":"completed","result":{RESULT}}}}}',
}  # fmt: skip


@pytest.mark.parametrize("text", ENVELOPES.values(), ids=ENVELOPES)
def test_no_envelope_hides_a_list(text: str) -> None:
    """Whatever a client could accept as a response, as a body and as an event of any name."""
    interceptor = policy(tools={"deny": ["run_*"]})
    outputs = [run_json([interceptor], text.encode(), request=LISTING)]
    for field in (b"", b"event: other\n"):
        event = field + b"data: " + text.encode() + b"\n\n"
        outputs.append(run_chain([interceptor], [event], request=LISTING).output)
    for output in outputs:
        assert b"run_shell" not in output
        assert (b"read_file" in output) is (
            "read_file" in text and '"result":{}}' not in text[-13:]
        )
        assert (b"1.10" in output) is ("1.10" in text)  # numbers leave unchanged


def test_errors_of_the_server_pass() -> None:
    """Bodies of 400, 401 and 404, which clients read, are not lists."""
    head = ResponseHead(401, [(b"content-type", b"application/json")], LISTING)
    for body in (b'{"error":"invalid_token"}', b"not JSON"):
        assert run_json([NO_SHELL], body, request=LISTING, head=head) == body


def objects(*members: str) -> st.SearchStrategy[str]:
    """JSON objects with some of these members, also twice; and arrays of them."""
    made = st.lists(st.sampled_from(members), max_size=6).map(
        lambda chosen: f"{{{','.join(chosen)}}}"
    )
    return made | st.lists(made, max_size=3).map(lambda items: f"[{','.join(items)}]")


REQUESTS = objects(
    '"jsonrpc":"2.0"', '"jsonrpc":"2.0"', '"id":1', '"id":1', '"method":"tools/call"', '"method":"tools\\/call"',
    '"method":"TOOLS/call"', '"method":"ping"', '"params":{}', '"params":{"name":"add"}', '"params":{"name":"SHELL"}',
    '"params":{"name":"add","name":"shell"}', '"params":{"name":"shell","name":"add"}', '"params":{"name":"add","Name":"shell"}',
    '"params":{"n\\u0061me":"sh\\u0065ll"}', '"params":{"name":" shell"}', '"params":{"uri":"shell"}',
)  # fmt: skip
ANSWERS = objects(
    '"jsonrpc":"2.0"', '"id":1', '"id":1.0', '"id":null', '"error":null', '"method":null', '"method":"x"',
    '"result":{"tools":[{"name":"shell"},{"name":"add"}]}', '"Result":{"tools":[{"name":"SHELL"},{"uri":"add"}]}',
    '"result":{"Tools":[{"name":"add","name":"shell"}]}', '"r\\u0065sult":{"t\\u006fols":[{"n\\u0061me":"sh\\u0065ll"},7]}',
    '"result":{"tools":[{"name":" shell"}],"x":[{"name":"shell"}]}', '"result":{"tools":["shell",{"name":"shell","Name":"add"}]}',
    '"result":{"tools":[],"tools":[{"name":"shell"}]}', '"result":{}',
)  # fmt: skip


def readings(text: str) -> list[Any]:
    """The messages of a JSON text, as readers of several kinds understand them."""

    def reader(first: bool, folded: bool) -> Any:
        def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
            made: dict[str, Any] = {}
            for name, value in reversed(members) if first else members:
                made[name.casefold() if folded else name] = value
            return made

        found = json.loads(text, object_pairs_hook=pairs)
        return found if isinstance(found, list) else [found]

    return [
        message
        for first in (True, False)
        for folded in (True, False)
        for message in reader(first, folded)
    ]


@settings(deadline=None)
@given(REQUESTS)
def test_no_reader_finds_a_denied_call_in_what_goes_upstream(text: str) -> None:
    """Neither one that takes the first of two members, nor one that does not mind case or spaces."""
    request = post(text)
    if run_request([NO_SHELL], request) is not None:
        return
    for message in readings(request.body.decode()):
        if str(message.get("method")).strip().casefold() == "tools/call":
            assert str(message["params"]["name"]).strip().casefold() != "shell"


@settings(deadline=None)
@given(ANSWERS)
def test_no_reader_finds_a_denied_entry_in_what_a_client_gets(text: str) -> None:
    """The same readers, in any envelope."""
    for message in readings(run_json([NO_SHELL], text.encode(), request=LISTING).decode()):
        for entry in message.get("result", {}).get("tools", []):
            assert str(entry.get("name")).strip().casefold() != "shell"
