"""The other workers of `weirpool serve --workers N`: asking them to put messages on the stream of a
session that this worker does not have, and for their parts of the admin pages.

Each worker has a mailbox, a pair of Unix datagram sockets that the supervisor makes before the
workers start and keeps, so that a replacement takes over its predecessor's mailbox. A question goes
to all other workers; each answers whether it has the session, and the one that has it puts the
messages on the stream. A question for a page carries one end of a new socket, for the answer. The
sockets have no name: only these processes can write to them.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any

import structlog
import trio

from interceptors.dialects.mcp_sessions import McpSessions
from pools import decode_json, encode_json

from .counters import CounterMemory
from .reloads import Notice
from .tally import new_memory

__all__ = ["PART_S", "Group", "Mailbox", "Siblings", "open_group", "open_mailboxes"]

_ANSWER_S = 1.0
"""Deadline of an answer in seconds. A worker that misses it is busy or being replaced, and counts
as not having the session.
"""
PART_S = 2.0
"""Deadline of a part of a page in seconds, for the worker that asks and for the one that answers."""
_MOST_QUESTIONS = 64
"""Open questions of a worker. Clients decide how many there are: further ones are answered with no.
"""
_FULL_S = 0.002
_MAX_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20

Mailbox = tuple[socket.socket, socket.socket]
"""The worker reads from one socket; the others write to the other."""


@dataclass(frozen=True, slots=True)
class Group:
    """What the supervisor makes for its workers before they start; one of each for a worker."""

    mailboxes: Sequence[Mailbox]
    memories: Sequence[CounterMemory]
    store_url: str | None = None
    """The supervisor's own server for shared state."""
    notice: Notice = field(default_factory=Notice)
    """The supervisor's last reload."""


def open_group(count: int, store_url: str | None = None) -> Group:
    """Make what `count` workers share."""
    return Group(open_mailboxes(count), [new_memory() for _ in range(count)], store_url)


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
        self.part_of: Callable[[str], bytes] = lambda page: b""
        """Returns this worker's part of a page, without blocking."""
        self.show: Callable[[dict[str, Any], trio.SocketStream], Awaitable[None]] | None = None
        """Sends what a sibling wants to watch, and closes the stream."""

    @property
    def others(self) -> Collection[int]:
        """The numbers of the other workers."""
        return self._others.keys()

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

    async def parts(self, page: str, others: Iterable[int]) -> dict[int, bytes]:
        """Ask other workers for their parts of a page. Returns those that came within `PART_S`;
        one can be cut, if its worker has ended.
        """
        parts: dict[int, bytes] = {}
        with trio.move_on_after(PART_S):
            async with trio.open_nursery() as nursery:
                for other in others:
                    nursery.start_soon(self._fetch, other, page, parts)
        return parts

    async def _fetch(self, other: int, page: str, parts: dict[int, bytes]) -> None:
        stream = await self.connect(other, {"page": page})
        if stream is not None:
            async with stream:
                with suppress(trio.BrokenResourceError):
                    parts[other] = b"".join([chunk async for chunk in stream])

    async def connect(self, other: int, letter: dict[str, Any]) -> trio.SocketStream | None:
        """Send a letter with one end of a new socket, for the answer; returns the other end. None:
        there is no descriptor, or the worker does not take it.
        """
        try:
            own, its = socket.socketpair()
        except OSError:
            return None
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(own))
        with its:
            try:
                sent = await self._send(other, {"from": self._index, **letter}, its)
            except BaseException:
                own.close()
                raise
        if sent:
            return stream
        own.close()
        return None

    async def _put(self, other: int, letter: dict[str, Any], question: _Question) -> None:
        if not await self._send(other, letter):
            question.answer(had=False)

    async def run(self) -> None:
        """Read the mailbox until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._own)
                try:
                    data, files, _, _ = socket.recv_fds(self._own, _MAX_BYTES, 1)
                    answering = [socket.socket(fileno=file) for file in files]
                    self._read(decode_json(data), answering, nursery)
                except BlockingIOError:
                    continue
                except Exception:
                    structlog.get_logger("proxy").error("internal_error", exc_info=True)

    def _read(
        self, letter: dict[str, Any], answering: list[socket.socket], nursery: trio.Nursery
    ) -> None:
        question = self._questions.get(letter.get("question", 0))
        if "page" in letter:
            for sock in answering:  # none if this process had no descriptor left
                nursery.start_soon(self._answer, sock, letter["page"])
        elif "view" in letter:
            for sock in answering:
                nursery.start_soon(self._show, sock, letter["view"])
        elif "upstream" in letter:
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

    async def _answer(self, sock: socket.socket, page: str) -> None:
        """Send this worker's part of a page."""
        sock.setblocking(False)
        with suppress(trio.BrokenResourceError), trio.move_on_after(PART_S):
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                try:
                    data = self.part_of(page)
                except Exception:
                    structlog.get_logger("proxy").error("internal_error", exc_info=True)
                else:
                    await stream.send_all(data)

    async def _show(self, sock: socket.socket, asked: dict[str, Any]) -> None:
        """Send what a sibling wants to watch, until it closes the socket."""
        sock.setblocking(False)
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                if self.show is not None:
                    await self.show(asked, stream)
        except Exception:
            structlog.get_logger("proxy").error("internal_error", exc_info=True)

    async def _deliver(self, upstream: str, uri: bytes, messages: list[str]) -> None:
        try:
            await self._sessions.deliver(upstream, uri, messages)
        except Exception:
            structlog.get_logger("proxy").error("internal_error", exc_info=True)

    async def _send(
        self, other: int, letter: dict[str, Any], answer: socket.socket | None = None
    ) -> bool:
        """Send a datagram, with a socket for the answer. Returns False if it is too large, or if the
        mailbox stays full.
        """
        data = encode_json(letter)
        files = [] if answer is None else [answer.fileno()]
        with trio.move_on_after(_ANSWER_S):
            while len(data) <= _MAX_BYTES:
                try:
                    socket.send_fds(self._others[other], [data], files)
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
