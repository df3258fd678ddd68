"""A browser's `EventSource` through the proxy: a page gets changed events as if the upstream had
sent them.

Headless Chromium loads a page that listens to one stream after the other and reports what it got:
once from an upstream that sends the changed events itself, and once through the proxy. Both reports
must be equal.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from support.interceptors import Serve, on_event, on_event_async
from support.required import lacking
from support.tables import words
from support.upstream import Peer, open_upstream

from interceptors import Event, EventResult, Interceptor

FLAGS = words("""
    --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-breakpad
    --disable-quic --no-proxy-server --disable-background-networking --disable-component-update
    --disable-sync --disable-default-apps --disable-extensions --password-store=basic
""")

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

BEFORE_CHANGED = """retry: 50

id: 1
data: one

event: extra
id: 1a
data: added
data: in two lines

id: 3
data: {"n":3,"text":"a\u2028b","seen":true}

event: note
data: first line
data: second line

data: a\u2028b\u2029c\u0085d é 😀 \\

event: renamed
data: rename me

data:  one more space
data

data

id: 9

id: ten
data: twice

id: ten
data: twice

"""

AFTER = "data: drop me\n\ndata: again\n\nid\ndata: rename me\n\nevent: finish\ndata: bye\n\n"
"""When the browser has come back."""

AFTER_CHANGED = "data: again\n\nid\nevent: renamed\ndata: rename me\n\nevent: finish\ndata: bye\n\n"


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


Stream = Callable[[bool], Sequence[bytes]]
"""The chunks of a stream: those before its end, or those when the browser has come back."""


class Site:
    """A page, and its streams by their names."""

    def __init__(self, streams: dict[str, Stream]) -> None:
        self._streams = streams
        self._visits: dict[str, list[str]] = {name: [] for name in streams}
        self._report: Any = None
        self.reported = trio.Event()

    @property
    def observed(self) -> dict[str, Any]:
        """What the browser reports that it received, and with which Last-Event-ID."""
        return {
            name: {"received": self._report[name], "last_event_ids": ids}
            for name, ids in self._visits.items()
        }

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            path = request.target.decode()
            if path == "/":
                page = PAGE.replace("NAMES", json.dumps(list(self._streams)))
                await answer(peer, "200 OK", page.encode())
            elif path == "/report":
                self._report = json.loads(request.body)
                await answer(peer, "204 No Content")
                self.reported.set()
            elif path.startswith("/events/"):
                name = path.removeprefix("/events/")
                again = bool(self._visits[name])
                ids = b", ".join(request.all("last-event-id")) or b"(none)"
                self._visits[name].append(ids.decode())
                await peer.start_stream(b"Cache-Control: no-store")
                for chunk in self._streams[name](again):
                    await peer.chunk(chunk)
                await peer.end()
            else:
                await answer(peer, "404 Not Found")


async def visit(browser: str, url: str, site: Site, directory: Path) -> dict[str, Any]:
    """Let a browser load the page at `url`; what it observed."""
    directory.mkdir()
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
    return site.observed


def in_pieces(wire: bytes, seed: int) -> list[bytes]:
    """Cut anywhere: within characters, between CR and LF."""
    rng = random.Random(seed)
    cuts = sorted({0, len(wire), *(rng.randrange(len(wire)) for _ in range(len(wire) // 12))})
    return [wire[first:last] for first, last in pairwise(cuts)]


FRAMINGS = {
    name + bom: (line_end, BOM if bom else b"")
    for name, line_end in (("lf", b"\n"), ("crlf", b"\r\n"), ("cr", b"\r"))
    for bom in ("", "-bom")
}


def unchanged_site(seed: int) -> Site:
    """Streams as the upstream has them, in each framing, with a BOM and without."""

    def pieces(line_end: bytes, start: bytes, again: bool) -> list[bytes]:
        text = AFTER if again else BEFORE
        return in_pieces(start + text.encode().replace(b"\n", line_end), seed)

    return Site({name: partial(pieces, *framing) for name, framing in FRAMINGS.items()})


def changed_site() -> Site:
    """The same streams as they shall be, from an upstream that needs no proxy for it."""

    def pieces(again: bool) -> list[bytes]:
        return [(AFTER_CHANGED if again else BEFORE_CHANGED).encode()]

    return Site(dict.fromkeys(FRAMINGS, pieces))


@pytest.fixture
def chromium() -> str:
    """The browser's path."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return next(found, None) or lacking("Chromium", "WEIRPOOL_REQUIRE_CHROMIUM")


TYPES = words("""
    message extra message note message renamed message message message message
    (error) message renamed finish
""")


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
    direct = changed_site()
    async with open_upstream(direct.script) as upstream:
        expected = await visit(chromium, upstream.url, direct, tmp_path / "direct")
    proxied = unchanged_site(seed=len(chain))
    async with serve_once(proxied.script, *chain) as rig:
        observed = await visit(chromium, rig.proxy.url, proxied, tmp_path / "proxied")
        assert rig.failures() == []
    assert observed == expected

    # What both have seen is what this test is about.
    for stream in expected.values():
        received = stream["received"]
        assert stream["last_event_ids"] == ["(none)", "ten"]
        assert [item["type"] for item in received] == TYPES
        assert received[1] == {"type": "extra", "data": "added\nin two lines", "id": "1a"}
        assert received[4]["data"] == "a\u2028b\u2029c\u0085d é 😀 \\"
        assert [item["id"] for item in received[-3:]] == ["ten", "", ""]
