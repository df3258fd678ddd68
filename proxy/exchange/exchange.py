"""One exchange: one request in, one stream out, one outcome.

It opens its buffer scope and its nursery: the *inbound* task takes in the request body as it
arrives and then waits for the client to leave; the exchange's own task takes the request upstream
and the response back (`forward`). Either one ending ends the other. A request that has come whole
needs no inbound task where the server can call when the client leaves: most of them do not.
Whatever happens inside is noted, not raised: when the nursery is done, one place tells the client,
and one place counts and logs.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog
import trio

from interceptors import HookError, InterceptorError, Outcome
from interceptors.chain import EventCounts
from interceptors.hooks import Owner
from interceptors.message import is_preflight

from ..dialects import GENERIC, Dialect
from ..downstream import ClientConnection, Receive, Scope, Send, Writer, inspect_server, raw_target
from ..errors import (
    ClientGone,
    RequestRefused,
    SendStalled,
    UpstreamFailure,
    interceptor_failed,
    outcome_of,
)
from ..http import Target, read_target, request_host
from ..http.head import BadRequest
from ..http.headers import (
    TrustedProxies,
    are_fields,
    one_spelling,
    received_request,
    refuse_two_lengths,
)
from ..worker.metrics import REFUSALS
from ..worker.routes import Route
from ..worker.worker import NO_ROUTE, Worker
from .answer import refusal_of, send_answer
from .cors import Cors, origins_of
from .forward import Forward
from .request_body import LINGER_S, RequestBody

__all__ = ["Exchange"]

_CONCLUDE_S = LINGER_S + 5.0


class Exchange:
    """Serves one ASGI request that is for an upstream. Call it once."""

    __slots__ = (
        "_admitted",
        "_cancel",
        "_connection",
        "_cors",
        "_ended_at",
        "_failure",
        "_forward",
        "_headers",
        "_inbound",
        "_outcome",
        "_place",
        "_preflight",
        "_route",
        "_scope",
        "_started_at",
        "_status",
        "_target",
        "_worker",
    )

    def __init__(self, worker: Worker, scope: Scope) -> None:
        self._worker = worker
        self._scope = scope = _received(scope, worker.trusted_proxies)
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._route: Route | None = None
        self._place: tuple[str, str] | None = None
        self._admitted = False  # it counts against the limits of streams
        self._cors: Cors | None = None
        self._preflight = False  # a preflight that is answered here
        self._cancel: trio.CancelScope | None = None
        self._connection: ClientConnection | None = None
        self._forward: Forward | None = None
        self._target: Target
        self._failure: Exception | None = None  # why it did not complete
        self._outcome: Outcome | None = (
            None  # set early only by what has no exception: a client that left, a drain
        )
        self._started_at = self._ended_at = trio.current_time()
        self._status: int | None = None  # of an answer of ours
        self._inbound: RequestBody | None = None

    @property
    def counts(self) -> EventCounts | None:
        """What became of the events; None when no interceptor sees them."""
        return self._forward.counts if self._forward is not None else None

    @property
    def bytes_upstream(self) -> int:
        """Body bytes taken from the client."""
        return self._inbound.bytes_received if self._inbound is not None else 0

    @property
    def bytes_downstream(self) -> int:
        """Body bytes handed to the client's connection."""
        writer = self._forward.reply.writer if self._forward is not None else None
        return writer.bytes_sent if writer is not None else 0

    @property
    def _finished(self) -> bool:
        """The client has the whole body."""
        return self._forward is not None and self._forward.reply.finished

    @property
    def _ended(self) -> bool:
        """And its end."""
        return self._forward is not None and self._forward.reply.ended

    def describe(self) -> dict[str, Any]:
        """The exchange in `/status`."""
        return {"route": self._route_name}

    def stop(self) -> None:
        """End the exchange because the worker drains. Synchronous; the exchange's own task does the
        rest.
        """
        if self._outcome is None and self._cancel is not None and not self._finished:
            self._outcome = Outcome.DRAINING
            self._cancel.cancel()

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Serve it to its end. Raises only what cancels it; everything borrowed has been given back
        then.
        """
        worker = self._worker
        self._connection = inspect_server(send)
        route: Route | None = None
        try:
            route = self._admit()
        except RequestRefused as refusal:
            self._fail(refusal)
        except Exception as error:
            self._fail_internally(error)
        limits, timeouts = (route.limits, route.timeouts) if route is not None else (None, None)
        self._inbound = inbound = RequestBody(
            receive,
            self._connection,
            max_bytes=limits.max_request_body_bytes if limits is not None else 0,
            idle_s=timeouts.idle if timeouts is not None else None,
        )
        if self._connection is not None and timeouts is not None:
            self._connection.limit_send(timeouts.send)
        worker.enter(self, self._route_name, admitted=self._admitted, place=self._place)
        try:
            if route is not None:
                await self._exchange(route, inbound, send)
        except Exception as error:  # also of a task in the nursery
            self._fail_internally(error)
        finally:
            outcome = self._decide()
            if self._forward is not None and self._forward.chain is not None:
                await self._forward.chain.aclose(outcome)
            self._ended_at = trio.current_time()
            try:
                if not self._is_whole:
                    with trio.CancelScope(shield=True), trio.move_on_after(_CONCLUDE_S):
                        await self._conclude(outcome, inbound, send)
            finally:
                worker.leave(self, self._route_name, admitted=self._admitted, place=self._place)
                self._account(outcome)
                self._let_go()

    @property
    def _route_name(self) -> str:
        return NO_ROUTE if self._route is None else self._route.name

    @property
    def _send_s(self) -> float:
        """The send deadline of an answer; infinity over HTTP/1.1, where the socket has it."""
        if self._connection is not None and self._connection.shields_send:
            return math.inf
        return (self._worker.routes if self._route is None else self._route).timeouts.send

    @property
    def _dialect(self) -> Dialect:
        return GENERIC if self._route is None else self._route.dialect

    def _admit(self) -> Route:
        """Find the route and check what can be checked before anything is opened. Raises
        `RequestRefused`.
        """
        worker = self._worker
        raw, connects = raw_target(self._scope), self._scope["method"] == "CONNECT"
        if connects and not raw.startswith(b"/"):
            raise _not_supported()  # an authority, which has no route
        self._target = target = read_target(raw)
        if target.authority is not None and self._scope["http_version"] == "2":
            raise RequestRefused(
                400, "bad_request", "the request target must be a path"
            )  # RFC 9113, section 8.3.1
        self._route = route = worker.routes.find(target.normal, target.path)
        self._cors = None if route is None else Cors.of(route.allowed_origins, self._headers)
        named, host = request_host(self._headers, target.authority, self._scope["http_version"])
        if target.authority is not None:
            self._headers = [
                (b"host", named),
                *(item for item in self._headers if item[0] != b"host"),
            ]
            self._scope = {**self._scope, "headers": self._headers}
        refuse_two_lengths(self._headers, self._scope["http_version"])
        if route is None:
            raise RequestRefused(404, "no_route", "no route matches this path")
        if route.allowed_hosts is not None and host not in route.allowed_hosts:
            raise RequestRefused(403, "host_not_allowed", "this Host is not allowed here")
        if route.allowed_origins is not None:
            origins = {value.decode("latin-1").lower() for value in origins_of(self._headers)}
            if (
                not origins <= route.allowed_origins
            ):  # without Origin it is not a cross-origin request of a browser
                raise RequestRefused(403, "origin_not_allowed", "this Origin is not allowed here")
        if worker.via.lists(self._headers):
            raise RequestRefused(
                508,
                "loop_detected",
                "this request has passed this proxy before: an endpoint leads back to it",
            )
        if connects:
            raise _not_supported()
        self._preflight = self._cors is not None and is_preflight(
            self._scope["method"], self._headers
        )
        if self._preflight:
            return route  # also at a limit: without this answer the page could not read the refusal of its request
        if worker.draining:
            raise refusal_of(None, Outcome.DRAINING)
        if worker.is_full(route):
            raise RequestRefused(
                503, "too_many_streams", "this server is at its limit of streams", retry_after_s=1
            )
        self._place = worker.client_place(
            route, self._scope["client"][0] if self._scope.get("client") else None, self._headers
        )
        most = route.limits.max_streams_per_client
        if (
            self._place is not None
            and most is not None
            and worker.client_streams.get(self._place, 0) >= most
        ):
            raise RequestRefused(
                429,
                "too_many_client_streams",
                "this client is at its limit of streams",
                retry_after_s=1,
            )
        self._admitted = True
        return route

    async def _exchange(self, route: Route, inbound: RequestBody, send: Send) -> None:
        """Both directions, in one buffer scope and one nursery."""
        self._forward = forward = Forward(
            self._worker,
            route,
            self._scope,
            self._target,
            inbound,
            send,
            self._connection,
            cors=self._cors,
            preflight=self._preflight,
        )
        async with self._worker.pools.open_scope() as buffers, trio.open_nursery() as nursery:
            self._cancel = nursery.cancel_scope
            self._cancel.deadline = self._started_at + route.timeouts.total
            try:
                try:
                    await forward.begin(
                        buffers, nursery, self._watch_client, self._on_disconnect, self._run_task
                    )
                    if (moving := forward.move(buffers)) is not None:
                        await moving
                finally:
                    forward.close()
                await forward.reply.finish()
            except (
                UpstreamFailure,
                RequestRefused,
                InterceptorError,
                ClientGone,
                SendStalled,
            ) as failure:
                self._fail(failure)
            except BadRequest:
                self._fail(self._unsendable())
            except Exception as error:
                self._fail_internally(error)
            nursery.cancel_scope.cancel()

    def _unsendable(self) -> RequestRefused:
        """For a request that cannot be sent: the client's fault, or that of an interceptor that has
        changed it.
        """
        if self._forward is None or self._forward.request is None or not are_fields(self._headers):
            return RequestRefused(
                400, "bad_request", "a header or the target of the request cannot be forwarded"
            )
        return interceptor_failed(
            "an interceptor has set a method or a header of the request that cannot be sent"
        )

    async def _run_task(
        self, owner: Owner, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        """A task that an interceptor has started."""
        assert self._cancel is not None
        problem = await owner.run_task(async_fn, args)
        if (
            problem is not None and not self._finished
        ):  # what is whole and with the client cannot be spoilt any more
            self._fail(problem)
            self._cancel.cancel()

    def _watch_client(self, nursery: trio.Nursery) -> None:
        """End the exchange when the client leaves: told by the server, if that is all that is left
        to hear, else in a task.
        """
        assert self._inbound is not None
        if not self._inbound.listen(self._on_disconnect):
            nursery.start_soon(self._take_in)

    def _on_disconnect(self) -> None:
        """The server says that the client is gone."""
        assert self._inbound is not None
        self._inbound.left()
        self._client_left()

    async def _take_in(self) -> None:
        """The inbound task: take in the request, then end the exchange when the client leaves."""
        assert self._cancel is not None
        assert self._inbound is not None
        try:
            await self._inbound.run()
        except RequestRefused as refusal:
            self._fail(refusal)
        except Exception as error:
            self._fail_internally(error)
        else:
            self._client_left()
            return
        self._cancel.cancel()

    def _client_left(self) -> None:
        assert self._cancel is not None
        if self._finished:
            return
        if self._failure is None:  # else that came first
            self._outcome = self._outcome or Outcome.CLIENT_DISCONNECTED
        self._cancel.cancel()

    def _let_go(self) -> None:
        """Refer to nothing that refers to this, so that all of it is freed now, and not when the
        garbage collector gets to it.
        """
        self._failure = None  # its traceback knows the frames that it came through
        if self._forward is not None:
            self._forward.asking = None  # it calls back for informational responses
            if self._forward.request is not None:
                self._forward.request.spawn = None

    def _fail(self, failure: Exception) -> None:
        """Note why the exchange failed; the first reason counts."""
        # Its frames hold the body, which may be large, for as long as the client is being answered.
        failure.__traceback__ = None
        self._failure = self._failure or failure

    def _fail_internally(self, error: Exception) -> None:
        structlog.get_logger("proxy").error(
            "internal_error", route=self._route_name, exc_info=error
        )
        self._fail(
            RequestRefused(
                500, "internal_error", "the proxy failed", outcome=Outcome.INTERNAL_ERROR
            )
        )

    def _decide(self) -> Outcome:
        """The exchange's one outcome."""
        stated = self._outcome or (outcome_of(self._failure) if self._failure is not None else None)
        if stated is Outcome.CLIENT_DISCONNECTED and (
            isinstance(self._failure, SendStalled)
            or (self._connection is not None and self._connection.timed_out)
        ):
            # The kernel kept the deadline. It tells that once, and to whoever does not hear it the
            # client has just left.
            return Outcome.SEND_STALLED
        if stated is not None:
            return stated
        if self._ended:
            assert self._forward is not None
            return self._forward.outcome
        if self._cancel is not None and trio.current_time() >= self._cancel.deadline:
            return Outcome.UPSTREAM_TIMEOUT  # the total deadline
        return (
            Outcome.DRAINING
        )  # cancelled from outside: the server has run out of patience with its shutdown

    @property
    def _is_whole(self) -> bool:
        """The client has got a response that is whole, so that nothing is left to be said."""
        return self._ended and self._failure is None and self._outcome is None

    async def _conclude(self, outcome: Outcome, inbound: RequestBody, send: Send) -> None:
        """Tell the client how it ended, unless it is gone. Runs shielded, with a deadline."""
        writer = self._forward.reply.writer if self._forward is not None else None
        answered = False
        try:
            if writer is not None and writer.started:
                if (
                    outcome not in (Outcome.CLIENT_DISCONNECTED, Outcome.SEND_STALLED)
                    and not self._finished
                ):
                    with suppress(ClientGone):
                        await self._say_error(writer, outcome)
            elif outcome is not Outcome.CLIENT_DISCONNECTED:
                refusal = refusal_of(self._failure, outcome)
                self._status = refusal.status
                http1 = self._scope["http_version"] != "2"
                close = http1 and (
                    self._worker.draining or (not inbound.over and _announces_body(self._headers))
                )
                request = self._forward.request if self._forward is not None else None
                body = self._dialect.error_body(refusal, request)
                answered = await send_answer(
                    refusal, body, inbound, send, close=close, send_s=self._send_s, cors=self._cors
                )
        finally:
            if not answered:
                await self._cut()
                await inbound.settle()

    async def _cut(self) -> None:
        """End the response such that the client sees that it is not whole. Without access to the
        connection, the app just returns in the middle of it, and servers then close the connection.
        """
        if self._connection is not None:
            await self._connection.abort()

    async def _say_error(self, writer: Writer, outcome: Outcome) -> None:
        """An error event, where one can be said: in a plain event stream, between two events, to a
        client that reads.
        """
        forward = self._forward
        assert forward is not None
        lost = outcome is Outcome.DRAINING or isinstance(self._failure, UpstreamFailure)
        if lost and self._dialect.can_resume(forward.request):
            return  # the client comes back for the rest, unless its requests have been answered with an error
        if (
            forward.reply.may_say_error
            and not writer.stalled
            and (forward.relay is None or forward.relay.at_boundary)
        ):
            events = self._dialect.error_events(
                refusal_of(self._failure, outcome), forward.request, self._target.normal
            )
            with trio.move_on_after(1):
                all_sent = not events or writer.write(events)
                while not all_sent:
                    all_sent = await writer.drain()

    def _account(self, outcome: Outcome) -> None:
        """One metric, one log line."""
        route = self._route_name
        first_byte_s = None
        forward = self._forward
        if forward is not None and forward.first_body_at is not None:
            first_byte_s = forward.first_body_at - self._started_at
        metrics = self._worker.metrics
        metrics.exchanges[route, outcome].inc()
        kind = getattr(self._failure, "kind", None)
        if kind in REFUSALS:
            metrics.refused[route, kind].inc()
        if first_byte_s is not None:
            metrics.time_to_first_byte[route].observe(first_byte_s)
        endpoint = (
            forward.asking.endpoint if forward is not None and forward.asking is not None else None
        )
        line: dict[str, Any] = {
            "route": route,
            "upstream": None if self._route is None else self._route.upstream,
            "endpoint": None if endpoint is None else endpoint.origin,
            "method": self._scope["method"],
            "status": self._status
            if self._status is not None or forward is None
            else forward.reply.status,
            "outcome": outcome.value,
            "events": None if self.counts is None else self.counts.total,
            "bytes": self.bytes_downstream,
            "duration": round(self._ended_at - self._started_at, 6),
            "time_to_first_byte": None if first_byte_s is None else round(first_byte_s, 6),
        }
        if self._failure is not None and not isinstance(self._failure, ClientGone | SendStalled):
            line["error"] = str(self._failure)
            if isinstance(self._failure, HookError) and self._worker.config.log.level != "debug":
                line["error"] = self._failure.summary
        interceptor = getattr(self._failure, "interceptor", None)
        if interceptor is None and outcome is Outcome.INTERCEPTED and forward is not None:
            interceptor = forward.interceptor
        if interceptor is not None:
            line["interceptor"] = interceptor
        self._worker.log.info("exchange", **line)


def _received(scope: Scope, trusted: TrustedProxies) -> Scope:
    """The request as everything here reads it: the peer's address in its one spelling, and no
    fields of the hop.
    """
    peer = scope.get("client")
    address = None if peer is None else one_spelling(peer[0])
    return {
        **scope,
        "client": None if peer is None else (address, *peer[1:]),
        "headers": received_request(scope["headers"], trusted=address in trusted),
    }


def _not_supported() -> RequestRefused:
    return RequestRefused(
        501, "not_supported", "CONNECT is not supported, and neither is WebSocket"
    )


def _announces_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
