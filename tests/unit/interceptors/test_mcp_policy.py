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

from interceptors import LoadError, Request, Response, ResponseHead, StreamAborted
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


def rpc(method: str, id: Any = 1, **params: Any) -> dict[str, Any]:
    head = {"jsonrpc": "2.0", "method": method, "params": params}
    return head if id is None else head | {"id": id}


def call(name: Any, id: Any = 1) -> dict[str, Any]:
    return rpc("tools/call", id, name=name, arguments={})


def post(body: Any, **headers: str) -> Request:
    named = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = (
        body
        if isinstance(body, bytes)
        else body.encode()
        if isinstance(body, str)
        else json.dumps(body).encode()
    )
    pairs = [(name.encode(), value.encode()) for name, value in named.items()]
    return Request(method="POST", path="/mcp", headers=pairs, body=data)


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


def test_deny_wins_and_an_allow_list_is_all_there_is() -> None:
    """Globs; without `allow` everything that is not denied is allowed."""
    both = policy(tools={"allow": ["read_*", "add"], "deny": ["*_secret"]})
    names = ["add", "adder", "read_file", "read_secret", "ADD", "write", ""]
    assert [name for name in names if passes(both, call(name))] == ["add", "read_file"]
    denying = policy(tools={"deny": ["*_secret", "Shell"]})
    assert [
        name for name in [*names, "shell", "SHELL", " shell "] if passes(denying, call(name))
    ] == [
        "add",
        "adder",
        "read_file",
        "ADD",
        "write",
        "",
    ]
    assert not passes(policy(tools={"allow": []}), call("add"))


def test_each_rule_is_for_its_own_kind() -> None:
    """A rule for tools does not affect prompts, resources and methods."""
    tools = policy(tools={"allow": []})
    assert passes(tools, rpc("prompts/get", name="greet"))
    assert passes(tools, rpc("resources/read", uri="file:///a"))
    assert passes(tools, rpc("tools/list"))
    prompts = policy(prompts={"deny": ["greet"]})
    assert passes(prompts, call("greet"))
    assert not passes(prompts, rpc("prompts/get", name="greet"))
    assert not passes(
        prompts,
        rpc("completion/complete", ref={"type": "ref/prompt", "name": "greet"}, argument={}),
    )
    assert passes(
        prompts,
        rpc("completion/complete", ref={"type": "ref/prompt", "name": "other"}, argument={}),
    )


def test_methods_are_allowed_and_denied_too() -> None:
    """The protocol's own need no `allow`, and can be denied."""
    allowing = policy(methods={"allow": ["tools/*"], "deny": ["tools/call"]})
    passing = ["initialize", "server/discover", "ping", "tools/list"]
    assert [
        method
        for method in (*passing, "tools/call", "prompts/list")
        if passes(allowing, rpc(method))
    ] == passing
    assert passes(allowing, rpc("notifications/initialized", None))
    assert passes(allowing, {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "a"}]}})
    asked = b'data: {"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}\n\n'
    assert run_chain([allowing], [asked], request=post(b"")).output == asked
    response = run_request(
        [policy(methods={"deny": ["notifications/*"]})], post(rpc("notifications/x", None))
    )
    assert response is not None
    assert (response.status, response.body) == (202, b"")


def test_subscriptions_are_reads() -> None:
    """To subscribe, to unsubscribe and to listen (2026-07-28) needs the resource to be allowed,
    each of them.
    """
    denying = policy(resources={"deny": ["file:///etc/*"]})
    assert error_of(run_request([denying], post(rpc("resources/read", uri="file:///etc/a")))) == (
        200,
        -32002,
    )
    assert passes(denying, rpc("resources/read", uri="file:///public/a%20b?c"))
    for method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
        assert not passes(denying, rpc(method, uri="file:///etc/passwd"))
        assert passes(denying, rpc(method, uri="file:///home/a"))
    for uris, allowed in (
        (["file:///home/a"], True),
        (["file:///home/a", "file:///etc/b"], False),
        ("file:///etc/b", False),
        ([7], False),
    ):
        assert (
            passes(
                denying, rpc("subscriptions/listen", notifications={"resourceSubscriptions": uris})
            )
            is allowed
        )
    assert passes(denying, rpc("subscriptions/listen", notifications={"toolsListChanged": True}))
    updated = b'data: {"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///etc/passwd"}}\n\n'
    assert run_chain([denying], [updated], request=post(b"")).output == b""
    assert (
        run_chain([denying], [updated.replace(b"etc", b"tmp")], request=post(b"")).counts.passed
        == 1
    )
    for ref, allowed in (
        ({"type": "ref/resource", "uri": "file:///home/{a}"}, True),
        ({"type": "ref/resource", "uri": "file:///etc/{a}"}, False),
        ({"type": "ref/resource", "uri": "file:///etc/{a}", "name": "x"}, False),
        ({"type": "ref/other", "uri": "file:///home/{a}"}, False),
        ("ref", False),
    ):
        assert passes(denying, rpc("completion/complete", ref=ref, argument={})) is allowed


REFUSALS: dict[
    str, tuple[dict[str, Any], int, int, int]
] = {  # code and status up to 2025-11-25, code and status from 2026-07-28 on
    "a tool": (call("x"), -32602, -32602, 400),
    "a prompt": (rpc("prompts/get", name="x"), -32602, -32602, 400),
    "a resource": (rpc("resources/read", uri="x:y"), -32002, -32602, 400),
    "a method": (rpc("logging/setLevel", level="debug"), -32601, -32601, 404),
}


@pytest.mark.parametrize(
    ("body", "code", "modern_code", "modern_status"), REFUSALS.values(), ids=REFUSALS
)
def test_a_refusal_has_the_form_of_the_revision(
    body: dict[str, Any], code: int, modern_code: int, modern_status: int
) -> None:
    """The code of what is not there."""
    nothing: dict[str, Any] = {"allow": []}
    interceptor = policy(
        tools=nothing, prompts=nothing, resources=nothing, methods={"deny": ["logging/*"]}
    )
    assert error_of(run_request([interceptor], post(body, mcp_protocol_version="2025-11-25"))) == (
        200,
        code,
    )
    named = body["params"].get("name") or body["params"].get("uri")
    request = modern(body, **({"mcp_name": named} if named else {}))
    assert error_of(run_request([interceptor], request)) == (modern_status, modern_code)


def test_of_a_batch_only_what_is_denied_is_taken_out() -> None:
    """The server gets the rest, the client one answer for each."""
    interceptor = policy(tools={"deny": ["shell"]})
    request = post([call("add", 1), call("shell", 2), rpc("ping", 3)])
    assert run_request([interceptor], request) is None
    assert [item["id"] for item in request.json()] == [1, 3]
    server = b'[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","id":3,"result":{}}]'
    answered = json.loads(run_json([interceptor], server, request=request))
    assert [item["id"] for item in answered] == [1, 3, 2]
    assert answered[2]["error"]["code"] == -32602
    response = run_request([interceptor], post([call("shell", 1), call("shell", "1")]))
    assert response is not None
    assert [item["id"] for item in json.loads(response.body)] == [1, "1"]


SHELL = '"params":{"name":"shell"}'
BYPASSES: dict[str, bytes | str] = {
    "as it is": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}',
    "in a batch": f'[{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}]',
    "an escaped name": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\u0073hell"}}',
    "an escaped method": f'{{"jsonrpc":"2.0","id":1,"method":"tools\\/\\u0063all",{SHELL}}}',
    "an escaped key": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"n\\u0061me":"shell"}}',
    "a second method": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping",{SHELL}}}',
    "a second name": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"shell","name":"add"}}',
    "second params": f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL},"params":{{"name":"add"}}}}',
    "a key in another case": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add","Name":"shell"}}',
    "a method's key in another case": f'{{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call",{SHELL}}}',
    "a method in another case": f'{{"jsonrpc":"2.0","id":1,"method":"Tools/Call",{SHELL}}}',
    "a method with spaces": f'{{"jsonrpc":"2.0","id":1,"method":" tools/call ",{SHELL}}}',
    "a name with spaces": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":" shell\\n"}}',
    "a name in another case": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"SHELL"}}',
    "a name that is a list": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["shell"]}}',
    "params that are a list": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["shell"]}',
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
    "not UTF-8": f'{{"jsonrpc":"2.0","id":1,"x":"\xff","method":"tools/call",{SHELL}}}'.encode(
        "latin-1"
    ),
    "a number that is none": f'{{"jsonrpc":"2.0","id":1,"x":NaN,"method":"tools/call",{SHELL}}}',
    "a lone surrogate": f'{{"jsonrpc":"2.0","id":1,"x":"\\ud800","method":"tools/call",{SHELL}}}',
    "two texts": f'{{"jsonrpc":"2.0","id":1,"method":"ping"}}{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}',
    "compressed": gzip.compress(
        f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",{SHELL}}}'.encode()
    ),
}


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""]
)
@pytest.mark.parametrize("body", BYPASSES.values(), ids=BYPASSES)
def test_no_spelling_of_a_denied_call_reaches_the_server(
    body: bytes | str, content_type: str
) -> None:
    """Whatever the Content-Type."""
    request = post(body, content_type=content_type)
    assert run_request([policy(tools={"deny": ["shell"]})], request) is not None


def test_a_compressed_body_is_refused() -> None:
    """It cannot be read here, and the server could."""
    body = gzip.compress(json.dumps(call("shell")).encode())
    for coding in ("gzip", "identity, gzip", "x-unknown"):
        assert (
            error_of(
                run_request(
                    [policy(tools={"deny": ["shell"]})], post(body, content_encoding=coding)
                )
            )[0]
            == 415
        )
    plain = post(call("shell"), content_encoding="deflate")
    assert error_of(run_request([policy(tools={"deny": ["shell"]})], plain))[0] == 415


def test_headers_do_not_lead_around_it() -> None:
    """2026-07-28: a server that goes by `Mcp-Name` would run another tool than the body names."""
    interceptor = policy(tools={"deny": ["shell"]})
    assert run_request([interceptor], modern(call("add"), mcp_name="add")) is None
    assert error_of(run_request([interceptor], modern(call("add"), mcp_name="shell"))) == (
        400,
        -32020,
    )


def test_a_get_and_a_delete_pass() -> None:
    """They have no body, and so ask for nothing; one that has a body is looked at like any."""
    interceptor = policy(tools={"deny": ["shell"]})
    for method in ("GET", "DELETE"):
        assert run_request([interceptor], Request(method=method, path="/mcp")) is None
        request = post(call("shell"))
        request.method = method
        assert error_of(run_request([interceptor], request)) == (200, -32602)


SPELLINGS = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd",
    "file:///public/../etc/passwd", "file:///public/%2e%2e/etc/passwd",
    "file:///public/%252e%252e/etc/passwd", "file:///%65tc/passwd", "file:///ETC/passwd",
    "file:////etc/passwd", "file:///public\\..\\etc\\passwd", "file:///etc/passwd?x",
    "file:///etc/passwd#public", " file:///etc/passwd", "file:///e\ttc/passwd",
    "file:///%25252525252565tc/passwd",
    "file://x/etc/passwd", "file://127.0.0.1/etc/passwd", "file://[::1]/etc/passwd",
    "file://localhost:80/etc/passwd", "file://me:word@x/etc/passwd", "file:\\\\x\\etc\\passwd",
    "file://x/pub/%2e%2e/etc/passwd", "\ufefffile:///etc/passwd", "file:///etc/passwd\u3000",
    "file:///etc/passwd%E3%80%80", "a:" + "\\" * 5000, "a:" + "\\" * 500 + "@",
    "file:///pub/" + "a" * 8192,
]  # fmt: skip


@pytest.mark.parametrize("uri", SPELLINGS, ids=lambda uri: uri[:30])
def test_a_resource_is_denied_and_hidden_in_every_spelling(uri: str) -> None:
    """Wherever a client asks for it, and wherever a server names it."""
    exact = policy(resources={"deny": ["file:///etc/passwd"]})
    beside = policy(resources={"allow": ["file:///public/*"]})
    hidden = (
        uri.startswith("a:") and not uri.endswith("@") and len(uri) <= 8192
    )  # an opaque URI, of another scheme
    for interceptor in (exact, beside):
        for method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            assert passes(interceptor, rpc(method, uri=uri)) is (hidden and interceptor is exact)
        listen = rpc(
            "subscriptions/listen",
            notifications={"resourceSubscriptions": ["file:///etc/passwd", uri]},
        )
        assert not passes(interceptor, listen)
        complete = rpc("completion/complete", ref={"type": "ref/resource", "uri": uri})
        assert passes(interceptor, complete) is (hidden and interceptor is exact)
    for member, key in (("resources", "uri"), ("resourceTemplates", "uriTemplate")):
        text = json.dumps(
            {"jsonrpc": "2.0", "id": 1, "result": {member: [{key: uri}, {key: "file:///pub/a"}]}}
        )
        shown = json.loads(run_json([exact], text.encode(), request=post(rpc("resources/list"))))[
            "result"
        ][member]
        assert [entry[key] for entry in shown] == [*([uri] if hidden else []), "file:///pub/a"]
    updated = rpc("notifications/resources/updated", None, uri=uri)
    output = run_chain(
        [exact], [f"data: {json.dumps(updated)}\n\n".encode()], request=post(b"")
    ).output
    assert bool(output) is hidden


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


@pytest.mark.parametrize(
    ("glob", "uri"), [(glob, uri) for glob, uris in OTHER_READERS.items() for uri in uris]
)
def test_a_denied_resource_is_denied_for_every_reader(glob: str, uri: str) -> None:
    """Windows, browsers, Python's urllib and Java's `URL`, `inet_aton`, file systems, and servers
    that take paths.
    """
    interceptor = policy(resources={"deny": [glob]})
    assert not passes(interceptor, rpc("resources/read", uri=uri))
    text = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "result": {"resources": [{"uri": uri}, {"uri": "a:b"}]}}
    )
    shown = json.loads(run_json([interceptor], text.encode(), request=post(rpc("resources/list"))))
    assert shown["result"]["resources"] == [{"uri": "a:b"}]


@pytest.mark.parametrize("uri", [
    "C:\\pub\\x", "url:file:///pub/x", "/pub/x", "http://127.1/x", "note:/pub/x", "file:////pub/x",
    "file:///c|/pub/x",
])  # fmt: skip
def test_other_readers_let_nothing_in(uri: str) -> None:
    """What only some of them read as allowed is not allowed."""
    globs = ["file:///c:/pub/*", "http://127.0.0.1/*", "note:///pub/*", "file:///pub/*"]
    assert not passes(policy(resources={"allow": globs}), rpc("resources/read", uri=uri))


@pytest.mark.parametrize("uri", [
    "file:///srv/a:b", "file:///srv/a.", "file:///srv/ab", "file:///srv/a /b", "file:///\uff49nfo/x",
    "http://127.0.0.2/x", "http://127.0.0.1.example/x", "http://1.2.3.4.5/x", "http://[::1]/x",
    "file:///nas/x", "data:text/plain,/nas/x", "urn:x", "http://0x/x", "http://4294967296/x",
    "https://127.0.0.1/x", "file://x/pub/a", "https://x/srv/a",
])  # fmt: skip
def test_a_neighbour_is_not_denied(uri: str) -> None:
    globs = ["file:///srv/a", "file:///info/*", "http://127.0.0.1/*", "file://nas/*"]
    assert passes(policy(resources={"deny": globs}), rpc("resources/read", uri=uri))


@pytest.mark.parametrize(("name", "denied"), [
    ("\uff46ix", False), ("F\u0130X", True), ("f\u0131x", True), ("refix", False),
])  # fmt: skip
def test_the_case_of_a_denied_tool_is_folded(name: str, denied: bool) -> None:
    assert passes(policy(tools={"deny": ["fi*"]}), call(name)) is not denied


@pytest.mark.parametrize("uri", [
    "https://example.com", "https://example.com/", "https://example.com?q=1",
    "http://10.0.0.1:8080", "http://10.0.0.1/x", "http://[2001:db8::1]/x",
    "http://[fe80::1%25eth0]/x", "note:a", "note:/a", "note://b/a", "file:///srv/a:b",
    "file:///c:/pub/x", "file://nas/pub/x", "file:///srv/caf\u00e9", "file:///srv/cafe\u0301",
    "urn:isbn:0451450523", "data:text/plain,a", "/a",
])  # fmt: skip
def test_what_is_allowed_as_it_is_written_is_allowed(uri: str) -> None:
    """Whatever else some reader makes of a usual URI: that is for `deny` alone."""
    glob = uri.replace("[", "[[]")
    assert passes(
        policy(resources={"allow": [glob, glob.replace("%25", "%")]}),
        rpc("resources/read", uri=uri),
    )


def test_a_subscription_has_one_spelling() -> None:
    """The official Python SDK reads snake case as well."""
    interceptor = policy(resources={"deny": ["file:///etc/*"]})
    for name in ("resource_subscriptions", "Resource_Subscriptions"):
        assert not passes(
            interceptor, rpc("subscriptions/listen", notifications={name: ["file:///etc/passwd"]})
        )


def test_an_allowed_host_is_part_of_the_uri() -> None:
    named = policy(resources={"allow": ["file://nas/pub/*"]})
    assert passes(named, rpc("resources/read", uri="file://nas/pub/a"))
    assert not passes(named, rpc("resources/read", uri="file:///pub/a"))


@pytest.mark.parametrize("space", ["\ufeff", "\u00a0", "\u2029", "\x85", "\x1c", " \ufeff\t"])
def test_white_space_at_the_ends_hides_no_name(space: str) -> None:
    """What JavaScript's `trim` removes and what Python's `strip` does."""
    interceptor = policy(
        tools={"deny": ["shell"]},
        prompts={"deny": ["shell"]},
        methods={"deny": ["ext/*", "notifications/x"]},
    )
    for name in (f"shell{space}", f"{space}shell", f"{space}SHELL{space}"):
        assert not passes(interceptor, call(name))
        assert not passes(interceptor, rpc("prompts/get", name=name))
        assert not passes(
            interceptor, rpc("completion/complete", ref={"type": "ref/prompt", "name": name})
        )
        for member in ("tools", "prompts"):
            text = json.dumps(
                {
                    "jsonrpc": "2.0",
                    "id": 1,
                    "result": {member: [{"name": name}, {"name": "reshell"}]},
                }
            )
            shown = json.loads(
                run_json([interceptor], text.encode(), request=post(rpc("tools/list")))
            )
            assert shown["result"][member] == [{"name": "reshell"}]
    for method in (f"tools/call{space}", f"{space}tools/call", f"ext/a{space}", f"{space}ext/a"):
        assert not passes(interceptor, rpc(method, name="add"))
    assert not passes(interceptor, rpc(f"notifications/x{space}", None))


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
        "/json", "+json", "application/", "", " ",
    )),
    ["application/json", "text/plain"], ["application/json", "application/json"], ["application/json", ""], [],
]  # fmt: skip
PASSING = [
    "application/json",
    "Application/JSON;charset=UTF-8",
    'application/json; charset="utf-8"',
    'APPLICATION/JSON ; CHARSET="Utf-8"',
    "application/json;charset=utf-8;",
    " application/json ",
    "application/vnd.mcp+json",
    "application/vnd.mcp+JSON; charset=utf-8",
]


def typed(types: list[str], body: bytes) -> Request:
    return Request(
        method="POST",
        path="/mcp",
        headers=[(b"content-type", item.encode()) for item in types],
        body=body,
    )


@pytest.mark.parametrize("types", REFUSED, ids=str)
def test_a_body_that_a_server_could_read_in_another_way_is_refused(types: list[str]) -> None:
    """One Content-Type, JSON, UTF-8."""
    for interceptor in (policy(tools={"deny": ["shell"]}), policy(tools={"allow": ["ok"]})):
        for body in (UTF_7, json.dumps(call("ok")).encode()):
            assert error_of(run_request([interceptor], typed(types, body))) == (415, -32600)
        assert run_request([interceptor], typed(types, b"")) is None


@pytest.mark.parametrize("value", PASSING)
def test_json_in_utf_8_passes_under_its_type(value: str) -> None:
    request = typed([value], json.dumps(call("ok")).encode())
    assert run_request([policy(tools={"allow": ["ok"]})], request) is None
    assert request.headers["content-type"].strip() == value.strip()
    assert error_of(
        run_request(
            [policy(tools={"allow": ["ok"]})], typed([value], json.dumps(call("shell")).encode())
        )
    ) == (
        200,
        -32602,
    )


@pytest.mark.parametrize(("types", "shown"), [
    (["application/json-rpc"], "application/json"), (["Text/Event-Stream2"], "text/event-stream"),
    (["text/plain", "application/json"], "application/json"),
    (["application/json; charset=utf-8"], "application/json; charset=utf-8"),
    (["text/html"], "text/html"), (["application/json", "text/event-stream"], None),
    (["application/json; x=text/event-stream"], None),
])  # fmt: skip
def test_an_answer_has_the_type_that_clients_read_it_as(
    types: list[str], shown: str | None
) -> None:
    """The official clients search the header for their types; with both it could be read twice."""
    head = ResponseHead(200, [(b"content-type", item.encode()) for item in types], post(call("ok")))
    if shown is None:
        with pytest.raises(StreamAborted, match="two content types"):
            run_response([policy(tools={"allow": ["ok"]})], head)
    else:
        assert run_response([policy(tools={"allow": ["ok"]})], head) is None
        assert head.headers.get_list("content-type") == [shown]


LISTS: dict[str, tuple[str, str, str, list[str]]] = {
    "tools/list": ("tools", "name", "tools", ["add", "shell"]),
    "prompts/list": ("prompts", "name", "prompts", ["add", "shell"]),
    "resources/list": ("resources", "uri", "resources", ["x:add", "x:shell"]),
    "resources/templates/list": ("resourceTemplates", "uriTemplate", "resources",
        ["x:add/{a}", "x:shell/{a}"],),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "member", "key", "rule", "names"),
    [(method, *rest) for method, rest in LISTS.items()],
)
@pytest.mark.parametrize("correlated", [True, False])
def test_a_list_shows_only_what_is_allowed(
    method: str, member: str, key: str, rule: str, names: list[str], correlated: bool
) -> None:
    """In a body and in a stream, page by page, also when the request is no longer known."""
    interceptor = policy(**{rule: {"deny": ["*shell*"]}})
    request = post(rpc(method) if correlated else rpc("ping", 7))
    assert run_request([interceptor], request) is None
    entries = [{key: name, "title": name} for name in names]
    page = {
        "jsonrpc": "2.0",
        "id": 1,
        "result": {member: entries, "nextCursor": "b2", "_meta": {"x": 1.0}},
    }
    expected = page | {"result": page["result"] | {member: entries[:1]}}  # type: ignore[operator]
    text = json.dumps(page).encode()
    assert json.loads(run_json([interceptor], text, request=request)) == expected
    assert json.loads(run_json([interceptor], b"[" + text + b"]", request=request)) == [expected]
    output = run_chain([interceptor], [b"id: 3\ndata: " + text + b"\n\n"], request=request).output
    assert output.startswith(b"id: 3\ndata: ")
    assert json.loads(output[12:]) == expected


def test_a_list_of_allowed_entries_and_what_is_not_a_list_stay_byte_for_byte() -> None:
    """So do lists that no rule is about."""
    interceptor = policy(tools={"deny": ["shell"]})
    for result in (
        '{ "tools" : [{"name":"a", "n":1e2}] }',
        '{"tools":"all"}',
        '{"prompts":[{"name":"shell"}, 7]}',
        "[]",
        '{"content":[]}',
    ):
        text = b'{"jsonrpc":"2.0", "id":1,"result":%s}' % result.encode()
        assert run_json([interceptor], text, request=post(rpc("tools/list"))) == text


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


def test_of_an_object_with_one_name_twice_every_entry_is_judged() -> None:
    """A list may be an object; readers differ in which of two members with one name they take."""
    interceptor = policy(tools={"deny": ["shell"]})
    text = '{"result":{"tools":{"a":{"name":"shell"},"a":{"name":"ok"},"b":{"name":"ok","NAME":"shell"},"c":{"name":"ok"}}}}'
    assert json.loads(run_json([interceptor], text.encode(), request=post(rpc("tools/list")))) == {
        "result": {"tools": {"c": {"name": "ok"}}}
    }


def test_entries_without_a_name_are_not_shown() -> None:
    """It is unknown whether they are allowed."""
    text = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":7},{},8,{"name":"a"},{"name":"sh\\u0065ll"}]}}'
    left = json.loads(
        run_json([policy(tools={"deny": ["shell"]})], text, request=post(rpc("tools/list")))
    )
    assert left["result"]["tools"] == [{"name": "a"}]


def test_a_reused_id_does_not_hide_a_list() -> None:
    """A client that asks for the list, then for something else with the same id, and resumes, gets
    no more of it.
    """
    interceptor = policy(tools={"deny": ["shell"]})
    assert error_of(run_request([interceptor], post([rpc("tools/list", 1), rpc("ping", 1)]))) == (
        400,
        -32600,
    )
    run_request([interceptor], post(rpc("tools/list", 1), mcp_session_id="s"))
    run_request([interceptor], post(rpc("ping", 1), mcp_session_id="s"))
    stream = b'data: {"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"shell"}]}}\n\n'
    get = Request(path="/mcp", headers=[(b"mcp-session-id", b"s")])
    assert b"shell" not in run_chain([interceptor], [stream], request=get).output


def test_a_list_that_cannot_be_read_is_not_shown() -> None:
    """What is not JSON for us might be for the client."""
    interceptor, request = policy(tools={"deny": ["shell"]}), post(rpc("tools/list"))
    texts = [
        '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"add","description":"\\ud800"},{"name":"shell"}]}}',
        '{"jsonrpc":"2.0","id":1,"x":NaN,"result":{"tools":[{"name":"shell"}]}}',
        '\ufeff{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"shell"}]}}',
        '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"shell"}]}}{}',
    ]
    for text in texts:
        for status in (200, 404):
            head = ResponseHead(status, [(b"content-type", b"application/json")], request)
            if text.startswith("\ufeff"):  # a body's BOM is not part of its JSON
                assert b"shell" not in run_json(
                    [interceptor], text.encode(), request=request, head=head
                )
                continue
            with pytest.raises(StreamAborted):
                run_json([interceptor], text.encode(), request=request, head=head)
        assert (
            b"shell"
            not in run_chain([interceptor], [f"data: {text}\n\n".encode()], request=request).output
        )


RESULT = '{"tools":[{"name":"read_file"},{"name":"run_shell","inputSchema":{"type":"object"}}],"nextCursor":"b"}'
ENVELOPES: dict[str, str] = {
    "an error that is null": f'{{"jsonrpc":"2.0","id":1,"error":null,"result":{RESULT}}}',
    "an error, too": f'{{"jsonrpc":"2.0","id":1,"error":{{"code":1,"message":"x"}},"result":{RESULT}}}',
    "a method that is null": f'{{"jsonrpc":"2.0","id":1,"method":null,"result":{RESULT}}}',
    "a method": f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{{}},"result":{RESULT}}}',
    "no version": f'{{"id":1,"result":{RESULT}}}',
    "another version": f'{{"jsonrpc":2.0,"id":1,"result":{RESULT}}}',
    "an id with a fraction": f'{{"jsonrpc":"2.0","id":1.0,"result":{RESULT}}}',
    "an id that is text": f'{{"jsonrpc":"2.0","id":"1","result":{RESULT}}}',
    "an id that is null": f'{{"jsonrpc":"2.0","id":null,"result":{RESULT}}}',
    "an id that is true": f'{{"jsonrpc":"2.0","id":true,"result":{RESULT}}}',
    "an id that is a list": f'{{"jsonrpc":"2.0","id":[1],"result":{RESULT}}}',
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
}


@pytest.mark.parametrize("text", ENVELOPES.values(), ids=ENVELOPES)
def test_no_envelope_hides_a_list(text: str) -> None:
    """Whatever a client could accept as a response, as a body and as an event of any name."""
    interceptor = policy(tools={"deny": ["run_*"]})
    request = post(rpc("tools/list"))
    outputs = [run_json([interceptor], text.encode(), request=request)]
    for field in (b"", b"event: message\n", b"event: other\n"):
        outputs.append(
            run_chain(
                [interceptor], [field + b"data: " + text.encode() + b"\n\n"], request=request
            ).output
        )
    for output in outputs:
        assert b"run_shell" not in output
        assert (b"read_file" in output) == (
            ("read_file" in text) and not text.endswith('"result":{}}')
        )
        assert (b"1.10" in output) == ("1.10" in text)  # numbers leave unchanged


def test_each_kind_of_list_is_filtered_in_other_spellings() -> None:
    """The official Python client reads snake case as well as camel case."""
    interceptor = policy(prompts={"deny": ["x*"]}, resources={"deny": ["x:*"]})
    text = b"""{"id":1,"result":{"prompts":[{"name":"x1"}],"RESOURCES":[{"Uri":"x:2"}],
        "resource_templates":[{"uri_template":"x:3"}],"resourceTemplates":[{"uriTemplate":"x:4"},{"uriTemplate":"y:{a}"}]}}"""
    output = run_json([interceptor], text, request=post(rpc("resources/list")))
    assert json.loads(output)["result"] == {
        "prompts": [],
        "RESOURCES": [],
        "resource_templates": [],
        "resourceTemplates": [{"uriTemplate": "y:{a}"}],
    }


def test_a_denied_resource_is_not_named_in_an_odd_notification() -> None:
    """The official Python client accepts a notification that has a result, too."""
    updated = '{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///etc/passwd"},"result":{}}'
    output = run_chain(
        [policy(resources={"deny": ["file:///etc/*"]})],
        [f"data: {updated}\n\n".encode()],
        request=post(b""),
    )
    assert (output.output, output.failure) == (b"", None)


def test_errors_of_the_server_pass() -> None:
    """Bodies of 400, 401 and 404, which clients read, are not lists."""
    interceptor = policy(tools={"deny": ["shell"]})
    request = post(rpc("tools/list"))
    head = ResponseHead(401, [(b"content-type", b"application/json")], request)
    for body in (b'{"error":"invalid_token"}', b"not JSON"):
        assert run_json([interceptor], body, request=request, head=head) == body


@pytest.mark.parametrize(("options", "path", "match"), [
    ({}, "", "no rule"), ({"tools": {}}, "", "no rule"),
    ({"tools": {"alow": ["a"]}}, "tools.alow", "unknown key `alow`: did you mean `allow`"),
    ({"tool": {"deny": ["a"]}}, "tool", "unknown option `tool`: did you mean `tools`"),
    ({"tools": ["a"]}, "tools", "must be a mapping"),
    ({"prompts": {"deny": ["a", ""]}}, "prompts.deny[1]", "empty"),
    ({"methods": {"allow": "ping"}}, "methods.allow", "must be a list"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused_at_their_path(
    options: dict[str, Any], path: str, match: str
) -> None:
    """A misspelt rule that allows everything would be worse than none."""
    with pytest.raises(LoadError, match=match) as refused:
        load_interceptor("mcp_policy", options)
    assert refused.value.option == path


NAME = st.sampled_from(["shell", "SHELL", "sh\\u0065ll", " shell", "add"])
KEY = st.sampled_from(["name", "Name", "n\\u0061me", "uri"])
METHOD = st.sampled_from(["tools/call", "tools\\/call", "TOOLS/call", "ping", "tools/list"])
PARAMS = st.lists(st.tuples(KEY, NAME), max_size=3).map(
    lambda pairs: "{" + ",".join(f'"{key}":"{value}"' for key, value in pairs) + "}"
)
MEMBER = st.one_of(
    st.just('"jsonrpc":"2.0"'),
    st.just('"id":1'),
    METHOD.map(lambda method: f'"method":"{method}"'),
    PARAMS.map(lambda params: f'"params":{params}'),
)
MESSAGE = st.lists(MEMBER, max_size=6).map(lambda members: "{" + ",".join(members) + "}")


def readings(text: str) -> list[Any]:
    """As readers of several kinds understand a JSON text."""

    def reader(first: bool, folded: bool) -> Any:
        def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
            made: dict[str, Any] = {}
            for name, value in reversed(members) if first else members:
                made[name.casefold() if folded else name] = value
            return made

        return json.loads(text, object_pairs_hook=pairs)

    return [reader(first, folded) for first in (True, False) for folded in (True, False)]


@settings(deadline=None)
@given(MESSAGE | st.lists(MESSAGE, max_size=3).map(lambda items: "[" + ",".join(items) + "]"))
def test_no_reader_finds_a_denied_call_in_what_goes_upstream(text: str) -> None:
    """Neither one that takes the first of two members, nor one that does not mind case or spaces."""
    request = post(text)
    if run_request([policy(tools={"deny": ["shell"]})], request) is not None:
        return
    for reading in readings(request.body.decode()):
        for message in reading if isinstance(reading, list) else [reading]:
            if str(message.get("method")).strip().casefold() == "tools/call":
                assert str(message["params"]["name"]).strip().casefold() != "shell"


ENTRY = st.lists(st.tuples(KEY, NAME), max_size=2).map(
    lambda pairs: "{" + ",".join(f'"{key}":"{value}"' for key, value in pairs) + "}"
)
ENTRIES = st.lists(ENTRY | NAME.map(lambda name: f'"{name}"') | st.just("7"), max_size=3).map(
    lambda items: f"[{','.join(items)}]"
)
LIST = st.tuples(st.sampled_from(["tools", "Tools", "t\\u006fols", "x"]), ENTRIES).map(
    lambda pair: f'"{pair[0]}":{pair[1]}'
)
RESULTS = st.lists(LIST, max_size=2).map(lambda lists: "{" + ",".join(lists) + "}")
ANSWER_MEMBER = st.one_of(
    st.just('"jsonrpc":"2.0"'),
    st.sampled_from(["1", "1.0", "null", '"1"']).map(lambda ident: f'"id":{ident}'),
    st.sampled_from(
        ['"error":null', '"method":null', '"method":"x"', '"error":{"code":1,"message":"x"}']
    ),
    st.tuples(st.sampled_from(["result", "Result", "r\\u0065sult"]), RESULTS).map(
        lambda pair: f'"{pair[0]}":{pair[1]}'
    ),
)
ANSWER = st.lists(ANSWER_MEMBER, max_size=6).map(lambda members: "{" + ",".join(members) + "}")


@settings(deadline=None)
@given(ANSWER | st.lists(ANSWER, max_size=3).map(lambda items: "[" + ",".join(items) + "]"))
def test_no_reader_finds_a_denied_entry_in_what_a_client_gets(text: str) -> None:
    """Neither one that takes the first of two members, nor one that does not mind case or spaces,
    in any envelope.
    """
    output = run_json(
        [policy(tools={"deny": ["shell"]})], text.encode(), request=post(rpc("tools/list"))
    )
    for reading in readings(output.decode()):
        for message in reading if isinstance(reading, list) else [reading]:
            for entry in message.get("result", {}).get("tools", []):
                assert str(entry.get("name")).strip().casefold() != "shell"
