"""The log's writer on every kind of file, and what its two formats make of hostile text."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from proxy.worker import logs, stderr
from proxy.worker.log_lines import Console
from proxy.worker.log_writer import LogWriter
from proxy.worker.logs import configure_logging
from proxy.worker.stderr import release_stderr, take_over_stderr


def report(count: int) -> bytes:
    return b"dropped %d\n" % count


@pytest.fixture
def open_writer() -> Iterator[Callable[..., LogWriter]]:
    """Makes writers, which write nothing after the test."""
    made: list[LogWriter] = []

    def make(fd: int, **options: Any) -> LogWriter:
        made.append(LogWriter(fd, report, **options))
        return made[-1]

    yield make
    for writer in made:
        writer._send = len  # type: ignore[method-assign]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def read_lines(fd: int, count: int) -> list[bytes]:
    """The next lines, at least so many."""
    data = b""
    while data.count(b"\n") < count or not data.endswith(b"\n"):
        data += os.read(fd, 65536)
    return data.splitlines(keepends=True)


def test_lines_leave_in_their_order(open_writer: Callable[..., LogWriter], tmp_path: Path) -> None:
    """From several bursts, long ones and short ones."""
    lines = [b"%d %s\n" % (number, b"x" * (number % 3 * 3000)) for number in range(200)]
    with (tmp_path / "log").open("wb") as file:
        writer = open_writer(file.fileno())
        for line in lines:
            writer.put(line)
        assert writer.flush(10)
    assert (tmp_path / "log").read_bytes() == b"".join(lines)
    assert writer.dropped_total == 0


def test_a_reader_that_stops_reading_costs_lines_and_no_time(
    open_writer: Callable[..., LogWriter], pipe: tuple[int, int]
) -> None:
    """What the pipe and the queue hold arrives."""
    reader, fd = pipe
    writer = open_writer(fd, max_held_bytes=200_000)
    for _ in range(1000):
        writer.put(b"x" * 999 + b"\n")
    assert not writer.flush(0.01)
    assert writer.dropped_total > 500
    lines = read_lines(reader, 1000 - writer.dropped_total + 1)
    writer.put(b"new\n")
    lines += read_lines(reader, 1)
    assert lines[-2:] == [b"dropped %d\n" % writer.dropped_total, b"new\n"]
    assert len(lines) - 2 + writer.dropped_total == 1000


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal", "closed"])
def test_a_failing_file_costs_lines(open_writer: Callable[..., LogWriter], kind: str) -> None:
    """EPIPE, ECONNRESET, EIO, EBADF."""
    ours, theirs = {
        "pipe": os.pipe,
        "socket": lambda: tuple(end.detach() for end in socket.socketpair()),
        "terminal": pty.openpty,
        "closed": os.pipe,
    }[kind]()
    writer = open_writer(theirs)
    writer.put(b"first\n")
    assert writer.flush(10)
    os.close(theirs if kind == "closed" else ours)
    for _ in range(3):
        writer.put(b"lost\n")
    assert writer.flush(10)
    deadline = time.monotonic() + 10
    while writer.dropped_total != 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.close(ours if kind == "closed" else theirs)


def test_a_non_blocking_file_is_waited_for(
    open_writer: Callable[..., LogWriter], pipe: tuple[int, int]
) -> None:
    """EAGAIN is not a failure: another process has made the shared file non-blocking."""
    reader, fd = pipe
    os.set_blocking(fd, False)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    lines = [b"%d %s\n" % (number, b"x" * number * 100) for number in range(50)]
    writer = open_writer(fd)
    for line in lines:
        writer.put(line)
    assert read_lines(reader, len(lines)) == lines
    assert writer.dropped_total == 0


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Limit the size of this process's files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (b"", b"0123456789 0123456789 0123456789 dropped-3 new newer"),
        (b"another\n", b"0123456789 0123456789 012another dropped-3 new dropped-1 newer"),
    ],
)
def test_a_full_disk_leaves_whole_lines(
    open_writer: Callable[..., LogWriter],
    small_files: Callable[[int], None],
    tmp_path: Path,
    other: bytes,
    expected: bytes,
) -> None:
    """A line written in part is completed later, unless another worker has written since. A report
    that cannot be written is made again.
    """
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        writer = open_writer(file.fileno())
        small_files(25)
        for count in (5, 1):
            for _ in range(count):
                writer.put(b"0123456789\n")
            assert writer.flush(10)
        small_files(10_000)
        file.write(other)
        for line in (b"new\n", b"newer\n"):
            writer.put(line)
            assert writer.flush(10)
    assert path.read_bytes().replace(b" ", b"-").split() == expected.split()
    assert writer.dropped_total == (4 if other else 3)


def test_a_child_process_has_an_empty_queue(
    open_writer: Callable[..., LogWriter], pipe: tuple[int, int]
) -> None:
    """What waits in the parent is written by the parent alone."""
    reader, fd = pipe
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    writer = open_writer(fd)
    for _ in range(10):
        writer.put(b"p" * 999 + b"\n")
    pid = os.fork()
    if pid == 0:
        writer.reset()
        writer.put(b"child\n")
        writer.flush(5)
        os._exit(0)
    lines = read_lines(reader, 11)
    os.waitpid(pid, 0)
    assert sorted(lines) == [b"child\n", *[b"p" * 999 + b"\n"] * 10]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the log, instead of its file."""
    lines: list[str] = []
    monkeypatch.setattr(logs.output.writer, "put", lambda line: lines.append(line.decode()))
    return lines


CONTROL = [chr(code) for code in (*range(32), *range(127, 160), 0x2028, 0x2029, 0xD800, 0xDFFF)]
ALLOWED = re.compile("\x1b\\[[0-9]+m|\n    ")
text = st.text(st.sampled_from([*CONTROL, "a", " ", "=", "'", "é", "🎉"]), max_size=8)


@pytest.mark.parametrize("colours", [False, True])
@given(event=text, key=text, value=text, message=text)
def test_no_text_controls_the_terminal(
    colours: bool, event: str, key: str, value: str, message: str
) -> None:
    """Keys, values, event names and tracebacks."""
    odd = type("T", (), {"__repr__": lambda _: value})()
    line = {"event": event, "level": "info", key or "k": value, "items": [value], "object": odd}
    line["exception"] = f"Traceback\nValueError: {message}"
    rendered = Console(colours=colours).render(line)
    rest = ALLOWED.sub("", rendered)
    assert not set(rest) & set(CONTROL)
    if not colours:
        assert "\x1b" not in rendered
    rendered.encode()


def test_the_console_stays_readable(written: list[str]) -> None:
    configure_logging("console")
    log = structlog.get_logger("proxy")
    log.info("usage", model="\x1b[2J\x1b]0;owned\x07", tokens=3, text="two words", name="gpt-4é")
    try:
        raise ValueError("first\nsecond\x1b[2J")
    except ValueError:
        log.exception("failed")
    usage, failed = written
    assert (
        usage.split("] ", 1)[1]
        == f"{'usage':<30} model=\\x1b[2J\\x1b]0;owned\\x07 name=gpt-4é text='two words' tokens=3\n"
    )
    assert "\n    ValueError: first\n    second\\x1b[2J\n" in failed


def test_json_never_fails(written: list[str]) -> None:
    """Values that JSON has no form for are written as text; nothing raises into the code that logs."""
    configure_logging("json")

    class Bad:
        def __repr__(self) -> str:
            raise ValueError

    circle: list[Any] = []
    circle.append(circle)
    values = ["\ud800", float("nan"), circle, {(1, 2): 3}, Bad(), b"\xff", object(), {1}, Bad]
    for value in [*values, ValueError("x")]:
        structlog.get_logger("proxy").info("odd", value=value, count=3)
    for line in written:
        parsed = json.loads(line, parse_constant=lambda name: pytest.fail(name))
        assert (parsed["event"], parsed["count"], parsed["level"]) == ("odd", 3, "info")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", parsed["timestamp"])


def test_json_has_no_half_of_a_surrogate_pair(written: list[str]) -> None:
    """Strict readers such as jq stop at one."""
    configure_logging("json")
    text = "\udc00\ud800 \\ud800 \\\ud800 \ud83d\udca5 \U0001f4a5"
    structlog.get_logger("proxy").info("odd", value=text)
    shown = json.loads(written[0])["value"]
    assert shown == "\\udc00\\ud800 \\ud800 \\\\ud800 \U0001f4a5 \U0001f4a5"
    msgspec.json.decode(written[0])


def test_failed_accepts_are_one_line_a_second(
    written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trio logs each of them, with a traceback; a line has their count."""
    now = 100.0
    monkeypatch.setattr(stderr.time, "monotonic", lambda: now)
    configure_logging("json")
    take_over_stderr()
    for _ in range(25):  # of one listener
        now += 0.1
        try:
            raise OSError(24, "Too many open files")
        except OSError:
            log = logging.getLogger("trio.serve_listeners")
            log.error("accept returned %s", "EMFILE", exc_info=True)
    lines = [json.loads(line) for line in written]
    assert [(line["event"], line["error"], line["level"]) for line in lines] == [
        ("accept_failed", "Too many open files", "error")
    ] * 3
    assert sum(line["count"] for line in lines) >= 20


def test_standard_error_is_given_back() -> None:
    """Tests, and programs that embed the proxy, get back what was there."""
    before = (sys.stderr, sys.excepthook, logging.root.handlers[:])
    take_over_stderr()
    take_over_stderr()
    assert sys.stderr is not before[0]
    release_stderr()
    assert (sys.stderr, sys.excepthook, logging.root.handlers[:]) == before
