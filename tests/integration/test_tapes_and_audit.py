"""`audit`, `record` and `replay` behind a whole proxy on real sockets; and what becomes of an answer of events that breaks off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from support.client import Client, fetch, open_client
from support.interceptors import Log, Rig, Serve, Way, until
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from interceptors import Abort, Event, Interceptor, Request, Response

SECRET = "secret-0123456789"
EVENTS = (b'id: 1\nevent: e\ndata: {"a":1}\n\n', b"data: two\ndata: lines\n\n", b"retry: 50\ndata: [DONE]\n\n")
SECRETS = [("Authorization", f"Bearer {SECRET}"), ("Cookie", f"s={SECRET}"), ("X-Api-Key", SECRET)]


def entry(name: str, **options: Any) -> dict[str, str]:
    """One interceptor, as `config_for` takes it, by its entry point's class."""
    use = {
        "audit": "interceptors.audit:Audit",
        "record": "interceptors.record:Record",
        "replay": "interceptors.replay:Replay",
    }
    return {"interceptors": json.dumps({"name": name, "use": use[name], "options": options}), "names": name}


async def is_quiet(proxy: Proxy) -> None:
    """Every exchange is over, and everything is back."""
    await until(lambda: not proxy.worker.live)
    assert set(proxy.in_use().values()) == {0}


async def test_a_tape_plays_what_was_recorded(tmp_path: Path, log: Log) -> None:
    """Through two proxies, one that records and one that replays, the client gets the same events, and the tape holds no secret."""
    tapes = tmp_path / "tapes"
    async with open_upstream(stream_of(*EVENTS)) as upstream:
        async with open_proxy(config_for(upstream.url, **entry("record", directory=str(tapes)))) as proxy:
            direct = await fetch(proxy.port, f"/v1?key={SECRET}", headers=SECRETS)
            await is_quiet(proxy)
        (tape,) = tapes.iterdir()
        assert SECRET not in tape.read_text()
        async with open_proxy(config_for(upstream.url, **entry("replay", path=str(tape), speed="instant"))) as proxy:
            replayed = await fetch(proxy.port, "/anything")
            await is_quiet(proxy)
        assert len(upstream.requests) == 1
    assert direct.complete
    assert replayed.complete
    assert replayed.body.split(b"\n\n") == [
        b'event: e\nid: 1\ndata: {"a":1}',
        b"data: two\ndata: lines",
        b"retry: 50\ndata: [DONE]",
        b"",
    ]
    assert dict(replayed.headers)[b"content-type"].startswith(b"text/event-stream")


async def test_a_stream_that_broke_breaks_again(tmp_path: Path, log: Log) -> None:
    """The tape of a stream that its upstream cut ends with an error event and a broken connection."""
    tapes = tmp_path / "tapes"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(EVENTS[0])

    async with open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, **entry("record", directory=str(tapes)))) as proxy:
            assert not (await fetch(proxy.port)).complete
            await is_quiet(proxy)
        (tape,) = tapes.iterdir()
        async with open_proxy(config_for(upstream.url, **entry("replay", path=str(tape), speed="instant"))) as proxy:
            answer = await fetch(proxy.port)
            await is_quiet(proxy)
    assert not answer.complete
    assert b"the recorded stream ended with upstream_error" in answer.body
    assert [line["outcome"] for line in log if line["event"] == "exchange"] == ["upstream_error", "intercepted"]


async def test_every_exchange_is_in_the_audit(tmp_path: Path, log: Log) -> None:
    """One that completes and one whose client leaves: each has its lines, tied together, and no credential stands in any."""
    path = tmp_path / "audit.jsonl"

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.start_stream(b"Set-Cookie: s=" + SECRET.encode())
            await peer.chunk(EVENTS[0])
            if request.target.startswith(b"/stay"):
                await peer.wait_closed()
                return
            await peer.end()

    async with open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, **entry("audit", path=str(path), events="data"))) as proxy:
            assert (await fetch(proxy.port, f"/go?key={SECRET}", headers=SECRETS)).complete
            client: Client = await open_client(proxy.port)
            await client.send("GET", f"/stay?key={SECRET}", SECRETS)
            await client.read_until(await client.head(), EVENTS[0])
            client.reset()
            await is_quiet(proxy)
    assert SECRET not in path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for target, outcome in (("/go", "completed"), ("/stay", "client_disconnected")):
        (exchange,) = [line["exchange"] for line in lines if line.get("path") == target]
        its = [line for line in lines if line["exchange"] == exchange]
        assert [line["event"] for line in its] == ["request", "response", "event", "end"]
        assert (its[1]["status"], its[2]["data"], its[3]["outcome"]) == (200, '{"a":1}', outcome)


@pytest.fixture
def serve(log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
    return Way().serve(log, monkeypatch)


class Unlucky(Interceptor):
    """Answers with events, and fails behind the first."""

    async def on_request(self, request: Request) -> Response | None:
        return Response(events=self.events(request.path))

    async def events(self, path: str) -> Any:
        yield Event("one")
        if path == "/abort":
            raise Abort("enough")
        if path == "/nonsense":
            yield "two"
        raise LookupError("no more")


class UnluckyButSkipped(Unlucky):
    on_error = "skip"


@pytest.mark.parametrize("cls", [Unlucky, UnluckyButSkipped])
@pytest.mark.parametrize("path", ["/abort", "/raise", "/nonsense"])
async def test_an_answer_that_fails_half_way_is_seen_to(path: str, cls: type[Interceptor], serve: Serve) -> None:
    """It is its interceptor's failure, named in the log, and never looks whole, whatever `on_error` says."""

    async def nobody(peer: Peer) -> None:
        raise AssertionError("the upstream is not asked")

    async with serve(nobody, cls) as rig:
        assert isinstance(rig, Rig)
        with trio.fail_after(10):
            answer = await rig.fetch(path)
        assert not answer.complete
        assert answer.body.startswith(b"data: one\n\nevent: error\n")
        assert (b"enough" in answer.body) is (path == "/abort")
        assert await rig.outcomes() == ["intercepted"]
        assert rig.failures() == ([] if path == "/abort" else [(cls.__name__, "events")])
