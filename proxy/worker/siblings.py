"""The other workers of `weirpool serve --workers N`: asking them to put messages on the stream of a
session that this worker does not have.

Each worker has a mailbox, a pair of Unix datagram sockets that the supervisor makes before the
workers start and keeps, so that a replacement takes over its predecessor's mailbox. A question goes
to all other workers; each answers whether it has the session, and the one that has it puts the
messages on the stream. The sockets have no name: only these processes can write to them.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any

import structlog
import trio

from interceptors.dialects.mcp_sessions import McpSessions
from pools import decode_json, encode_json

__all__ = ["Mailbox", "Siblings", "open_mailboxes"]

_ANSWER_S = 1.0
"""Deadline of an answer in seconds. A worker that misses it is busy or being replaced, and counts
as not having the session.
"""
_MOST_QUESTIONS = 64
"""Open questions of a worker. Clients decide how many there are: further ones are answered with no.
"""
_FULL_S = 0.002
_MAX_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20

Mailbox = tuple[socket.socket, socket.socket]
"""The worker reads from one socket; the others write to the other."""


def open_mailboxes(count: int) -> list[Mailbox]:
    """Make a mailbox for each worker."""
    mailboxes = []
    for _ in range(count):
        reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (reading, writing):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        mailboxes.append((reading, writing))
    return mailboxes


@dataclass
class _Question:
    """A question that waits for answers."""

    left: int
    """Missing answers."""
    had: bool = False
    over: trio.Event = field(default_factory=trio.Event)

    def answer(self, *, had: bool) -> None:
        self.left -= 1
        self.had = self.had or had
        if self.had or not self.left:
            self.over.set()


class Siblings:
    """One worker's view of the others."""

    def __init__(self, mailboxes: Sequence[Mailbox], index: int, sessions: McpSessions) -> None:
        """`index`: the worker's own."""
        self._index = index
        self._own = mailboxes[index][0]
        self._others = {number: pair[1] for number, pair in enumerate(mailboxes) if number != index}
        self._sessions = sessions
        self._questions: dict[int, _Question] = {}
        self._asked = randbits(
            48
        )  # an answer to this worker's predecessor must not look like an answer to it

    async def ask(self, upstream: str, uri: bytes, messages: list[str]) -> bool:
        """Ask the worker that has this session's stream to put messages on it. Returns whether one
        has it.
        """
        if len(self._questions) >= _MOST_QUESTIONS:
            return False
        self._asked += 1
        number = self._asked
        letter = {
            "from": self._index,
            "question": number,
            "upstream": upstream,
            "uri": uri.decode("latin-1"),
            "messages": messages,
        }
        question = self._questions[number] = _Question(len(self._others))
        try:
            with trio.move_on_after(_ANSWER_S):
                async with trio.open_nursery() as nursery:
                    for other in self._others:
                        nursery.start_soon(self._put, other, letter, question)
                    await question.over.wait()
                    nursery.cancel_scope.cancel()
        finally:
            del self._questions[number]
        return question.had

    async def _put(self, other: int, letter: dict[str, Any], question: _Question) -> None:
        if not await self._send(other, letter):
            question.answer(had=False)

    async def run(self) -> None:
        """Read the mailbox until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._own)
                try:
                    self._read(decode_json(self._own.recv(_MAX_BYTES)), nursery)
                except BlockingIOError:
                    continue
                except Exception:
                    structlog.get_logger("proxy").error("internal_error", exc_info=True)

    def _read(self, letter: dict[str, Any], nursery: trio.Nursery) -> None:
        question = self._questions.get(letter["question"])
        if "upstream" in letter:
            upstream, uri = letter["upstream"], letter["uri"].encode("latin-1")
            live = self._sessions.live.get((upstream, uri))
            has = live is not None and live.has_room(letter["messages"])
            nursery.start_soon(
                self._send, letter["from"], {"question": letter["question"], "had": has}
            )
            if has:
                nursery.start_soon(self._deliver, upstream, uri, letter["messages"])
        elif question is not None:
            question.answer(had=letter["had"])

    async def _deliver(self, upstream: str, uri: bytes, messages: list[str]) -> None:
        try:
            await self._sessions.deliver(upstream, uri, messages)
        except Exception:
            structlog.get_logger("proxy").error("internal_error", exc_info=True)

    async def _send(self, other: int, letter: dict[str, Any]) -> bool:
        """Send a datagram. Returns False if it is too large, or if the mailbox stays full."""
        data = encode_json(letter)
        with trio.move_on_after(_ANSWER_S):
            while len(data) <= _MAX_BYTES:
                try:
                    self._others[other].send(data)
                except BlockingIOError:
                    await trio.sleep(
                        _FULL_S
                        # `wait_writable` allows one task for each socket
                    )
                except OSError:
                    return False
                else:
                    return True
        return False
