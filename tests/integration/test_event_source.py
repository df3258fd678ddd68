"""A browser's `EventSource` through the proxy: a page gets changed events as if the upstream had
sent them.

Headless Chromium loads a page that listens to one stream after the other and reports what it got.
"""

from __future__ import annotations

import json
import random
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from support.browser import FLAGS, find_browser
from support.interceptors import Serve, on_event, on_event_async
from support.upstream import Peer

from interceptors import Event, EventResult, Interceptor

PAGE = """<!doctype html><meta charset="utf-8"><title>EventSource</title><script>
const received = {};
function listen(name) {
    return new Promise(resolve => {
        const source = new EventSource("/events/" + name), got = received[name] = [];
        const keep = ({type, data, lastEventId}) => got.push({type, data, id: lastEventId});
        source.onerror = () => got.push({type: "(error)", state: source.readyState});
        for (const type of ["message", "note", "renamed", "extra", "gone"]) source.addEventListener(type, keep);
        source.addEventListener("finish", event => { keep(event); source.close(); resolve(); });
    });
}
(async () => {
    for (const name of NAMES) await listen(name);
    await fetch("/report", {method: "POST", body: JSON.stringify(received)});
})();
</script>"""

BOM = b"\xef\xbb\xbf"

BEFORE = """: hello

retry: 60000

id: 1
data: one

id: 2
data: drop me

id: 3
data: {"n": 3, "text": "a\u2028b"}

event: note
data: first line
data: second line

data: a\u2028b\u2029c\u0085d é 😀 \\

: a comment between two events

data: rename me

data:  one more space
data

data

event: gone

id: 9

data: twice
id: ten
unknown: field
: a comment in an event

data: unfinished"""
"""What upstream sends first; then it ends the stream, in the middle of an event."""

AFTER = "data: drop me\n\ndata: again\n\nid\ndata: rename me\n\nevent: finish\ndata: bye\n\n"
"""When the browser has come back."""

RECEIVED = [
    ("message", "one", "1"),
    ("extra", "added\nin two lines", "1a"),
    ("message", '{"n":3,"text":"a\u2028b","seen":true}', "3"),
    ("note", "first line\nsecond line", "3"),
    ("message", "a\u2028b\u2029c\u0085d é 😀 \\", "3"),
    ("renamed", "rename me", "3"),
    ("message", " one more space\n", "3"),
    ("message", "", "3"),
    ("message", "twice", "ten"),
    ("message", "twice", "ten"),
    ("(error)", None, None),
    ("message", "again", "ten"),
    ("renamed", "rename me", ""),
    ("finish", "bye", ""),
]
"""What the page gets of each stream: type, data, id."""


def change(event: Event) -> EventResult:
    """Drops, replaces, renames, doubles, adds."""
    if event.retry is not None:
        return event.replace(retry=50)
    if event.data == "drop me":
        return None
    if event.data == "rename me":
        return event.replace(event="renamed")
    if event.data.startswith("{"):
        return event.replace(json=event.json() | {"seen": True})
    if event.data == "twice":
        return [event, event]
    return event


def add(event: Event) -> EventResult:
    """One more, with a type and an id and several lines."""
    added = Event("added\nin two lines", event="extra", id="1a")
    return [event, added] if event.data == "one" else event


async def look(event: Event) -> EventResult:
    """Changes nothing, and is awaited."""
    await trio.lowlevel.checkpoint()
    return event


async def answer(peer: Peer, status: str, body: bytes = b"") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n"
    await peer.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class Site:
    """A page, and its streams by their names: line ends, and how the stream begins."""

    def __init__(self, streams: dict[str, tuple[bytes, bytes]], seed: int) -> None:
        self._streams = streams
        self._seed = seed
        self.last_event_ids: dict[str, list[bytes]] = {name: [] for name in streams}
        self.report: Any = None
        self.reported = trio.Event()

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            path = request.target.decode()
            if path == "/":
                page = PAGE.replace("NAMES", json.dumps(list(self._streams)))
                await answer(peer, "200 OK", page.encode())
            elif path == "/report":
                self.report = json.loads(request.body)
                await answer(peer, "204 No Content")
                self.reported.set()
            elif path.startswith("/events/"):
                name = path.removeprefix("/events/")
                line_end, start = self._streams[name]
                text = AFTER if self.last_event_ids[name] else BEFORE
                self.last_event_ids[name] += request.all("last-event-id") or [b"(none)"]
                await peer.start_stream(b"Cache-Control: no-store")
                for chunk in in_pieces(start + text.encode().replace(b"\n", line_end), self._seed):
                    await peer.chunk(chunk)
                await peer.end()
            else:
                await answer(peer, "404 Not Found")


async def visit(browser: str, url: str, site: Site, directory: Path) -> None:
    """Let a browser load the page at `url`, and wait for its report."""
    command = [browser, *FLAGS, f"--user-data-dir={directory}/profile", url + "/"]
    with open(directory / "output", "wb") as output:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(trio.run_process, command, check=False, stdout=output, stderr=output)
            )
            with trio.move_on_after(60):
                await site.reported.wait()
            nursery.cancel_scope.cancel()  # which ends the browser
    assert site.reported.is_set(), (directory / "output").read_text(errors="replace")


def in_pieces(wire: bytes, seed: int) -> list[bytes]:
    """Cut anywhere: within characters, between CR and LF."""
    rng = random.Random(seed)
    cuts = sorted({0, len(wire), *(rng.randrange(len(wire)) for _ in range(len(wire) // 12))})
    return [wire[first:last] for first, last in pairwise(cuts)]


STREAMS = {
    name + suffix: (line_end, bom)
    for name, line_end in (("lf", b"\n"), ("crlf", b"\r\n"), ("cr", b"\r"))
    for suffix, bom in (("", b""), ("-bom", BOM))
}


@pytest.fixture
def chromium() -> str:
    """The browser's path."""
    return find_browser()


@pytest.mark.parametrize(
    "chain",
    [
        [on_event(change, "Change"), on_event(add, "Add")],
        [on_event_async(look, "Look"), on_event(change, "Change"), on_event(add, "Add")],
    ],
    ids=["sync", "awaited"],
)
async def test_an_event_source_gets_what_interceptors_made_as_if_upstream_had_sent_it(
    chain: list[type[Interceptor]], serve_once: Serve, chromium: str, tmp_path: Path
) -> None:
    """Types, data, ids, errors and the Last-Event-ID of its return are the same, whatever ends
    lines and wherever chunks end.

    Each stream ends once, and the browser comes again after the time that an interceptor has set:
    the upstream's is a minute.
    """
    site = Site(STREAMS, seed=len(chain))
    async with serve_once(site.script, *chain) as rig:
        await visit(chromium, rig.proxy.url, site, tmp_path)
        assert rig.failures() == []
    assert site.last_event_ids == {name: [b"(none)", b"ten"] for name in STREAMS}
    for name in STREAMS:
        got = [(item["type"], item.get("data"), item.get("id")) for item in site.report[name]]
        assert got == RECEIVED, name
