"""Files of lines: nothing is lost in an orderly life, and no writer ever waits for a disk."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

import interceptors.jsonl as jsonl
from interceptors.jsonl import LineWriter, expand_path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_every_line_is_written_in_order_by_the_end(tmp_path: Path) -> None:
    """Also those that were queued last of all; the file is its owner's alone."""
    path = tmp_path / "a.jsonl"
    writer = LineWriter()
    async with writer.open(path):
        for number in range(1000):
            writer.write(path, {"n": number})
            if number % 100 == 0:
                await trio.sleep(0)
    assert [line["n"] for line in lines_of(path)] == list(range(1000))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_is_queued_is_written_when_its_owner_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer = LineWriter()
    with trio.CancelScope() as scope:
        async with writer.open(path):
            writer.write(path, {"n": 1})
            scope.cancel()
            await trio.sleep_forever()
    assert lines_of(path) == [{"n": 1}]


async def test_files_are_renamed_before_they_grow_too_large(tmp_path: Path) -> None:
    """As many old ones as are to be kept, the newest with the smallest number; no line is cut in two."""
    path = tmp_path / "a.jsonl"
    writer = LineWriter(max_bytes=100, keep=2)
    async with writer.open(path):
        for number in range(5):
            writer.write(path, {"n": number, "pad": "x" * 60})
            while writer._queued_bytes:
                await trio.sleep(0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.1", "a.jsonl.2"]
    kept = [lines_of(tmp_path / name)[0]["n"] for name in ("a.jsonl", "a.jsonl.1", "a.jsonl.2")]
    assert kept == [4, 3, 2]


async def test_a_slow_disk_costs_lines_and_nobody_s_time(tmp_path: Path) -> None:
    """A pipe that nobody reads stands for it. What does not fit into the queue is dropped, and its number is written later."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(max_queued_bytes=300_000)
    got = b""
    with structlog.testing.capture_logs() as logs, trio.fail_after(20):
        async with writer.open(path):
            for number in range(20):
                writer.write(path, {"n": number, "pad": "x" * 30_000})
                await trio.sleep(0)
            assert sum(item["event"] == "lines_dropped" for item in logs) == 1
            while writer._queued_bytes:  # now somebody reads
                got += _read(reader)
                await trio.sleep(0.001)
            writer.write(path, {"n": "after"})
            while writer._queued_bytes:
                got += _read(reader)
                await trio.sleep(0.001)
    got += _read(reader)
    os.close(reader)
    lines = [json.loads(line) for line in got.splitlines()]
    written = [line["n"] for line in lines if "n" in line]
    (dropped,) = [line["count"] for line in lines if line.get("event") == "lines_dropped"]
    assert written[-1] == "after"
    assert len(written) - 1 + dropped == 20
    assert dropped >= 10


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""


async def test_a_disk_that_fails_is_told_once_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it works again, the file says how many lines are missing."""
    path = tmp_path / "a.jsonl"
    fails = True
    append = jsonl._append

    def failing(path: Path, data: bytes) -> None:
        if fails and data:
            raise OSError(28, "No space left on device")
        append(path, data)

    monkeypatch.setattr(jsonl, "_append", failing)
    writer = LineWriter()
    with structlog.testing.capture_logs() as logs:
        async with writer.open(path):
            for number in range(3):
                writer.write(path, {"n": number})
                while writer._queued_bytes:
                    await trio.sleep(0)
            fails = False
            writer.write(path, {"n": 3})
    assert [(item["event"], item["why"]) for item in logs] == [("lines_dropped", "No space left on device")]
    dropped, line = lines_of(path)
    assert (dropped["event"], dropped["count"], line) == ("lines_dropped", 3, {"n": 3})


async def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        async with LineWriter().open(tmp_path / "nowhere" / "a.jsonl"):
            raise AssertionError("not entered")


def test_the_process_number_may_be_part_of_a_path() -> None:
    assert expand_path("/x/audit-{pid}.jsonl") == Path(f"/x/audit-{os.getpid()}.jsonl")
