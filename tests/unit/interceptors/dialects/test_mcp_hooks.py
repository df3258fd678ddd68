"""Hooks for MCP messages: what each hook sees, what a change or an answer does to the exchange, and
what passes untouched.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
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
from interceptors.dialects.mcp import INVALID_PARAMS, METHOD_NOT_FOUND, Kind, McpError, McpMessage
from interceptors.dialects.mcp_headers import VERSION_KEY
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


def answer(interceptor: Interceptor, request: Request) -> Response:
    response = run_request([interceptor], request)
    assert response is not None
    return response


def body_of(interceptors: Any, body: Any, request: Request, **more: Any) -> Any:
    """A JSON body as it leaves."""
    return json.loads(run_json(interceptors, encoded(body), request=request, **more))


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


def test_globs_choose_and_no_argument_means_all() -> None:
    """A glob matches the whole method, and its case counts."""
    found: list[str] = []
    globs = made(lambda message: found.append(f"one {message.method}"), on_mcp_request("tools/*"))
    every = made(lambda message: found.append(f"two {message.method}"), on_mcp_request())
    methods = ("tools/list", "Tools/list", "my/tools/list")
    check_passes(post([rpc(name, number) for number, name in enumerate(methods)]), globs, every)
    assert found == ["one tools/list", *(f"two {name}" for name in methods)]


def test_hooks_are_inherited_and_may_be_overridden() -> None:
    """An overriding method stays marked, and its class's `__init__` need call no other."""
    found: list[str] = []

    class Base(McpInterceptor):
        @on_mcp_request("ping")
        def ping(self, message: McpMessage) -> None:
            found.append("base")

    class Sub(Base):
        def __init__(self, word: str) -> None:
            self.word = word

        def ping(self, message: McpMessage) -> None:
            found.append(self.word)

    check_passes(post(rpc("ping", 1)), Sub("sub"), Base())
    assert found == ["sub", "base"]


def test_a_mistaken_mark_is_refused_at_once() -> None:
    """An async hook, and a mark without its parentheses."""
    with pytest.raises(TypeError, match=r"slow is async"):

        class Slow(McpInterceptor):
            @on_mcp_request()
            async def slow(self, message: McpMessage) -> None: ...

    with pytest.raises(TypeError, match="with parentheses"):
        on_mcp_response(lambda self, message: None)  # type: ignore[arg-type]


# --- Which request a response answers


def test_a_response_to_the_server_comes_in_a_later_post() -> None:
    """The server asks in one exchange, the client answers in another. 1 is not "1", and each
    session has its own ids.
    """
    seen = Seen()
    asked = sse(rpc("sampling/createMessage", 1), rpc("roots/list", "1"))
    run_chain([seen], [asked], request=post(b""))
    responses = [rpc(id=ident, result={}) for ident in (1, "1", 2)]
    for session in ("s", "other"):
        check_passes(post(responses, session=session), seen)
    assert seen.responses() == ["sampling/createMessage", "roots/list", None, None, None, None]


def test_a_resumed_stream_brings_responses_to_earlier_posts() -> None:
    """A GET of the same session. A response to an unknown request is shown to hooks for all only."""
    seen, answering = Seen(), Answering()
    check_passes(post(rpc("tools/list", 3)), seen, answering)
    listed = rpc(id=3, result={"tools": [{"name": "a"}, {"name": "b"}], "nextCursor": "c"})
    unknown = rpc(id=4, result={"tools": [1, 2]})
    request = get(mcp_session_id="s", last_event_id="9")
    stream = [b"id: 10\ndata:\n\n", sse(listed, unknown)]
    output = run_chain([seen, answering], stream, request=request).output
    shortened = rpc(id=3, result={"tools": [{"name": "a"}], "nextCursor": "c"})
    assert data_of(output) == [shortened, unknown]
    assert seen.responses() == ["tools/list", None]


def test_the_first_response_brings_the_session() -> None:
    """`initialize` has none yet; a stream that is resumed finds its request all the same."""
    seen = Seen()
    request = post(rpc("initialize", 0, params={}), session=None)
    check_passes(request, seen)
    head = head_of(request, type=SSE, mcp_session_id="new")
    run_chain([seen], [b"id: 1\ndata:\n\n"], request=request, head=head)
    run_chain([seen], [sse(rpc(id=0, result={}))], request=get(mcp_session_id="new"))
    assert seen.seen[-1] == (Kind.RESPONSE, False, "initialize", None)


def test_without_a_session_only_the_exchange_is_known() -> None:
    """Stateless servers, and all since 2026-07-28: another exchange's id means nothing."""
    seen = Seen()
    check_passes(post(rpc("tools/list", 3), session=None), seen)
    run_chain([seen], [sse(rpc(id=3, result={}))], request=get())
    assert seen.seen[-1] == (Kind.RESPONSE, False, None, None)


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
    listed = (
        b'id: 1\nretry: 5\nevent: message\ndata: {"jsonrpc":"2.0","id":1,\ndata: "result":%s}\n\n'
    )
    stream = [sse(rpc("notifications/progress", params={})), listed % b'{"tools":[1,2]}']
    result = run_chain([answering], stream, request=request)
    fields, data = b"event: message\nid: 1\nretry: 5\n", b'{"jsonrpc":"2.0","id":1,"result":%s}'
    assert result.output == fields + b"data: " + data % b'{"tools":[1]}' + b"\n\n"
    assert (result.counts.dropped, result.counts.changed) == (1, 1)


def test_a_changed_json_body_is_replaced_and_an_untouched_one_is_not() -> None:
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


def test_an_answered_request_never_reaches_the_server() -> None:
    """With an error or a result, as JSON with status 200 where the revision has no other."""
    response = answer(Answering(), post(rpc("tools/call", "a", params={"name": "shell"})))
    assert (response.status, response.headers["content-type"]) == (200, JSON)
    error = {"code": INVALID_PARAMS, "message": "no shells here"}
    assert json.loads(response.body) == rpc(id="a", error=error)
    response = answer(Answering(), post(rpc("ping", 0)))
    assert json.loads(response.body) == rpc(id=0, result={"pong": True})


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
    assert answer(refusing, post(rpc("x/y", 1), **headers)).status == status


def test_a_client_that_accepts_only_a_stream_is_answered_with_one() -> None:
    (event,) = answer(Answering(), post(rpc("ping", 1), accept=SSE)).events or ()  # type: ignore[misc]
    assert event.raw == b'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n\n'
    for accept in ("*/*", "application/json;q=0.5, text/event-stream", ""):
        assert answer(Answering(), post(rpc("ping", 1), accept=accept)).events is None


def test_dropped_notifications_are_accepted() -> None:
    """The client gets its 202, the server nothing; the rest of a batch continues."""
    response = answer(Answering(), post(rpc("notifications/progress", params={})))
    assert (response.status, response.body) == (202, b"")
    request = post([rpc("notifications/progress"), rpc("notifications/x")])
    check_passes(request, Answering())
    assert request.json() == [rpc("notifications/x")]


PONG = rpc(id=1, result={"pong": True})
BATCH = [rpc("ping", 1), rpc("tools/list", 2), rpc("notifications/x")]
LISTED = rpc(id=2, result={"tools": [1]})


def half_answered() -> tuple[list[Interceptor], Request]:
    """A batch whose `ping` is answered and whose rest is sent."""
    answering, request = Answering(), post(BATCH)
    check_passes(request, answering)
    assert request.json() == BATCH[1:]
    return [answering], request


@pytest.mark.parametrize("body", [LISTED, [LISTED]])
def test_the_answer_to_a_part_of_a_batch_is_added_to_the_array(body: Any) -> None:
    chain, request = half_answered()
    assert run_response(chain, head_of(request)) is None
    assert body_of(chain, body, request) == [LISTED, PONG]


@pytest.mark.parametrize(
    ("start", "messages", "received"),
    [
        (b": hi\n\nid: 1\ndata:\n\n", [BATCH[2], LISTED], [PONG, BATCH[2], LISTED]),
        (b": hi\n\n", [], [PONG]),
    ],
)
def test_the_answers_to_a_batch_precede_the_servers_in_a_stream(
    start: bytes, messages: list[Any], received: list[Any]
) -> None:
    """They are sent at its end if the server sends none."""
    chain, request = half_answered()
    head = head_of(request, type=SSE)
    output = run_chain(chain, [start + sse(*messages)], request=request, head=head).output
    assert output.startswith(start)
    assert data_of(output) == received


def test_the_answers_to_a_batch_replace_an_empty_acceptance() -> None:
    """If the rest has no answer, the server's 202 is not the client's."""
    chain, request = half_answered()
    response = run_response(chain, head_of(request, 202))
    assert response is not None
    assert (response.status, json.loads(response.body)) == (200, [PONG])


def test_a_batch_that_the_server_refuses_is_refused() -> None:
    """The client gets the server's status and body."""
    chain, request = half_answered()
    head = head_of(request, 400)
    assert run_response(chain, head) is None
    refusal = rpc(error={"code": -32600, "message": "no batches"}) | {"id": None}
    sent = encoded(refusal)
    assert run_json(chain, sent, request=request, head=head) == sent


def test_a_batch_whose_rest_is_answered_with_rubbish_breaks_off() -> None:
    """An answer that cannot be added to the response must not vanish."""
    chain, request = half_answered()
    with pytest.raises(StreamAborted, match="no JSON"):
        run_json(chain, b"oops", request=request)
    chain, request = half_answered()
    assert body_of(chain, b"", request) == [PONG]


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
    assert body_of([failing], LISTED, request) == LISTED


def test_several_interceptors_answer_one_batch() -> None:
    """Each takes out its own, and no answer is lost, whether or not anything is left to send."""
    other, done = rpc("tools/call", 5, params={"name": "x"}), rpc(id=5, result={"content": []})

    def chain() -> list[Interceptor]:
        return [Answering(), made(lambda _: {"content": []}, on_mcp_request("tools/call"))]

    response = run_request(chain(), post([rpc("ping", 1), other]))
    assert response is not None
    assert json.loads(response.body) == [PONG, done]
    both, request = chain(), post([*BATCH, other])
    check_passes(request, *both)
    assert body_of(both, LISTED, request) == [LISTED, PONG, done]


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
    """What it had changed before is not sent."""

    def fail(message: McpMessage) -> None:
        message.params["a"] = 1
        raise ValueError

    failing = made(fail, on_mcp_request(), on_mcp_notification(), on_error="skip")
    request, stream = post(rpc("ping", 1)), sse(rpc("notifications/x"))
    before = request.body
    check_passes(request, failing)
    assert request.body == before
    assert run_chain([failing], [stream], request=request).output == stream


def test_an_abort_of_a_hook_is_an_abort() -> None:
    """In both directions."""

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
    ],
)
async def test_over_the_old_transport_the_session_is_the_uri_and_its_stream_has_the_answers(
    endpoint: str, target: str
) -> None:
    """The POST gets 202, the stream the answer. Headers do not matter; another URI is another
    session.
    """
    old = Old(endpoint)
    for headers in ({}, {"mcp_protocol_version": "2025-11-25"}, {"accept": BOTH}):
        assert await old.status(target, rpc("ping", 1), **headers) == 202
        assert old.emitted.pop() == PONG
    assert await old.post(target, rpc("tools/list", 2)) is None
    for other in (target + "x", target.replace("b", "B")):
        assert await old.status(other, rpc("ping", 1), accept=BOTH) == 200
        assert await old.post(other, rpc("tools/list", 3), accept=BOTH) is None
    for ident in (2, 3):
        listed = Event(json=rpc(id=ident, result={"tools": [1]}), event="message")
        assert old.stream.on_event(listed) is listed
    assert old.seen.responses() == ["tools/list", None]
    old.stream.on_end(Outcome.COMPLETED)
    assert await old.status(target, rpc("ping", 1), accept=BOTH) == 200
    assert old.emitted == []


async def test_over_the_old_transport_only_the_first_event_names_a_session() -> None:
    """A later event `endpoint` is the server's data."""
    old = Old("/m?s=1")
    later = Event("/m?s=2", event="endpoint")
    assert old.stream.on_event(later) is later
    for target, status in (("/m?s=2", 200), ("/m?s=1", 202)):
        assert await old.status(target, rpc("ping", 1), accept=BOTH) == status


async def test_over_the_old_transport_a_refusal_does_not_end_the_session() -> None:
    """A 4xx of a strict interceptor becomes an answer on the stream, with the id if it is readable."""
    old = Old("/m?s=1")
    type(old.interceptor).strict = True
    for body, ident in (
        (b'{"jsonrpc":"2.0","id":7,"method":"x","method":"y"}', 7),
        (b"{", None),
        (rpc(id="7", x=1), "7"),
    ):
        assert await old.status("/m?s=1", body, mcp_protocol_version=MODERN) == 202
        error = old.emitted.pop()
        assert (error["id"], "error" in error) == (ident, True)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("over", [False, True])
def test_where_only_the_server_can_answer_on_the_stream_it_is_asked_for_what_does_not_exist(
    over: bool, batch: bool
) -> None:
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
    answered = body_of([old.interceptor], errors if batch else errors[0], request)
    assert answered == ([PONG, errors[1]] if batch else PONG)
    refused = run_response([old.interceptor], head_of(request, 406))
    assert (refused is None) == batch
    if refused is not None:
        assert (refused.status, json.loads(refused.body)) == (200, PONG)


async def test_many_answers_over_the_old_transport_wait_for_a_slow_stream() -> None:
    """`emit` may wait; the POST is then answered when the stream has taken them."""
    old = Old("/m?session_id=ab")
    old.free = trio.Event()
    done: list[int] = []

    async def ask() -> None:
        done.append(await old.status("/m?session_id=ab", rpc("ping", 1)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        old.free.set()
    assert done == [202]


# --- Bodies that are not MCP

FOREIGN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "a form": b"grant_type=authorization_code",
    "other JSON": b'{ "method" : "card", "id":1 }',
    "a list": b"[1, 2]",
    "an empty list": b"[ ]",
    "not UTF-8": b'{"a":"\xff"}',
    "compressed": b"\x1f\x8b\x08\x00",
    "cut off": b'{"jsonrpc":"2.0","id":1,"meth',
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_mcp_passes_unchanged_in_both_directions_or_is_refused(body: bytes) -> None:
    """A route may serve other things, too. A strict interceptor refuses them with a JSON-RPC error."""
    seen, request = Seen(), post(body)
    check_passes(request, seen)
    assert (request.body, request.body_replaced) == (body, False)
    assert run_json([seen], body, request=request) == body
    stream = b"data: " + body + b"\n\n"
    assert run_chain([seen], [stream], request=request).output == stream
    assert seen.seen == []
    if body:
        response = answer(Strict(), post(body))
        error = json.loads(response.body)
        assert (response.status, error["id"]) == (400, 1 if b"card" in body else None)
        assert error["error"]["code"] in (-32700, -32600)


@pytest.mark.parametrize(
    ("body", "ident"),
    [
        ('{"jsonrpc":"2.0","id":0,"method":"ping","params":[]}', 0),
        ('{"jsonrpc":"2.0","id":"7","method":"ping","result":{}}', "7"),
        ('[{"jsonrpc":"2.0","id":7,"method":"a","params":1},{"jsonrpc":"2.0","method":"b"}]', 7),
        ('[{"jsonrpc":"2.0","id":1,"method":"a"},{"jsonrpc":"2.0","id":1,"method":"a"}]', None),
        ('{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', None),
        ('{"jsonrpc":"2.0","id":1,"ID":2,"method":"ping"}', None),
        ('{"jsonrpc":"2.0","method":"tools/call"}', None),
        (
            '[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","method":"tools/call"}]',
            None,
        ),
    ],
)
def test_a_refusal_has_the_requests_id(body: str, ident: object) -> None:
    """Of the same type. Null if the body has no request or several, or if readers could find two
    ids. A request without an id is refused: some servers run it, and hooks have not seen it.
    """
    response = answer(Strict(), post(body.encode()))
    found = json.loads(response.body)["id"]
    assert (response.status, type(found), found) == (400, type(ident), ident)


@pytest.mark.parametrize("headers", [{"mcp_method": "tools/list"}, {}])
def test_a_strict_interceptor_refuses_headers_that_contradict_the_body(headers: Any) -> None:
    """2026-07-28: the reader of the body verifies the headers that mirror it."""
    body = rpc("ping", 5, params={"_meta": {VERSION_KEY: MODERN}})
    response = answer(Strict(), post(body, session=None, mcp_protocol_version=MODERN, **headers))
    refusal = json.loads(response.body)
    assert (response.status, refusal["id"], refusal["error"]["code"]) == (400, 5, -32020)


def test_a_strict_interceptor_passes_notifications_and_uncompressed_bodies() -> None:
    """A compressed body cannot be checked: it passes unseen, or is refused."""
    check_passes(post(rpc("notifications/x")), Strict())
    check_passes(post(rpc("ping", 1), content_encoding="Identity"), Strict())
    for coding in ("gzip", "identity, br"):
        check_passes(post(rpc("ping", 1), content_encoding=coding), Seen())
        assert answer(Strict(), post(rpc("ping", 1), content_encoding=coding)).status == 415


def test_a_strict_interceptor_breaks_off_a_successful_response_that_is_not_json() -> None:
    """An error's body, and JSON that is not a message, pass."""
    request = post(rpc("ping", 1))
    stream = sse(rpc("a/b", 1)) + b"data: oops\n\n" + sse(rpc("a/b", 2))
    result = run_chain([Strict()], [stream], request=request)
    assert isinstance(result.failure, StreamAborted)
    assert data_of(result.output) == [rpc("a/b", 1)]
    with pytest.raises(StreamAborted):
        run_json([Strict()], b"oops", request=request)
    for body in (b"oops", b'{"error":"invalid_token"}'):
        assert run_json([Strict()], body, request=request, head=head_of(request, 401)) == body


# --- Streams, in any pieces and with any line ends

CALLED = '{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"42 \u2028 é"}]}}'
TRANSCRIPTS: dict[str, bytes] = {
    "2024-11-05": b"event: endpoint\ndata: /messages/?session_id=ab\n\n"
    + (sse(rpc(id=0, result={}), LISTED) + b": ping\n\n"),
    "2025-03-26": b"event: message\ndata: [%s,\ndata: %s]\n\n" % (encoded(LISTED), CALLED.encode()),
    "2025-06-18": sse(rpc("notifications/progress", params={"progress": 1}))
    + sse(rpc("elicitation/create", 9, params={}), LISTED),
    "2025-11-25": b"id: 1\nretry: 500\ndata:\n\n: keep\n\nid: 2\n"
    + (sse(rpc("notifications/progress")) + b"id: 3\ndata: " + CALLED.encode() + b"\n\n"),
    "2026-07-28": b":\n\n"
    + sse(rpc("notifications/subscriptions/acknowledged", params={}))
    + sse(rpc(id=2, result={"resultType": "complete"})),
    "foreign": b"event: tick\ndata: x\n\ndata: [DONE]\n\ndata\n\nid: 7\n\n"
    + (sse(rpc(), {"a": 1}) + b"data: cut"),
}


def chunkings(stream: bytes) -> list[list[bytes]]:
    generator, size = random.Random(len(stream)), len(stream)
    found = [[stream], [stream[at : at + 1] for at in range(size)]]
    for _ in range(5):
        inner = {generator.randrange(size + 1) for _ in range(generator.randrange(1, 12))}
        found.append([stream[a:b] for a, b in pairwise(sorted({0, size, *inner}))])
    return found


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("transcript", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_a_transcript_passes_or_is_changed_alike_in_any_pieces(
    transcript: bytes, line_end: bytes
) -> None:
    """Byte for byte with hooks that change nothing; else progress is dropped, lists are shortened."""
    stream = transcript.replace(b"\n", line_end)
    messages, outputs = [], []
    for chunks in chunkings(stream):
        seen, request = Seen(), post([rpc("tools/list", 2)])
        check_passes(request, seen)
        assert run_chain([seen], chunks, request=request).output == stream
        messages.append(seen.seen)
        answering, request = Answering(), post([rpc("tools/list", 2), rpc("ping", 1)])
        check_passes(request, answering)
        result = run_chain([answering], chunks, request=request, head=head_of(request, type=SSE))
        assert result.failure is None
        # Where a changed event ended with CRLF, its LF goes with it, if it comes later.
        outputs.append(result.output.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    assert all(item == messages[0] for item in messages)
    assert set(outputs) == {outputs[0]}
    assert b"notifications/progress" not in outputs[0]


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
    """Unchanged without a hook that changes it; otherwise the stream breaks off after whole events."""
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
        assert result.output == b"" or result.output.endswith(b"\n\n")
