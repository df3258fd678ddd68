"""The relay of bytes that no interceptor sees: they pass unparsed, and whole chunks keep
the upstream's framing.

It remembers the last bytes that were sent, to know whether an event may be added after them.
"""

from __future__ import annotations

from interceptors.chain import Part, StreamChain
from interceptors.framing import StreamTail
from interceptors.sse import BOM
from pools import BufferScope, Pools

from ..downstream import Writer
from ..http.body import Split
from ..hub import Need
from ..upstream import UpstreamBody
from .step import Copy, Observe, Relay

__all__ = ["PassingRelay"]

_READ, _TURN, _WRITE = Need.READ, Need.TURN, Need.WRITE
_TWO_FRAMINGS = 10  # bytes of the framing of two chunks; most reads bring one


class PassingRelay(Relay):
    """Implements `Relay` for bytes."""

    __slots__ = ("_bom", "_keeps_chunks", "_tail")

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
        self._keeps_chunks = self._may_keep_chunks
        self._tail = StreamTail()
        self._bom: bytes | None = None  # the part received of a BOM that must not pass

    @property
    def at_boundary(self) -> bool:
        return self._tail.is_whole

    @property
    def between_events(self) -> bool:
        return self._tail.between_events

    @property
    def last_left(self) -> float:
        return max(self.last_write, self.last_read)  # what is read leaves at once, without a note

    def pump(self, window: bytearray, now: float) -> Need:
        if self._keeps_chunks:
            return self._pass_chunks(window, now)
        span = self.body.receive(window, 0)
        if span is None:
            return _READ
        first, last = span
        self._note(last - first, now)
        if self._observe is not None:
            self._observe(window, first, last, now)
        all_sent = (first == last and not self._bom) or self._pass(window, first, last)
        return self.next_need() if all_sent else _WRITE

    def copy_to(self, copy: Copy | None) -> None:
        super().copy_to(copy)
        # Chunks with their framing are not copied.
        self._keeps_chunks = self._bom is None and self._may_keep_chunks

    @property
    def _may_keep_chunks(self) -> bool:
        return self.body.chunked and self.writer.keeps_chunks and self._copy is None

    def note_own_write(self) -> None:
        if self.first_read is None and self._bom is None and self._sse:
            self._bom = b""
            self._keeps_chunks = False

    def _pass_chunks(self, buffer: bytearray, now: float) -> Need:
        """A step that sends complete chunks with their framing unchanged."""
        body = self.body
        split = body.receive_split(buffer)
        if split is None:
            return _READ
        lead, wire, after, first, last, size = split
        self._note(size, now)
        all_sent = True
        if size:
            if self._observe is not None:
                if not lead and first == last and after - wire - size < _TWO_FRAMINGS:
                    self._observe(buffer, after - 2 - size, after - 2, now)
                else:
                    _observe_chunks(self._observe, buffer, split, now)
            if self._sse:
                self._remember_chunks(buffer, lead, wire, after, first, last)
            view = memoryview(buffer)
            if wire == 0 and first == last:
                message: tuple[Part, ...] = (view[:after],)
            else:
                message = (
                    *_as_chunk(view, 0, lead),
                    *((view[wire:after],) if wire < after else ()),
                    *_as_chunk(view, first, last),
                )
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

    def _remember_chunks(
        self, buffer: bytearray, lead: int, wire: int, after: int, first: int, last: int
    ) -> None:
        if lead:
            self._tail.remember(buffer, 0, lead)
        if wire < after:
            # Before the last chunk's CRLF; a whole chunk with its framing has at least 6 bytes.
            self._tail.remember(buffer, after - 6, after - 2)
        if first < last:
            self._tail.remember(buffer, first, last)

    def _pass(self, buffer: bytearray, first: int, last: int) -> bool:
        if self._sse:
            if self._bom is not None:
                return self._pass_without_bom(bytes(buffer[first:last]))
            self._tail.remember(buffer, first, last)
        if self._copy is not None:
            self._copy(buffer, first, last)
        part = memoryview(buffer)[first:last]
        try:
            return self.writer.write((part,))
        finally:
            part.release()

    def _pass_without_bom(self, data: bytes) -> bool:
        """The first bytes after a heartbeat, until it is known whether they are a BOM."""
        assert self._bom is not None
        self._bom += data
        if len(self._bom) < len(BOM) and BOM.startswith(self._bom) and not self.body.complete:
            return True
        data = self._bom.removeprefix(BOM)
        self._bom = None
        self._keeps_chunks = self._may_keep_chunks
        if not data:
            return True
        self._tail.remember(data, 0, len(data))
        if self._copy is not None:
            self._copy(data, 0, len(data))
        return self.writer.write((data,))


def _observe_chunks(observe: Observe, buffer: bytearray, split: Split, now: float) -> None:
    """Show what one read brought."""
    lead, wire, after, first, last, _ = split
    if lead:
        observe(buffer, 0, lead, now)
    while wire < after:
        line = buffer.index(b"\n", wire)
        size = int(buffer[wire:line].partition(b";")[0], 16)
        if not size:
            break
        observe(buffer, line + 1, line + 1 + size, now)
        wire = line + size + 3
    if first < last:
        observe(buffer, first, last, now)


def _as_chunk(view: memoryview, first: int, last: int) -> tuple[Part, ...]:
    """Bytes of an incomplete chunk, framed as a chunk."""
    return (b"%x\r\n" % (last - first), view[first:last], b"\r\n") if first < last else ()
