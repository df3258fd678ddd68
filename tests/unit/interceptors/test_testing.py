"""`run_chain`, with which authors test their interceptors: it behaves as the proxy does, and finds
what was kept.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
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


class Recorder(Interceptor):
    """Writes down what its stream is told, and answers with what `answer` makes of an event."""

    def __init__(self, answer: Any = None) -> None:
        self.told: list[Any] = []
        self.answer = answer or (lambda event: event)

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        self.told.append(context)
        return _RecorderStream(self)


class _RecorderStream(StreamInterceptor):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_start(self, head: ResponseHead) -> None:
        self.recorder.told.append(head)

    def on_event(self, event: Event) -> Any:
        self.recorder.told.append(event.data)
        return self.recorder.answer(event)

    def on_end(self, outcome: Outcome) -> None:
        self.recorder.told.append(outcome)


def test_the_example_of_the_module_holds() -> None:
    """What the documentation shows is what happens."""
    result = run_chain([Redact(patterns=["secret"])], [b'data: "sec', b'ret"\n\n'])
    assert result.output == b'data: "[redacted]"\n\n'
    assert result.failure is None
    assert result.counts.changed == 1


def test_a_stream_is_opened_started_fed_and_ended() -> None:
    """The hooks hear of a GET of "/", a 200 event stream, each event once, and `completed`."""
    recorder = Recorder()
    result = run_chain([recorder], [b"data: a\n\nda", b"ta: b\n", b"\ndata: tail"])
    context, head, *rest = recorder.told
    assert (context.route, context.method, context.path, context.client) == ("/", "GET", "/", None)
    assert (head.status, head.headers.get("Content-Type"), head.headers.get("x-none")) == (
        200,
        "text/event-stream",
        None,
    )
    assert rest == ["a", "b", "tail", Outcome.COMPLETED]
    assert result.output == b"data: a\n\ndata: b\n\ndata: tail"


def test_request_and_head_can_be_given() -> None:
    """An interceptor that looks at the request or the response is tested with the author's own."""
    request = Request(
        route="/llm", method="POST", path="/llm/x", headers=[(b"a", b"b")], client="192.0.2.1"
    )
    head = ResponseHead(206, [])
    recorder = Recorder()
    run_chain([recorder], [], request=request, head=head)
    assert recorder.told[0].request is request
    assert recorder.told[1] is head


def test_chunks_may_come_from_any_iterable() -> None:
    """A generator, and empty chunks in between, are fine."""
    result = run_chain([Recorder()], (bytes([byte]) * n for byte in b"data: x\n\n" for n in (1, 0)))
    assert result.output == b"data: x\n\n"


def test_a_failing_hook_is_the_results_failure_and_ends_the_stream() -> None:
    """Output up to there, `failure` set, `intercepted` told, and no later chunk fed."""

    def bomb(event: Event) -> Event:
        if event.data == "b":
            raise KeyError("x")
        return event

    recorder = Recorder(bomb)
    with capture_logs():
        result = run_chain([recorder], [b"data: a\n\n", b"data: b\n\n", b"data: c\n\n"])
    assert isinstance(result.failure, HookError)
    assert result.failure.interceptor == "Recorder"
    assert result.output == b"data: a\n\n"
    assert recorder.told[2:] == ["a", "b", Outcome.INTERCEPTED]


def test_the_event_limit_is_the_callers() -> None:
    """`max_event_bytes` is obeyed; without it a mebibyte is."""
    assert isinstance(
        run_chain([Recorder()], [b"data: 123456\n\n"], max_event_bytes=10).failure, EventTooLarge
    )
    assert run_chain([Recorder()], [b"data: " + b"x" * 1_000_000 + b"\n\n"]).failure is None
    assert isinstance(
        run_chain([Recorder()], [b"data: " + b"x" * (1 << 20) + b"\n\n"]).failure, EventTooLarge
    )


def test_a_failing_start_is_raised_and_the_stream_is_ended() -> None:
    """`on_start` and `open_stream` have no result to stand in: their HookError comes out, and
    on_end is called.
    """
    ended: list[Outcome] = []

    class Stream(StreamInterceptor):
        def on_start(self, head: ResponseHead) -> None:
            raise KeyError("no start")

        def on_end(self, outcome: Outcome) -> None:
            ended.append(outcome)

    class Starts(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return Stream()

    with capture_logs(), pytest.raises(HookError, match=r"Starts\.on_start: KeyError: 'no start'"):
        run_chain([Starts()], [b"data: a\n\n"])
    assert ended == [Outcome.INTERCEPTED]


def test_each_run_is_a_stream_of_its_own() -> None:
    """One interceptor can be run again and again: a stream leaves nothing behind in the next."""
    recorder = Recorder()
    for _ in range(2):
        recorder.told.clear()
        assert run_chain([recorder], [b"data: a"]).output == b"data: a"
        assert recorder.told[2:] == ["a", Outcome.COMPLETED]


@pytest.mark.leaks
def test_a_lease_that_is_not_back_is_an_assertion_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the chain or the scope to forget a lease, an author's test would fail and name the pool."""
    forgotten: list[pools.Lease] = []

    async def forget(self: BufferScope, *_: object) -> None:
        forgotten.extend(self._leases)

    def borrow(event: Event) -> Event:
        return event.replace("changed")

    monkeypatch.setattr(BufferScope, "__aexit__", forget)
    monkeypatch.setattr(pools.PooledOutput, "close", lambda self: None)
    with pytest.raises(AssertionError, match=r"leases were not given back: \{'json': 1\}"):
        run_chain([Recorder(borrow)], [b"data: a\n\n"])
    for lease in forgotten:
        lease.release()


def test_a_body_that_nobody_wants_cannot_be_asked_for() -> None:
    """As behind a proxy, where it passes unread; when the run is over, the test has it again."""

    class Asks(Interceptor):
        async def on_request(self, request: Request) -> None:
            request.json()

    class Wants(Asks):
        wants_body = True

    class Replaces(Interceptor):
        async def on_request(self, request: Request) -> None:
            request.replace_body(json=[2])
            assert request.json() == [2]

    request = Request(body=b"[1]")
    with pytest.raises(InterceptorError, match="wants_body"):
        run_request([Asks()], request)
    assert request.body == b"[1]"
    assert run_request([Wants()], request) is None
    with pytest.raises(
        InterceptorError, match="wants_body"
    ):  # it is asked before there is a body, wherever it stands
        run_request([Wants(), Asks()], request)
    assert run_request([Replaces()], request) is None
    assert request.body == b"[2]"
    with pytest.raises(InterceptorError, match="wants_body"):
        run_request([Asks()], Request(body=None))


def test_a_task_s_task_is_its_interceptor_s() -> None:
    """What a task starts through the request counts as its interceptor's, whichever other hook runs
    meanwhile.
    """

    class Starts(Interceptor):
        on_error = "skip"

        async def on_request(self, request: Request) -> None:
            request.start_soon(self.task, request)

        async def task(self, request: Request) -> None:
            await trio.sleep(0)
            await trio.sleep(0)
            request.start_soon(self.fails)

        async def fails(self) -> None:
            raise ValueError("skipped")

    class Waits(Interceptor):
        async def on_request(self, request: Request) -> None:
            await wait_all_tasks_blocked()

    assert run_request([Starts(), Waits()], Request()) is None


# --- what would pass in silence
# -----------------------------------------------------------------------------------------

CHAT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
BODY = b'{"model":"m","choices":[{"index":0,"message":{"content":"a"}}]}'
OPENAI = Request(dialect="openai")
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'


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


class Heads(Interceptor):
    async def on_response(self, head: ResponseHead) -> None: ...


def test_a_dialect_that_is_not_recognised_is_told() -> None:
    """A forgotten `request=`, an answer in another format: the hooks see nothing, whatever the
    output is.
    """
    for run in (
        lambda: run_chain([Texts()], [CHAT]),
        lambda: run_json([Texts()], BODY),
        lambda: run_chain([Texts(), Recorder()], [CHAT], request=Request(path="/v1/chat")),
    ):
        with pytest.warns(
            NothingCalled, match=r"Texts recognised no dialect: .*Request\(dialect='openai'\)"
        ) as caught:
            run()
        assert caught[0].filename == __file__
    with pytest.warns(NothingCalled, match="Texts recognised no answer"):
        run_chain([Texts()], [b'data: {"a":1}\n\n'], request=OPENAI)
    with pytest.warns(NothingCalled, match="no hook of Texts was called"):
        run_chain([Texts()], [b'data: {"choices":[]}\n\n'], request=OPENAI)


class Needy(Recorder):
    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        stream = _NeedyStream()
        stream.needs = (b"needed",)
        return stream


class _NeedyStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        return event


def test_a_run_without_a_call_is_told() -> None:
    """Of whichever hook the function is for."""
    call = Request(method="POST", body=LIST)
    for run in (
        lambda: run_chain([Interceptor()], [CHAT]),
        lambda: run_chain([Heads()], [CHAT]),
        lambda: run_chain([Needy()], [CHAT]),
        lambda: run_json([Recorder()], BODY),  # no wants_json
        lambda: run_request([Recorder()], Request()),
        lambda: run_request([Heads()], Request()),
        lambda: run_response([Recorder()], ResponseHead(200, [])),
        lambda: run_request([Tools()], call),
        lambda: run_chain([Tools()], [b'data: {"jsonrpc":"2.0","method":"ping","id":1}\n\n']),
    ):
        with pytest.warns(NothingCalled, match="no hook of .* was called"):
            run()  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("error::interceptors.testing.NothingCalled")
def test_a_run_with_a_call_is_not() -> None:
    """One hook is enough; and a run that fails, ends, or has nobody to call is no riddle."""
    assert run_chain([Texts()], [CHAT], request=OPENAI).output == CHAT.replace(b'"a"', b'"A"')
    assert b'"A"' in run_json([Texts()], BODY, request=OPENAI)
    run_chain([], [CHAT])
    run_chain([Recorder(), Heads()], [])
    run_chain([Needy()], [b"data: needed\n\n"])
    run_chain([Recorder(lambda event: event)], [CHAT])
    run_response([Heads()], ResponseHead(200, []))
    tools = Tools()
    call = Request(method="POST", body=LIST.replace(b"list", b"call"))
    assert run_request([tools], call) is None
    asked = Request(method="POST", body=LIST)
    with pytest.warns(NothingCalled):
        run_request([tools], asked)
    run_json([tools], b'{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}', request=asked)
    assert "call" not in vars(tools)
    run_chain([Redact(patterns=["a"])], [b"data: x\n\n"])


class Wrong(Interceptor):
    on_error = "skip"

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream

    def open_stream(self, context: StreamContext) -> Any:
        return self.stream


def test_what_the_loader_refuses_is_refused_here() -> None:
    """By the same checks: of the interceptor's class, of what its object sets, and of each stream's
    class, whatever `on_error`.
    """

    class Misspelt(Interceptor):
        def on_text(self, text: str) -> None: ...

    class Timeout(StreamInterceptor):
        hook_timeout_s = 3

    class SyncHook(AsyncStreamInterceptor):
        def on_event(self, event: Event) -> Any:  # type: ignore[override]
            return event

    class AsyncDelta(MessageStream):
        async def on_text_delta(self, delta: Any) -> None: ...  # type: ignore[override]

    class Messages(MessageInterceptor):
        on_error = "skip"

        def open_messages(self, context: StreamContext) -> MessageStream:
            return AsyncDelta()

    for run, message in (
        (lambda: run_chain([Misspelt()], [CHAT]), "on_text"),
        (lambda: run_request([Misspelt()], Request()), "on_text"),
        (lambda: run_response([Misspelt()], ResponseHead(200, [])), "on_text"),
        (lambda: run_chain([Wrong(Timeout())], [CHAT]), "hook_timeout_s"),
        (lambda: run_chain([Wrong(SyncHook())], [CHAT]), "on_event must be async"),
        (lambda: run_chain([Messages()], [CHAT], request=OPENAI), "on_text_delta is async"),
        (lambda: run_json([Messages()], BODY, request=OPENAI), "on_text_delta is async"),
    ):
        with pytest.raises(LoadError, match=message):
            run()
    wrong = Wrong()
    wrong.on_error = "never"  # type: ignore[assignment]
    with pytest.raises(LoadError, match="expected one of abort, skip"):
        run_chain([wrong], [CHAT])


def test_a_coroutine_that_nobody_awaits_is_an_assertion_error() -> None:
    """Python only warns of it, somewhere; an author's test fails."""

    async def look_up() -> None: ...

    def forgets(event: Event) -> Event:
        look_up()  # type: ignore[unused-coroutine]
        return event

    with pytest.raises(AssertionError, match=r"did not await .*look_up' was never awaited"):
        run_chain([Recorder(forgets)], [b"data: a\n\n"])

    def warns(event: Event) -> Event:
        warnings.warn("mine", DeprecationWarning, stacklevel=2)
        return event

    with pytest.warns(DeprecationWarning, match="mine"):
        run_chain([Recorder(warns)], [b"data: a\n\n"])
