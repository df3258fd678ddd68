"""`interceptors.testing`: it behaves as the proxy does, and reports what a run leaves undone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import awaiting, interceptor, on_event
from trio.testing import wait_all_tasks_blocked

import pools
from interceptors import (
    AsyncStreamInterceptor,
    Event,
    EventTooLarge,
    HookError,
    Interceptor,
    InterceptorError,
    LoadError,
    Outcome,
    Request,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_request, on_mcp_response
from interceptors.redact import Redact
from interceptors.testing import NothingCalled, run_chain, run_json, run_request, run_response
from pools import BufferScope


def recorder(told: list[Any] | None = None, answer: Any = None) -> Interceptor:
    """Records what its hooks get; its `on_event` returns what `answer` does."""
    told = [] if told is None else told

    def hook(event: Event) -> Any:
        told.append(event.data)
        return answer(event) if answer else event

    return interceptor(
        "Recorder", opened=told.append, on_start=lambda head: told.append(head), on_event=hook,
        on_end=lambda outcome: told.append(outcome),
    )()  # fmt: skip


def test_the_example_of_the_module_holds() -> None:
    result = run_chain([Redact(patterns=["secret"])], [b'data: "sec', b'ret"\n\n'])
    assert result.output == b'data: "[redacted]"\n\n'
    assert (result.failure, result.counts.changed) == (None, 1)


def test_a_stream_is_opened_started_fed_and_ended() -> None:
    """A GET of "/" and a 200 event stream by default; each run is its own stream."""
    told: list[Any] = []
    recording, awaits = recorder(told), interceptor(is_async=True, on_event=awaiting(lambda e: e))
    for chunks in ([b"data: a\n\nda", b"", b"ta: b\n", b"\ndata: tail"], iter([])):
        told.clear()
        result = run_chain([recording, awaits()], chunks)
        context, head, *rest = told
        assert (context.route, context.method, context.path, context.client) == (
            "/", "GET", "/", None,
        )  # fmt: skip
        assert (head.status, head.headers.get("Content-Type")) == (200, "text/event-stream")
        if isinstance(chunks, list):
            assert rest == ["a", "b", "tail", Outcome.COMPLETED]
            assert result.output == b"data: a\n\ndata: b\n\ndata: tail"
    request, head = Request(route="/llm", method="POST", path="/llm/x"), ResponseHead(206, [])
    run_chain([recorder(told)], [], request=request, head=head)
    assert (told[-3].request, told[-2]) == (request, head)


def test_a_failing_hook_is_the_results_failure_and_ends_the_stream() -> None:
    """A failing start is raised."""
    told: list[Any] = []

    def bomb(event: Any) -> Event:
        if event.data == "b":
            raise KeyError("x")
        return event  # type: ignore[no-any-return]

    def start(head: ResponseHead) -> None:
        raise KeyError("no start")

    with capture_logs():
        chunks = [b"data: a\n\n", b"data: b\n\n", b"data: c\n\n"]
        result = run_chain([recorder(told, bomb)], chunks)
        assert isinstance(result.failure, HookError)
        assert (result.failure.interceptor, result.output) == ("Recorder", b"data: a\n\n")
        assert told[2:] == ["a", "b", Outcome.INTERCEPTED]
        starts = interceptor("Starts", on_start=start, on_end=lambda outcome: told.append(outcome))
        with pytest.raises(HookError, match=r"Starts\.on_start: KeyError: 'no start'"):
            run_chain([starts()], [b"data: a\n\n"])
    assert told[5:] == [Outcome.INTERCEPTED]


@pytest.mark.parametrize(
    ("length", "limit", "fits"),
    [(6, {"max_event_bytes": 10}, False), (1_000_000, {}, True), (1 << 20, {}, False)],
)
def test_the_event_limit_is_the_callers(length: int, limit: dict[str, int], fits: bool) -> None:
    result = run_chain([recorder()], [b"data: " + b"x" * length + b"\n\n"], **limit)
    assert (result.failure is None) is fits
    assert fits or isinstance(result.failure, EventTooLarge)


@pytest.mark.leaks
def test_a_lease_that_is_not_back_is_an_assertion_error(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[pools.Lease] = []

    async def forget(self: BufferScope, *_: object) -> None:
        forgotten.extend(self._leases)

    monkeypatch.setattr(BufferScope, "__aexit__", forget)
    monkeypatch.setattr(pools.PooledOutput, "close", lambda self: None)
    with pytest.raises(AssertionError, match=r"leases were not given back: \{'json': 1\}"):
        run_chain([recorder(answer=lambda event: event.replace("changed"))], [b"data: a\n\n"])
    for lease in forgotten:
        lease.release()


def test_a_body_that_is_not_collected_cannot_be_read() -> None:
    """As in the proxy; after the run the test has it again."""

    def replace(request: Request) -> None:
        request.replace_body(json=[2])
        assert request.json() == [2]

    reads = awaiting(lambda request: request.json() and None)
    asks, wants = (
        interceptor("Asks", on_request=reads),
        interceptor("Wants", wants_body=True, on_request=reads),
    )
    request = Request(body=b"[1]")
    for refused in ([asks()], [wants(), asks()]):  # without `wants_body` it is called first
        with pytest.raises(InterceptorError, match="wants_body"):
            run_request(refused, request)
        assert request.body == b"[1]"
    assert run_request([wants()], request) is None
    assert run_request([interceptor(on_request=awaiting(replace))()], request) is None
    assert request.body == b"[2]"
    with pytest.raises(InterceptorError, match="wants_body"):
        run_request([asks()], Request(body=None))


def test_a_streams_hooks_cannot_read_the_requests_body() -> None:
    """As in the proxy, which frees it with the response head; `open_stream` can."""
    request, read = Request(body=b"x"), list[bytes]()

    def hook(event: Event) -> Event:
        return event.replace(request.body.decode())

    opened = interceptor(
        "Reads", wants_body=True, opened=lambda context: read.append(request.body), on_event=hook
    )
    with capture_logs():
        failure = run_chain([opened()], [b"data: a\n\n"], request=request).failure
    assert read == [b"x"]
    assert "freed when the response head was sent" in str(failure)
    assert request.body == b"x"


def test_a_task_of_a_task_is_its_interceptors() -> None:
    """Whichever hook runs meanwhile."""

    async def fails() -> None:
        raise ValueError("skipped")

    async def task(request: Request) -> None:
        await trio.sleep(0)
        await trio.sleep(0)
        request.start_soon(fails)

    async def waits(request: Request) -> None:
        await wait_all_tasks_blocked()

    starts = awaiting(lambda request: request.start_soon(task, request))
    chain = [interceptor(on_error="skip", on_request=starts)(), interceptor(on_request=waits)()]
    assert run_request(chain, Request()) is None


# Runs that prove nothing

CHAT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
BODY = b'{"model":"m","choices":[{"index":0,"message":{"content":"a"}}]}'
OPENAI = Request(dialect="openai")
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
PING = b'data: {"jsonrpc":"2.0","method":"ping","id":1}\n\n'


class Texts(MessageInterceptor):
    def open_messages(self, context: StreamContext) -> MessageStream:
        return _TextsStream()


class _TextsStream(MessageStream):
    def on_text_delta(self, delta: Any) -> None:
        delta.text = delta.text.upper()


class Tools(McpInterceptor):
    @on_mcp_request("tools/call")
    def call(self, message: Any) -> None: ...

    @on_mcp_response("tools/list")
    def listed(self, message: Any) -> None: ...


HEADS = interceptor("Heads", on_response=awaiting(lambda head: None))
NEEDY = on_event(lambda event: event, "Needy")
NEEDED = interceptor("Needed", needs=(b"needed",), on_event=lambda event: event)
NO_DIALECT = r"Texts recognised no dialect: .*Request\(dialect='openai'\)"
NO_HOOK = "no hook of .* was called"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: run_chain([Texts()], [CHAT]), NO_DIALECT),
        (lambda: run_json([Texts()], BODY), NO_DIALECT),
        (lambda: run_chain([Texts(), recorder()], [CHAT], request=Request(path="/v1/chat")), NO_DIALECT),
        (lambda: run_chain([Texts()], [b'data: {"a":1}\n\n'], request=OPENAI), "Texts recognised no answer"),
        (lambda: run_chain([Texts()], [b'data: {"choices":[]}\n\n'], request=OPENAI), NO_HOOK),
        (lambda: run_chain([Interceptor()], [CHAT]), NO_HOOK),
        (lambda: run_chain([HEADS()], [CHAT]), NO_HOOK),
        (lambda: run_chain([NEEDED()], [CHAT]), NO_HOOK),
        (lambda: run_json([NEEDY()], BODY), NO_HOOK),  # no wants_json
        (lambda: run_request([NEEDY()], Request()), NO_HOOK),
        (lambda: run_request([HEADS()], Request()), NO_HOOK),
        (lambda: run_response([NEEDY()], ResponseHead(200, [])), NO_HOOK),
        (lambda: run_request([Tools()], Request(method="POST", body=LIST)), NO_HOOK),
        (lambda: run_chain([Tools()], [PING]), NO_HOOK),
    ],
)  # fmt: skip
def test_a_run_without_a_call_warns(run: Callable[[], object], message: str) -> None:
    with pytest.warns(NothingCalled, match=message) as caught:
        run()
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error::interceptors.testing.NothingCalled")
def test_a_run_with_a_call_does_not_warn() -> None:
    """One hook is enough; neither does a run that fails, ends, or has no interceptor."""
    assert run_chain([Texts()], [CHAT], request=OPENAI).output == CHAT.replace(b'"a"', b'"A"')
    assert b'"A"' in run_json([Texts()], BODY, request=OPENAI)
    run_chain([], [CHAT])
    run_chain([recorder(), HEADS()], [])
    run_chain([NEEDED()], [b"data: needed\n\n"])
    run_chain([NEEDY()], [CHAT])
    run_response([HEADS()], ResponseHead(200, []))
    tools, asked = Tools(), Request(method="POST", body=LIST)
    call = Request(method="POST", body=LIST.replace(b"list", b"call"))
    assert run_request([tools], call) is None
    with pytest.warns(NothingCalled):
        run_request([tools], asked)
    run_json([tools], b'{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}', request=asked)
    assert "call" not in vars(tools)
    run_chain([Redact(patterns=["a"])], [b"data: x\n\n"])


# The loader's checks


def wrong(name: str) -> Any:
    """A stream of a wrong class. The classes are local: a check sees all of a module's."""

    class Timeout(StreamInterceptor):
        hook_timeout_s = 3

    class SyncHook(AsyncStreamInterceptor):
        def on_event(self, event: Event) -> Any:  # type: ignore[override]
            return event

    class AsyncDelta(MessageStream):
        async def on_text_delta(self, delta: Any) -> None: ...  # type: ignore[override]

    return {"Timeout": Timeout, "SyncHook": SyncHook, "AsyncDelta": AsyncDelta}[name]()


class Messages(MessageInterceptor):
    on_error = "skip"

    def open_messages(self, context: StreamContext) -> MessageStream:
        return wrong("AsyncDelta")  # type: ignore[no-any-return]


def opening(stream: Any) -> Interceptor:
    return interceptor("Opens", on_error="skip", open_stream=lambda context: stream)()


def misset() -> Interceptor:
    made = Interceptor()
    made.on_error = "never"  # type: ignore[assignment]
    return made


MISSPELT = interceptor("Misspelt", on_text=lambda text: None)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: run_chain([MISSPELT()], [CHAT]), "on_text"),
        (lambda: run_request([MISSPELT()], Request()), "on_text"),
        (lambda: run_response([MISSPELT()], ResponseHead(200, [])), "on_text"),
        (lambda: run_chain([opening(wrong("Timeout"))], [CHAT]), "hook_timeout_s"),
        (lambda: run_chain([opening(wrong("SyncHook"))], [CHAT]), "on_event must be async"),
        (lambda: run_chain([Messages()], [CHAT], request=OPENAI), "on_text_delta is async"),
        (lambda: run_json([Messages()], BODY, request=OPENAI), "on_text_delta is async"),
        (lambda: run_chain([misset()], [CHAT]), "expected one of abort, skip"),
    ],
)
def test_what_the_loader_refuses_is_refused_here(run: Callable[[], object], message: str) -> None:
    """Whatever `on_error` is: the class, what its object sets, and each stream's class."""
    with pytest.raises(LoadError, match=message):
        run()


def test_a_coroutine_that_is_never_awaited_is_an_assertion_error() -> None:
    """Other warnings stay warnings."""

    async def look_up() -> None: ...

    def forgets(event: Event) -> Event:
        look_up()  # type: ignore[unused-coroutine]
        return event

    def warns(event: Event) -> Event:
        warnings.warn("mine", DeprecationWarning, stacklevel=2)
        return event

    with pytest.raises(AssertionError, match=r"did not await .*look_up' was never awaited"):
        run_chain([recorder(answer=forgets)], [b"data: a\n\n"])
    with pytest.warns(DeprecationWarning, match="mine"):
        run_chain([recorder(answer=warns)], [b"data: a\n\n"])
