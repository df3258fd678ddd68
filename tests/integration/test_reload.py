"""SIGHUP: a changed configuration takes over for new exchanges, in real processes; what is wrong
changes nothing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.client import Client, fetch, open_client
from support.interceptors import until
from support.process import Process, port_in, port_of, running, serve
from support.upstream import Peer, Upstream, open_stream_of, open_upstream, stream_of

from proxy.config import parse_config
from proxy.server.reload import changed_paths

MARKED = '''
from contextlib import asynccontextmanager
from interceptors import Interceptor, StreamInterceptor


class Marked(Interceptor):
    """Says its mark in every event, and writes to a file when its lifespan begins and ends."""

    def __init__(self, mark: str, diary: str, fails: bool = False) -> None:
        self.mark, self.diary, self.fails = mark, diary, fails

    @asynccontextmanager
    async def lifespan(self):
        if self.fails:
            raise OSError("no such thing")
        self.note("entered")
        yield
        self.note("left")

    def note(self, what: str) -> None:
        with open(self.diary, "a") as file:
            file.write(f"{self.mark} {what}\\n")

    def open_stream(self, context):
        return Marking(self.mark)


class Marking(StreamInterceptor):
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def on_event(self, event):
        return event.replace(data=f"{event.data} {self.mark}")
'''


class Site:
    """A configuration file that changes, and the interceptor that it names."""

    def __init__(self, directory: Path, upstream: Upstream) -> None:
        self.file = directory / "weirpool.yaml"
        self.diary = directory / "diary"
        self.diary.touch()
        (directory / "marked.py").write_text(MARKED)
        self._upstream = upstream

    def write(
        self,
        mark: str,
        *,
        paths: tuple[str, ...] = ("/",),
        fails: bool = False,
        upstream: str = "",
        rest: str = "",
    ) -> None:
        routes = ", ".join(
            f"{{path: {path}, upstream: up, interceptors: [marked]}}" for path in paths
        )
        self.file.write_text(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{self._upstream.url}"]{upstream}}}]
  routes: [{routes}]
interceptors:
  - {{name: marked, use: "marked.py:Marked", options: {{mark: "{mark}", diary: "{self.diary}", fails: {str(fails).lower()}}}}}
{rest}
"""
        )

    @property
    def notes(self) -> list[str]:
        return self.diary.read_text().splitlines()


@asynccontextmanager
async def site(
    directory: Path, upstream: Upstream, *arguments: str
) -> AsyncIterator[tuple[Site, Process]]:
    place = Site(directory, upstream)
    place.write("old")
    command = serve("--config", str(place.file), *arguments)
    async with running(command) as process:
        await process.event("started")
        yield place, process


async def reload(process: Process, count: int = 1) -> dict[str, object]:
    process.signal(signal.SIGHUP)
    return (await process.event("reload", count))[count - 1]


async def test_only_new_exchanges_see_a_reload(tmp_path: Path) -> None:
    """A stream that began before ends with its own interceptor, whose lifespan is left only then."""
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        if request.target == b"/live":
            await go_on.wait()
        await peer.chunk(b"data: 2\n\n")
        await peer.end()

    async with open_upstream(script) as upstream, site(tmp_path, upstream) as (place, process):
        port = await port_of(process)
        live: Client = await open_client(port)
        await live.send("GET", "/live")
        answer = await live.head()
        await live.read_until(answer, b"\n\n")

        place.write("new", rest="reporting: {interval: 9}")
        line = await reload(process)
        assert line["ok"] is True
        assert line["changed"] == ["interceptors[0].options.mark"]
        assert line["needs_restart"] == ["reporting.interval"]
        assert (await fetch(port)).body == b"data: 1 new\n\ndata: 2 new\n\n"
        assert place.notes == ["old entered", "new entered"]

        go_on.set()
        assert (await live.rest(answer)).complete
        assert answer.body == b"data: 1 old\n\ndata: 2 old\n\n"
        await until(lambda: place.notes == ["old entered", "new entered", "old left"])
        await live.aclose()

        await process.stop()
        assert place.notes[3:] == ["new left"]
        assert {item["outcome"] for item in await process.event("exchange", 2)} == {"completed"}


async def test_a_broken_file_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    """Wrong YAML, a wrong name, an option that is refused, a lifespan that fails, no file."""
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        site(tmp_path, upstream) as (place, process),
    ):
        port = await port_of(process)
        good = place.file.read_text()
        broken = {
            good.replace("upstream: up", "upstream: uq"): (
                'reverse_proxy.routes[0].upstream: no upstream has the name "uq"'
            ),
            good.replace("fails: false", "fails: 7"): (
                "interceptors[0].options.fails: must be true or false"
            ),
            good.replace("fails: false", "fails: true"): (
                "interceptors[0]: the lifespan of 'marked' failed: OSError: no such thing"
            ),
            "reverse_proxy: [": "line 1, column 17: ",
        }
        for number, (text, message) in enumerate(broken.items(), 1):
            place.file.write_text(text)
            line = await reload(process, number)
            assert line["ok"] is False
            assert str(line["errors"][0]).startswith(message)  # type: ignore[index]
            assert (await fetch(port)).body == b"data: x old\n\n"
        place.file.unlink()
        line = await reload(process, len(broken) + 1)
        assert line["errors"] == [f"{place.file}: No such file or directory"]
        assert place.notes == ["old entered"]
        place.write("new")
        assert (await reload(process, len(broken) + 2))["ok"] is True
        assert (await fetch(port)).body == b"data: x new\n\n"


async def test_connections_survive_where_the_upstream_is_the_same(tmp_path: Path) -> None:
    """Clients' kept connections survive every reload."""
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        site(tmp_path, upstream) as (place, process),
    ):
        client = await open_client(await port_of(process))

        async def ask() -> bytes:
            await client.send("GET", "/")
            answer = await client.answer()
            client.next_cycle()
            return answer.body

        assert await ask() == b"data: x old\n\n"
        place.write("new")
        await reload(process)
        assert await ask() == b"data: x new\n\n"
        assert (upstream.accepted, upstream.open) == (1, 1)
        place.write("new", upstream=", max_connections: 5")
        await reload(process, 2)
        await until(lambda: upstream.open == 0)  # no longer kept
        assert await ask() == b"data: x new\n\n"
        assert (upstream.accepted, upstream.open) == (2, 1)
        await client.aclose()


async def test_metrics_of_new_routes_begin_at_0_and_those_of_old_ones_stay(tmp_path: Path) -> None:
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        site(tmp_path, upstream) as (place, process),
    ):
        port = await port_of(process)
        await fetch(port)
        place.write("new", paths=("/v1",))
        assert (await reload(process))["routes"] == ["/v1"]
        assert (await fetch(port)).status == 404
        text = (await fetch(port, "/metrics")).body.decode()
        assert 'weirpool_exchanges_total{outcome="completed",route="/"} 1.0' in text
        assert 'weirpool_exchanges_total{outcome="completed",route="/v1"} 0.0' in text
        assert 'weirpool_events_total{action="changed",route="/v1"} 0.0' in text
        (spent,) = re.findall("weirpool_interceptor_seconds_total{.*} (.*)", text)
        assert float(spent) > 0  # what the old one has taken is not forgotten


async def test_without_a_file_the_signal_is_logged_and_ignored() -> None:
    """With `--upstream` there is nothing to read again."""
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        for workers in ("1", "2"):
            command = serve("--upstream", upstream.url, "--workers", workers)
            async with running(command) as process:
                started = (await process.event("started", int(workers)))[0]
                line = await reload(process)
                assert line["ok"] is False
                assert "--upstream" in str(line["errors"])
                assert (await fetch(port_in(started))).body == b"data: x\n\n"
                await process.stop()


async def test_a_signal_while_it_starts_waits(tmp_path: Path) -> None:
    """SIGHUP before there is anybody to hear it is not lost, and does not kill."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nfrom interceptors import Interceptor\n"
        'print(\'{"event": "importing"}\', file=sys.stderr, flush=True)\ntime.sleep(0.5)\nclass Slow(Interceptor): ...\n'
    )
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        file = tmp_path / "weirpool.yaml"
        file.write_text(
            f'reverse_proxy: {{upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}], routes: [{{path: /, upstream: up}}]}}\n'
            'interceptors: [{name: slow, use: "slow.py:Slow"}]\n'
        )
        async with running(serve("--config", str(file))) as process:
            await process.event("importing")
            line = await reload(process)
            assert (line["ok"], line["changed"]) == (True, [])
            assert (await fetch(await port_of(process))).body == b"data: x\n\n"


async def test_workers_reload_after_their_supervisor_has_checked(tmp_path: Path) -> None:
    """A good file reaches each worker."""
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        async with site(tmp_path, upstream, "--workers", "2") as (place, process):
            first, _ = await process.event("started", 2)
            port = port_in(first)
            good = place.file.read_text()
            place.file.write_text(good.replace("upstream: up", "upstream: uq"))
            process.signal(signal.SIGHUP)
            (line,) = await process.event("reload")
            assert line["ok"] is False
            place.write("new")
            process.signal(signal.SIGHUP)
            lines = await process.event("reload", 3)
            assert [line["ok"] for line in lines] == [False, True, True]
            assert {(await fetch(port)).body for _ in range(10)} == {b"data: x new\n\n"}
            os.kill(int(str(first["pid"])), signal.SIGKILL)
            await process.event("started", 3)
            assert {(await fetch(port)).body for _ in range(10)} == {b"data: x new\n\n"}
            process.signal(signal.SIGTERM)
            assert await process.exit_status() == 0


async def test_a_process_that_ends_reloads_no_more(tmp_path: Path) -> None:
    """SIGHUP during a drain is refused, and ends nothing sooner."""

    script = open_stream_of()

    async with open_upstream(script) as upstream, site(tmp_path, upstream) as (place, process):
        client = await open_client(await port_of(process))
        await client.send("GET", "/")
        await client.head()
        process.signal(signal.SIGTERM)
        await process.event("drain")
        place.write("new")
        assert (await reload(process))["ok"] is False
        assert place.notes == ["old entered"]
        client.reset()
        assert await process.exit_status() == 0
        assert place.notes == ["old entered", "old left"]


BASE = 'upstreams: [{name: a, endpoints: ["http://x"]}]\n  routes: [{path: /, upstream: a}]'


@pytest.mark.parametrize(
    ("after", "paths"),
    [
        (BASE, []),
        (BASE + "\n  timeouts: {idle: 5}", ["reverse_proxy.timeouts.idle"]),
        (BASE + "\n  timeouts: {idle: 300}", []),  # as it is by default
        (
            BASE.replace('"]}', '"], headers: {set: {a: b}}}'),
            ["reverse_proxy.upstreams[0].headers.set.a"],
        ),
        (BASE.replace("a}]", "a}, {path: /b, upstream: a}]"), ["reverse_proxy.routes"]),
    ],
)
def test_what_changed_is_named_by_its_path(after: str, paths: list[str]) -> None:
    old, new = (parse_config(f"reverse_proxy:\n  {text}") for text in (BASE, after))
    assert changed_paths(old, new) == paths
