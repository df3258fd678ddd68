"""The writer of lines: hooks never wait, the order stays, what is lost is counted, and nothing is
lost at an orderly end.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import until

from interceptors.toolkit.jsonl import LEAVE_S, Line, LineWriter, RotatingFile


def rotating(path: Path | str, max_bytes: int = 1 << 20, keep: int = 5) -> RotatingFile:
    return RotatingFile(str(path), max_bytes=max_bytes, keep=keep)


def numbered(*numbers: int) -> list[bytes]:
    return [b"%d\n" % number for number in range(*numbers)]


def dropped(count: int) -> bytes:
    return b'{"event":"lines_dropped","count":%d}\n' % count


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

    async def wait_entered(self) -> None:
        """Wait for the thread, which does not go by Trio's clock."""
        assert await trio.to_thread.run_sync(self.entered.wait, 10)


# The writer


@pytest.mark.parametrize("ending", ["orderly", "cancelled", "failing"])
async def test_what_is_queued_is_written_at_the_end(ending: str, tmp_path: Path) -> None:
    """Leaving waits for the disk, and the cancellation or the error continues as it is."""
    writer = LineWriter(rotating(tmp_path / "lines"))
    fails = pytest.raises(KeyError) if ending == "failing" else nullcontext()
    with trio.CancelScope() as scope, fails:
        async with writer.opened():
            assert all(map(writer.put, numbered(1000)))
            if ending == "cancelled":
                scope.cancel()
                await trio.sleep_forever()
            if ending == "failing":
                raise KeyError
    assert scope.cancelled_caught is (ending == "cancelled")
    assert (tmp_path / "lines").read_bytes() == b"".join(numbered(1000))


async def test_lines_leave_while_the_process_serves_and_together() -> None:
    """Lines are written without an end of their streams, and those close together are one batch."""
    disk = Disk()
    writer = LineWriter(disk)
    async with writer.opened():
        for batch in (1, 2):
            for line in numbered(50):
                writer.put(line)
            await until(lambda batch=batch: len(disk.lines) == 50 * batch)
            assert disk.batches == batch


async def test_a_slow_disk_drops_lines_counts_them_where_they_were_and_logs_once() -> None:
    """While the disk stands still hooks continue."""
    disk = Disk()
    writer = LineWriter(disk, max_held_bytes=40)
    with capture_logs() as log:
        async with writer.opened():
            disk.gate.clear()
            took = [writer.put(line) for line in numbered(10)]
            await disk.wait_entered()
            took += [writer.put(line) for line in numbered(10, 30)]
            # Ten of two bytes, then six of three, also with ten under way.
            assert took == [True] * 16 + [False] * 14
            disk.gate.set()
            await until(lambda: not writer._writing_bytes)
            assert writer.put(b"30\n")
    assert disk.lines == [*numbered(16), dropped(14), b"30\n"]
    facts = {"path": "the disk", "reason": "the disk does not keep up", "log_level": "warning"}
    assert log == [{"event": "lines_dropped", **facts}]


async def test_what_a_failing_disk_loses_is_counted_until_it_is_logged() -> None:
    """Lines of failed batches, and the counts that fail with them, add up to one true count. The
    log has each time of trouble once.
    """
    disk = Disk()
    full, broken = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Error")
    disk.errors = [full, broken, None, broken]
    writer = LineWriter(disk)
    with capture_logs() as log:
        async with writer.opened():
            for batch in range(4):
                disk.entered.clear()
                writer.put(b"a%d\n" % batch)
                writer.put(b"b%d\n" % batch)
                await disk.wait_entered()
                await until(lambda: not writer._writing)
    assert disk.lines == [dropped(4), b"a2\n", b"b2\n", dropped(2)]
    assert [line["event"] for line in log] == ["lines_dropped"] * 2
    assert log[0]["reason"] == "[Errno 28] No space left on device"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
async def test_a_full_disk_fails_no_exchange_and_the_loss_is_logged() -> None:
    """A device that is always full. Each lifespan counts its own losses."""
    writer = LineWriter(rotating("/dev/full"))
    for _ in range(2):
        with capture_logs() as log:
            async with writer.opened():
                assert all(map(writer.put, numbered(7)))
        assert [line["event"] for line in log] == ["lines_dropped", "lines_lost"]
        assert log[1]["count"] == 7


async def test_leaving_does_not_wait_for_ever_for_a_disk_that_hangs(mock_clock: Any) -> None:
    """At its deadline, leaving gives up the hanging write, and the log counts what may be lost.

    The time in which lines gather does not pass here: what fills half the queue is written at once.
    """
    disk = Disk()
    disk.gate.clear()
    writer = LineWriter(disk, max_held_bytes=600)
    with capture_logs() as log:
        async with trio.open_nursery() as nursery:

            async def lifespan() -> None:
                async with writer.opened():
                    writer.put(b"x" * 301)
                    await disk.wait_entered()
                    for _ in range(5):
                        writer.put(b"y" * 100)  # two have room beside the first

            nursery.start_soon(lifespan)
            while not writer._closing:
                await trio.to_thread.run_sync(threading.Event().wait, 0.001)
            mock_clock.jump(LEAVE_S + 1)
    disk.gate.set()
    assert [line["event"] for line in log] == ["lines_dropped", "lines_lost"]
    assert log[1]["count"] == 6


# The file


@contextmanager
def opened(file: RotatingFile) -> Iterator[Callable[..., tuple[list[bytes], Any]]]:
    def write(*lines: bytes) -> tuple[list[bytes], Any]:
        left, error = file.write([Line(line) for line in lines])
        return [line.data for line in left], error

    file.open()
    try:
        yield write
    finally:
        file.close()


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process becomes larger: its disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


FILES: dict[str, tuple[bytes, dict[str, int], list[bytes], dict[str, bytes]]] = {
    "it fits": (b"", {"max_bytes": 6}, numbered(3), {"f": b"0\n1\n2\n"}),
    "a new file before it is too large": (b"", {"max_bytes": 6}, numbered(4), {"f": b"3\n", "f.1": b"0\n1\n2\n"}),
    "only so many old files stay": (b"", {"max_bytes": 4, "keep": 2}, numbered(8),
        {"f": b"6\n7\n", "f.1": b"4\n5\n", "f.2": b"2\n3\n"}),
    "a line that is too long has its own file": (b"", {"max_bytes": 4}, [b"0\n", b"too long\n", b"1\n"],
        {"f": b"1\n", "f.1": b"too long\n", "f.2": b"0\n"}),
    "what is there counts": (b"old\n", {"max_bytes": 6}, numbered(2), {"f": b"1\n", "f.1": b"old\n0\n"}),
    "a line that a crash has cut is ended": (b"0\n{cut", {}, [b"1\n"], {"f": b"0\n{cut\n1\n"}),
}  # fmt: skip


@pytest.mark.parametrize(("before", "limits", "lines", "after"), FILES.values(), ids=FILES)
def test_lines_are_never_cut_and_no_file_is_larger_than_the_limit(
    before: bytes, limits: dict[str, int], lines: list[bytes], after: Any, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(before)
    with opened(rotating(tmp_path / "f", **limits)) as write:
        assert write(*lines) == ([], None)
    assert contents(tmp_path) == after


def test_a_disk_that_is_full_within_a_line_spoils_no_other(tmp_path: Path) -> None:
    """A short write."""
    with opened(rotating(tmp_path / "f")) as write:
        with limited(7):
            left, error = write(b"one\n", b"two is long\n", b"three\n")
        assert (left, error.errno) == ([b"two is long\n", b"three\n"], errno.EFBIG)
        assert write(b"four\n") == ([], None)
    assert contents(tmp_path) == {"f": b"one\ntwo\nfour\n"}


def test_a_rotation_that_fails_is_tried_again(tmp_path: Path) -> None:
    """While the older file cannot be moved, lines are lost; then it continues."""
    (tmp_path / "f.1").mkdir()
    with opened(rotating(tmp_path / "f", max_bytes=4, keep=1)) as write:
        left, error = write(*numbered(3))
        assert (left, type(error)) == ([b"2\n"], IsADirectoryError)
        (tmp_path / "f.1").rmdir()
        assert write(b"3\n") == ([], None)
    assert contents(tmp_path) == {"f": b"3\n", "f.1": b"0\n1\n"}


def test_a_file_that_could_not_be_opened_again_is_tried_again(tmp_path: Path) -> None:
    """Its directory is away for a while."""
    directory, away = tmp_path / "here", tmp_path / "away"
    directory.mkdir()
    with opened(rotating(directory / "f", max_bytes=6)) as write:
        assert write(*numbered(2)) == ([], None)
        directory.rename(away)
        for _ in range(2):
            left, error = write(b"long\n")
            assert (left, type(error)) == ([b"long\n"], FileNotFoundError)
        away.rename(directory)
        assert write(*numbered(2, 4)) == ([], None)
    assert contents(directory) == {"f": b"3\n", "f.1": b"0\n1\n2\n"}


def test_a_fifo_is_never_rotated(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    reader = os.open(tmp_path / "f", os.O_RDONLY | os.O_NONBLOCK)
    with opened(rotating(tmp_path / "f", max_bytes=4)) as write:
        assert write(*numbered(9)) == write(*numbered(9)) == ([], None)
        assert os.read(reader, 1000) == b"".join(numbered(9)) * 2
    os.close(reader)


def test_only_the_owner_may_read_and_each_process_may_have_its_own(tmp_path: Path) -> None:
    """New files have mode 0600, also those after a rotation; `{pid}` is the process's id."""
    with opened(rotating(tmp_path / "f-{pid}", max_bytes=2, keep=2)) as write:
        write(*numbered(2))
    name = f"f-{os.getpid()}"
    assert sorted(contents(tmp_path)) == [name, f"{name}.1"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
