"""The head that a traced request has at the upstream. A span costs little because the fields of its
context are the proxy's own: the head is not checked a second time.
"""

from __future__ import annotations

import pytest
from support.client import fetch
from support.proxy import config_for, open_proxy
from support.upstream import answering, open_upstream

from proxy.telemetry import FinishedSpan, TraceContext, Tracing
from proxy.upstream import http1

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class _Sdk:
    def __init__(self) -> None:
        self.finished: list[FinishedSpan] = []

    def samples(self, trace_id: str, parent: TraceContext | None) -> bool:
        return True

    def export(self, finished: FinishedSpan) -> None:
        self.finished.append(finished)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("sent", "trace_id", "state"),
    [
        ([], None, []),
        (
            [("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")],
            TRACE,
            ["a=1,b=2"],
        ),
        ([("traceparent", PARENT), ("tracestate", "a b=1")], TRACE, []),
        ([("Traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")], None, []),
        ([("tracestate", "a=1")], None, []),
    ],
)
async def test_the_head_is_written_as_it_was_read(
    sent: list[tuple[str, str]],
    trace_id: str | None,
    state: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(http1, "encode_head")  # checks what it writes
    sdk = _Sdk()
    answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    async with open_upstream(answer) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        proxy.worker.tracing = Tracing(sdk)
        answered = await fetch(proxy.port, headers=[*sent, ("x-a", "1")])
    assert answered.status == 200
    (request,), (finished,) = upstream.requests, sdk.finished
    span = finished.span
    assert trace_id in (None, span.trace_id)
    assert request.all("traceparent") == [
        f"00-{span.trace_id}-{span.span_id}-0{span.flags}".encode()
    ]
    assert [value.decode() for value in request.all("tracestate")] == state
    assert request.all("x-a") == [b"1"]
