"""Hooks for MCP messages: who is shown what, what a change or an answer does to the exchange, and
what passes untouched.
"""

from __future__ import annotations

import json
import random
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

BOTH = "application/json, text/event-stream"
MODERN = "2026-07-28"


def rpc(method: str | None = None, id: Any = None, **members: Any) -> dict[str, Any]:
    head: dict[str, Any] = {"jsonrpc": "2.0"}
    return (
        head
        | ({"id": id} if id is not None else {})
        | ({"method": method} if method is not None else {})
        | members
    )


def post(body: Any, *, session: str | None = "s", target: str = "/mcp", **headers: str) -> Request:
    named = {"accept": BOTH, "content-type": "application/json"} | (
        {"mcp-session-id": session} if session else {}
    )
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(
        method="POST",
        path=target.partition("?")[0],
        query=target.partition("?")[2].encode(),
        headers=[(name.encode(), value.encode()) for name, value in named.items()],
        body=data,
    )


def sse(*messages: Any) -> bytes:
    return b"".join(
        b"event: message\ndata: %s\n\n" % json.dumps(message).encode() for message in messages
    )


def sse_head(request: Request, **headers: str) -> ResponseHead:
    named = {"content-type": "text/event-stream"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return ResponseHead(
        200, [(name.encode(), value.encode()) for name, value in named.items()], request
    )


def data_of(output: bytes) -> list[Any]:
    return [
        json.loads(line[6:]) for line in output.decode().split("\n") if line.startswith("data: ")
    ]


class Seen(McpInterceptor):
    """Notes everything, and whose it was."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    @on_mcp_request()
    @on_mcp_notification()
    def sent(self, message: McpMessage) -> None:
        self.seen.append((message.kind, message.from_client, message.method, message.name))

    @on_mcp_response()
    def answered(self, message: McpMessage) -> None:
        self.seen.append(
            (
                message.kind,
                message.from_client,
                message.request.method if message.request else None,
                message.name,
            )
        )


class Answering(McpInterceptor):
    """Refuses the tool `shell`, answers `ping`, renames tools, drops what is about progress."""

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


# --- who is shown what
# --------------------------------------------------------------------------------------------------


def test_hooks_see_their_messages_with_all_that_is_known_of_them() -> None:
    """Both directions, the session, the revision, what a message is about, and of a response the
    request that it answers.
    """
    found: list[Any] = []

    class Knowing(McpInterceptor):
        @on_mcp_request("tools/*")
        @on_mcp_response("tools/*")
        def note(self, message: McpMessage) -> None:
            http = message.http
            assert http is not None
            found.append(
                (
                    message.kind,
                    message.from_client,
                    message.id,
                    message.session,
                    message.revision,
                    message.name,
                    http.path,
                )
            )

    interceptor = Knowing()
    request = post(rpc("tools/call", 7, params={"name": "add"}), mcp_protocol_version="2025-06-18")
    assert run_request([interceptor], request) is None
    result = run_chain(
        [interceptor],
        [sse(rpc("x/y", 1), rpc("notifications/z"), rpc(id=7, result={}))],
        request=request,
    )
    assert result.counts.passed == 3
    common = ("s", "2025-06-18", "add", "/mcp")
    assert found == [(Kind.REQUEST, True, 7, *common), (Kind.RESPONSE, False, 7, *common)]


def test_globs_choose_and_no_argument_means_all() -> None:
    """A glob is of the whole method, and its case counts."""
    found: list[str] = []

    class Globs(McpInterceptor):
        @on_mcp_request("tools/*")
        def one(self, message: McpMessage) -> None:
            found.append(f"one {message.method}")

        @on_mcp_request()
        def two(self, message: McpMessage) -> None:
            found.append(f"two {message.method}")

    run_request(
        [Globs()], post([rpc("tools/list", 1), rpc("Tools/list", 2), rpc("my/tools/list", 3)])
    )
    assert found == ["one tools/list", "two tools/list", "two Tools/list", "two my/tools/list"]


def test_hooks_are_inherited_and_may_be_overridden() -> None:
    """A subclass has the hooks of its bases; what it overrides stays marked, and its `__init__`
    need call no other.
    """
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

    run_request([Sub("sub"), Base()], post(rpc("ping", 1)))
    assert found == ["sub", "base"]


def test_a_mistaken_mark_is_refused_at_once() -> None:
    """Where it is written: a hook that is async, and a mark without its parentheses."""
    with pytest.raises(TypeError, match=r"slow is async"):

        class Slow(McpInterceptor):
            @on_mcp_request()
            async def slow(self, message: McpMessage) -> None: ...

    with pytest.raises(TypeError, match="with parentheses"):
        on_mcp_response(lambda self, message: None)  # type: ignore[arg-type]


# --- what a response answers
# --------------------------------------------------------------------------------------------


def test_a_response_to_the_server_comes_in_a_later_post() -> None:
    """The server asks in one exchange, the client answers in another; 1 is not "1", and sessions
    are kept apart.
    """
    seen = Seen()
    run_chain(
        [seen], [sse(rpc("sampling/createMessage", 1), rpc("roots/list", "1"))], request=post(b"")
    )
    for session in ("s", "other"):
        run_request(
            [seen],
            post(
                [rpc(id=1, result={}), rpc(id="1", result={}), rpc(id=2, result={})],
                session=session,
            ),
        )
    answered = [item[2] for item in seen.seen if item[0] is Kind.RESPONSE]
    assert answered == ["sampling/createMessage", "roots/list", None, None, None, None]


def test_a_resumed_stream_brings_responses_to_earlier_posts() -> None:
    """A GET of the same session; and what is not known is shown only to hooks for all."""
    seen, answering = Seen(), Answering()
    run_request([seen, answering], post(rpc("tools/list", 3)))
    listed = rpc(id=3, result={"tools": [{"name": "a"}, {"name": "b"}], "nextCursor": "c"})
    get = Request(path="/mcp", headers=[(b"mcp-session-id", b"s"), (b"last-event-id", b"9")])
    result = run_chain(
        [seen, answering],
        [b"id: 10\ndata:\n\n", sse(listed, rpc(id=4, result={"tools": [1, 2]}))],
        request=get,
    )
    assert data_of(result.output.partition(b"data:\n\n")[2]) == [
        rpc(id=3, result={"tools": [{"name": "a"}], "nextCursor": "c"}),
        rpc(id=4, result={"tools": [1, 2]}),
    ]
    assert [item[2] for item in seen.seen if item[0] is Kind.RESPONSE] == ["tools/list", None]


def test_the_first_response_brings_the_session() -> None:
    """`initialize` has none yet; a stream that is resumed finds its request all the same."""
    seen = Seen()
    request = post(rpc("initialize", 0, params={}), session=None)
    run_request([seen], request)
    run_chain(
        [seen], [b"id: 1\ndata:\n\n"], request=request, head=sse_head(request, mcp_session_id="new")
    )
    get = Request(path="/mcp", headers=[(b"mcp-session-id", b"new")])
    run_chain([seen], [sse(rpc(id=0, result={}))], request=get)
    assert seen.seen[-1] == (Kind.RESPONSE, False, "initialize", None)


def test_without_a_session_only_the_exchange_is_known() -> None:
    """Stateless servers, and all from 2026-07-28 on: another exchange's id means nothing."""
    seen = Seen()
    run_request([seen], post(rpc("tools/list", 3), session=None))
    run_chain([seen], [sse(rpc(id=3, result={}))], request=Request(path="/mcp"))
    assert seen.seen[-1] == (Kind.RESPONSE, False, None, None)


# --- changes
# ------------------------------------------------------------------------------------------------------------


def test_a_changed_request_takes_its_headers_along() -> None:
    """2026-07-28: `Mcp-Name` says what the body now says; the rest of both stays as it was."""
    meta = {VERSION_KEY: MODERN}
    body = rpc("tools/call", 1, params={"_meta": meta, "name": "old"})
    request = post(
        body, session=None, mcp_protocol_version=MODERN, mcp_method="tools/call", mcp_name="old"
    )
    assert run_request([Answering()], request) is None
    assert request.json() == rpc("tools/call", 1, params={"_meta": meta, "name": "new"})
    assert request.headers["mcp-name"] == "new"
    assert request.headers["mcp-method"] == "tools/call"
    assert request.headers["content-type"] == "application/json"


def test_a_changed_event_keeps_its_fields_and_a_dropped_one_is_gone() -> None:
    """Type, id and retry are not the message's."""
    answering = Answering()
    request = post(rpc("tools/list", 1))
    run_request([answering], request)
    stream = b'id: 1\nretry: 5\nevent: message\ndata: {"jsonrpc":"2.0","id":1,\ndata: "result":{"tools":[1,2]}}\n\n'
    result = run_chain(
        [answering], [sse(rpc("notifications/progress", params={})), stream], request=request
    )
    assert (
        result.output
        == b'event: message\nid: 1\nretry: 5\ndata: {"jsonrpc":"2.0","id":1,"result":{"tools":[1]}}\n\n'
    )
    assert (result.counts.dropped, result.counts.changed) == (1, 1)


def test_a_changed_json_body_is_replaced_and_an_untouched_one_is_not() -> None:
    """The same hooks serve what is not streamed, batches too; of a body that is all dropped nothing
    is left.
    """
    answering = Answering()
    request = post(rpc("tools/list", 1))
    run_request([answering], request)
    untouched = b'{ "jsonrpc":"2.0", "id":2, "result":{"tools":[1 ,2]} }'
    assert run_json([answering], untouched, request=request) == untouched
    changed = run_json(
        [answering],
        b'[%s , {"jsonrpc":"2.0","id":1,"result":{"tools":[1,2]}}]' % untouched,
        request=request,
    )
    assert changed == b'[%s,{"jsonrpc":"2.0","id":1,"result":{"tools":[1]}}]' % untouched
    assert (
        run_json([answering], json.dumps(rpc("notifications/progress")).encode(), request=request)
        == b""
    )


# --- answers
# ------------------------------------------------------------------------------------------------------------


def answer_to(body: Any, **arguments: Any) -> Response | None:
    return run_request([Answering()], post(body, **arguments))


def test_an_answered_request_never_reaches_the_server() -> None:
    """An error or a result, as JSON with status 200 where the revision has no other."""
    response = answer_to(rpc("tools/call", "a", params={"name": "shell"}))
    assert response is not None
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert json.loads(response.body) == rpc(
        id="a", error={"code": INVALID_PARAMS, "message": "no shells here"}
    )
    response = answer_to(rpc("ping", 0))
    assert response is not None
    assert json.loads(response.body) == {"jsonrpc": "2.0", "id": 0, "result": {"pong": True}}


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
    """As the official SDK's servers have it, unless the hook says another."""

    class Refusing(McpInterceptor):
        @on_mcp_request()
        def refuse(self, message: McpMessage) -> McpError:
            return McpError(code, "no", http_status=own)

    headers = {"mcp_protocol_version": revision} if revision else {}
    response = run_request([Refusing()], post(rpc("x/y", 1), **headers))
    assert response is not None
    assert response.status == status


def test_a_client_that_takes_only_a_stream_is_answered_with_one() -> None:
    """As its `Accept` demands."""
    response = answer_to(rpc("ping", 1), accept="text/event-stream")
    assert response is not None
    assert response.events is not None
    assert [event.raw for event in response.events] == [  # type: ignore[union-attr]
        b'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n\n'
    ]
    for accept in ("*/*", "application/json;q=0.5, text/event-stream", ""):
        response = answer_to(rpc("ping", 1), accept=accept)
        assert response is not None
        assert response.events is None


def test_dropped_notifications_are_accepted() -> None:
    """The client gets its 202, the server nothing; what is left of a batch goes on."""
    response = answer_to(rpc("notifications/progress", params={}))
    assert response is not None
    assert (response.status, response.body) == (202, b"")
    request = post([rpc("notifications/progress"), rpc("notifications/x")])
    assert run_request([Answering()], request) is None
    assert request.json() == [rpc("notifications/x")]


PONG = {"jsonrpc": "2.0", "id": 1, "result": {"pong": True}}
BATCH = [rpc("ping", 1), rpc("tools/list", 2), rpc("notifications/x")]
LISTED = rpc(id=2, result={"tools": [1]})


def half_answered() -> tuple[Answering, Request]:
    answering, request = Answering(), post(BATCH)
    assert run_request([answering], request) is None
    assert request.json() == BATCH[1:]
    return answering, request


def test_of_a_batch_only_the_answered_request_is_taken_out() -> None:
    """Its answer is one more in the JSON array that the client gets."""
    for body in (LISTED, [LISTED]):
        answering, request = half_answered()
        assert (
            run_response(
                [answering], ResponseHead(200, [(b"content-type", b"application/json")], request)
            )
            is None
        )
        assert json.loads(run_json([answering], json.dumps(body).encode(), request=request)) == [
            LISTED,
            PONG,
        ]


def test_the_answers_to_a_batch_come_in_a_stream_too() -> None:
    """Before the first message of the server, once; and at its end when it said nothing."""
    answering, request = half_answered()
    stream = b": hello\n\nid: 1\ndata:\n\n" + sse(rpc("notifications/x"), LISTED)
    output = run_chain([answering], [stream], request=request, head=sse_head(request)).output
    assert output.startswith(b": hello\n\nid: 1\ndata:\n\n")
    assert data_of(output.partition(b"data:\n\n")[2]) == [PONG, rpc("notifications/x"), LISTED]
    answering, request = half_answered()
    assert data_of(
        run_chain([answering], [b": hello\n\n"], request=request, head=sse_head(request)).output
    ) == [PONG]


def test_the_answers_to_a_batch_replace_an_empty_acceptance() -> None:
    """Where the rest has no answer of its own, the server's 202 is not the client's."""
    answering, request = half_answered()
    response = run_response(
        [answering], ResponseHead(202, [(b"content-type", b"application/json")], request)
    )
    assert response is not None
    assert (response.status, json.loads(response.body)) == (200, [PONG])


def test_a_batch_that_the_server_refuses_is_refused() -> None:
    """The client sees the server's status and body, as they are."""
    answering, request = half_answered()
    head = ResponseHead(400, [(b"content-type", b"application/json")], request)
    assert run_response([answering], head) is None
    body = json.dumps(rpc(error={"code": -32600, "message": "no batches"}) | {"id": None}).encode()
    assert run_json([answering], body, request=request, head=head) == body


def test_a_batch_whose_rest_is_answered_with_rubbish_breaks_off() -> None:
    """An answer that can be put nowhere must not vanish."""
    answering, request = half_answered()
    with pytest.raises(StreamAborted, match="no JSON"):
        run_json([answering], b"oops", request=request)
    answering, request = half_answered()
    assert json.loads(run_json([answering], b"", request=request)) == [PONG]


def test_a_failed_hook_does_not_lose_the_answers_to_a_batch() -> None:
    """Not even where its interceptor says `skip`: a body without them would look whole."""

    class Failing(Answering):
        on_error = "skip"

        @on_mcp_response("tools/list")
        def fail(self, message: McpMessage) -> None:
            raise ValueError

    failing, request = Failing(), post(BATCH)
    run_request([failing], request)
    with pytest.raises(StreamAborted, match="a hook has failed"):
        run_json([failing], json.dumps([LISTED]).encode(), request=request)
    run_request([failing], request := post(rpc("tools/list", 2)))
    assert json.loads(run_json([failing], json.dumps(LISTED).encode(), request=request)) == LISTED


def test_several_interceptors_answer_one_batch() -> None:
    """Each takes out its own, and no answer is lost, whether something is left for the server or
    the last takes the rest.
    """

    class Other(McpInterceptor):
        @on_mcp_request("tools/call")
        def answer(self, message: McpMessage) -> dict[str, Any]:
            return {"content": []}

    other = rpc("tools/call", 5, params={"name": "x"})
    response = run_request([Answering(), Other()], post([rpc("ping", 1), other]))
    assert response is not None
    assert json.loads(response.body) == [PONG, rpc(id=5, result={"content": []})]
    chain, request = [Answering(), Other()], post([*BATCH, other])
    assert run_request(chain, request) is None
    assert json.loads(run_json(chain, json.dumps(LISTED).encode(), request=request)) == [
        LISTED,
        PONG,
        rpc(id=5, result={"content": []}),
    ]


def test_what_a_hook_must_not_return_is_its_failure() -> None:
    """Named with its class: an answer to a notification, to a response, to the server, and what is
    no answer.
    """

    class Wrong(McpInterceptor):
        @on_mcp_request()
        @on_mcp_response()
        @on_mcp_notification()
        def wrong(self, message: McpMessage) -> Any:
            return "no" if message.method == "ping" else {}

    for body, match in (
        (rpc("ping", 1), "returned str, expected a dict, an McpError or None"),
        (rpc("notifications/x"), "returned dict, expected None"),
        (rpc(id=1, result={}), "returned dict, expected None"),
    ):
        with pytest.raises(HookError, match=match):
            run_request([Wrong()], post(body))
    failure = run_chain([Wrong()], [sse(rpc("roots/list", 1))], request=post(b"")).failure
    assert isinstance(failure, HookError)
    assert "can be changed, not answered" in str(failure)


def test_a_failed_hook_that_says_skip_leaves_the_message_as_it_came() -> None:
    """Nothing of what it had changed before is sent."""

    class Failing(McpInterceptor):
        on_error = "skip"

        @on_mcp_request()
        @on_mcp_notification()
        def fail(self, message: McpMessage) -> None:
            message.params["a"] = 1
            raise ValueError

    request = post(rpc("ping", 1))
    before = request.body
    assert run_request([Failing()], request) is None
    assert request.body == before
    stream = sse(rpc("notifications/x"))
    assert run_chain([Failing()], [stream], request=request).output == stream


# --- the old transport: HTTP with SSE
# -----------------------------------------------------------------------------------


class Old:
    """A session of the old transport: the interceptor, and what was put on the stream."""

    def __init__(self, endpoint: str, *, over: bool = False) -> None:
        self.emitted: list[Any] = []
        self.seen = Seen()
        self._over = over
        seen = self.seen

        class Both(Answering):
            @on_mcp_response()
            def answered(self, message: McpMessage) -> None:
                seen.answered(message)

        self.interceptor = Both()
        self._get = Request(path="/a/sse", headers=[(b"accept", b"text/event-stream")])
        self.stream = self.interceptor.open_stream(StreamContext(self._get, self._emit))
        self.stream.on_start(sse_head(self._get))
        event = Event(endpoint, event="endpoint")
        assert self.stream.on_event(event) is event

    async def _emit(self, event: Event) -> None:
        if self._over:
            raise StreamOver
        self.emitted.append(event.json())

    async def post(self, target: str, body: Any, **headers: str) -> Response | None:
        return await self.interceptor.on_request(
            post(body, session=None, target=target, **({"accept": "*/*"} | headers))
        )


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
    """However it is spelt: the POST gets 202, the stream the answer. Headers do not matter; another
    URI is another session.
    """
    old = Old(endpoint)
    for headers in ({}, {"mcp_protocol_version": "2025-11-25"}, {"accept": BOTH}):
        response = await old.post(target, rpc("ping", 1), **headers)
        assert response is not None
        assert (response.status, old.emitted.pop()) == (202, PONG)
    assert await old.post(target, rpc("tools/list", 2)) is None
    for other in (target + "x", target.replace("b", "B")):
        response = await old.post(other, rpc("ping", 1), accept=BOTH)
        assert response is not None
        assert (response.status, old.emitted) == (200, [])
        assert await old.post(other, rpc("tools/list", 3), accept=BOTH) is None
    for ident in (2, 3):
        listed = Event(json=rpc(id=ident, result={"tools": [1]}), event="message")
        assert old.stream.on_event(listed) is listed
    assert old.seen.seen == [
        (Kind.RESPONSE, False, "tools/list", None),
        (Kind.RESPONSE, False, None, None),
    ]
    old.stream.on_end(Outcome.COMPLETED)
    response = await old.post(target, rpc("ping", 1), accept=BOTH)
    assert response is not None
    assert (response.status, old.emitted) == (200, [])


async def test_over_the_old_transport_only_the_first_event_names_a_session() -> None:
    """What is called `endpoint` later is the server's data."""
    old = Old("/m?s=1")
    later = Event("/m?s=2", event="endpoint")
    assert old.stream.on_event(later) is later
    for target, status in (("/m?s=2", 200), ("/m?s=1", 202)):
        response = await old.post(target, rpc("ping", 1), accept=BOTH)
        assert response is not None
        assert response.status == status


async def test_over_the_old_transport_a_refusal_does_not_end_the_session() -> None:
    """What a strict interceptor refuses with 4xx elsewhere is answered on the stream, with the id
    where it can be read.
    """
    old = Old("/m?s=1")
    type(old.interceptor).strict = True
    for body, ident in (
        (b'{"jsonrpc":"2.0","id":7,"method":"x","method":"y"}', 7),
        (b"{", None),
        (rpc(id="7", x=1), "7"),
    ):
        response = await old.post("/m?s=1", body, mcp_protocol_version=MODERN)
        assert response is not None
        answer = old.emitted.pop()
        assert (response.status, answer["id"], "error" in answer) == (202, ident, True)


@pytest.mark.parametrize("over", [False, True])
def test_where_only_the_server_can_answer_on_the_stream_it_is_asked_for_what_does_not_exist(
    over: bool,
) -> None:
    """The stream is over, or on another machine. The denied call never goes on; what is accepted is
    the old transport's, and what is answered or refused is answered here as for any client of
    Streamable HTTP.
    """
    old = Old("/m?s=1", over=over)
    target = "/m?s=1" if over else "/m?s=2"
    body = [rpc("ping", 1, params={"secret": 1}), rpc("tools/list", 2)]
    for batch in (False, True):
        request = post(body if batch else body[0], session=None, target=target, accept="*/*")
        assert run_request([old.interceptor], request) is None
        said = [rpc("weirpool/denied", 1), *body[1:]]
        assert request.json() == (said if batch else said[0])
        accepted = ResponseHead(202, [(b"content-type", b"text/plain")], request)
        assert run_response([old.interceptor], accepted) is None
        errors = [rpc(id=1, error={"code": -32601, "message": "no"}), rpc(id=2, result={})]
        answered = json.loads(
            run_json(
                [old.interceptor],
                json.dumps(errors if batch else errors[0]).encode(),
                request=request,
            )
        )
        assert answered == ([PONG, errors[1]] if batch else PONG)
        refused = run_response(
            [old.interceptor], ResponseHead(406, [(b"content-type", b"application/json")], request)
        )
        if batch:
            assert refused is None
        else:
            assert refused is not None
            assert (refused.status, json.loads(refused.body)) == (200, PONG)


# --- what is no MCP
# -----------------------------------------------------------------------------------------------------

FOREIGN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "a form": b"grant_type=authorization_code",
    "JSON of somebody else": b'{ "method" : "card", "id":1 }',
    "a list": b"[1, 2]",
    "an empty list": b"[ ]",
    "not UTF-8": b'{"a":"\xff"}',
    "compressed": b"\x1f\x8b\x08\x00",
    "cut off": b'{"jsonrpc":"2.0","id":1,"meth',
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_mcp_passes_as_it_came_in_both_directions(body: bytes) -> None:
    """A route may serve other things too; no hook is called."""
    seen = Seen()
    request = post(body)
    assert run_request([seen], request) is None
    assert request.body == body
    assert not request.body_replaced
    assert run_json([seen], body, request=request) == body
    stream = b"data: " + body + b"\n\n"
    assert run_chain([seen], [stream], request=request).output == stream
    assert seen.seen == []


class Strict(Seen):
    strict = True


@pytest.mark.parametrize(
    "body",
    [body for body in FOREIGN.values() if body],
    ids=[name for name in FOREIGN if name != "nothing"],
)
def test_a_strict_interceptor_refuses_what_is_no_mcp(body: bytes) -> None:
    """With a JSON-RPC error that names what is wrong and shows nothing of the body."""
    response = run_request([Strict()], post(body))
    assert response is not None
    assert response.status == 400
    error = json.loads(response.body)
    assert error["id"] == (
        1 if body.endswith(b'"id":1 }') else None
    )  # of the request, where there is one that can be read
    assert error["error"]["code"] in (-32700, -32600)


@pytest.mark.parametrize(
    ("body", "ident"),
    [
        (b'{"jsonrpc":"2.0","id":0,"method":"ping","params":[]}', 0),
        (b'{"jsonrpc":"2.0","id":"7","method":"ping","result":{}}', "7"),
        (
            b'[{"jsonrpc":"2.0","id":7,"method":"ping","params":1},{"jsonrpc":"2.0","method":"notifications/x"}]',
            7,
        ),
        (
            b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"ping"}]',
            None,
        ),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', None),
        (b'{"jsonrpc":"2.0","id":1,"ID":2,"method":"ping"}', None),
        (b'{"jsonrpc":"2.0","method":"tools/call"}', None),
    ],
)
def test_a_refusal_has_the_requests_id(body: bytes, ident: object) -> None:
    """Of the same type; null where the body has no request, has several, or two readers could find
    two ids in it.
    """
    response = run_request([Strict()], post(body))
    assert response is not None
    error = json.loads(response.body)
    assert (type(error["id"]), error["id"]) == (type(ident), ident)


@pytest.mark.parametrize(
    "headers",
    [
        {"mcp_method": "tools/list", "mcp_protocol_version": MODERN},
        {"mcp_protocol_version": MODERN},
    ],
)
def test_a_strict_interceptor_refuses_headers_that_contradict_the_body(
    headers: dict[str, str],
) -> None:
    """2026-07-28: who reads the body verifies what mirrors it."""
    response = run_request(
        [Strict()],
        post(rpc("ping", 5, params={"_meta": {VERSION_KEY: MODERN}}), session=None, **headers),
    )
    assert response is not None
    assert response.status == 400
    assert json.loads(response.body)["id"] == 5
    assert json.loads(response.body)["error"]["code"] == -32020


def test_a_strict_interceptor_refuses_a_request_without_an_id() -> None:
    """Some server might run it all the same, and hooks for requests have not seen it; real
    notifications pass.
    """
    response = run_request(
        [Strict()], post([rpc("notifications/x"), rpc("tools/call", params={"name": "shell"})])
    )
    assert response is not None
    assert response.status == 400
    assert run_request([Strict()], post(rpc("notifications/x"))) is None


def test_a_compressed_body_passes_unseen_or_is_refused() -> None:
    """What cannot be read cannot be checked."""
    for coding in ("gzip", "identity, br"):
        assert run_request([Seen()], post(rpc("ping", 1), content_encoding=coding)) is None
        response = run_request([Strict()], post(rpc("ping", 1), content_encoding=coding))
        assert response is not None
        assert response.status == 415
    assert run_request([Strict()], post(rpc("ping", 1), content_encoding="Identity")) is None


def test_a_strict_interceptor_breaks_a_successful_response_off_that_is_no_json() -> None:
    """Named; an error's body, and JSON that is no message, pass in any case: clients read them."""
    request = post(rpc("ping", 1))
    result = run_chain(
        [Strict()], [sse(rpc("a/b", 1)) + b"data: oops\n\n" + sse(rpc("a/b", 2))], request=request
    )
    assert isinstance(result.failure, StreamAborted)
    assert data_of(result.output) == [rpc("a/b", 1)]
    with pytest.raises(StreamAborted):
        run_json([Strict()], b"oops", request=request)
    head = ResponseHead(401, [(b"content-type", b"application/json")], request)
    assert run_json([Strict()], b"oops", request=request, head=head) == b"oops"
    assert (
        run_json([Strict()], b'{"error":"invalid_token"}', request=request, head=head)
        == b'{"error":"invalid_token"}'
    )


# --- streams, in any pieces and with any line ends
# ----------------------------------------------------------------------

CALLED = json.dumps(
    rpc(id=2, result={"content": [{"type": "text", "text": "42 \u2028 é"}]}), ensure_ascii=False
).encode()
TRANSCRIPTS: dict[str, bytes] = {
    "2024-11-05": b"event: endpoint\ndata: /messages/?session_id=ab\n\n"
    + sse(rpc(id=0, result={}), LISTED)
    + b": ping\n\n",
    "2025-03-26": b"event: message\ndata: ["
    + json.dumps(LISTED).encode()
    + b",\ndata: "
    + CALLED
    + b"]\n\n",
    "2025-06-18": sse(
        rpc("notifications/progress", params={"progress": 1}),
        rpc("elicitation/create", 9, params={}),
        LISTED,
    ),
    "2025-11-25": b"id: 1\nretry: 500\ndata:\n\n: keep\n\nid: 2\n"
    + sse(rpc("notifications/progress"))
    + b"id: 3\ndata: "
    + CALLED
    + b"\n\n",
    "2026-07-28": b":\n\n"
    + sse(
        rpc("notifications/subscriptions/acknowledged", params={}),
        rpc(id=2, result={"resultType": "complete"}),
    ),
    "foreign": b"event: tick\ndata: x\n\ndata: [DONE]\n\ndata\n\nid: 7\n\n"
    + sse(rpc(), {"a": 1})
    + b"data: cut",
}


def chunkings(stream: bytes) -> list[list[bytes]]:
    generator = random.Random(len(stream))
    found = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
    for _ in range(5):
        cuts = sorted(
            {
                0,
                len(stream),
                *(generator.randrange(len(stream) + 1) for _ in range(generator.randrange(1, 12))),
            }
        )
        found.append([stream[first:last] for first, last in pairwise(cuts)])
    return found


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("transcript", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_a_transcript_passes_byte_for_byte_in_any_pieces(
    transcript: bytes, line_end: bytes
) -> None:
    """With hooks for everything that touch nothing."""
    stream = transcript.replace(b"\n", line_end)
    expected: list[Any] | None = None
    for chunks in chunkings(stream):
        seen = Seen()
        request = post([rpc("tools/list", 2)])
        run_request([seen], request)
        assert run_chain([seen], chunks, request=request).output == stream
        expected = expected or seen.seen
        assert seen.seen == expected


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("transcript", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_a_transcript_is_changed_alike_in_any_pieces(transcript: bytes, line_end: bytes) -> None:
    """Progress is dropped and lists are shortened, wherever the stream was cut."""
    expected = None
    for chunks in chunkings(transcript.replace(b"\n", line_end)):
        answering = Answering()
        request = post([rpc("tools/list", 2), rpc("ping", 1)])
        run_request([answering], request)
        result = run_chain([answering], chunks, request=request, head=sse_head(request))
        assert result.failure is None
        # Where a changed event ended with CRLF, its LF goes with it, if it comes later.
        output = result.output.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        expected = expected or output
        assert output == expected
        assert b"notifications/progress" not in output


MESSAGES = st.sampled_from(
    [
        rpc("tools/call", 1, params={"name": "shell"}),
        rpc("tools/call", 2, params={"name": "old"}),
        rpc("tools/call", "2", params={}),
        rpc("ping", 3),
        rpc("ping", 3),
        rpc("notifications/progress"),
        rpc("notifications/x"),
        rpc(id=1, result={}),
        rpc(id=9, error={"code": 1, "message": "m"}),
        rpc(),
        {"id": 1},
        7,
        None,
    ]
)
SAID = st.one_of(
    MESSAGES.map(lambda message: json.dumps(message).encode()),
    st.lists(MESSAGES, max_size=4).map(lambda batch: json.dumps(batch).encode()),
    st.binary(max_size=8),
)


@given(SAID, st.booleans())
def test_whatever_a_client_says_passes_is_answered_or_is_refused(body: bytes, strict: bool) -> None:
    """One of three, and of JSON-RPC requests none is both answered and sent on: never half a
    message.
    """

    class Either(Answering):
        pass

    Either.strict = strict
    request = post(body)
    response = run_request([Either()], request)
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
        assert not [
            item
            for item in sent
            if isinstance(item, dict) and item.get("method") in ("ping", "notifications/progress")
        ]
    else:
        assert request.body == body


@given(st.lists(SAID, max_size=5), st.booleans(), st.randoms(use_true_random=False))
def test_whatever_a_server_says_passes_or_ends_in_a_named_error(
    said: list[bytes], strict: bool, generator: random.Random
) -> None:
    """Unchanged where no hook changes it; else the stream breaks off with the name of why, behind
    whole events only.
    """

    class Either(Seen):
        pass

    Either.strict = strict
    lines = [item.replace(b"\r", b"").replace(b"\n", b"") for item in said]
    stream = b"".join(b"data: " + item + b"\n\n" for item in lines)
    cut = generator.randrange(len(stream) + 1)
    result = run_chain([Either()], [stream[:cut], stream[cut:]], request=post(b""))
    if result.failure is None:
        assert result.output == stream
    else:
        assert strict
        assert isinstance(result.failure, StreamAborted)
        assert stream.startswith(result.output)
        assert result.output == b"" or result.output.endswith(b"\n\n")


def test_an_abort_of_a_hook_is_an_abort() -> None:
    """The house's own ending works here too, on both ways."""

    class Ending(McpInterceptor):
        @on_mcp_notification()
        def end(self, message: McpMessage) -> None:
            raise Abort("enough")

    with pytest.raises(StreamAborted, match="enough"):
        run_request([Ending()], post(rpc("notifications/x")))
    assert isinstance(run_chain([Ending()], [sse(rpc("notifications/x"))]).failure, StreamAborted)


@pytest.mark.parametrize("passes", [True, False])
def test_a_stream_of_ones_own_keeps_what_it_says_of_large_events(passes: bool) -> None:
    """An `open_stream` of a subclass: its `passes_unseen` counts on the stream of a GET, too."""

    class Watching(StreamInterceptor):
        passes_unseen = passes

    class Own(McpInterceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return Watching()

    event = sse(rpc("notifications/x", params={"text": "x" * 2000}))
    result = run_chain(
        [Own()], [event], request=Request(path="/mcp", dialect="mcp"), max_event_bytes=1000
    )
    assert (result.failure is None, result.output == event) == (passes, passes)


async def test_many_answers_over_the_old_transport_wait_for_a_slow_stream() -> None:
    """`emit` may wait; the POST is then answered when the stream has taken them."""
    taken = trio.Event()

    async def emit(event: Event) -> None:
        await taken.wait()

    interceptor = Answering()
    get = Request(path="/sse", headers=[(b"accept", b"text/event-stream")])
    stream = interceptor.open_stream(StreamContext(get, emit))
    stream.on_start(sse_head(get))
    stream.on_event(Event("/m?session_id=ab", event="endpoint"))
    done: list[Response | None] = []

    async def ask() -> None:
        done.append(
            await interceptor.on_request(
                post(rpc("ping", 1), session=None, target="/m?session_id=ab", accept="*/*")
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        taken.set()
    assert done[0] is not None
    assert done[0].status == 202
