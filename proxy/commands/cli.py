"""The `weirpool` command: serve, check, new-interceptor, new-key, demo, bench.

Exit status: 0, 1 (failed while running), 2 (wrong usage or configuration), 3 (could not begin to
serve; the log says why).
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

from ..config import check_config, log_warnings, single_upstream
from ..errors import ConfigError, Problem, StartError
from ..server.admin import bind_admin
from ..server.listen import Tls, bind_sockets
from ..server.reload import check_reload
from ..server.serve import START_FAILED, Serving, hold_reloads, run_server
from ..server.supervisor import run_workers
from ..worker.logs import configure_logging, release_stderr, take_over_stderr
from ..worker.siblings import open_mailboxes
from .bench.run import run_bench
from .demo import run_demo
from .new_interceptor import new_interceptor
from .new_key import new_key

__all__ = ["main"]

_CANNOT_PRINT = (errno.EPIPE, errno.ENOSPC, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_PRINT:
            raise
        with suppress(OSError):
            print(f"weirpool: cannot write to standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more at the end
        return 1
    except StartError as error:
        structlog.get_logger("proxy").error("start_failed", errors=list(error.errors))
        return START_FAILED
    except ConfigError as error:
        release_stderr()
        for problem in error.problems:
            print(
                problem.located if problem.file is not None else f"weirpool: {problem}",
                file=sys.stderr,
            )
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weirpool",
        description="A streaming reverse proxy for Server-Sent Events, programmable in Python.",
    )
    parser.add_argument("--version", action="version", version=f"weirpool {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the proxy")
    source = serve.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="the configuration, in YAML")
    source.add_argument(
        "--upstream", metavar="URL", help="no configuration: everything goes to this upstream"
    )
    serve.add_argument(
        "--bind",
        metavar="HOST:PORT",
        action="append",
        help="where to listen; may be repeated (default 127.0.0.1:8000)",
    )
    serve.add_argument(
        "--certfile",
        metavar="FILE",
        help="serve TLS (HTTP/1.1 and HTTP/2) with this certificate, PEM",
    )
    serve.add_argument("--keyfile", metavar="FILE", help="its key, PEM")
    serve.add_argument(
        "--workers", metavar="N", type=_count, default=1, help="processes (default 1)"
    )
    serve.set_defaults(run=_serve)

    check = commands.add_parser(
        "check", help="check a configuration: exit status 0, or 2 with every mistake and its place"
    )
    check.add_argument("file", metavar="FILE")
    check.add_argument("--strict", action="store_true", help="warnings fail, too")
    check.add_argument("--json", action="store_true", help="the result as JSON, on standard output")
    check.set_defaults(run=_check)

    new = commands.add_parser(
        "new-interceptor", help="write a small interceptor and its test, to begin with"
    )
    new.add_argument("name", metavar="NAME", help="as in redact-keys")
    new.set_defaults(run=_new_interceptor)

    key = commands.add_parser(
        "new-key", help="make a client's key for api_keys, and the line for the configuration"
    )
    key.add_argument("name", metavar="NAME", help="the client's name")
    key.set_defaults(run=_new_key)

    schema = commands.add_parser(
        "schema", help="print the JSON Schema of the configuration, for editors"
    )
    schema.add_argument(
        "--markdown", action="store_true", help="print docs/configuration.md instead"
    )
    schema.set_defaults(run=_schema)

    demo = commands.add_parser(
        "demo", help="an embedded upstream, the proxy, and a stream to watch"
    )
    demo.add_argument(
        "--port", type=int, default=8000, help="the proxy's port; 0: any free one (default 8000)"
    )
    demo.add_argument("--once", action="store_true", help="end after the stream")
    demo.set_defaults(run=lambda arguments: run_demo(arguments.port, once=arguments.once))

    bench = commands.add_parser("bench", help="measure this proxy on this machine")
    bench.add_argument(
        "scenario",
        nargs="*",
        help="which scenarios (default: the usual ones; a name that there is not lists all)",
    )
    bench.set_defaults(run=lambda arguments: run_bench(arguments.scenario))
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    hold_reloads()
    warnings: Sequence[Problem] = ()
    if arguments.upstream:
        config = single_upstream(arguments.upstream)
    else:
        # With its interceptors, so that a mistake ends the command, and not each worker in turn.
        checked = check_config(arguments.config)
        config, warnings = checked.require(), checked.warnings
    configure_logging(config.log.format, config.log.level)
    take_over_stderr()
    log_warnings(warnings)
    if (arguments.certfile is None) != (arguments.keyfile is None):
        raise ConfigError("--certfile and --keyfile go together")
    tls = None
    if arguments.certfile is not None:
        tls = Tls(arguments.certfile, arguments.keyfile)
        tls.check()
    serving = Serving(
        sockets=bind_sockets(
            arguments.bind or ["127.0.0.1:8000"], config.reverse_proxy.timeouts.send
        ),
        admin_sockets=bind_admin(config.admin, arguments.workers),
        tls=tls,
        file=arguments.config,
        mailboxes=open_mailboxes(arguments.workers) if arguments.workers > 1 else (),
    )
    if arguments.workers == 1:
        return run_server(config, serving)

    def reload() -> bool:
        nonlocal config
        new = check_reload(arguments.config)
        config = new or config
        return new is not None

    return run_workers(
        arguments.workers, lambda index, fd: run_server(config, serving, index, fd), reload
    )


def _check(arguments: argparse.Namespace) -> int:
    checked = check_config(arguments.file)
    failed = bool(checked.errors) or (arguments.strict and bool(checked.warnings))
    if arguments.json:
        fields = ("path", "line", "column", "value", "message", "hint", "severity")
        problems = [
            {name: getattr(problem, name) for name in fields} for problem in checked.problems
        ]
        print(
            json.dumps({"file": arguments.file, "ok": not failed, "problems": problems}, indent=2)
        )
        return 2 if failed else 0
    for problem in checked.problems:
        print(problem.located, file=sys.stderr)
    counts = [
        _counted(len(found), noun)
        for found, noun in ((checked.errors, "error"), (checked.warnings, "warning"))
        if found
    ]
    if failed:
        print(f"{arguments.file}: {', '.join(counts)}", file=sys.stderr)
        return 2
    routes = _counted(len(checked.require().reverse_proxy.routes), "route")
    print(f"{arguments.file}: ok ({', '.join([routes, *counts])})")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _schema(arguments: argparse.Namespace) -> int:
    from ..config.reference import json_schema, reference_page  # reads and parses source text

    text = reference_page() if arguments.markdown else json.dumps(json_schema(), indent=2) + "\n"
    print(text, end="")
    return 0


def _new_key(arguments: argparse.Namespace) -> int:
    key, line = new_key(arguments.name)
    print(f"{key}\n{line}")
    print(
        "The first line is the client's key: it is not stored and cannot be shown again. "
        "The second goes under options.keys of the interceptor api_keys.",
        file=sys.stderr,
    )
    return 0


def _new_interceptor(arguments: argparse.Namespace) -> int:
    print(new_interceptor(arguments.name, Path.cwd()), end="")
    return 0


def _count(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1 (got {text!r})")
    return int(text)


def _version() -> str:
    try:
        return version("weirpool")
    except PackageNotFoundError:
        return "(not installed)"
