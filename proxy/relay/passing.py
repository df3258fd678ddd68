"""The relay of bytes that nobody wants to see: they pass unparsed, whole chunks even with the
framing that they came in.

Only the last few bytes that left are remembered: they tell whether an event has ended, so that
something else may be said.
"""

from __future__ import annotations

import re

from interceptors.chain import Part, StreamChain
from interceptors.sse import BOM
from pools import BufferScope, Pools

from ..downstream import Writer
from ..upstream import UpstreamBody
from .step import Need, Relay

__all__ = ["PassingRelay"]

_AT_BOUNDARY = re.compile(
    rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)\Z"
)  # a line's end, and an empty line
_READ, _TURN, _WRITE = Need.READ, Need.TURN, Need.WRITE


class PassingRelay(Relay):
    """Implements `Relay` for bytes."""

    __slots__ = ("_bom", "_splits", "_tail")

    def __init__(
        self,
        body: UpstreamBody,
        writer: Writer,
        chain: StreamChain | None,
        pools: Pools,
        scope: BufferScope,
        *,
        sse: bool,
    ) -> None:
        super().__init__(body, writer, chain, pools, scope, sse=sse)
        self._splits = (
            body.chunked and writer.synchronous
        )  # chunks may leave with the framing that they came in
        self._tail = bytearray(b"\n\n")
        self._bom: bytes | None = None  # what has come of a BOM that must not pass

    @property
    def at_boundary(self) -> bool:
        return _AT_BOUNDARY.search(self._tail) is not None

    @property
    def between_events(self) -> bool:
        # A CR behind an LF is most likely half a CRLF.
        return self.at_boundary and not self._tail.endswith(b"\n\r")

    @property
    def last_left(self) -> float:
        return max(
            self.last_write, self.last_read
        )  # what was read left at once, and nobody noted it

    def pump(self, window: bytearray, now: float) -> Need:
        if self._splits:
            return self._pass_chunks(window, now)
        span = self.body.receive(window, 0)
        if span is None:
            return _READ
        first, last = span
        self._note(last - first, now)
        all_sent = (first == last and not self._bom) or self._pass(window, first, last)
        return self.next_need() if all_sent else _WRITE

    def note_own_write(self) -> None:
        if self.first_read is None and self._bom is None and self._sse:
            self._bom = b""
            self._splits = False

    def _pass_chunks(self, buffer: bytearray, now: float) -> Need:
        """A pump of chunks: those that came whole leave as they are."""
        body = self.body
        split = body.receive_split(buffer)
        if split is None:
            return _READ
        lead, wire, behind, first, last, size = split
        self._note(size, now)
        all_sent = True
        if size:
            view = memoryview(buffer)
            if wire == 0 and first == last:
                message: tuple[Part, ...] = (view[:behind],)
            else:
                message = (
                    *((b"%x\r\n" % lead, view[:lead], b"\r\n") if lead else ()),
                    *((view[wire:behind],) if wire < behind else ()),
                    *(
                        (b"%x\r\n" % (last - first), view[first:last], b"\r\n")
                        if first < last
                        else ()
                    ),
                )
            if self._sse:
                if lead:
                    self._remember(buffer, 0, lead)
                if wire < behind:
                    self._tail = buffer[behind - 6 : behind - 2]  # a whole chunk is not smaller
                if first < last:
                    self._remember(buffer, first, last)
            try:
                all_sent = self.writer.write_chunks(message, size)
            finally:
                for part in message:
                    if type(part) is memoryview:
                        part.release()
                view.release()
        if not all_sent:
            return _WRITE
        if body.complete or self.chain is not None:
            return self.next_need()
        return _TURN if body.pending else _READ

    def _pass(self, buffer: bytearray, first: int, last: int) -> bool:
        """On they go."""
        if self._sse:
            if self._bom is not None:
                return self._pass_without_bom(bytes(buffer[first:last]))
            self._remember(buffer, first, last)
        part = memoryview(buffer)[first:last]
        try:
            return self.writer.write((part,))
        finally:
            part.release()

    def _pass_without_bom(self, data: bytes) -> bool:
        """The first bytes behind a heartbeat, until it is known whether they are a BOM."""
        assert self._bom is not None
        self._bom += data
        if len(self._bom) < len(BOM) and BOM.startswith(self._bom) and not self.body.complete:
            return True
        data = self._bom.removeprefix(BOM)
        self._bom = None
        self._splits = self.body.chunked and self.writer.synchronous
        if not data:
            return True
        self._remember(bytearray(data), 0, len(data))
        return self.writer.write((data,))

    def _remember(self, buffer: bytearray, first: int, last: int) -> None:
        """The last bytes that left."""
        self._tail = (
            buffer[last - 4 : last] if last - first >= 4 else (self._tail + buffer[first:last])[-4:]
        )
