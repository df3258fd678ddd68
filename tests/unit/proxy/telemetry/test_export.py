"""What the SDK sends of a span, and how long a process that ends waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
from structlog.testing import capture_logs
from support.collector import open_collector

from proxy.telemetry import FinishedSpan, Tracing
from proxy.telemetry.otel import OtelSdk
from proxy.telemetry.tracing import FLUSH_S


async def test_a_text_that_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced: with it, the whole batch would be lost. Long values are cut as configured."""
    async with open_collector() as collector:
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        tracing = Tracing(OtelSdk(["otlp_proto_http"]))
        for text in ("Mühle 水", "half \ud800"):
            span = tracing.begin([], trio.current_time())
            attributes = {"text": text, "count": 7, "list": ["a"]}
            tracing.end(FinishedSpan(span, text, trio.current_time(), attributes, text))
        await tracing.aclose()
    assert [(span.name, span.error) for span in collector.spans] == [
        ("Mühle 水", "Mühle 水"),
        ("half ?", "half ?"),
    ]
    assert [span.attributes for span in collector.spans] == [
        {"text": "Mühle", "count": 7, "list": ["a"]},
        {"text": "half ", "count": 7, "list": ["a"]},
    ]


async def test_a_client_cannot_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK does not accept each `tracestate` that level 2 allows, and quotes it in a warning."""
    async with open_collector() as collector:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        tracing = Tracing(OtelSdk(["otlp_proto_http"]))
        parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = [(b"traceparent", parent), (b"tracestate", b"1digit=private")]
        with capture_logs() as log:
            span = tracing.begin(headers, trio.current_time())
            tracing.end(FinishedSpan(span, "GET /", trio.current_time(), {}, None))
            await tracing.aclose()
    assert span.tracestate == b"1digit=private"
    assert [item.name for item in collector.spans] == ["GET /"]
    assert not log


class _Stuck:
    """An SDK whose collector never answers."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def samples(self, trace_id: str, parent: object) -> bool:
        return True

    def export(self, finished: FinishedSpan) -> None:
        raise AssertionError

    def close(self) -> None:
        self.released.wait()


@pytest.fixture
def stuck() -> Iterator[_Stuck]:
    sdk = _Stuck()
    yield sdk
    sdk.released.set()


async def test_the_end_does_not_wait_for_a_collector(
    stuck: _Stuck, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    with capture_logs() as log:
        await Tracing(stuck).aclose()
    assert trio.current_time() - began == FLUSH_S
    assert [line["event"] for line in log] == ["tracing_failed"]
