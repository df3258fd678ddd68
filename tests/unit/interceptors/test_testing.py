"""`run_chain`, with which authors test their interceptors: it behaves as the proxy does, and finds what was kept."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

import pools
from interceptors import (
    Event,
    EventTooLarge,
    HookError,
    Interceptor,
    InterceptorError,
    Outcome,
    Request,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.redact import Redact
from interceptors.testing import run_chain, run_request
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
    assert (head.status, head.headers.get("Content-Type"), head.headers.get("x-none")) == (200, "text/event-stream", None)
    assert rest == ["a", "b", "tail", Outcome.COMPLETED]
    assert result.output == b"data: a\n\ndata: b\n\ndata: tail"


def test_request_and_head_can_be_given() -> None:
    """An interceptor that looks at the request or the response is tested with the author's own."""
    request = Request(route="/llm", method="POST", path="/llm/x", headers=[(b"a", b"b")], client="192.0.2.1")
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
    assert isinstance(run_chain([Recorder()], [b"data: 123456\n\n"], max_event_bytes=10).failure, EventTooLarge)
    assert run_chain([Recorder()], [b"data: " + b"x" * 1_000_000 + b"\n\n"]).failure is None
    assert isinstance(run_chain([Recorder()], [b"data: " + b"x" * (1 << 20) + b"\n\n"]).failure, EventTooLarge)


def test_a_failing_start_is_raised_and_the_stream_is_ended() -> None:
    """`on_start` and `open_stream` have no result to stand in: their HookError comes out, and on_end is called."""
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
    with pytest.raises(InterceptorError, match="wants_body"):  # it is asked before there is a body, wherever it stands
        run_request([Wants(), Asks()], request)
    assert run_request([Replaces()], request) is None
    assert request.body == b"[2]"
    with pytest.raises(InterceptorError, match="wants_body"):
        run_request([Asks()], Request(body=None))


def test_a_task_s_task_is_its_interceptor_s() -> None:
    """What a task starts through the request counts as its interceptor's, whichever other hook runs meanwhile."""

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
