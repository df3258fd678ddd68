"""The writer of lines: hooks never wait, the order stays, what is lost is counted, and nothing is
lost at an orderly end.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import struct
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from interceptors import InterceptorError
from interceptors.toolkit.jsonl import LEAVE_S, Line, LineWriter, RotatingFile, encode_line


def rotating(path: Path | str, max_bytes: int = 1 << 20, keep: int = 5) -> RotatingFile:
    return RotatingFile(str(path), max_bytes=max_bytes, keep=keep)


def numbered(count: int) -> list[bytes]:
    return [b"%d\n" % number for number in range(count)]


class Disk:
    """A sink in memory, which stands still while `gate` is shut, and fails as long as it holds
    errors.
    """

    path = "the disk"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.errors: list[OSError | None] = []
        self.lines: list[bytes] = []
        self.batches = 0

    def open(self) -> None:
        """Nothing to do."""

    def write(self, lines: Sequence[Line]) -> tuple[Sequence[Line], OSError | None]:
        self.batches += 1
        self.entered.set()
        assert self.gate.wait(10)
        if self.errors and (error := self.errors.pop(0)) is not None:
            return lines, error
        self.lines += [line.data for line in lines]
        return (), None

    def close(self) -> None:
        """Nothing to do."""


async def in_thread(wait: Callable[[float], bool]) -> None:
    """Wait for a thread, which does not go by Trio's clock."""
    assert await trio.to_thread.run_sync(wait, 10)


async def until_written(disk: Disk, count: int) -> None:
    with trio.fail_after(10):
        while len(disk.lines) < count:
            await trio.sleep(0.002)


# The writer


async def test_everything_queued_is_written_in_order_at_an_orderly_end(tmp_path: Path) -> None:
    """Leaving waits for the disk."""
    writer = LineWriter(rotating(tmp_path / "lines"))
    async with writer.opened():
        for line in numbered(1000):
            assert writer.put(line)
    assert (tmp_path / "lines").read_bytes() == b"".join(numbered(1000))


async def test_everything_queued_is_written_when_cancelled(tmp_path: Path) -> None:
    """A cancelled lifespan writes what is queued, and the cancellation continues."""
    writer = LineWriter(rotating(tmp_path / "lines"))
    with trio.CancelScope() as scope:
        async with writer.opened():
            assert writer.put(b"1\n")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert (tmp_path / "lines").read_bytes() == b"1\n"


async def test_lines_leave_while_the_process_serves_and_together(tmp_path: Path) -> None:
    """Lines are written without an end of their streams, and those close together are one batch."""
    disk = Disk()
    writer = LineWriter(disk)
    async with writer.opened():
        for _ in range(2):
            before, batches = len(disk.lines), disk.batches
            for line in numbered(50):
                writer.put(line)
            await until_written(disk, before + 50)
            assert disk.batches == batches + 1


async def test_lines_that_fill_half_the_queue_are_written_at_once(mock_clock: Any) -> None:
    """The time in which lines gather does not pass here."""
    disk = Disk()
    writer = LineWriter(disk, max_held_bytes=40)
    async with writer.opened():
        assert writer.put(b"x" * 21)
        await in_thread(disk.entered.wait)


async def test_a_slow_disk_drops_lines_counts_them_where_they_were_and_logs_once() -> None:
    """While the disk stands still hooks continue."""
    disk = Disk()
    writer = LineWriter(disk, max_held_bytes=40)
    with capture_logs() as log:
        async with writer.opened():
            disk.gate.clear()
            took = [writer.put(line) for line in numbered(10)]
            await in_thread(disk.entered.wait)
            took += [writer.put(b"%d\n" % number) for number in range(10, 30)]
            assert (
                took == [True] * 16 + [False] * 14
            )  # ten of two bytes, then six of three, also with ten under way
            disk.gate.set()
            await until_written(disk, 10)
            with trio.fail_after(10):
                while (
                    writer._writing_bytes
                ):  # the thread is done; the writer learns of it a moment later
                    await trio.sleep(0.002)
            assert writer.put(b"30\n")
    dropped = b'{"event":"lines_dropped","count":14}\n'
    assert disk.lines == [*(b"%d\n" % number for number in range(16)), dropped, b"30\n"]
    assert log == [
        {
            "event": "lines_dropped",
            "log_level": "warning",
            "path": "the disk",
            "reason": "the disk does not keep up",
        }
    ]


async def test_what_a_failing_disk_loses_is_counted_until_it_is_logged() -> None:
    """Lines of failed batches, and the counts that fail with them, add up to one true count. The
    log has each time of trouble once.
    """
    disk = Disk()
    disk.errors = [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        None,
        OSError(errno.EIO, "Input/output error"),
    ]
    writer = LineWriter(disk)
    with capture_logs() as log:
        async with writer.opened():
            for batch in range(4):
                disk.entered.clear()
                writer.put(b"a%d\n" % batch)
                writer.put(b"b%d\n" % batch)
                await in_thread(disk.entered.wait)
                with trio.fail_after(10):
                    while writer._writing:
                        await trio.sleep(0.002)
    dropped = [b'{"event":"lines_dropped","count":%d}\n' % count for count in (4, 2)]
    assert disk.lines == [dropped[0], b"a2\n", b"b2\n", dropped[1]]
    assert [line["event"] for line in log] == ["lines_dropped"] * 2
    assert log[0]["reason"] == "[Errno 28] No space left on device"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
async def test_a_full_disk_fails_no_exchange_and_the_loss_is_logged() -> None:
    """A device that is always full. Each lifespan counts its own losses."""
    writer = LineWriter(rotating("/dev/full"))
    for _ in range(2):
        with capture_logs() as log:
            async with writer.opened():
                assert all(writer.put(line) for line in numbered(7))
        assert [line["event"] for line in log] == ["lines_dropped", "lines_lost"]
        assert log[1]["count"] == 7


async def test_a_fifo_without_a_reader_blocks_nothing(tmp_path: Path) -> None:
    """A write that blocks blocks its thread alone. A FIFO is never rotated."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    line = encode_line({"x": "y" * 1000})
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writer = LineWriter(rotating(path, max_bytes=100))
        async with writer.opened():
            for _ in range(200):
                assert writer.put(line)
            await until_full(reader)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
                assert writer.put(line)
            got = await trio.to_thread.run_sync(read_exactly, reader, 300 * len(line))
        assert got == 300 * line
    finally:
        os.close(reader)


async def test_leaving_does_not_wait_for_ever_for_a_disk_that_hangs(
    tmp_path: Path, mock_clock: Any
) -> None:
    """When its time is over, leaving gives up the hanging write, and the log counts how many lines
    may be lost with it.
    """
    path = tmp_path / "fifo"
    os.mkfifo(path)
    line = encode_line({"x": "y" * 1000})
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writer = LineWriter(rotating(path))
        with capture_logs() as log:
            async with trio.open_nursery() as nursery:

                async def lifespan() -> None:
                    async with writer.opened():
                        for _ in range(200):
                            writer.put(line)

                nursery.start_soon(lifespan)
                await until_full(reader)
                mock_clock.jump(LEAVE_S + 1)
        assert [(entry["event"], entry["count"]) for entry in log] == [("lines_lost", 200)]
        await trio.to_thread.run_sync(read_exactly, reader, 200 * len(line))  # lets the thread go
    finally:
        os.close(reader)


async def until_full(reader: int) -> None:
    """Wait, in a thread, until the FIFO takes no more."""

    def poll() -> None:
        for _ in range(10000):
            waiting = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))[0]
            if waiting > 65536 - 4096:
                return
            threading.Event().wait(0.001)
        raise AssertionError("the FIFO is not full")

    await trio.to_thread.run_sync(poll)


def read_exactly(fd: int, size: int) -> bytes:
    os.set_blocking(fd, True)
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


async def test_an_error_of_the_one_who_uses_it_comes_out_as_it_is(tmp_path: Path) -> None:
    """Not in a group that the nursery would make of it, and the lines are written all the same."""
    writer = LineWriter(rotating(tmp_path / "lines"))
    with pytest.raises(KeyError, match="mine"):
        async with writer.opened():
            writer.put(b"1\n")
            raise KeyError("mine")
    assert (tmp_path / "lines").read_bytes() == b"1\n"


async def test_a_path_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    """When the process begins to serve, and not with the first line."""
    writer = LineWriter(rotating(tmp_path / "missing" / "lines"))
    with pytest.raises(
        InterceptorError, match=r"cannot write to '.*/missing/lines': No such file or directory"
    ):
        async with writer.opened():
            pass


# The file


@contextmanager
def opened(file: RotatingFile) -> Iterator[Callable[..., tuple[list[bytes], OSError | None]]]:
    file.open()
    try:

        def write(*lines: bytes) -> tuple[list[bytes], OSError | None]:
            left, error = file.write([Line(line) for line in lines])
            return [line.data for line in left], error

        yield write
    finally:
        file.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_file_is_begun_anew_before_it_would_be_too_large(tmp_path: Path) -> None:
    """No file is larger than the limit, lines are never cut, the newest of the old is .1, and only
    as many as told stay.
    """
    with opened(rotating(tmp_path / "f", max_bytes=6, keep=2)) as write:
        assert write(*numbered(3)) == ([], None)
        assert contents(tmp_path) == {"f": b"0\n1\n2\n"}
        assert write(b"3\n") == ([], None)
        assert contents(tmp_path) == {"f": b"3\n", "f.1": b"0\n1\n2\n"}
        assert write(*numbered(8)) == ([], None)
        assert contents(tmp_path) == {"f": b"5\n6\n7\n", "f.1": b"2\n3\n4\n", "f.2": b"3\n0\n1\n"}


def test_a_line_larger_than_a_file_may_be_has_its_own_file(tmp_path: Path) -> None:
    """It is written whole, and the next line goes into the next file."""
    with opened(rotating(tmp_path / "f", max_bytes=4)) as write:
        write(b"0\n", b"too long\n", b"1\n")
    assert contents(tmp_path) == {"f": b"1\n", "f.1": b"too long\n", "f.2": b"0\n"}


def test_a_file_that_is_there_is_appended_to_and_counts(tmp_path: Path) -> None:
    """A restart loses nothing, and what was there counts for the limit."""
    (tmp_path / "f").write_bytes(b"old\n")
    with opened(rotating(tmp_path / "f", max_bytes=6)) as write:
        write(b"0\n", b"1\n")
    assert contents(tmp_path) == {"f": b"1\n", "f.1": b"old\n0\n"}


def test_a_line_that_a_crash_has_cut_spoils_no_other(tmp_path: Path) -> None:
    """The file ended within a line: that is ended, and the next begins on its own."""
    (tmp_path / "f").write_bytes(b"0\n{cut")
    with opened(rotating(tmp_path / "f")) as write:
        write(b"1\n")
    assert contents(tmp_path) == {"f": b"0\n{cut\n1\n"}


def test_a_disk_that_is_full_within_a_line_spoils_no_other(tmp_path: Path) -> None:
    """A short write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(rotating(tmp_path / "f")) as write:
        resource.setrlimit(resource.RLIMIT_FSIZE, (7, hard))
        try:
            left, error = write(b"one\n", b"two is long\n", b"three\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert left == [b"two is long\n", b"three\n"]
        assert error is not None
        assert error.errno == errno.EFBIG
        assert write(b"four\n") == ([], None)
    assert contents(tmp_path) == {"f": b"one\ntwo\nfour\n"}


def test_a_rotation_that_fails_is_tried_again(tmp_path: Path) -> None:
    """While the older file cannot be moved, lines are lost and this is logged; then it continues."""
    (tmp_path / "f.1").mkdir()
    with opened(rotating(tmp_path / "f", max_bytes=4, keep=1)) as write:
        left, error = write(b"0\n", b"1\n", b"2\n")
        assert (left, type(error)) == ([b"2\n"], IsADirectoryError)
        (tmp_path / "f.1").rmdir()
        assert write(b"3\n") == ([], None)
    assert contents(tmp_path) == {"f": b"3\n", "f.1": b"0\n1\n"}


def test_a_file_that_could_not_be_opened_again_is_tried_again(tmp_path: Path) -> None:
    """Its directory is away for a while."""
    directory, away = tmp_path / "here", tmp_path / "away"
    directory.mkdir()
    with opened(rotating(directory / "f", max_bytes=6)) as write:
        assert write(b"0\n", b"1\n") == ([], None)
        directory.rename(away)
        for _ in range(2):
            left, error = write(b"long\n")
            assert (left, type(error)) == ([b"long\n"], FileNotFoundError)
        away.rename(directory)
        assert write(b"2\n", b"3\n") == ([], None)
    assert contents(directory) == {"f": b"3\n", "f.1": b"0\n1\n2\n"}


def test_only_the_owner_may_read_and_each_process_may_have_its_own(tmp_path: Path) -> None:
    """New files have mode 0600, also those after a rotation; `{pid}` is the process's id."""
    with opened(rotating(tmp_path / "f-{pid}", max_bytes=2, keep=2)) as write:
        write(*numbered(2))
    name = f"f-{os.getpid()}"
    assert sorted(contents(tmp_path)) == [name, f"{name}.1"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_line_is_json_on_one_line() -> None:
    """Whatever a text holds, it does not end the line."""
    text = "a\nb\r\u2028\u0000é"
    line = encode_line({"data": text})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"data": text}
