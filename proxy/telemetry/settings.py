"""What the environment asks for: the variables of OpenTelemetry that decide whether the SDK is loaded,
and `OTEL_PROPAGATORS`.

OpenTelemetry, "SDK environment variables": an empty variable counts as unset. The SDK itself reads
what concerns exporters, batches, sampling and the resource.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["TracingUnavailable", "exporters_of", "propagates_context"]

_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""The exporter's entry point by protocol."""
_PROPAGATORS = ("tracecontext", "baggage", "none")


class TracingUnavailable(Exception):
    """The environment asks for traces that cannot be made. The text says what to set or install."""


def exporters_of(environment: Mapping[str, str]) -> list[str]:
    """The entry points of the exporters that the environment asks for. Raises `TracingUnavailable`.

    OTLP without a protocol is `http/protobuf`, the specification's default.
    """

    def value_of(name: str) -> str:
        return environment.get(name, "").strip()

    if value_of("OTEL_SDK_DISABLED").lower() == "true":
        return []
    listed = value_of("OTEL_TRACES_EXPORTER")
    if not listed:
        endpoint = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        listed = "otlp" if any(value_of(name) for name in endpoint) else ""
    names = [name for item in listed.split(",") if (name := item.strip()) not in ("", "none")]
    return [_otlp(value_of) if name == "otlp" else name for name in dict.fromkeys(names)]


def _otlp(value_of: Callable[[str], str]) -> str:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = value_of(variable)
        if protocol:
            if protocol not in _OTLP:
                raise TracingUnavailable(
                    f"{variable} is {protocol!r}: set it to http/protobuf or grpc"
                )
            return _OTLP[protocol]
    return _OTLP["http/protobuf"]


def propagates_context(environment: Mapping[str, str]) -> bool:
    """Whether the trace context is propagated. Raises `TracingUnavailable`.

    `baggage` changes nothing: the header passes like any other.
    """
    listed = environment.get("OTEL_PROPAGATORS", "").strip() or "tracecontext,baggage"
    names = {item.strip().lower() for item in listed.split(",")} - {""}
    unknown = sorted(names.difference(_PROPAGATORS))
    if unknown:
        raise TracingUnavailable(
            f"OTEL_PROPAGATORS has {', '.join(unknown)}: set it to {', '.join(_PROPAGATORS)} "
            "or a list of them"
        )
    return "tracecontext" in names and "none" not in names
