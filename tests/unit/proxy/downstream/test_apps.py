"""What ASGI's `receive` gives an app, and the events of a connection."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.downstream.hypercorn import Messages
from proxy.downstream.hypercorn.apps import LazyEvent

BODY = {"type": "http.request", "body": bytes(16384), "more_body": True}
LAST = {"type": "http.request", "body": bytes(16384), "more_body": False}
GONE = {"type": "http.disconnect"}


async def test_messages_come_in_order_and_small_pieces_of_a_body_come_together() -> None:
    """As long as the piece before has not been taken, and up to a size."""
    messages, taken = Messages(2), []
    data = bytes(index % 251 for index in range(20_000))
    for at in range(len(data)):
        if len(messages._messages) == 2:
            taken.append(await messages.receive())
        await messages.put({"type": "http.request", "body": data[at : at + 1], "more_body": True})
    await messages.put({"type": "http.request", "body": b"", "more_body": False})
    await messages.put({"type": "http.request", "body": b"late", "more_body": True})
    await messages.put(GONE)
    while (message := messages.receive_nowait()) is not None:
        taken.append(message)
    assert taken.pop() is GONE
    assert taken.pop()["body"] == b"late"
    assert b"".join(item["body"] for item in taken) == data
    assert [item["more_body"] for item in taken] == [True, False]


async def test_reader_and_writer_wait_for_each_other(nursery: trio.Nursery) -> None:
    """Only one task may wait; a disconnect does not wait, and its listener is called."""
    messages, called, put = Messages(2), [], []
    messages.on_disconnect = lambda: called.append("gone")

    async def fill() -> None:
        for number in range(4):
            await messages.put(BODY)
            put.append(number)

    nursery.start_soon(fill)
    for expected in (2, 3, 4):
        await wait_all_tasks_blocked()
        assert len(put) == expected
        await messages.receive()
    await messages.receive()
    taken: list[Any] = []

    async def take() -> None:
        taken.append(await messages.receive())

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await messages.receive()
    assert not taken
    nursery.start_soon(fill)
    await wait_all_tasks_blocked()
    await messages.put(GONE)
    assert called == ["gone"]
    assert [*taken, messages.receive_nowait(), messages.receive_nowait()] == [BODY] * 3
    assert messages.receive_nowait() is GONE


async def test_a_closed_one_takes_everything_and_keeps_nothing(nursery: trio.Nursery) -> None:
    """When the app has returned, waiting `put`s return, and no listener is called."""
    messages, called, done = Messages(1), [], trio.Event()
    messages.on_disconnect = lambda: called.append("gone")

    async def fill() -> None:
        for message in (BODY, BODY, BODY, GONE):
            await messages.put(message)
        done.set()

    nursery.start_soon(fill)
    await wait_all_tasks_blocked()
    assert not done.is_set()
    messages.close()
    with trio.fail_after(1):
        await done.wait()
    assert (messages.receive_nowait(), called) == (None, [])


@pytest.mark.parametrize("empty", [True, False], ids=["taking", "putting"])
async def test_a_cancelled_wait_has_no_effect(empty: bool) -> None:
    """No message is lost, none is put twice, and another task can wait then."""
    messages = Messages(1)
    if not empty:
        await messages.put(BODY)
        with trio.CancelScope() as scope:
            scope.cancel()
            await messages.receive()
    with trio.move_on_after(0.01) as scope:
        await (messages.receive() if empty else messages.put(LAST))
    assert scope.cancelled_caught
    assert empty or messages.receive_nowait() is BODY
    with trio.fail_after(1):
        await messages.put(LAST)
        assert await messages.receive() is LAST
    assert messages.receive_nowait() is None


async def test_an_event_that_is_set_lets_all_waiters_go_until_it_is_cleared(
    nursery: trio.Nursery,
) -> None:
    event, through = LazyEvent(), []

    async def wait(number: int) -> None:
        await event.wait()
        through.append(number)

    nursery.start_soon(wait, 1)
    nursery.start_soon(wait, 2)
    await wait_all_tasks_blocked()
    assert (through, event.is_set()) == ([], False)
    await event.set()
    await wait(3)
    await wait_all_tasks_blocked()
    assert (sorted(through), event.is_set()) == ([1, 2, 3], True)
    event = LazyEvent()
    await event.set()
    await wait(4)
    await event.clear()
    with trio.move_on_after(0.01):
        await wait(5)
    assert (event.is_set(), through[-1]) == (False, 4)
