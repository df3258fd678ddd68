"""Questions to the other workers: few at a time, only about what may be a session, and no wait
without an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from interceptors import Event, Request, StreamContext, StreamOver
from interceptors.dialects.mcp_hooks import McpInterceptor
from interceptors.dialects.mcp_sessions import EMIT_S, McpSessions
from proxy.worker import siblings
from proxy.worker.siblings import Mailbox, Siblings, open_mailboxes


@pytest.fixture
def mailboxes() -> Iterator[list[Mailbox]]:
    made = open_mailboxes(2)
    yield made
    for sock in [sock for pair in made for sock in pair]:
        sock.close()


async def never(event: Event) -> None:
    """A client that takes nothing."""
    await trio.sleep_forever()


async def test_so_many_questions_are_open_at_a_time(
    mailboxes: list[Mailbox], autojump_clock: trio.testing.MockClock
) -> None:
    """Another one is answered at once."""
    asking = Siblings(mailboxes, 0, McpSessions())
    took: list[float] = []

    async def ask() -> None:
        began = trio.current_time()
        assert not await asking.ask("up", b"/m?session_id=1", [])
        took.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(siblings._MOST_QUESTIONS + 5):
            nursery.start_soon(ask)
    assert sum(seconds == 0 for seconds in took) == 5
    assert max(took) == pytest.approx(1)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (b"/mcp", False),
        (b"/a/b/messages", False),
        (b"/messages?session_id=1", True),
        (b"/v1/messages", False),
        (b"/messages/S1", True),
        (b"/messages/0123456789abcdef0123456789abcdef", True),
    ],
)
async def test_others_are_asked_about_sessions_only(target: bytes, asked: bool) -> None:
    questions: list[bytes] = []

    async def ask(upstream: str, uri: bytes, messages: Sequence[str]) -> bool:
        questions.append(uri)
        return False

    sessions = McpSessions()
    sessions.ask_others = ask
    request = Request(
        method="POST", raw_path=target.partition(b"?")[0], query=target.partition(b"?")[2]
    )
    assert not await sessions.of("up").find_elsewhere(request)
    assert questions == ([target] if asked else [])


async def test_a_client_that_takes_nothing_does_not_hold_who_emits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`LiveSession.emit` owns the one deadline, for callers in this process and in others."""
    sessions = McpSessions()
    live = sessions.of("up").open(b"/m?1", StreamContext(Request(), never), object())
    began = trio.current_time()
    with pytest.raises(StreamOver):
        await live.emit(["{}"])
    assert trio.current_time() - began == pytest.approx(EMIT_S)
    assert not await sessions.deliver("up", b"/m?1", ["{}"])


async def test_what_waits_for_a_client_is_bounded(
    mailboxes: list[Mailbox], autojump_clock: trio.testing.MockClock
) -> None:
    """By number and by size, for callers in this process and in others."""
    sessions = McpSessions()
    live = sessions.of("up").open(b"/m?1", StreamContext(Request(), never), object())
    asking, having = Siblings(mailboxes, 0, McpSessions()), Siblings(mailboxes, 1, sessions)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.run)
        nursery.start_soon(having.run)
        for _ in range(63):
            nursery.start_soon(sessions.deliver, "up", b"/m?1", ["{}"])
        assert await asking.ask("up", b"/m?1", ["{}"])
        await trio.testing.wait_all_tasks_blocked()
        assert not await asking.ask("up", b"/m?1", ["{}"])
        began = trio.current_time()
        assert not await sessions.deliver("up", b"/m?1", ["{}"])
        assert trio.current_time() == began
        assert await asking.ask("up", b"/m?1", [])  # it is known all the same
        nursery.cancel_scope.cancel()
    with pytest.raises(StreamOver):
        await live.emit(["x" * 262_145])
    assert live.has_room(["x" * 262_144])


class Strict(McpInterceptor):
    strict = True


@pytest.mark.parametrize(
    ("body", "ident"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","id":2}', None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","ID":2}', None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"a"},{"jsonrpc":"2.0","id":1,"method":"b"}]', None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"params":{}}', 1),
    ],
)
async def test_a_refusal_of_two_ids_is_answered_with_none_of_them(body: bytes, ident: Any) -> None:
    """On the old transport, too, where the answer is an event on the session's stream."""
    sent: list[Any] = []

    async def emit(event: Event) -> None:
        sent.append(event.json())

    sessions = McpSessions()
    book = sessions.of("up")
    book.open(b"/m?session_id=1", StreamContext(Request(), emit), object())
    headers = [(b"content-type", b"application/json")]
    request = Request(
        method="POST", path="/m", query=b"session_id=1", headers=headers, body=body, dialect="mcp"
    )
    request.sessions = book
    answer = await Strict().on_request(request)
    assert answer is not None
    assert answer.status == 202
    assert [message["id"] for message in sent] == [ident]
