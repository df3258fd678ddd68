"""The options of each command."""

from __future__ import annotations

import argparse
import re

__all__ = [
    "add_bench",
    "add_check",
    "add_demo",
    "add_new_interceptor",
    "add_new_key",
    "add_schema",
    "add_serve",
    "add_tail",
    "add_top",
    "add_usage",
]


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    source = serve.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="the configuration file (YAML)")
    source.add_argument(
        "--upstream",
        metavar="URL",
        help="forward every request to this URL, without a configuration",
    )
    serve.add_argument(
        "--bind",
        metavar="HOST:PORT",
        action="append",
        help="address to listen on, repeatable; systemd for the sockets that systemd passes"
        " (default: those, otherwise 127.0.0.1:8000)",
    )
    serve.add_argument(
        "--certfile",
        metavar="FILE",
        help="PEM certificate: serve TLS with HTTP/1.1 and HTTP/2",
    )
    serve.add_argument("--keyfile", metavar="FILE", help="PEM key of the certificate")
    serve.add_argument(
        "--workers", metavar="N", type=_count, default=1, help="number of processes (default: 1)"
    )


def add_check(check: argparse.ArgumentParser) -> None:
    """Add the options of `check`."""
    check.add_argument("file", metavar="FILE")
    check.add_argument("--strict", action="store_true", help="treat warnings as errors")
    check.add_argument("--json", action="store_true", help="print the result as JSON")


def add_schema(schema: argparse.ArgumentParser) -> None:
    """Add the options of `schema`."""
    schema.add_argument(
        "--markdown", action="store_true", help="print docs/configuration.md instead"
    )
    schema.add_argument(
        "--log", action="store_true", help="print the JSON Schema of the log's lines instead"
    )


def add_new_interceptor(new: argparse.ArgumentParser) -> None:
    """Add the options of `new-interceptor`."""
    new.add_argument("name", metavar="NAME", help="such as redact-keys")


def add_new_key(key: argparse.ArgumentParser) -> None:
    """Add the options of `new-key`."""
    key.add_argument("name", metavar="NAME", help="the client's name")


def add_demo(demo: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    demo.add_argument(
        "--port",
        type=int,
        default=8000,
        help="the proxy's port, 0 for any free one (default: 8000)",
    )
    demo.add_argument("--once", action="store_true", help="exit after the stream")


def add_bench(bench: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
    bench.add_argument(
        "scenario",
        nargs="*",
        help="scenarios to run (default: a selection; an unknown name lists all)",
    )


def add_tail(tail: argparse.ArgumentParser) -> None:
    """Add the options of `tail`."""
    _add_pages(tail)
    tail.add_argument("--exchange", metavar="ID", help="one live stream: its id, or its request id")
    tail.add_argument("--route", metavar="PREFIX", help="streams of this route")
    tail.add_argument("--client", metavar="ADDRESS", help="streams of this client")
    tail.add_argument("--model", metavar="NAME", help="answers of this model")
    tail.add_argument("--text", help="streams in which an event contains this text")
    tail.add_argument("--once", action="store_true", help="only the next stream; then exit")
    tail.add_argument("--events", action="store_true", help="show every event")
    tail.add_argument("--json", action="store_true", help="print every message as a line of JSON")
    tail.add_argument(
        "--tape",
        metavar="FILE",
        help="also write one stream to a new file that the interceptor replay plays; implies --events "
        "and --once",
    )


def add_top(top: argparse.ArgumentParser) -> None:
    """Add the options of `top`."""
    _add_pages(top)
    top.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        default=1.0,
        help="time between updates, at least 1 (default: 1)",
    )
    top.add_argument("--once", action="store_true", help="print the state as text and exit")


def add_usage(usage: argparse.ArgumentParser) -> None:
    """Add the options of `usage`."""
    usage.add_argument(
        "--config", metavar="FILE", required=True, help="the configuration file, with store.url"
    )
    usage.add_argument(
        "--by",
        metavar="COLUMNS",
        default="client,model",
        help="columns with commas: route, model, client (default: client,model)",
    )
    usage.add_argument(
        "--since", metavar="TIME", default="24h", help="such as 24h or 7d (default: 24h)"
    )
    usage.add_argument("--format", choices=("table", "json", "csv"), default="table")


def _add_pages(command: argparse.ArgumentParser) -> None:
    """Add the options that say where the admin pages are."""
    command.add_argument(
        "--url",
        default="http://127.0.0.1:9000",
        help="the admin port, or the proxy, with admin.prefix (default: http://127.0.0.1:9000)",
    )
    command.add_argument(
        "--token", help="admin.token of the configuration (default: $WEIRPOOL_ADMIN_TOKEN)"
    )


def _count(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1 (got {text!r})")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", text) or float(text) < 1:
        raise argparse.ArgumentTypeError(f"must be seconds, from 1 to 9999 (got {text!r})")
    return float(text)
