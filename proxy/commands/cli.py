"""The command line: arguments, and exit statuses.

0: success. 1: failed while running. 2: wrong usage or configuration. 3: could not start to serve;
the log has the cause.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from ..config import Checked, check_config, log_warnings, single_upstream
from ..errors import ConfigError, Problem, StartError
from ..server.activation import open_sockets
from ..server.listen import Tls
from ..server.local_store import LocalStore
from ..server.notify import Reports, find_notifier
from ..server.reload import check_reload
from ..server.serve import START_FAILED, Serving, hold_signals, run_server, time_to_end_s
from ..server.supervisor import run_workers
from ..version import installed_version
from ..worker.log_level import CurrentLevel
from ..worker.logs import configure_logging
from ..worker.secret import log_random_secret, new_random_secret
from ..worker.siblings import open_group
from ..worker.stderr import release_stderr, take_over_stderr
from .arguments import (
    add_bench,
    add_check,
    add_demo,
    add_new_interceptor,
    add_new_key,
    add_schema,
    add_serve,
    add_tail,
    add_top,
    add_usage,
)
from .new_interceptor import new_interceptor
from .new_key import new_key

__all__ = ["main"]

_CANNOT_PRINT = (errno.EPIPE, errno.ENOSPC, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    _open_standard_files()
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_PRINT:
            raise
        with suppress(OSError):
            print(f"weirpool: cannot write to standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it again at exit
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


def _open_standard_files() -> None:
    """Open the null device for each standard file that is closed.

    Otherwise a socket gets its number, and what C code prints reaches a client.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as above


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weirpool",
        description="A streaming reverse proxy for Server-Sent Events, programmable in Python.",
    )
    version = installed_version() or "(not installed)"
    parser.add_argument("--version", action="version", version=f"weirpool {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, add_options, run in _COMMANDS:
        command = commands.add_parser(name, help=text)
        add_options(command)
        command.set_defaults(run=run)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    hold_signals()
    warnings: Sequence[Problem] = ()
    if arguments.upstream:
        config = single_upstream(arguments.upstream)
    else:
        # With its interceptors, so that an error ends the command rather than each worker.
        checked = check_config(arguments.config)
        config, warnings = checked.require(), checked.warnings
    configure_logging(config.log.format, config.log.level)
    take_over_stderr()
    log_warnings(warnings)
    new_random_secret()  # workers are forked later
    log_random_secret(config, arguments.workers)
    tls = _tls(arguments.certfile, arguments.keyfile)
    store = None
    if arguments.workers > 1 and config.store.url is None and config.store.local == "auto":
        store = LocalStore.find()
    store_url = None if store is None else store.url
    group = open_group(arguments.workers, store_url) if arguments.workers > 1 else None
    sockets = open_sockets(arguments.bind, config)
    notifier = find_notifier()
    serving = Serving(
        sockets=sockets.main,
        admin_socket=sockets.admin,
        tls=tls,
        file=arguments.config,
        group=group,
        notifier=notifier if group is None else None,
    )
    if group is None:
        return run_server(config, serving)
    reports = None
    if notifier is not None:
        reports = Reports(notifier, group.memories, time_to_end_s(config))
    level = CurrentLevel(group.memories, group.memories[0], config.log.level)

    def reload() -> bool:
        nonlocal config
        new = check_reload(arguments.config, group.notice)
        if new is not None:  # a later worker uses the same store as the others
            config = msgspec.structs.replace(new, store=config.store)
            level.configure(config.log.level)
            if reports is not None:
                reports.stop_s = time_to_end_s(config)
        return new is not None

    return run_workers(
        lambda index, fd: run_server(config, serving, index, fd),
        reload,
        group.memories,
        level,
        lambda: time_to_end_s(config),
        store,
        reports,
    )


def _tls(certfile: str | None, keyfile: str | None) -> Tls | None:
    """Raises `ConfigError` if the files cannot be used."""
    if certfile is None and keyfile is None:
        return None
    if certfile is None or keyfile is None:
        raise ConfigError("--certfile and --keyfile require each other")
    tls = Tls(certfile, keyfile)
    tls.check()
    return tls


def _check(arguments: argparse.Namespace) -> int:
    checked = check_config(arguments.file)
    failed = bool(checked.errors) or (arguments.strict and bool(checked.warnings))
    if arguments.json:
        _print_check(arguments.file, checked, failed)
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


def _print_check(file: str, checked: Checked, failed: bool) -> None:
    fields = ("path", "line", "column", "value", "message", "hint", "severity")
    problems = [{name: getattr(problem, name) for name in fields} for problem in checked.problems]
    print(json.dumps({"file": file, "ok": not failed, "problems": problems}, indent=2))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _schema(arguments: argparse.Namespace) -> int:
    from ..config.reference import json_schema, reference_page  # reads and parses source text
    from ..worker.log_schema import log_schema

    if arguments.markdown:
        print(reference_page(), end="")
        return 0
    print(json.dumps(log_schema() if arguments.log else json_schema(), indent=2))
    return 0


def _usage(arguments: argparse.Namespace) -> int:
    from .usage import parse_columns, parse_since, run_usage  # `serve` does not need it

    try:
        columns, since_s = parse_columns(arguments.by), parse_since(arguments.since)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(run_usage(arguments.config, columns, since_s, arguments.format), end="")
    return 0


def _tail(arguments: argparse.Namespace) -> int:
    from .tail.run import Asked, run_tail  # `serve` does not need it

    names = ("exchange", "route", "client", "model", "text")
    query = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    if arguments.once or arguments.tape:
        query["once"] = "true"
    if not (arguments.events or arguments.tape):
        query["events"] = "false"
    asked = Asked(arguments.url, arguments.token, query, arguments.json, arguments.tape)
    return run_tail(asked)


def _top(arguments: argparse.Namespace) -> int:
    from .top.run import run_top  # `serve` does not need it

    return run_top(arguments.url, arguments.token, arguments.interval, once=arguments.once)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo  # `serve` does not need it

    return run_demo(arguments.port, once=arguments.once)


def _bench(arguments: argparse.Namespace) -> int:
    from .bench.run import run_bench  # `serve` does not need it

    return run_bench(arguments.scenario)


def _new_key(arguments: argparse.Namespace) -> int:
    key, line = new_key(arguments.name)
    print(f"{key}\n{line}")
    print(
        "The first line is the client's key. It is not stored and cannot be shown again. "
        "Put the second line under options.keys of the interceptor api_keys.",
        file=sys.stderr,
    )
    return 0


def _new_interceptor(arguments: argparse.Namespace) -> int:
    print(new_interceptor(arguments.name, Path.cwd()), end="")
    return 0


_COMMANDS = (
    ("serve", "run the proxy", add_serve, _serve),
    (
        "check",
        "check a configuration file and report every mistake with its line",
        add_check,
        _check,
    ),
    ("schema", "print the JSON Schema of the configuration, for editors", add_schema, _schema),
    (
        "new-interceptor",
        "write a small interceptor and its test",
        add_new_interceptor,
        _new_interceptor,
    ),
    (
        "new-key",
        "generate a client's key for the interceptor api_keys",
        add_new_key,
        _new_key,
    ),
    ("usage", "print the sums of the interceptor usage in the store", add_usage, _usage),
    ("tail", "show live streams of a running proxy", add_tail, _tail),
    ("top", "show the live state of a proxy in this terminal", add_top, _top),
    ("demo", "show a stream through the proxy, with an embedded upstream", add_demo, _demo),
    ("bench", "measure this proxy on this machine", add_bench, _bench),
)
"""Name, help, options, and what runs it."""
