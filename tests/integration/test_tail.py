"""`weirpool tail`: live streams in a terminal, as lines, as JSON, and as a tape."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from integration.test_inspector import CHUNK, TOKEN, Steps, inspected
from support.client import fetch
from support.interceptors import until
from support.process import ROOT, WEIRPOOL, free_port
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, answering, open_upstream

from proxy.commands.tail.lines import Lines, escaped
from proxy.inspector import message

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Tail:
    """A running `weirpool tail`, and what it has printed."""

    def __init__(self) -> None:
        self.process: trio.Process | None = None
        self.printed = ""

    async def run(
        self, *options: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self.process = process = await trio.lowlevel.open_process(
            [*WEIRPOOL, "tail", *options],
            env={"PYTHONPATH": str(ROOT), "WEIRPOOL_ADMIN_TOKEN": TOKEN, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A shell ignores it in background jobs, such as those of `.ci/run`.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        task_status.started()
        try:
            assert process.stdout is not None
            async for data in process.stdout:
                self.printed += data.decode()
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()

    @property
    def lines(self) -> list[str]:
        return self.printed.splitlines()


async def tail_until_watching(nursery: trio.Nursery, proxy: Proxy, *options: str) -> Tail:
    tail, inspector = Tail(), proxy.worker.inspector
    assert inspector is not None
    before = len(inspector.views)
    await nursery.start(tail.run, "--url", proxy.url, *options)
    await until(lambda: len(inspector.views) > before)
    return tail


async def test_streams_as_lines_as_json_and_as_a_tape(tmp_path: Path) -> None:
    """The tape plays what came from the upstream, at once and byte for byte."""
    steps, tape = Steps(), tmp_path / "one.jsonl"
    sent = [
        CHUNK % (1, b"a secret"),
        b"event: odd\nid: 7\ndata: 1\ndata: \x1b[2J\n\n",
        CHUNK % (1, b"drop"),
    ]
    async with inspected(steps.script) as proxy, trio.open_nursery() as nursery:
        plain = await tail_until_watching(nursery, proxy)
        events = await tail_until_watching(
            nursery, proxy, "--events", "--once", "--route", "/hooked", "--client", "ann",
            "--model", "m-", "--text", "secret",
        )  # fmt: skip
        as_json = await tail_until_watching(nursery, proxy, "--json", "--tape", str(tape))
        for data in [*sent, None]:
            steps.send(data)
        await fetch(proxy.port, "/hooked/v1/chat/completions")
        await until(lambda: "end" in plain.printed)
        for tail in (events, as_json):
            await until(lambda: tail.process.returncode == 0)  # noqa: B023
        assert plain.process is not None
        plain.process.send_signal(signal.SIGINT)
        await until(lambda: plain.process.returncode == 130)  # type: ignore[union-attr]
    assert [line.split()[:2] for line in plain.lines] == [
        ["0-1", kind] for kind in ("begin", "head", "end")
    ]
    assert "POST" not in plain.printed
    begin, _, first, odd, dropped, last, end = events.lines
    assert "begin" in begin
    assert "GET /hooked/v1/chat/completions" in begin
    assert "#1" in first
    assert '"a SECRET"   <- upper changed (' in first
    assert odd.endswith("event: odd\\nid: 7\\ndata: 1\\ndata: \\x1b[2J")
    assert "dropped   <- double dropped (" in dropped
    assert last.split()[-1] == "us)"
    assert "last   <- double added" in last
    assert "completed  200" in end
    messages = [json.loads(line) for line in as_json.lines if line.startswith("{")]
    assert [item["type"] for item in messages][:3] == ["begin", "head", "event"]
    assert "3 events on the tape" in as_json.lines[-1]
    async with open_upstream(answering(b"never asked")) as upstream:
        config = config_for(
            upstream.url,
            interceptors=f"{{name: replay, use: replay, options: {{path: {tape}, speed: instant}}}}",
            names="replay",
        )
        async with open_proxy(config) as proxy:
            answer = await fetch(proxy.port, "/")
    assert answer.complete
    assert answer.all("content-type") == [b"text/event-stream"]
    assert sorted(answer.body.split(b"\n")) == sorted(b"".join(sent).split(b"\n"))


async def test_one_live_stream_is_joined() -> None:
    steps = Steps()
    async with inspected(steps.script) as proxy, trio.open_nursery() as nursery:
        steps.send(b"data: 1\n\n")
        nursery.start_soon(fetch, proxy.port, "/")
        await until(lambda: [item.bytes_downstream for item in proxy.worker.live] == [9])
        tail = await tail_until_watching(nursery, proxy, "--exchange", "0-1", "--events")
        await until(lambda: "begin" in tail.printed)
        steps.send(b"data: 2\n\n")
        steps.send(None)
        await until(lambda: tail.process.returncode == 0)  # type: ignore[union-attr]
    assert [line.split(maxsplit=1)[1].split()[0] for line in tail.lines] == [
        "begin",
        "head",
        "#1",
        "end",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--exchange", "0-99"], "there is no live stream with the id of --exchange"),
        (["--token", "wrong"], "401: give admin.token of the configuration with --token"),
        (["--url", "PROXY/nowhere"], "set admin.inspect: true in the configuration"),
        (["--url", "http://127.0.0.1:{free}"], "/inspect/stream: Connection refused"),
        (["--url", "https://PROXY"], "/inspect/stream: TLS failed: "),
        (["--url", "ftp://127.0.0.1"], "--url: 'ftp://127.0.0.1' is not a URL such as http://"),
        (["--token", "bäd\n"], "--token: must be visible ASCII characters, without spaces"),
        (["--tape", "/nowhere/tape.jsonl"], "--tape /nowhere/tape.jsonl: No such file or directory"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(options: list[str], problem: str) -> None:
    async with inspected(answering(NOT_FOUND)) as proxy, trio.open_nursery() as nursery:
        tail = Tail()
        given = [
            item.replace("https://PROXY", proxy.url.replace("http:", "https:")) for item in options
        ]
        given = [item.replace("PROXY", proxy.url).format(free=free_port()) for item in given]
        await nursery.start(tail.run, "--url", proxy.url, *given)
        await until(lambda: tail.process.returncode is not None)  # type: ignore[union-attr]
        await until(lambda: tail.printed)
    assert tail.process is not None
    wrong = "--tape" in options or "ftp:" in options[1] or "bäd" in options[1]
    assert tail.process.returncode == (2 if wrong else 1)
    (line,) = tail.lines
    assert line.startswith("weirpool: ")
    assert problem in line


async def test_one_stream_that_is_cut_is_not_followed_by_another(tmp_path: Path) -> None:
    """As when the proxy or the worker is killed: a tape has one stream, without an end."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(message("begin", {"exchange": "0-1", "method": "GET", "path": "/a"}))
        await peer.chunk(message("head", {"exchange": "0-1", "at": 0.1, "status": 200}))
        await peer.end()

    tape, tail = tmp_path / "tape.jsonl", Tail()
    async with open_upstream(script) as upstream, trio.open_nursery() as nursery:
        await nursery.start(tail.run, "--url", upstream.url, "--tape", str(tape), "--json")
        await until(lambda: tail.process.returncode is not None)  # type: ignore[union-attr]
        await until(lambda: "before" in tail.printed)
    assert tail.process is not None
    assert tail.process.returncode == 1
    assert tail.lines[-1] == "weirpool: the connection has ended before the stream"
    assert len(tape.read_text().splitlines()) == 1


async def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    async def ask(proxy: Proxy) -> None:
        while True:
            await fetch(proxy.port, "/")

    async with inspected(answering(NOT_FOUND)) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(ask, proxy)
        command = " ".join([*WEIRPOOL, "tail", "--url", proxy.url])
        done = await trio.run_process(
            ["bash", "-c", f"set -o pipefail; {command} | head -n 3"],
            env={"PYTHONPATH": str(ROOT), "WEIRPOOL_ADMIN_TOKEN": TOKEN, "PATH": "/usr/bin:/bin"},
            capture_stdout=True,
            capture_stderr=True,
        )
        nursery.cancel_scope.cancel()
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 3)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain ä 漢 🙂", "plain ä 漢 🙂"),
        ("\x1b]0;x\x07\r\n\t\x7f\x9b", "\\x1b]0;x\\x07\\r\\n\\t\\x7f\\x9b"),
        ("\u202eabc\u2028\ufeff", "\\u202eabc\\u2028\\ufeff"),
        ("a" * 2003, "a" * 2000 + "… (3 more)"),
    ],
)
def test_content_cannot_control_the_terminal(text: str, line: Any) -> None:
    assert escaped(text) == line


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"exchange": "0-1", "events": 3}, "3 events: this view reads too slowly"),
        ({"worker": 1}, "worker 1 has ended or does not answer"),
    ],
)
def test_a_loss_has_its_reason(fields: dict[str, Any], line: str) -> None:
    (shown,) = Lines().of("lost", fields)
    assert shown.endswith(line)
