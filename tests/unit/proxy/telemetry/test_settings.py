"""Which variables turn traces on, and what is wrong with the others."""

from __future__ import annotations

import random

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    set_span_in_context,
)

from proxy.telemetry import TraceContext
from proxy.telemetry.otel import OtelSdk
from proxy.telemetry.settings import TracingUnavailable, exporters_of, propagates_context

HTTP, GRPC = "otlp_proto_http", "otlp_proto_grpc"
AT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, []),
        (AT, [HTTP]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, [HTTP]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, [HTTP]),
        ({"OTEL_TRACES_EXPORTER": ""} | AT, [HTTP]),
        ({"OTEL_TRACES_EXPORTER": "none"} | AT, []),
        ({"OTEL_TRACES_EXPORTER": "console, otlp,console"}, ["console", HTTP]),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ["zipkin"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} | AT, [GRPC]),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"} | AT,
            [HTTP],
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"} | AT, None),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_PROTOCOL": "?"} | AT, []),
        ({"OTEL_SDK_DISABLED": "1"} | AT, [HTTP]),  # only "true" is true
    ],
)  # fmt: skip
def test_when_traces_are_on(environment: dict[str, str], exporters: list[str] | None) -> None:
    if exporters is None:
        with pytest.raises(TracingUnavailable, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'"):
            exporters_of(environment)
    else:
        assert exporters_of(environment) == exporters


@pytest.mark.parametrize(
    ("listed", "propagates"),
    [
        ("", True),
        ("tracecontext", True),
        ("TraceContext, baggage", True),
        ("baggage", False),
        ("none", False),
        ("tracecontext,none", False),
        ("b3,tracecontext", None),
    ],
)
def test_propagators(listed: str, propagates: bool | None) -> None:
    if propagates is None:
        with pytest.raises(TracingUnavailable, match="OTEL_PROPAGATORS has b3: set it to tracec"):
            propagates_context({"OTEL_PROPAGATORS": listed})
    else:
        assert propagates_context({"OTEL_PROPAGATORS": listed}) is propagates


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (None, None),
        ("always_on", None),
        ("always_off", None),
        ("parentbased_always_on", None),
        ("parentbased_always_off", None),
        ("traceidratio", "0.3"),
        ("parentbased_traceidratio", "0.3"),
        ("parentbased_traceidratio", "0"),
        ("parentbased_traceidratio", "1"),
        ("traceidratio", "1e-5"),
        ("parentbased_traceidratio", "many"),
        ("unheard_of", None),
    ],
)
def test_traces_are_sampled_as_the_sdk_does(
    name: str | None, argument: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("SAMPLER", name), ("SAMPLER_ARG", argument)):
        monkeypatch.delenv(f"OTEL_TRACES_{variable}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"OTEL_TRACES_{variable}", value)
    sdk, theirs = OtelSdk([]), TracerProvider(shutdown_on_exit=False).sampler
    numbers = random.Random(1)
    near = [round(0.3 * 2**64) + step for step in (-1, 0, 1)]  # the bound of that ratio
    for trace_id in [*near, *(numbers.getrandbits(128) for _ in range(300))]:
        for parent in (None, 0, 1, 3):
            context, ours = Context(), None
            if parent is not None:
                remote = SpanContext(trace_id, 7, is_remote=True, trace_flags=TraceFlags(parent))
                context = set_span_in_context(NonRecordingSpan(remote), context)
                ours = TraceContext(f"{trace_id:032x}", f"{7:016x}", parent)
            result = theirs.should_sample(context, trace_id, "", SpanKind.CLIENT)
            assert sdk.samples(f"{trace_id:032x}", ours) == result.decision.is_sampled()
