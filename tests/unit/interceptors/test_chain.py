"""The chain of a route: what is compiled, and who is asked in which order about requests, heads and
streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from support.logs import without_times
from unit.interceptors.scripted import Hook, errors, keep, open_chain, send

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    HookError,
    Interceptor,
    LoadError,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain, enter_lifespans
from interceptors.hooks import Owner
from interceptors.testing import run_chain, run_request, run_response
from pools import Pools

# --- what is compiled
# ---------------------------------------------------------------------------------------------------


class Silent(Interceptor):
    """Opens streams that override nothing."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return StreamInterceptor()


class StaysOut(Interceptor):
    """Opens no stream."""

    def open_stream(self, context: StreamContext) -> None:
        return None


@pytest.mark.parametrize(
    ("interceptor", "sees_streams", "wants_events"),
    [
        (Interceptor(), False, False),
        (StaysOut(), True, False),
        (Silent(), True, False),
        (Hook(keep), True, True),
    ],
)
async def test_only_an_overridden_on_event_makes_a_stream_want_events(
    interceptor: Interceptor, sees_streams: bool, wants_events: bool
) -> None:
    """`sees_streams` follows open_stream, `wants_events` on_event."""
    assert Chain([("i", interceptor)]).sees_streams is sees_streams
    async with open_chain(("i", interceptor)) as stream:
        assert stream.wants_events is wants_events


async def test_a_chain_of_nothing_wants_nothing() -> None:
    """Without interceptors no event has to be framed; what is framed all the same passes."""
    assert not Chain().sees_streams
    async with open_chain() as stream:
        assert not stream.wants_events
        assert send(stream, bytearray(b"data: a\n\n")) == ([b"data: a\n\n"], b"")


async def test_each_stream_has_its_own_objects_and_one_context() -> None:
    """`open_stream` is called once per interceptor and stream, with the exchange's context."""
    seen: list[StreamContext] = []

    class Asks(Interceptor):
        def open_stream(self, context: StreamContext) -> None:
            seen.append(context)

    pools = Pools()
    chain = Chain([("a", Asks()), ("b", Asks())])
    async with pools.open_scope() as scope:
        for path in ("/1", "/2"):
            await chain.open_stream(Request(path=path), pools.json, scope, 100).aclose(
                Outcome.COMPLETED
            )
    assert [context.path for context in seen] == ["/1", "/1", "/2", "/2"]
    assert seen[0].state is seen[1].state
    assert seen[0].state is not seen[2].state


def test_a_hook_that_is_not_overridden_is_not_asked_for() -> None:
    """`sees_requests` and `sees_heads` follow the hooks that a class overrides, so that the others
    cost nothing.
    """
    chain = Chain([("a", Interceptor()), ("b", Hook(keep))])
    assert (chain.sees_requests, chain.sees_heads, chain.wants_body) == (False, False, False)


def test_a_chain_sees_what_one_of_it_sees() -> None:
    """One interceptor that overrides a hook is enough."""
    chain = Chain([("a", Interceptor()), ("b", Asked("b", [])), ("c", Hook(keep))])
    assert (chain.sees_requests, chain.sees_heads, chain.sees_streams, chain.sees_json) == (
        True,
        True,
        True,
        True,
    )


def test_json_is_wanted_by_those_with_wants_json_and_open_stream() -> None:
    """`wants_json` without `open_stream` has nothing to show a body to, and `open_stream` alone is
    for streams.
    """
    only_says = type("OnlySays", (Interceptor,), {"wants_json": True})()
    assert not Chain([("a", only_says), ("b", Silent())]).sees_json
    assert Chain([("a", Hook(keep))]).sees_json


def test_a_body_is_collected_for_interceptors_that_want_it() -> None:
    """For an `on_request` with `wants_body`, and for no other."""
    wants = type("Wants", (Asked,), {"wants_body": True})
    assert Chain([("a", Asked("a", [])), ("b", wants("b", []))]).wants_body
    assert not Chain([("a", Asked("a", []))]).wants_body


def test_a_body_is_collected_for_a_stream_that_looks_at_it() -> None:
    """`StreamContext.request` has the body for interceptors with `wants_body`, also without
    `on_request`.
    """
    wants = type("Wants", (Silent,), {"wants_body": True})
    assert Chain([("a", wants())]).wants_body


# --- requests and heads
# -------------------------------------------------------------------------------------------------


class Asked(Interceptor):
    """Records its calls, and answers with what `answer` makes of them."""

    def __init__(
        self,
        name: str,
        calls: list[Any],
        answer: Callable[[Any], Any] = lambda about: None,
        **kind: Any,
    ) -> None:
        self.name, self.calls, self.answer = name, calls, answer
        self.on_error = kind.get("on_error", "abort")
        self.hook_timeout_s = kind.get("hook_timeout_s", 30.0)

    async def on_request(self, request: Request) -> Any:
        await trio.lowlevel.checkpoint()
        self.calls.append((self.name, "on_request"))
        answer = self.answer(request)
        return await answer if isinstance(answer, Awaitable) else answer

    async def on_response(self, head: ResponseHead) -> Any:
        await trio.lowlevel.checkpoint()
        self.calls.append((self.name, "on_response"))
        answer = self.answer(head)
        return await answer if isinstance(answer, Awaitable) else answer


Ask = Callable[[list[Interceptor]], Response | None]


def ask_request(chain: list[Interceptor]) -> Response | None:
    return run_request(chain, Request())


def ask_response(chain: list[Interceptor]) -> Response | None:
    return run_response(chain, ResponseHead(200, []))


ASKED = pytest.mark.parametrize(
    ("ask", "hook"),
    [(ask_request, "on_request"), (ask_response, "on_response")],
    ids=["on_request", "on_response"],
)


@ASKED
def test_all_are_asked_in_the_lists_order(ask: Ask, hook: str) -> None:
    """Requests and heads pass the interceptors in the order of the list."""
    calls: list[Any] = []
    assert ask([Asked("a", calls), Interceptor(), Asked("b", calls), Asked("c", calls)]) is None
    assert calls == [(name, hook) for name in "abc"]


@ASKED
def test_the_first_answer_wins_and_no_further_hook_is_called(ask: Ask, hook: str) -> None:
    """The Response of the first that gives one is the answer, the very object."""
    calls: list[Any] = []
    answer = Response(status=403)
    chain = [
        Asked("a", calls),
        Asked("b", calls, lambda about: answer),
        Asked("c", calls, lambda about: Response(status=500)),
    ]
    assert ask(chain) is answer
    assert calls == [("a", hook), ("b", hook)]


def test_what_one_changes_the_next_one_sees() -> None:
    """One request, and one head, goes along the chain; what is left of it is what the caller gets."""
    request = Request(method="GET", path="/a", query=b"x=1", headers=[(b"x-team", b"red")])

    def change(request: Request) -> None:
        request.method = "POST"
        request.path = "/b"
        request.query = b"y=2"
        request.headers["x-team"] = "blue"
        request.state["who"] = "first"

    seen: list[Any] = []

    def look(request: Request) -> None:
        seen.append(
            (request.method, request.path, request.query, request.headers["X-Team"], request.state)
        )

    run_request([Asked("a", [], change), Asked("b", [], look)], request)
    assert seen == [("POST", "/b", b"y=2", "blue", {"who": "first"})]
    assert (request.raw_path, request.headers.multi_items()) == (b"/b", [("x-team", "blue")])

    head = ResponseHead(200, [(b"x-a", b"1")], request)

    def change_head(head: ResponseHead) -> None:
        head.status = 201
        del head.headers["x-a"]
        head.headers["x-b"] = head.request.state["who"]

    statuses: list[int] = []
    run_response(
        [Asked("a", [], change_head), Asked("b", [], lambda head: statuses.append(head.status))],
        head,
    )
    assert (statuses, head.status, head.headers.multi_items()) == ([201], 201, [("x-b", "first")])


def fail_at(about: Any) -> None:
    raise KeyError("in the hook")


@ASKED
def test_a_hook_that_fails_ends_the_exchange(ask: Ask, hook: str) -> None:
    """A HookError names interceptor and hook, keeps the cause, and no further hook is called."""
    calls: list[Any] = []
    with (
        capture_logs() as logs,
        pytest.raises(HookError, match=rf"^Asked\.{hook}: KeyError: 'in the hook'$") as caught,
    ):
        ask([Asked("a", calls, fail_at), Asked("b", calls)])
    assert (caught.value.interceptor, caught.value.hook) == ("Asked", hook)
    assert isinstance(caught.value.__cause__, KeyError)
    assert errors(logs) == [("Asked", hook, "abort")]
    assert calls == [("a", hook)]


@ASKED
@pytest.mark.parametrize("answer", [fail_at, lambda about: "nonsense"], ids=["raises", "nonsense"])
def test_a_skipped_failure_is_logged_and_the_next_one_is_asked(
    ask: Ask, hook: str, answer: Any
) -> None:
    """With `on_error = "skip"` it is as if the hook had done nothing."""
    calls: list[Any] = []
    last = Response(status=418)
    with capture_logs() as logs:
        assert (
            ask([Asked("a", calls, answer, on_error="skip"), Asked("b", calls, lambda about: last)])
            is last
        )
    assert errors(logs) == [("Asked", hook, "skip")]
    assert calls == [("a", hook), ("b", hook)]


@ASKED
@pytest.mark.parametrize(
    ("nonsense", "kind"),
    [
        ("no", "str"),
        (403, "int"),
        (False, "bool"),
        (Response, "the class Response"),
        ({"status": 403}, "dict"),
        (Request(), "Request"),
    ],
)
def test_a_nonsense_answer_names_class_and_hook_and_what_is_expected(
    ask: Ask, hook: str, nonsense: Any, kind: str
) -> None:
    """Also a false one, which a check for truth would take for None."""
    with capture_logs(), pytest.raises(HookError) as caught:
        ask([Asked("a", [], lambda about: nonsense)])
    expected = f"Asked.{hook}: Misused: Asked's {hook} returned {kind}, expected a Response or None"
    assert str(caught.value) == expected


@ASKED
def test_a_nonsense_answer_names_the_class_where_the_configuration_has_another_name(
    ask: Ask, hook: str
) -> None:
    """Named as in the configuration, which identifies one of several; the class has the mistake."""

    async def main() -> None:
        chain = Chain([("gate-of-blue", Asked("a", [], lambda about: "no"))])
        await (
            chain.on_request(Request())
            if ask is ask_request
            else chain.on_response(ResponseHead(200, []))
        )

    with (
        capture_logs(),
        pytest.raises(
            HookError, match=rf"^gate-of-blue\.{hook}: Misused: Asked's {hook} returned str,"
        ),
    ):
        trio.run(main)


@ASKED
@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_an_abort_always_ends_the_exchange(ask: Ask, hook: str, on_error: str) -> None:
    """The client's reason is kept, the interceptor named, and the log has no failure of a hook."""

    def abort(about: Any) -> None:
        raise Abort("not today")

    calls: list[Any] = []
    with capture_logs() as logs, pytest.raises(StreamAborted, match=r"^not today$") as caught:
        ask([Asked("a", calls, abort, on_error=on_error), Asked("b", calls)])
    assert (caught.value.interceptor, caught.value.reason) == ("Asked", "not today")
    assert errors(logs) == []
    assert calls == [("a", hook)]


@ASKED
@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_a_hook_that_takes_too_long_has_failed(
    ask: Ask, hook: str, on_error: str, autojump_of_run: None
) -> None:
    """`hook_timeout_s` bounds each call; `on_error` decides what happens then."""

    async def forever(about: Any) -> None:
        await trio.sleep_forever()

    calls: list[Any] = []
    chain: list[Interceptor] = [
        Asked("a", calls, forever, on_error=on_error, hook_timeout_s=7.5),
        Asked("b", calls),
    ]
    with capture_logs() as logs:
        if on_error == "skip":
            assert ask(chain) is None
            assert [name for name, _ in calls] == ["a", "b"]
        else:
            with pytest.raises(
                HookError, match=rf"^Asked\.{hook}: HookTooSlow: .*hook_timeout_s \(7\.5 s\)$"
            ):
                ask(chain)
            assert [name for name, _ in calls] == ["a"]
    assert errors(logs) == [("Asked", hook, on_error)]


@ASKED
def test_a_hook_may_be_given_any_time(ask: Ask, hook: str, autojump_of_run: None) -> None:
    """`hook_timeout_s = None` is not a limit: an hour later the answer is still an answer."""
    answer = Response()

    async def late(about: Any) -> Response:
        await trio.sleep(3600)
        return answer

    assert ask([Asked("a", [], late, hook_timeout_s=None)]) is answer


@ASKED
def test_a_hook_that_is_not_async_is_refused(ask: Ask, hook: str) -> None:
    """As the loader refuses it."""
    wrong = type("NotAsync", (Interceptor,), {hook: lambda self, about: None})
    with pytest.raises(LoadError, match=rf"^NotAsync\.{hook} must be async"):
        ask([wrong()])


@pytest.fixture
def autojump_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`trio.run` with a clock that jumps over every wait."""
    original = trio.run

    def run(*args: Any, **options: Any) -> Any:
        return original(*args, **{"clock": trio.testing.MockClock(autojump_threshold=0), **options})

    monkeypatch.setattr(trio, "run", run)


# --- streams
# ------------------------------------------------------------------------------------------------------------


async def test_a_failing_open_stream_sets_failure_and_raises_nothing() -> None:
    """`Chain.open_stream` raises nothing: the caller must close the stream in any case."""

    class Fails(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            raise KeyError("no")

    pools = Pools()
    async with pools.open_scope() as scope:
        with capture_logs() as logs:
            stream = Chain([("f", Fails()), ("k", Hook(keep))]).open_stream(
                Request(), pools.json, scope, 100
            )
        assert str(stream.failure) == "f.open_stream: KeyError: 'no'"
        assert errors(logs) == [("f", "open_stream", "abort")]
        await stream.aclose(Outcome.INTERCEPTED)


async def test_an_abort_in_open_stream_is_the_streams_failure_also_with_skip() -> None:
    """With its reason, and without a line in the log."""

    class Aborts(Interceptor):
        on_error = "skip"

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            raise Abort("no streams today")

    with capture_logs() as logs, pytest.raises(StreamAborted, match=r"^no streams today$"):
        async with open_chain(("a", Aborts())):
            pytest.fail("the chain opened")
    assert without_times(logs) == []


async def test_only_those_who_want_json_are_asked_for_a_json_body() -> None:
    """`open_stream` of the others is for event streams alone."""
    calls: list[str] = []

    def opens(name: str, wants: bool) -> tuple[str, Interceptor]:
        def open_stream(self: Interceptor, context: StreamContext) -> None:
            calls.append(name)

        return name, type(name, (Interceptor,), {"wants_json": wants, "open_stream": open_stream})()

    async with open_chain(opens("a", True), opens("b", False), opens("c", True), json=True):
        assert calls == ["a", "c"]
    calls.clear()
    async with open_chain(opens("a", True), opens("b", False)):
        assert calls == ["a", "b"]


@pytest.mark.parametrize("kind", [StreamInterceptor, AsyncStreamInterceptor], ids=["sync", "async"])
async def test_hooks_that_are_not_overridden_are_not_awaited(kind: Any) -> None:
    """An async stream with the default `on_event` causes no framing and no stop."""

    class Opens(Interceptor):
        def open_stream(self, context: StreamContext) -> Any:
            return kind()

    async with open_chain(("o", Opens()), ("k", Hook(keep))) as stream:
        assert stream.wants_events
        assert not stream.is_async
        assert send(stream, bytearray(b"data: a\n\n")) == ([b"data: a\n\n"], b"")


async def test_a_stream_knows_its_request() -> None:
    """Route, method, path, headers, client and state are the request's, as `on_request` left them."""
    request = Request(
        route="/llm", method="POST", path="/llm/x", headers=[(b"X-A", b"1")], client="192.0.2.1"
    )
    request.state["seen"] = True
    context = StreamContext(request)
    assert (context.route, context.method, context.path, context.client) == (
        "/llm",
        "POST",
        "/llm/x",
        "192.0.2.1",
    )
    assert context.headers is request.headers
    assert context.state is request.state
    assert context.request is request


async def test_a_log_line_names_the_route() -> None:
    """`context.log` and `request.log` are bound to it."""
    request = Request(route="/llm")
    with capture_logs() as logs:
        StreamContext(request).log.info("one", n=1)
        request.log.info("two")
    assert [(line["event"], line["route"]) for line in logs] == [("one", "/llm"), ("two", "/llm")]


# --- lifespans
# ----------------------------------------------------------------------------------------------------------


class Lives(Interceptor):
    """Writes down its life."""

    def __init__(self, name: str, calls: list[Any], fails: str = "") -> None:
        self.name, self.calls, self.fails = name, calls, fails

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        await self.note("enter")
        try:
            yield
        finally:
            await self.note("leave")

    async def note(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append((self.name, what))
        if self.fails == what:
            raise KeyError(what)

    def open_stream(self, context: StreamContext) -> None:
        self.calls.append((self.name, "open_stream"))


def test_lifespans_are_entered_in_order_around_everything_and_left_in_the_opposite_one() -> None:
    """An interceptor between them without a lifespan changes nothing."""
    calls: list[Any] = []
    run_chain([Lives("a", calls), Interceptor(), Lives("b", calls)], [b"data: x\n\n"])
    assert calls == [
        ("a", "enter"), ("b", "enter"), ("a", "open_stream"), ("b", "open_stream"), ("b", "leave"), ("a", "leave"),
    ]  # fmt: skip


async def test_a_lifespan_that_fails_leaves_those_before_it() -> None:
    """Its exception comes out as it is; the later ones were never entered."""
    calls: list[Any] = []
    owners = [Owner(name, Lives(name, calls, "enter" if name == "b" else "")) for name in "abc"]
    with pytest.raises(KeyError, match="enter"):
        async with AsyncExitStack() as stack:
            await enter_lifespans(owners, stack)
    assert calls == [("a", "enter"), ("b", "enter"), ("a", "leave")]


def test_a_lifespan_is_left_when_the_stream_fails() -> None:
    """However a run ends, what was set up is torn down."""
    calls: list[Any] = []

    class Fails(Interceptor):
        def open_stream(self, context: StreamContext) -> None:
            raise KeyError

    with capture_logs(), pytest.raises(HookError):
        run_chain([Lives("a", calls), Fails()], [])
    assert calls == [("a", "enter"), ("a", "open_stream"), ("a", "leave")]
