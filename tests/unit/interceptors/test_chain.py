"""The chain of a route: what is compiled, and which interceptors are asked, in which order, about
requests, heads, streams and lifespans.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import awaiting, interceptor
from unit.interceptors.scripted import Hook, errors, keep, open_chain, send

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    HookError,
    Interceptor,
    InterceptorError,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain
from interceptors.testing import run_chain, run_request, run_response
from pools import Pools

# What is compiled

SILENT = {"open_stream": lambda context: StreamInterceptor()}
STAYS_OUT = {"open_stream": lambda context: None}
ON_REQUEST = {"on_request": awaiting(lambda request: None)}
ON_RESPONSE = {"on_response": awaiting(lambda head: None)}
LOOKS = {"on_event": keep}


@pytest.mark.parametrize(
    ("chain", "sees"),
    [
        ([], ""),
        ([{}], ""),
        ([{"wants_json": True}, SILENT], "streams"),
        ([STAYS_OUT], "streams"),
        ([{}, LOOKS], "streams events"),
        ([{}, SILENT | {"wants_json": True}], "streams json"),
        ([ON_REQUEST, {}], "requests"),
        ([{}, ON_RESPONSE], "heads"),
        ([ON_REQUEST | {"wants_body": True}], "requests body"),
        ([SILENT | {"wants_body": True}], "streams body"),
        ([ON_REQUEST, ON_RESPONSE, LOOKS | {"wants_json": True}], "requests heads streams json events"),
    ],
)  # fmt: skip
async def test_a_chain_sees_what_is_overridden(chain: list[dict[str, Any]], sees: str) -> None:
    """So that hooks that are not overridden cost nothing: no framing, no collected body."""
    members = [("i", interceptor(**parts)()) for parts in chain]
    compiled, expected = Chain(members), set(sees.split())
    names = ("requests", "heads", "streams", "json")
    found = {name for name in names if getattr(compiled, f"sees_{name}")}
    assert compiled.sees_responses is bool(found & {"heads", "streams"})
    async with open_chain(*members) as stream:
        found |= {"body"} if compiled.wants_body else set()
        found |= {"events"} if stream.wants_events else set()
        assert found == expected
        assert send(stream, bytearray(b"data: a\n\n")) == ([b"data: a\n\n"], b"")


@pytest.mark.parametrize("kind", [StreamInterceptor, AsyncStreamInterceptor])
async def test_hooks_that_are_not_overridden_are_not_awaited(kind: Any) -> None:
    opens = interceptor(open_stream=lambda context: kind())
    async with open_chain(("o", opens()), ("k", Hook(keep))) as stream:
        assert not stream.is_async
        assert send(stream, bytearray(b"data: a\n\n")) == ([b"data: a\n\n"], b"")


# Requests and heads

HOOKS = pytest.mark.parametrize("hook", ["on_request", "on_response"])


async def ask(hook: str, members: list[tuple[str, Interceptor]]) -> Response | None:
    chain, request = Chain(members), Request()
    if hook == "on_request":
        return await chain.on_request(request)
    return await chain.on_response(ResponseHead(200, [], request))


async def _fail(about: Any) -> None:
    raise KeyError("in the hook")


async def _abort(about: Any) -> None:
    raise Abort("not today")


async def _sleep(about: Any) -> Response | None:
    await trio.sleep(7.6)
    return None


FIRST = Response(status=403)
NONSENSE: list[tuple[Any, str]] = [
    ("no", "str"),
    (403, "int"),
    (False, "bool"),
    (Response, "the class Response"),
    ({"status": 403}, "dict"),
    (Request(), "Request"),
]
ANSWERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (awaiting(lambda about: None), {}, ""),
    "a response": (awaiting(lambda about: FIRST), {}, ""),
    "any time": (_sleep, {"hook_timeout_s": None}, ""),
    "too long": (_sleep, {"hook_timeout_s": 7.5}, "HookTooSlow: took longer than its hook_timeout_s (7.5 s)"),
    "raises": (_fail, {}, "KeyError: 'in the hook'"),
    **{
        f"nonsense: {kind}": (
            awaiting(lambda about, value=value: value), {},
            f"Misused: Asked's HOOK returned {kind}, expected a Response or None",
        )
        for value, kind in NONSENSE
    },
    "Abort": (_abort, {}, "Abort"),
}  # fmt: skip


@HOOKS
@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_all_are_asked_in_order_up_to_the_first_answer(
    answer: str, on_error: str, hook: str, autojump_clock: object
) -> None:
    """A failure ends the exchange, with the configured name, the hook and the cause, or is skipped."""
    gives, settings, problem = ANSWERS[answer]
    calls, last, failure = list[str](), Response(status=418), None

    def asked(name: str, gives: Any, **settings: Any) -> tuple[str, Interceptor]:
        async def run(about: Any) -> Any:
            calls.append(name)
            return await gives(about)

        return name, interceptor("Asked", **{hook: run}, **settings)()

    members = [
        asked("a", awaiting(lambda about: None)),
        ("none", Interceptor()),
        asked("b", gives, on_error=on_error, **settings),
        asked("c", awaiting(lambda about: last)),
    ]
    with capture_logs() as logs:
        try:
            found = await ask(hook, members)
        except InterceptorError as error:
            failure = error
    if problem and (on_error == "abort" or problem == "Abort"):
        assert calls == ["a", "b"]
        if problem == "Abort":
            assert isinstance(failure, StreamAborted)
            assert (failure.interceptor, failure.reason) == ("b", "not today")
        else:
            assert isinstance(failure, HookError)
            assert str(failure) == f"b.{hook}: {problem.replace('HOOK', hook)}"
            assert (failure.interceptor, failure.hook) == ("b", hook)
            assert type(failure.__cause__).__name__ == problem.partition(":")[0]
    else:
        assert failure is None
        assert found is (FIRST if answer == "a response" else last)
        assert calls == (["a", "b"] if answer == "a response" else ["a", "b", "c"])
    is_logged = problem and problem != "Abort"
    assert errors(logs) == ([("b", hook, on_error)] if is_logged else [])


def test_what_one_changes_the_next_one_sees() -> None:
    """One request, and one head, goes along the chain; what is left of it is what the caller gets."""
    request = Request(method="GET", path="/a", query=b"x=1", headers=[(b"x-team", b"red")])
    seen: list[Any] = []

    def change(request: Request) -> None:
        request.method, request.path, request.query = "POST", "/b", b"y=2"
        request.headers["x-team"] = "blue"
        request.state["who"] = "first"

    def look(request: Request) -> None:
        seen.append((request.method, request.path, request.query))
        seen.append((request.headers["X-Team"], request.state))

    def change_head(head: ResponseHead) -> None:
        head.status = 201
        del head.headers["x-a"]
        head.headers["x-b"] = head.request.state["who"]

    def look_at_head(head: ResponseHead) -> None:
        seen.append(head.status)

    chain = [
        interceptor(on_request=awaiting(change), on_response=awaiting(change_head))(),
        interceptor(on_request=awaiting(look), on_response=awaiting(look_at_head))(),
    ]
    run_request(chain, request)
    assert (request.raw_path, request.headers.multi_items()) == (b"/b", [("x-team", "blue")])
    head = ResponseHead(200, [(b"x-a", b"1")], request)
    run_response(chain, head)
    assert seen == [("POST", "/b", b"y=2"), ("blue", {"who": "first"}), 201]
    assert (head.status, head.headers.multi_items()) == (201, [("x-b", "first")])


# Streams


async def test_each_stream_is_opened_once_for_each_interceptor() -> None:
    """With the exchange's context; for a JSON body only where it is wanted."""
    contexts: list[tuple[str, StreamContext]] = []

    def opens(name: str, wants_json: bool) -> tuple[str, Interceptor]:
        made = interceptor(
            wants_json=wants_json, opened=lambda context: contexts.append((name, context))
        )
        return name, made()

    pools, requests = Pools(), [Request(path="/1"), Request(path="/2")]
    chain = Chain([opens("a", True), opens("b", False), opens("c", True)])
    async with pools.open_scope() as scope:
        for request, json in zip(requests, (False, True), strict=True):
            stream = chain.open_stream(request, pools.json, scope, 100, json=json)
            await stream.aclose(Outcome.COMPLETED)
    assert [(name, context.path, context.is_body) for name, context in contexts] == [
        *((name, "/1", False) for name in "abc"), ("a", "/2", True), ("c", "/2", True),
    ]  # fmt: skip
    assert contexts[0][1].state is contexts[1][1].state is requests[0].state
    assert contexts[0][1].state is not contexts[3][1].state


async def test_a_stream_knows_its_request() -> None:
    """As `on_request` left it; log lines name its route."""
    request = Request(
        route="/llm", method="POST", path="/llm/x", headers=[(b"X-A", b"1")], client="192.0.2.1"
    )
    context = StreamContext(request)
    for name in ("route", "method", "path", "client", "headers", "state", "dialect"):
        assert getattr(context, name) is getattr(request, name)
    assert context.request is request
    with capture_logs() as logs:
        context.log.info("one")
        request.log.info("two")
    assert [(line["event"], line["route"]) for line in logs] == [("one", "/llm"), ("two", "/llm")]


# Lifespans


class Lives(Interceptor):
    """Writes down its life."""

    def __init__(self, name: str, calls: list[str], fails: str = "") -> None:
        self.name, self.calls, self.fails = name, calls, fails

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self.note("enters")
        try:
            yield
        finally:
            await trio.lowlevel.checkpoint()
            self.note("leaves")

    def note(self, what: str) -> None:
        self.calls.append(f"{self.name} {what}")
        if self.fails == what:
            raise KeyError(what)

    def open_stream(self, context: StreamContext) -> None:
        self.note("opens")


@pytest.mark.parametrize(
    ("fails", "calls"),
    [
        ("", "a enters, b enters, a opens, b opens, b leaves, a leaves"),
        ("opens", "a enters, b enters, a opens, b opens, b leaves, a leaves"),
        ("enters", "a enters, b enters, a leaves"),
    ],
)
def test_lifespans_nest(fails: str, calls: str) -> None:
    """However the run ends. A failing one leaves those before it."""
    told: list[str] = []
    chain = [Lives("a", told), Interceptor(), Lives("b", told, fails)]
    chain += [Lives("c", told)] if fails == "enters" else []  # it is not entered
    with capture_logs():
        if fails:
            with pytest.raises(KeyError if fails == "enters" else HookError, match=fails):
                run_chain(chain, [b"data: x\n\n"])
        else:
            run_chain(chain, [b"data: x\n\n"])
    assert ", ".join(told) == calls
