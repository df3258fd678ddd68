"""The response to the client: its head, everything written to its body except by a relay, its end.

`flush` is the only place that waits for a client, and it owns the send deadline. The module knows
whether proxy bytes may stand between two events; it knows no upstream and no outcome.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import msgspec
import trio

from ..downstream import ClientStream, Writer
from ..errors import ClientGone, SendStalled
from ..http.headers import HeaderList, check_response_headers, response_headers, with_request_id
from ..relay.heartbeat import PING, only_accepts_streams
from ..worker.routes import Route
from ..worker.worker import Worker
from .cors import Cors
from .request import ClientRequest
from .request_body import RequestBody

__all__ = ["ClientResponse"]

_ERROR_EVENT_S = 1.0
_NO_NAMES: frozenset[bytes] = frozenset()


class ClientResponse(msgspec.Struct, eq=False):
    """The response of one exchange: `start`, then `write` or a relay on its writer, then `finish`.

    Methods that wait raise `ClientGone` when the client has left, and `SendStalled` when it takes
    nothing for `timeouts.send` seconds.
    """

    _worker: Worker
    _route: Route | None
    _request: ClientRequest
    _body: RequestBody
    _stream: ClientStream
    cors: Cors | None
    """Of a request from an allowed origin."""
    writer: Writer | None = None
    """None before `start`."""
    status: int | None = None
    """None until a head is sent."""
    may_add: bool = False
    """Proxy bytes may go out between events: the body is an event stream of unknown length and
    without content coding.
    """
    finished: bool = False
    """The whole body has been handed over: a client that leaves now has everything."""
    ended: bool = False
    """The end of the body has been handed over, too."""

    async def flush(self, step: Callable[[], Awaitable[bool | None]] | None = None) -> None:
        """Wait until the client has taken what was written.

        Repeats `step`, by default the writer's `drain`, until its result is not False. Each
        repetition may take `timeouts.send` seconds.
        """
        send_s = (self._route or self._worker.routes).timeouts.send
        if step is None:
            assert self.writer is not None
            step = self.writer.drain
        done: bool | None = False
        while done is False:
            if send_s == math.inf:
                done = await step()
                continue
            with trio.move_on_after(send_s) as scope:
                done = await step()
            if scope.cancelled_caught:
                raise SendStalled

    def start(
        self, status: int, headers: HeaderList, *, chunked: bool, whole: bool, may_add: bool
    ) -> bool:
        """Choose the writer and send the head. `whole` and the result: see `Writer.start`; False:
        `flush` must follow. Raises also `RequestRefused`, for headers from an interceptor that
        cannot be sent.
        """
        if self._route is not None and self._route.chain.owners:
            check_response_headers(headers)
        self.may_add = may_add
        self.writer = writer = self._stream.writer(chunked=chunked)
        self.status = status
        self._worker.metrics.writers.count(writer.name)
        self._body.answered = True
        # Unless the request is complete, the end of the response waits for it; the head must not.
        whole = whole and (not self._stream.holds_response or self._body.complete)
        return writer.start(status, headers, whole=whole)

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write and wait until the client has it. `last`: `finish` may send it with the end."""
        assert self.writer is not None
        if not self.writer.write((data,)) and not (last and not self.writer.synchronous):
            await self.flush()

    async def finish(self) -> None:
        """End the response, after the whole request has come. Does not raise `ClientGone`."""
        assert self.writer is not None
        self.finished = True
        try:
            if not self._body.complete and self._body.holds_connection:
                await self.flush()
                await self._body.wait_complete()
            if not self.writer.finish():
                await self.flush()
        except ClientGone:
            pass  # it has the whole body
        self.ended = True

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        """Send an informational response (RFC 9110, section 15.2), unless the head has been sent,
        the client's version is HTTP/1.0, or it is a 100 that the client no longer waits for.
        """
        if self.writer is not None or self._request.http_version == "1.0":
            return
        if status == 100 and self._stream.head.expects_continue:
            if not self._body.is_withheld:
                return
            self._body.note_continue()
        headers = [
            item for item in response_headers(headers, sse=False) if item[0] != b"content-length"
        ]
        await self.flush(partial(self._stream.send_interim, status, headers))

    async def ask_for_body(self) -> None:
        """Send a 100 if the client waits for it and has no response."""
        if self._body.is_withheld:
            await self.send_interim(100, [])

    async def send_refusal(self, status: int, headers: HeaderList, body: bytes) -> bool:
        """Send a whole answer of the proxy. Returns False if the client has left, takes nothing, or
        does not stop sending its request: its connection must then be cut.
        """
        headers = self._of_proxy(headers)
        self.status = status
        writer = self._stream.writer(chunked=False)
        whole = not self._stream.holds_response
        try:
            if not writer.start(status, headers, whole=whole):
                await self.flush(writer.drain)
            if not writer.write((body,)):
                await self.flush(writer.drain)
            if self._body.holds_connection and not await self._body.discard():
                return False
            if not writer.finish():
                await self.flush(writer.drain)
        except (SendStalled, ClientGone):
            return False
        return True

    async def send_error_events(self, events: Sequence[bytes]) -> None:
        """Send the events of a failure, within a second. The caller has checked `takes_error`."""
        assert self.writer is not None
        with suppress(ClientGone, SendStalled), trio.move_on_after(_ERROR_EVENT_S):
            if events and not self.writer.write(events):
                await self.flush()

    @property
    def takes_error(self) -> bool:
        """Error events may go out: the stream allows them, and nothing waits to be sent."""
        return (
            self.may_add
            and self._route is not None
            and self._route.dialect.has_error_events
            and self.writer is not None
            and not self.writer.stalled
        )

    @property
    def heartbeat_s(self) -> float | None:
        """Seconds of silence before a heartbeat; None: no heartbeats."""
        return None if self._route is None else self._route.heartbeat.interval

    @property
    def early_heartbeat_s(self) -> float | None:
        """Seconds between heartbeats until the upstream answers; None: no early heartbeats."""
        if self._route is None or not self._route.heartbeat.early or self._request.method == "HEAD":
            return None
        accept = [value for name, value in self._request.headers if name == b"accept"]
        return self.heartbeat_s if only_accepts_streams(accept) else None

    async def send_early_heartbeat(self) -> float:
        """Send a heartbeat before the upstream has answered, and before the first the head of an
        event stream. Returns the seconds until the next one.
        """
        assert self.heartbeat_s is not None
        if not self._body.complete:
            return self.heartbeat_s  # a client that is still sending does not read
        if self.writer is None:
            head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            headers = self.own_headers(head, sse=True)
            if not self.start(200, headers, chunked=True, whole=False, may_add=True):
                await self.flush()
        return await self.send_heartbeat()

    async def send_heartbeat(self) -> float:
        """Send a heartbeat while no relay moves the stream. Returns the seconds until the next."""
        assert self.heartbeat_s is not None
        await self.write(PING)
        return self.heartbeat_s

    def send_probes(self) -> None:
        """Detect by TCP keepalive that the client has left, although nothing is sent to it."""
        self._stream.send_probes()

    def own_headers(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        sse: bool,
        dropped: frozenset[bytes] = _NO_NAMES,
    ) -> HeaderList:
        """As `response_headers`, for an answer that is not the upstream's. Adds the request's id and
        CORS headers, so that a page of an allowed origin can read it.
        """
        return self._of_proxy(response_headers(headers, sse=sse, dropped=dropped))

    def _of_proxy(self, headers: HeaderList) -> HeaderList:
        """The headers of an answer that is not the upstream's: with the request's id, and readable
        for a page of an allowed origin.
        """
        request, cors = self._request, self.cors
        name = request.request_id_header
        headers = with_request_id(headers, name, request.request_id)
        return headers if cors is None else cors.grant(headers, name)
