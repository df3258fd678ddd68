"""The response to the client: its head, what is written to its body besides what a relay moves, and
its end.

It keeps the send deadline wherever one can be kept, and knows what may be said between events. It
knows no upstream, and no outcome; what to say is the exchange's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from ..downstream import (
    ClientConnection,
    Scope,
    Send,
    Writer,
    choose_writer,
    flush,
    has_no_body,
    in_time,
)
from ..errors import ClientGone
from ..http.headers import HeaderList, check_response_headers, response_headers
from ..relay.heartbeat import PING, only_accepts_streams
from ..worker.routes import Route
from ..worker.worker import Worker
from .cors import Cors
from .request_body import RequestBody

__all__ = ["Reply"]

_EARLY_HINT = "http.response.early_hint"


class Reply:
    """The response of one exchange: `start`, then `write` or a relay on its writer, then `finish`.

    What awaits raises `ClientGone`, and `SendStalled` when the client takes nothing for as long as
    it may.
    """

    __slots__ = (
        "_connection",
        "_inbound",
        "_route",
        "_scope",
        "_send",
        "_worker",
        "cors",
        "ended",
        "finished",
        "may_add",
        "status",
        "writer",
    )

    def __init__(
        self,
        worker: Worker,
        route: Route,
        scope: Scope,
        inbound: RequestBody,
        send: Send,
        connection: ClientConnection | None,
        cors: Cors | None = None,
    ) -> None:
        """`cors`: for a request of an allowed origin."""
        self.cors = cors
        self._worker = worker
        self._route = route
        self._scope = scope
        self._inbound = inbound
        self._send = send
        self._connection = connection
        self.writer: Writer | None = None
        """None before `start`."""
        self.status: int | None = None
        self.may_add = False
        """Something of ours may go out between events: the body is an event stream of unknown
        length, and not encoded.
        """
        self.finished = False
        """The whole body has been handed over."""
        self.ended = False
        """And so has its end."""

    @property
    def may_say_error(self) -> bool:
        """An error event may go out, between events."""
        return self.may_add and self._route.dialect.has_error_events

    @property
    def _shielded_send_s(self) -> float:
        """The send deadline of what goes through ASGI; infinity where Hypercorn shields it, and
        TCP_USER_TIMEOUT ends the wait.
        """
        shielded = self._connection is not None and self._connection.shields_send
        return math.inf if shielded else self._route.timeouts.send

    @property
    def send_s(self) -> float:
        """The send deadline of a wait for the client."""
        return (
            self._route.timeouts.send
            if self.writer is not None and self.writer.synchronous
            else self._shielded_send_s
        )

    @property
    def heartbeat_s(self) -> float | None:
        """After how many seconds of silence a heartbeat is due; None: never."""
        return self._route.heartbeat.interval

    @property
    def early_beat_s(self) -> float | None:
        """After how many seconds heartbeats begin although the upstream has not answered yet; None:
        they do not.
        """
        if not self._route.heartbeat.early or self._scope["method"] == "HEAD":
            return None
        accept = [value for name, value in self._scope["headers"] if name == b"accept"]
        return self.heartbeat_s if only_accepts_streams(accept) else None

    def send_probes(self) -> None:
        """Find out that the client is gone although nothing is sent to it, where its connection can
        be reached.
        """
        if self._connection is not None:
            self._connection.send_probes()

    def is_bodiless(self, status: int) -> bool:
        """Whether a response with that status has no body, whatever its head says."""
        return has_no_body(self._scope["method"], status)

    def headers(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        sse: bool,
        dropped: frozenset[bytes] = frozenset(),
    ) -> HeaderList:
        """What of a response's headers goes to the client. `dropped`: besides those that the server
        adds itself.
        """
        added = self._connection.added_headers if self._connection is not None else frozenset()
        return response_headers(headers, dropped=dropped | added, sse=sse)

    def own_headers(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        sse: bool,
        dropped: frozenset[bytes] = frozenset(),
    ) -> HeaderList:
        """As `headers`, of a response that is not the server's: a page of an allowed origin may
        read it.
        """
        listed = self.headers(headers, sse=sse, dropped=dropped)
        return listed if self.cors is None else self.cors.grant(listed)

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        """Send an informational response (RFC 9110, section 15.2), unless the head has left; not to
        a client of HTTP/1.0.

        Under a server other than Hypercorn only ASGI's extension for early hints can carry one:
        103, and of it the `Link` fields.
        """
        if self.writer is not None or self._scope["http_version"] == "1.0":
            return
        headers = [
            item for item in self.headers(headers, sse=False) if item[0] != b"content-length"
        ]
        if self._connection is not None:
            await in_time(
                partial(self._connection.send_interim, status, headers), self._shielded_send_s
            )
        elif status == 103 and _EARLY_HINT in (self._scope.get("extensions") or ()):
            links = [value for name, value in headers if name == b"link"]
            await in_time(
                partial(self._send, {"type": _EARLY_HINT, "links": links}), self._shielded_send_s
            )

    async def start(
        self, status: int, headers: HeaderList, *, chunked: bool, whole: bool, may_add: bool
    ) -> None:
        """Choose the writer and send the head; `whole` as for `Writer.start`. Raises
        `RequestRefused` for bad headers, too.
        """
        if self._route.chain.owners:
            check_response_headers(headers)
        self.may_add = may_add
        self.writer = writer = choose_writer(
            self._scope, self._send, self._connection, chunked=chunked
        )
        self.status = status
        self._worker.metrics.writers[writer.name].inc()
        self._inbound.answered = True
        whole = (
            whole and self._inbound.complete
        )  # else the end waits for the rest of the request, and the head must not
        await in_time(partial(writer.start, status, headers, whole=whole), self._shielded_send_s)

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write and wait until the client has it; the last, where the writer can, is left for
        `finish` to take along.
        """
        assert self.writer is not None
        if not self.writer.write((data,)) and not (last and not self.writer.synchronous):
            await flush(self.writer, self.send_s)

    async def beat_early(self) -> float:
        """A heartbeat before the upstream has answered; before the first, the head of an event
        stream. As `with_heartbeats` asks.
        """
        assert self.heartbeat_s is not None
        if not self._inbound.complete:
            return self.heartbeat_s  # a client that is still sending does not read
        if self.writer is None:
            head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            await self.start(
                200, self.own_headers(head, sse=True), chunked=True, whole=False, may_add=True
            )
        return await self.send_heartbeat()

    async def send_heartbeat(self) -> float:
        """A heartbeat while no relay moves the stream. As `with_heartbeats` asks."""
        assert self.heartbeat_s is not None
        await self.write(PING)
        return self.heartbeat_s

    async def finish(self) -> None:
        """End the response, when the whole request has come. Does not raise `ClientGone`: there is
        nothing left to be lost.
        """
        assert self.writer is not None
        self.finished = (
            True  # the client has the whole body: if it leaves from here on, it leaves content
        )
        with suppress(ClientGone):
            if not self._inbound.complete and self._inbound.holds_connection:
                await flush(self.writer, self.send_s)
                await self._inbound.wait_complete()
            await in_time(self.writer.finish, self._shielded_send_s)
        self.ended = True
