"""What ASGI's `receive` gives an app, and the events of a connection."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from proxy.downstream import Messages
from proxy.downstream.hypercorn.apps import LazyEvent

BODY = {"type": "http.request", "body": bytes(16384), "more_body": True}
LAST = {"type": "http.request", "body": bytes(16384), "more_body": False}
GONE = {"type": "http.disconnect"}


async def test_messages_come_in_order() -> None:
    """What is put first is taken first, by awaiting and without."""
    messages = Messages(10)
    for message in (BODY, LAST, GONE):
        await messages.put(message)
    assert await messages.receive() is BODY
    assert messages.receive_nowait() is LAST
    assert await messages.receive() is GONE
    assert messages.receive_nowait() is None


async def test_small_pieces_of_a_body_come_together() -> None:
    """As long as the piece before has not been taken, and up to a size."""
    messages = Messages(2)
    data = bytes(index % 251 for index in range(20_000))
    taken: list[Any] = []
    for at in range(len(data)):
        if len(messages._messages) == 2:
            taken.append(messages.receive_nowait())
        await messages.put({"type": "http.request", "body": data[at : at + 1], "more_body": True})
    await messages.put({"type": "http.request", "body": b"", "more_body": False})
    await messages.put(GONE)
    while (message := messages.receive_nowait()) is not None:
        taken.append(message)
    assert taken.pop() is GONE
    assert b"".join(item["body"] for item in taken) == data
    assert [item["more_body"] for item in taken] == [True, False]
    await messages.put({"type": "http.request", "body": b"1", "more_body": True})
    assert messages.receive_nowait() == {"type": "http.request", "body": b"1", "more_body": True}


async def test_who_takes_waits_for_who_puts(nursery: trio.Nursery) -> None:
    """An empty one blocks its reader until something comes."""
    messages = Messages(10)
    taken: list[object] = []

    async def take() -> None:
        taken.append(await messages.receive())

    nursery.start_soon(take)
    await trio.testing.wait_all_tasks_blocked()
    assert not taken
    await messages.put(BODY)
    await trio.testing.wait_all_tasks_blocked()
    assert taken == [BODY]


async def test_who_puts_waits_for_who_takes(nursery: trio.Nursery) -> None:
    """A full one blocks its writer, message by message."""
    messages = Messages(2)
    put: list[int] = []

    async def fill() -> None:
        for number in range(4):
            await messages.put(BODY)
            put.append(number)

    nursery.start_soon(fill)
    for expected in (2, 3, 4):
        await trio.testing.wait_all_tasks_blocked()
        assert len(put) == expected
        await messages.receive()


async def test_one_that_is_closed_takes_everything_and_keeps_nothing(nursery: trio.Nursery) -> None:
    """When the app has returned, waiting `put`s return, and later messages are dropped."""
    messages = Messages(1)
    done = trio.Event()

    async def fill() -> None:
        for _ in range(3):
            await messages.put(BODY)
        done.set()

    nursery.start_soon(fill)
    await trio.testing.wait_all_tasks_blocked()
    assert not done.is_set()
    messages.close()
    with trio.fail_after(1):
        await done.wait()
    assert messages.receive_nowait() is None


@pytest.mark.parametrize("empty", [True, False], ids=["taking", "putting"])
async def test_who_waits_can_be_cancelled_and_another_can_wait_then(empty: bool) -> None:
    """A cancelled wait has no effect: no message is lost, none is put twice."""
    messages = Messages(1)
    if not empty:
        await messages.put(BODY)
    with trio.move_on_after(0.01) as scope:
        await (messages.receive() if empty else messages.put(LAST))
    assert scope.cancelled_caught
    with trio.fail_after(1):
        if not empty:
            assert await messages.receive() is BODY
        await messages.put(LAST)
        assert await messages.receive() is LAST
    assert messages.receive_nowait() is None


async def test_a_message_is_not_taken_by_who_is_cancelled() -> None:
    """`receive` in a cancelled scope raises, and what was there is still there."""
    messages = Messages(1)
    await messages.put(BODY)
    with trio.CancelScope() as scope:
        scope.cancel()
        await messages.receive()
    assert messages.receive_nowait() is BODY


async def test_two_do_not_wait_at_once(nursery: trio.Nursery) -> None:
    """There is one reader, and who breaks that hears of it."""
    messages = Messages(1)
    nursery.start_soon(messages.receive)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await messages.receive()
    await messages.put(BODY)


async def test_a_disconnect_calls_back_at_once_and_is_a_message_as_well() -> None:
    """A listener is called; a reader gets the message."""
    messages = Messages(2)
    told: list[str] = []
    messages.on_disconnect = lambda: told.append("gone")
    await messages.put(LAST)
    assert not told
    await messages.put(GONE)
    assert told == ["gone"]
    assert [await messages.receive(), await messages.receive()] == [LAST, GONE]


async def test_a_disconnect_does_not_wait_for_a_reader(nursery: trio.Nursery) -> None:
    """It comes behind what is there already, although there is no room and another waits for that."""
    messages = Messages(1)
    await messages.put(BODY)
    nursery.start_soon(messages.put, LAST)
    await trio.testing.wait_all_tasks_blocked()
    await messages.put(GONE)
    assert [await messages.receive(), await messages.receive()] == [BODY, GONE]


async def test_no_listener_is_called_after_the_app_has_returned() -> None:
    """After `close` nothing is called any more."""
    messages = Messages(2)
    told: list[str] = []
    messages.on_disconnect = lambda: told.append("gone")
    messages.close()
    await messages.put(GONE)
    assert not told


# --- LazyEvent, with the meaning of Hypercorn's
# -------------------------------------------------------------------------


async def test_an_event_that_is_set_lets_everybody_go(nursery: trio.Nursery) -> None:
    """Who waits already, and who comes later."""
    event = LazyEvent()
    through: list[int] = []

    async def wait(number: int) -> None:
        await event.wait()
        through.append(number)

    nursery.start_soon(wait, 1)
    nursery.start_soon(wait, 2)
    await trio.testing.wait_all_tasks_blocked()
    assert (through, event.is_set()) == ([], False)
    await event.set()
    await wait(3)
    await trio.testing.wait_all_tasks_blocked()
    assert (sorted(through), event.is_set()) == ([1, 2, 3], True)


async def test_an_event_that_is_cleared_makes_wait_again() -> None:
    """Set before anybody waits, and cleared: a later wait waits."""
    event = LazyEvent()
    await event.set()
    await event.wait()
    await event.clear()
    assert not event.is_set()
    with trio.move_on_after(0.01) as scope:
        await event.wait()
    assert scope.cancelled_caught
