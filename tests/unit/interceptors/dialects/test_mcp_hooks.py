"""Hooks for MCP messages: what they see, what a change or an answer does, what passes unchanged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from interceptors import (
    Abort,
    Event,
    HookError,
    Interceptor,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
    StreamOver,
)
from interceptors.dialects.mcp import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Kind,
    McpError,
    McpMessage,
)
from interceptors.dialects.mcp_headers import HEADER_MISMATCH, VERSION_KEY
from interceptors.dialects.mcp_hooks import (
    McpInterceptor,
    on_mcp_notification,
    on_mcp_request,
    on_mcp_response,
)
from interceptors.testing import run_chain, run_json, run_request, run_response

BOTH, JSON, SSE = "application/json, text/event-stream", "application/json", "text/event-stream"
MODERN = "2026-07-28"


def rpc(method: str | None = None, id: Any = None, **members: Any) -> dict[str, Any]:
    head = {"jsonrpc": "2.0", "id": id, "method": method}
    return {name: value for name, value in head.items() if value is not None} | members


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def fields(named: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]


def post(body: Any, *, session: str | None = "s", target: str = "/mcp", **headers: str) -> Request:
    named = {"accept": BOTH, "content_type": JSON} | headers
    if session:
        named["mcp-session-id"] = session
    path, _, query = target.partition("?")
    at = {"path": path, "query": query.encode()}
    return Request(method="POST", **at, headers=fields(named), body=encoded(body))  # type: ignore[arg-type]


def get(path: str = "/mcp", **headers: str) -> Request:
    return Request(path=path, headers=fields(headers))


def sse(*messages: Any) -> bytes:
    return b"".join(b"event: message\ndata: %s\n\n" % encoded(message) for message in messages)


def head_of(request: Request, status: int = 200, type: str = JSON, **headers: str) -> ResponseHead:
    return ResponseHead(status, fields({"content-type": type} | headers), request)


def data_of(output: bytes) -> list[Any]:
    lines = output.decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def made(hook: Callable[[McpMessage], Any], *marks: Any, **attributes: Any) -> McpInterceptor:
    """An interceptor of one hook, a function of the message."""

    def method(self: McpInterceptor, message: McpMessage) -> Any:
        return hook(message)

    for mark in marks:
        method = mark(method)
    return type("Made", (McpInterceptor,), {"method": method, **attributes})()  # type: ignore[no-any-return]


def check_passes(request: Request, *interceptors: Interceptor) -> None:
    assert run_request(list(interceptors), request) is None


def answer(request: Request, *interceptors: Interceptor) -> Response:
    response = run_request(list(interceptors), request)
    assert response is not None
    return response


def body_of(body: Any, request: Request, *interceptors: Interceptor) -> Any:
    """A JSON body as it leaves."""
    return json.loads(run_json(list(interceptors), encoded(body), request=request))


class Seen(McpInterceptor):
    """Notes every message: its kind, its direction, its method or that of its request, its name."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    @on_mcp_request()
    @on_mcp_notification()
    @on_mcp_response()
    def note(self, message: McpMessage) -> None:
        method = message.method
        if message.kind is Kind.RESPONSE:
            method = message.request.method if message.request else None
        self.seen.append((message.kind, message.from_client, method, message.name))

    def responses(self) -> list[Any]:
        """The methods that the responses answer."""
        return [item[2] for item in self.seen if item[0] is Kind.RESPONSE]


class Strict(Seen):
    strict = True


class Answering(McpInterceptor):
    """Refuses the tool `shell`, answers `ping`, renames tools, drops progress, shortens lists."""

    @on_mcp_request("tools/call")
    def no_shell(self, message: McpMessage) -> McpError | None:
        if message.name == "shell":
            return McpError(INVALID_PARAMS, "no shells here")
        if message.name == "old":
            message.name = "new"
        return None

    @on_mcp_request("ping")
    def pong(self, message: McpMessage) -> dict[str, Any] | None:
        return {"pong": True} if message.from_client else None

    @on_mcp_notification("notifications/progress")
    def quiet(self, message: McpMessage) -> None:
        message.drop()

    @on_mcp_response("tools/list")
    def shorten(self, message: McpMessage) -> None:
        if "tools" in message.result:
            message.result["tools"] = message.result["tools"][:1]


# --- What each hook sees


def test_hooks_see_their_messages_with_all_that_is_known_of_them() -> None:
    """Both directions; of a response also the request that it answers."""
    found: list[Any] = []

    def note(message: McpMessage) -> None:
        assert message.http is not None
        seen = message.session, message.revision, message.name, message.http.path
        found.append((message.kind, message.from_client, message.id, *seen))

    interceptor = made(note, on_mcp_request("tools/*"), on_mcp_response("tools/*"))
    request = post(rpc("tools/call", 7, params={"name": "add"}), mcp_protocol_version="2025-06-18")
    check_passes(request, interceptor)
    stream = sse(rpc("x/y", 1), rpc("notifications/z"), rpc(id=7, result={}))
    assert run_chain([interceptor], [stream], request=request).counts.passed == 3
    common = ("s", "2025-06-18", "add", "/mcp")
    assert found == [(Kind.REQUEST, True, 7, *common), (Kind.RESPONSE, False, 7, *common)]


def test_a_glob_matches_the_whole_method() -> None:
    """No argument means all. An overriding method stays marked."""
    found: list[str] = []

    class Base(McpInterceptor):
        @on_mcp_request("tools/*")
        def note(self, message: McpMessage) -> None:
            found.append(f"base {message.method}")

    class Sub(Base):
        def __init__(self, word: str) -> None:  # calls no other
            self.word = word

        def note(self, message: McpMessage) -> None:
            found.append(f"{self.word} {message.method}")

    every = made(lambda message: found.append(f"all {message.method}"), on_mcp_request())
    methods = ("tools/list", "Tools/list", "my/tools/list")
    request = post([rpc(name, number) for number, name in enumerate(methods)])
    check_passes(request, Sub("sub"), Base(), every)
    assert found == ["sub tools/list", "base tools/list", *(f"all {name}" for name in methods)]


def test_an_async_hook_or_a_mark_without_parentheses_is_refused() -> None:
    async def slow(self: object, message: McpMessage) -> None: ...

    with pytest.raises(TypeError, match=r"slow is async"):
        on_mcp_request()(slow)
    with pytest.raises(TypeError, match="with parentheses"):
        on_mcp_response(lambda self, message: None)  # type: ignore[arg-type]


# --- Which request a response answers

RESULTS = [rpc(id=ident, result={}) for ident in (1, "1", 2)]


SAMPLE, ROOTS = rpc("sampling/createMessage", 1), rpc("roots/list", "1")


@pytest.mark.parametrize(
    ("asked", "answered", "opened", "methods"),
    [
        (post(b""), post(RESULTS), None, ["sampling/createMessage", "roots/list", None]),
        (post(b""), post(RESULTS, session="other"), None, [None] * 3),
        # A stream that is resumed has the answers to earlier POSTs.
        (post(rpc("tools/list", 1)), get(mcp_session_id="s"), None, ["tools/list", None, None]),
        # The response brings the session.
        (post(rpc("initialize", 1), session=None), get(mcp_session_id="new"), "new", ["initialize", None, None]),
        # Without a session (as in 2026-07-28) another exchange's id means nothing.
        (post(rpc("tools/list", 1), session=None), get(), None, [None] * 3),
    ],
)  # fmt: skip
def test_a_response_answers_a_request_of_its_session(
    asked: Request, answered: Request, opened: str | None, methods: list[str | None]
) -> None:
    """1 is not "1"."""
    seen = Seen()
    check_passes(asked, seen)
    head = head_of(asked, type=SSE, **({"mcp_session_id": opened} if opened else {}))
    run_chain([seen], [sse(SAMPLE, ROOTS)], request=asked, head=head)
    if answered.method == "POST":
        check_passes(answered, seen)
    else:
        run_chain([seen], [b"id: 10\ndata:\n\n", sse(*RESULTS)], request=answered)
    assert seen.responses() == methods


# --- Changes


def test_a_changed_request_takes_its_headers_along() -> None:
    """2026-07-28: `Mcp-Name` follows the body; the rest of both stays."""

    def body(name: str) -> dict[str, Any]:
        return rpc("tools/call", 1, params={"_meta": {VERSION_KEY: MODERN}, "name": name})

    headers = {"mcp_protocol_version": MODERN, "mcp_method": "tools/call", "mcp_name": "old"}
    request = post(body("old"), session=None, **headers)
    check_passes(request, Answering())
    assert request.json() == body("new")
    names = ("mcp-name", "mcp-method", "content-type")
    assert [request.headers[name] for name in names] == ["new", "tools/call", JSON]


def test_a_changed_event_keeps_its_fields_and_a_dropped_one_is_gone() -> None:
    answering, request = Answering(), post(rpc("tools/list", 1))
    check_passes(request, answering)
    head = b'id: 1\nretry: 5\nevent: message\ndata: {"jsonrpc":"2.0","id":1,\n'
    stream = [sse(rpc("notifications/progress")), head + b'data: "result":{"tools":[1,2]}}\n\n']
    result = run_chain([answering], stream, request=request)
    data = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[1]}}'
    assert result.output == b"event: message\nid: 1\nretry: 5\ndata: " + data + b"\n\n"
    assert (result.counts.dropped, result.counts.changed) == (1, 1)


def test_only_a_changed_json_body_is_replaced() -> None:
    """Batches, too. Nothing is left of a body whose messages are all dropped."""
    answering, request = Answering(), post(rpc("tools/list", 1))
    check_passes(request, answering)
    untouched = b'{ "jsonrpc":"2.0", "id":2, "result":{"tools":[1 ,2]} }'
    listed = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[1%s]}}'
    for sent, left in (
        (untouched, untouched),
        (b"[%s , %s]" % (untouched, listed % b",2"), b"[%s,%s]" % (untouched, listed % b"")),
        (encoded(rpc("notifications/progress")), b""),
    ):
        assert run_json([answering], sent, request=request) == left


# --- Answers

PONG = rpc(id=1, result={"pong": True})
NO_SHELL = {"code": INVALID_PARAMS, "message": "no shells here"}


@pytest.mark.parametrize(
    ("body", "accept", "status", "expected"),
    [
        (rpc("tools/call", "a", params={"name": "shell"}), BOTH, 200, rpc(id="a", error=NO_SHELL)),
        (rpc("ping", 0), BOTH, 200, rpc(id=0, result={"pong": True})),
        (rpc("ping", 1), "*/*", 200, PONG),
        (rpc("ping", 1), "application/json;q=0.5, text/event-stream", 200, PONG),
        (rpc("ping", 1), "text/event-stream, application/*", 200, PONG),
        (rpc("ping", 1), "", 200, PONG),
        (rpc("ping", 1), SSE, 200, PONG),
        (rpc("notifications/progress", params={}), BOTH, 202, None),
    ],
)
def test_an_answer_replaces_the_call(body: Any, accept: str, status: int, expected: Any) -> None:
    """The answer is JSON, or a stream if the client accepts nothing else. A dropped notification
    gets its 202.
    """
    response = answer(post(body, accept=accept), Answering())
    assert response.status == status
    if accept == SSE:
        (event,) = response.events or ()  # type: ignore[misc]
        assert event.raw == b"event: message\ndata: %s\n\n" % event.data.encode()
        assert event.json() == expected
    elif expected is None:
        assert response.body == b""
    else:
        assert response.headers["content-type"] == JSON
        assert json.loads(response.body) == expected


@pytest.mark.parametrize(
    ("code", "own", "revision", "status"),
    [
        (METHOD_NOT_FOUND, None, MODERN, 404),
        (INVALID_PARAMS, None, MODERN, 400),
        (-32000, None, MODERN, 200),
        (METHOD_NOT_FOUND, None, "2025-11-25", 200),
        (METHOD_NOT_FOUND, None, None, 200),
        (METHOD_NOT_FOUND, 403, "2025-11-25", 403),
    ],
)
def test_an_error_has_the_status_of_its_revision(
    code: int, own: int | None, revision: str | None, status: int
) -> None:
    """As the official SDK's servers have it, unless the hook sets another."""
    refusing = made(lambda _: McpError(code, "no", http_status=own), on_mcp_request())
    headers = {"mcp_protocol_version": revision} if revision else {}
    assert answer(post(rpc("x/y", 1), **headers), refusing).status == status


BATCH = [rpc("ping", 1), rpc("tools/list", 2), rpc("notifications/x")]
LISTED = rpc(id=2, result={"tools": [1]})
REFUSED = {"id": None, "error": {"code": -32600}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, encoded(LISTED), [LISTED, PONG]),
        (200, encoded([LISTED]), [LISTED, PONG]),
        (200, b"", [PONG]),
        (202, b"", [PONG]),
        (400, encoded(REFUSED), REFUSED),  # as a whole: the client must see that
        (200, b"oops", None),  # nothing can be added to it
    ],
)
def test_answers_are_added_to_a_batch(status: int, body: bytes, expected: Any) -> None:
    chain, request = [Answering()], post([*BATCH, rpc("notifications/progress")])
    check_passes(request, *chain)
    assert request.json() == BATCH[1:]
    head = head_of(request, status)
    response = run_response(chain, head)
    assert (response is None) == (status != 202)
    if response is not None:
        assert (response.status, json.loads(response.body)) == (200, expected)
    elif expected is None:
        with pytest.raises(StreamAborted, match="not JSON"):
            run_json(chain, body, request=request)
    else:
        assert json.loads(run_json(chain, body, request=request, head=head)) == expected


@pytest.mark.parametrize(
    ("start", "messages", "expected"),
    [
        (b": hi\n\nid: 1\ndata:\n\n", [BATCH[2], LISTED], [PONG, BATCH[2], LISTED]),
        (b": hi\n\n", [], [PONG]),
    ],
)
def test_the_answers_to_a_batch_precede_the_servers_in_a_stream(
    start: bytes, messages: list[Any], expected: list[Any]
) -> None:
    """They are sent at its end if the server sends none."""
    chain, request = [Answering()], post(BATCH)
    check_passes(request, *chain)
    head = head_of(request, type=SSE)
    output = run_chain(chain, [start + sse(*messages)], request=request, head=head).output
    assert output.startswith(start)
    assert data_of(output) == expected


def test_a_failed_hook_does_not_lose_the_answers_to_a_batch() -> None:
    """Even with `on_error = "skip"`: a body without them would look whole."""

    class Failing(Answering):
        on_error = "skip"

        @on_mcp_response("tools/list")
        def fail(self, message: McpMessage) -> None:
            raise ValueError

    failing, request = Failing(), post(BATCH)
    check_passes(request, failing)
    with pytest.raises(StreamAborted, match="a hook has failed"):
        run_json([failing], encoded([LISTED]), request=request)
    check_passes(request := post(rpc("tools/list", 2)), failing)
    assert body_of(LISTED, request, failing) == LISTED


def test_several_interceptors_answer_one_batch() -> None:
    other, done = rpc("tools/call", 5, params={"name": "x"}), rpc(id=5, result={"content": []})

    def chain() -> list[Interceptor]:
        return [Answering(), made(lambda _: {"content": []}, on_mcp_request("tools/call"))]

    response = answer(post([rpc("ping", 1), other]), *chain())
    assert json.loads(response.body) == [PONG, done]
    both, request = chain(), post([*BATCH, other])
    check_passes(request, *both)
    assert body_of(LISTED, request, *both) == [LISTED, PONG, done]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (rpc("ping", 1), "returned str, expected a dict, an McpError or None"),
        (rpc("notifications/x"), "returned dict, expected None"),
        (rpc(id=1, result={}), "returned dict, expected None"),
        (rpc("roots/list", 1), "can be changed, not answered"),
    ],
)
def test_a_wrong_result_of_a_hook_is_its_failure(message: Any, error: str) -> None:
    """An answer to a notification, a response or the server, and a result that is not an answer."""
    marks = on_mcp_request(), on_mcp_response(), on_mcp_notification()
    wrong = made(lambda message: "no" if message.method == "ping" else {}, *marks)
    if message.get("method") == "roots/list":
        failure = run_chain([wrong], [sse(message)], request=post(b"")).failure
        assert isinstance(failure, HookError)
        assert error in str(failure)
    else:
        with pytest.raises(HookError, match=error):
            run_request([wrong], post(message))


def test_a_failed_hook_that_is_skipped_leaves_the_message_unchanged() -> None:
    def fail(message: McpMessage) -> None:
        message.params["a"] = 1
        raise ValueError

    failing = made(fail, on_mcp_request(), on_mcp_notification(), on_error="skip")
    request, stream = post(rpc("ping", 1)), sse(rpc("notifications/x"))
    check_passes(request, failing)
    assert request.body == encoded(rpc("ping", 1))
    assert run_chain([failing], [stream], request=request).output == stream


def test_an_abort_of_a_hook_is_an_abort_in_both_directions() -> None:
    def end(message: McpMessage) -> None:
        raise Abort("enough")

    ending = made(end, on_mcp_notification())
    with pytest.raises(StreamAborted, match="enough"):
        run_request([ending], post(rpc("notifications/x")))
    assert isinstance(run_chain([ending], [sse(rpc("notifications/x"))]).failure, StreamAborted)


@pytest.mark.parametrize("passes", [True, False])
def test_a_subclass_with_its_own_stream_decides_about_large_events(passes: bool) -> None:
    """`passes_unseen` of the stream that `open_stream` returns counts for a GET, too."""
    watching = type("Watching", (StreamInterceptor,), {"passes_unseen": passes})
    own = type("Own", (McpInterceptor,), {"open_stream": lambda self, context: watching()})()
    event = sse(rpc("notifications/x", params={"text": "x" * 2000}))
    request = Request(path="/mcp", dialect="mcp")
    result = run_chain([own], [event], request=request, max_event_bytes=1000)
    assert (result.failure is None, result.output == event) == (passes, passes)


# --- The old transport: HTTP with SSE


class Old:
    """A session of the old transport: the interceptor, and what is put on the stream."""

    def __init__(self, endpoint: str, *, over: bool = False) -> None:
        self.emitted: list[Any] = []
        self.free = trio.Event()
        self.free.set()
        self.seen = Seen()
        self._over = over
        seen = self.seen

        class Both(Answering):
            @on_mcp_response()
            def answered(self, message: McpMessage) -> None:
                seen.note(message)

        self.interceptor = Both()
        request = get("/a/sse", accept=SSE)
        self.stream = self.interceptor.open_stream(StreamContext(request, self._emit))
        self.stream.on_start(head_of(request, type=SSE))
        event = Event(endpoint, event="endpoint")
        assert self.stream.on_event(event) is event

    async def _emit(self, event: Event) -> None:
        if self._over:
            raise StreamOver
        await self.free.wait()
        self.emitted.append(event.json())

    async def post(self, target: str, body: Any, **headers: str) -> Response | None:
        request = post(body, session=None, target=target, **({"accept": "*/*"} | headers))
        return await self.interceptor.on_request(request)

    async def status(self, target: str, body: Any, **headers: str) -> int:
        response = await self.post(target, body, **headers)
        assert response is not None
        return response.status


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("/messages/?session_id=ab", "/messages/?session_id=ab"),
        ("/m?sessionId=ab&x=%2F", "/m?sessionId=ab&x=%2F"),
        ("?sid=ab", "/a/sse?sid=ab"),
        ("messages/ab", "/a/messages/ab"),
        ("../m;s=ab", "/m;s=ab"),
        ("/ab/messages#x", "/ab/messages"),
        ("http://mcp.test:8000/messages/ab?", "/messages/ab"),
        ("//mcp.test/messages//ab/../b", "/messages//b"),
        (" /messages/ab\n", "/messages/ab"),
        ("/messages/{ab}?é='1'", "/messages/%7Bab%7D?%C3%A9=%271%27"),
        ("/b?", "/b"),  # as httpx resolves it
        ("/b??", "/b??"),
        ("/m?s=a|b", "/m?s=a%7Cb"),
    ],
)
async def test_old_transport_answers_on_the_stream(endpoint: str, target: str) -> None:
    """The POST gets 202, the stream the answer. Headers do not matter, nor a later `endpoint`."""
    old = Old(endpoint)
    later = Event("/m?s=2", event="endpoint")
    assert old.stream.on_event(later) is later
    for headers in ({}, {"mcp_protocol_version": "2025-11-25"}, {"accept": BOTH}):
        assert await old.status(target, rpc("ping", 1), **headers) == 202
        assert old.emitted.pop() == PONG
    assert await old.post(target, rpc("tools/list", 2)) is None
    for other in (target + "x", target.replace("b", "B"), "/m?s=2"):
        assert await old.status(other, rpc("ping", 1), accept=BOTH) == 200
        assert await old.post(other, rpc("tools/list", 3), accept=BOTH) is None
    for ident in (2, 3):
        listed = Event(json=rpc(id=ident, result={"tools": [1]}), event="message")
        assert old.stream.on_event(listed) is listed
    assert old.seen.responses() == ["tools/list", None]
    old.stream.on_end(Outcome.COMPLETED)
    assert await old.status(target, rpc("ping", 1), accept=BOTH) == 200
    assert old.emitted == []


async def test_over_the_old_transport_a_refusal_does_not_end_the_session() -> None:
    """A 4xx becomes an answer on the stream, with the id if it can be read. The POST is answered
    when the stream has taken it.
    """
    old = Old("/m?s=1")
    type(old.interceptor).strict = True
    for body, ident in (
        (b'{"jsonrpc":"2.0","id":7,"method":"x","method":"y"}', 7),
        (b'{"id":7,"id":8}', None),
        (b"{", None),
        (rpc(id="7", x=1), "7"),
    ):
        assert await old.status("/m?s=1", body, mcp_protocol_version=MODERN) == 202
        error = old.emitted.pop()
        assert (error["id"], "error" in error) == (ident, True)
    old.free = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.status, "/m?s=1", rpc("ping", 1))
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        old.free.set()
    assert old.emitted == [PONG]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("over", [False, True])
def test_a_refused_call_of_the_old_transport_is_replaced(over: bool, batch: bool) -> None:
    """The stream is over, or on another machine: the denied call is not sent. What the server then
    accepts is the old transport's; an answer or a refusal becomes the answer here.
    """
    old = Old("/m?s=1", over=over)
    target = "/m?s=1" if over else "/m?s=2"
    body = [rpc("ping", 1, params={"secret": 1}), rpc("tools/list", 2)]
    request = post(body if batch else body[0], session=None, target=target, accept="*/*")
    check_passes(request, old.interceptor)
    denied = rpc("weirpool/denied", 1)
    assert request.json() == ([denied, body[1]] if batch else denied)
    assert run_response([old.interceptor], head_of(request, 202, "text/plain")) is None
    errors = [rpc(id=1, error={"code": -32601, "message": "no"}), rpc(id=2, result={})]
    answered = body_of(errors if batch else errors[0], request, old.interceptor)
    assert answered == ([PONG, errors[1]] if batch else PONG)
    refused = run_response([old.interceptor], head_of(request, 406))
    assert (refused is None) == batch
    if refused is not None:
        assert (refused.status, json.loads(refused.body)) == (200, PONG)


# --- Bodies that are not MCP


@pytest.mark.parametrize(
    ("body", "ident", "code"),
    [
        (b"", None, None),
        (b"hello", None, PARSE_ERROR),
        (b"grant_type=authorization_code", None, PARSE_ERROR),
        (b'{"a":"\xff"}', None, PARSE_ERROR),
        (b"\x1f\x8b\x08\x00", None, PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"meth', None, PARSE_ERROR),
        (b'{ "method" : "card", "id":1 }', 1, INVALID_REQUEST),
        (b"[1, 2]", None, INVALID_REQUEST),
        (b"[ ]", None, INVALID_REQUEST),
    ],
)
def test_what_is_not_mcp(body: bytes, ident: int | None, code: int | None) -> None:
    seen, request = Seen(), post(body)
    check_passes(request, seen)
    assert (request.body, request.body_replaced) == (body, False)
    assert run_json([seen], body, request=request) == body
    stream = b"data: " + body + b"\n\n"
    assert run_chain([seen], [stream], request=request).output == stream
    assert seen.seen == []
    if code is not None:
        response = answer(post(body), Strict())
        error = json.loads(response.body)
        assert (response.status, error["id"], error["error"]["code"]) == (400, ident, code)


NAMED = {"mcp_protocol_version": MODERN, "mcp_method": "tools/list"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "ident", "code"),
    [
        (rpc("ping", 0, params=[]), {}, 400, 0, INVALID_REQUEST),
        (rpc("ping", "7", result={}), {}, 400, "7", INVALID_REQUEST),
        ([rpc("a", 7, params=1), rpc("b")], {}, 400, 7, INVALID_REQUEST),
        ([rpc("a", 1), rpc("a", 1)], {}, 400, None, INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', {}, 400, None, INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"ID":2,"method":"ping"}', {}, 400, None, INVALID_REQUEST),
        # Some servers run a call without an id, and hooks have not seen it.
        (rpc("tools/call"), {}, 400, None, INVALID_REQUEST),
        ([rpc("notifications/x"), rpc("tools/call")], {}, 400, None, INVALID_REQUEST),
        # Headers that contradict the body (2026-07-28).
        (rpc("ping", 5), NAMED, 400, 5, HEADER_MISMATCH),
        (rpc("ping", 5), {"mcp_protocol_version": MODERN}, 400, 5, HEADER_MISMATCH),
        # What cannot be read.
        (rpc("ping", 1), {"content_encoding": "gzip"}, 415, None, INVALID_REQUEST),
        (rpc("ping", 1), {"content_encoding": "identity, br"}, 415, None, INVALID_REQUEST),
    ],
)
def test_a_strict_interceptor_refuses(
    body: Any, headers: dict[str, str], status: int, ident: Any, code: int
) -> None:
    """With the request's id; null if there is none, there are several, or readers could find two."""
    response = answer(post(body, session=None, **headers), Strict())
    refusal = json.loads(response.body)
    found = refusal["id"]
    assert (response.status, refusal["error"]["code"]) == (status, code)
    assert (type(found), found) == (type(ident), ident)
    if status == 415:
        check_passes(post(body, **headers), Seen())


def test_a_strict_interceptor_breaks_off_a_successful_response_that_is_not_json() -> None:
    """An error's body passes, and so does a notification or an uncompressed body of the client."""
    check_passes(post(rpc("notifications/x")), Strict())
    request = post(rpc("ping", 1), content_encoding="Identity")
    check_passes(request, Strict())
    stream = sse(rpc("a/b", 1)) + b"data: oops\n\n" + sse(rpc("a/b", 2))
    result = run_chain([Strict()], [stream], request=request)
    assert isinstance(result.failure, StreamAborted)
    assert data_of(result.output) == [rpc("a/b", 1)]
    with pytest.raises(StreamAborted):
        run_json([Strict()], b"oops", request=request)
    for body in (b"oops", b'{"error":"invalid_token"}'):
        assert run_json([Strict()], body, request=request, head=head_of(request, 401)) == body


# --- Any bodies

MESSAGES = st.sampled_from(
    [
        *(rpc("tools/call", 1, params={"name": "shell"}), rpc("tools/call", "2", params={})),
        *(rpc("tools/call", 2, params={"name": "old"}), rpc("ping", 3), rpc("ping", 3)),
        *(rpc("notifications/progress"), rpc("notifications/x"), rpc(id=1, result={})),
        *(rpc(id=9, error={"code": 1, "message": "m"}), rpc(), {"id": 1}, 7, None),
    ]
)
BODIES = st.one_of(MESSAGES, st.lists(MESSAGES, max_size=4)).map(encoded) | st.binary(max_size=8)


@given(BODIES, st.booleans())
def test_any_request_passes_is_answered_or_is_refused(body: bytes, strict: bool) -> None:
    """No JSON-RPC request is both answered and sent, and no half a message leaves."""
    either = type("Either", (Answering,), {"strict": strict})()
    request = post(body)
    response = run_request([either], request)
    if response is not None:
        assert response.status in (200, 202, 400)
        assert bool(response.body) == (response.status != 202)
        if response.body:
            json.loads(response.body)
    elif request.body_replaced:
        came, left = json.loads(body), request.json()
        assert isinstance(left, list) == isinstance(came, list)
        sent = left if isinstance(left, list) else [left]
        assert len(sent) <= (len(came) if isinstance(came, list) else 1)
        methods = {item.get("method") for item in sent if isinstance(item, dict)}
        assert not methods & {"ping", "notifications/progress"}
    else:
        assert request.body == body


@given(st.lists(BODIES, max_size=5), st.booleans(), st.randoms(use_true_random=False))
def test_any_response_passes_or_ends_in_a_named_error(
    bodies: list[bytes], strict: bool, generator: random.Random
) -> None:
    """A stream breaks off after whole events."""
    either = type("Either", (Seen,), {"strict": strict})()
    lines = [item.replace(b"\r", b"").replace(b"\n", b"") for item in bodies]
    stream = b"".join(b"data: " + item + b"\n\n" for item in lines)
    cut = generator.randrange(len(stream) + 1)
    result = run_chain([either], [stream[:cut], stream[cut:]], request=post(b""))
    if result.failure is None:
        assert result.output == stream
    else:
        assert strict
        assert isinstance(result.failure, StreamAborted)
        assert stream.startswith(result.output)
        assert result.output[-2:] in (b"", b"\n\n")
