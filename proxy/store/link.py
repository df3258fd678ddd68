"""The connection of one worker to the store's server: scripts in, answers out, and a breaker.

One pipelined connection carries every call and every subscription (RESP3 tells them apart): a
command waits for no other command's answer, and costs a third of one through coredis' pool. The
owner of the connection is `run`, so cancelling a call neither loses a connection nor shifts the
answers of other calls: coredis keeps a place for each answer.

The breaker: when the connection ends, the server refuses all calls, or no call was answered in time
during a whole timeout, the link is down, and calls fail at once. `run` then tries, with backoff and
jitter, until a probe that writes has been answered in time.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from random import random
from typing import TYPE_CHECKING, Any

import structlog
import trio

from interceptors.store import StoreUnavailable

from .address import Address
from .scripts import SCRIPTS, Call, Script

if TYPE_CHECKING:
    from coredis.connection import BaseConnection
    from coredis.connection._request import Request

__all__ = ["KINDS", "Link"]

KINDS = ("timeout", "connection", "reply", "away")
"""Kinds of failed calls."""

_CONNECT_S = 2.0
"""Deadline of a connection: TCP, TLS and the handshake, which takes several round trips."""
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 1.0
_SCRIPTS_S = 1.0
_LEAST_VERSION = 7
_LATE_TURNS = 3
"""Turns of the event loop in which answers are read that have arrived."""
# Errors of the whole server. Any other error is about a key, and fails only its call.
_OF_SERVER = ("OOM", "MISCONF", "MASTERDOWN", "BUSY", "CLUSTERDOWN", "NOREPLICAS")


class Link:
    """`call` runs a script while the link is up."""

    def __init__(
        self,
        address: Address,
        timeout_s: float,
        *,
        ca_file: str | None,
        first_calls: Callable[[], Iterable[Call]],
    ) -> None:
        """`first_calls`: what must be answered, each in time, before the link is up."""
        self.address = address
        self.timeout_s = timeout_s
        self.is_up = False
        self.failures = dict.fromkeys(KINDS, 0)
        """Failed calls by kind."""
        self.on_up: Callable[[], None] = lambda: None
        """Called when the link is up, also for the first time. Must not block."""
        self.on_message: Callable[[str, bytes], None] = lambda channel, message: None
        """Called with each message of a subscription. Must not block."""
        logging.getLogger("coredis").propagate = False  # it logs what `store_down` reports
        self._ca_file = ca_file
        self._first_calls = first_calls
        self._connection: BaseConnection | None = None
        self._ended = trio.Event()
        self._answers = 0
        self._down_since: float | None = None

    async def call(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script and return its answer. Raises `StoreUnavailable` within `timeout_s`."""
        return await self._ask(
            (b"EVALSHA", script.sha, len(keys), *keys, *args),
            (b"EVAL", script.text, len(keys), *keys, *args),
        )

    async def command(self, *command: Any) -> Any:
        """Send a command and return its answer. Raises `StoreUnavailable` within `timeout_s`."""
        return await self._ask(command)

    def send(self, *command: Any) -> None:
        """Send a command without an answer of its own (SUBSCRIBE), if the link is up."""
        if self._connection is not None and self._connection.usable:
            self._connection.send_command(*command)

    async def _ask(self, *forms: tuple[Any, ...]) -> Any:
        """Send a command; if the server does not know its script, the next form of it."""
        from coredis.exceptions import NoScriptError

        connection, began = self._connection, self._answers
        if connection is None:
            raise self._failed("away", "the store is away")
        deadline = trio.current_time() + self.timeout_s
        try:
            for form in forms:
                try:
                    answer = await _answer(connection.create_request(*form), deadline)
                except NoScriptError:
                    continue
                self._answers += 1
                return answer
        except TimeoutError:
            text = f"no answer within {self.timeout_s:g} s"
            if self._answers == began:
                self._break("timeout", text, connection)
            raise self._failed("timeout", text) from None
        except Exception as error:
            kind, text = self._reason(error)
            if kind == "connection" or self._is_of_server(error):
                self._break(kind, text, connection)
            else:
                self._answers += 1
            raise self._failed(kind, text) from error
        raise self._failed("reply", "the server does not run scripts")

    def broken(self, what: str) -> StoreUnavailable:
        """The error for an answer that makes no sense; the link goes down."""
        if self._connection is not None:
            self._break("reply", what, self._connection)
        return self._failed("reply", what)

    def _failed(self, kind: str, text: str) -> StoreUnavailable:
        self.failures[kind] += 1
        return StoreUnavailable(text, kind)

    def _reason(self, error: BaseException) -> tuple[str, str]:
        """The kind and text of an error of coredis."""
        from coredis import exceptions

        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = str(error) or type(error).__name__
        if isinstance(error.__cause__, OSError):
            text = str(error.__cause__)
        is_reply = isinstance(error, exceptions.ResponseError | exceptions.BusyLoadingError)
        return ("reply" if is_reply else "connection"), text

    @staticmethod
    def _is_of_server(error: BaseException) -> bool:
        from coredis import exceptions

        return str(error).startswith(_OF_SERVER) or isinstance(
            error,
            exceptions.ReadOnlyError
            | exceptions.BusyLoadingError
            | exceptions.AuthenticationError
            | exceptions.AuthorizationError
            | exceptions.ClusterDownError
            | exceptions.MovedError,
        )

    def _break(self, kind: str, text: str, connection: BaseConnection) -> None:
        """Open the breaker, unless the link has another connection already."""
        if self._connection is connection:
            self._connection = None
            self._ended.set()
            self._went_down(kind, text)

    def _went_down(self, kind: str, text: str) -> None:
        self.is_up = False
        if self._down_since is None:
            self._down_since = trio.current_time()
            structlog.get_logger("proxy").warning(
                "store_down", store=str(self.address), kind=kind, error=text
            )

    def _went_up(self, connection: BaseConnection) -> None:
        self._connection, self.is_up = connection, True
        self._ended = trio.Event()
        if self._down_since is not None:
            away_s = round(trio.current_time() - self._down_since, 3)
            structlog.get_logger("proxy").warning(
                "store_up", store=str(self.address), away_seconds=away_s
            )
        self._down_since = None
        self.on_up()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link up until cancelled. Started after the first attempt, whatever its end."""
        failed_attempts = 0
        while True:
            async with trio.open_nursery() as nursery:
                try:
                    connection = await self._connect(nursery)
                except StoreUnavailable as error:
                    self._went_down(error.kind, str(error))
                    failed_attempts += 1
                else:
                    failed_attempts = 0
                    self._went_up(connection)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    nursery.start_soon(self._watch, connection)
                    await self._ended.wait()
                nursery.cancel_scope.cancel()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            backoff_s = min(_FIRST_BACKOFF_S * 2**failed_attempts, _MAX_BACKOFF_S)
            # S311: jitter, so that workers do not connect at once.
            await trio.sleep(backoff_s * (0.5 + random() / 2))  # noqa: S311

    async def _connect(self, nursery: trio.Nursery) -> BaseConnection:
        """Connect and probe. Raises `StoreUnavailable`, which counts as no failed call."""
        connection = self._new_connection()
        started = _Started()
        ended: list[Exception] = []
        nursery.start_soon(self._serve, connection, started, ended)
        with trio.move_on_after(_CONNECT_S):
            await started.event.wait()
        if not started.event.is_set():
            raise StoreUnavailable(f"no connection within {_CONNECT_S:g} s", "timeout")
        if ended:
            raise StoreUnavailable(self._reason(ended[0])[1], self._reason(ended[0])[0])
        version = connection.server_version or "0"
        if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) < _LEAST_VERSION:
            raise StoreUnavailable(f"the server is version {version}; 7.0 is required", "reply")
        try:
            with trio.fail_after(_SCRIPTS_S):
                loads = [connection.create_request(b"SCRIPT LOAD", item.text) for item in SCRIPTS]
                for load in loads:
                    await load
            for script, keys, args in self._first_calls():
                command = (b"EVALSHA", script.sha, len(keys), *keys, *args)
                deadline = trio.current_time() + self.timeout_s
                await _answer(connection.create_request(*command), deadline)
        except (TimeoutError, trio.TooSlowError):
            text = f"no answer within {self.timeout_s:g} s"
            raise StoreUnavailable(text, "timeout") from None
        except Exception as error:
            kind, text = self._reason(error)
            raise StoreUnavailable(text, kind) from error
        return connection

    def _new_connection(self) -> BaseConnection:
        from coredis import connection as transport

        address = self.address
        settings: dict[str, Any] = {
            "connect_timeout": _CONNECT_S,
            "username": address.username,
            "password": address.password,
            "db": address.database,
            "client_name": "weirpool",
        }
        if address.path:
            return transport.UnixDomainSocketConnection(
                transport.UnixDomainSocketLocation(address.path), **settings
            )
        if address.tls:
            settings["ssl_context"] = ssl.create_default_context(cafile=self._ca_file)
        return transport.TCPConnection(
            transport.TCPLocation(address.host, address.port), **settings
        )

    async def _serve(
        self, connection: BaseConnection, started: _Started, ended: list[Exception]
    ) -> None:
        try:
            await connection.run(task_status=started)
            error: Exception = ConnectionResetError("the server closed the connection")
        except Exception as raised:
            error = raised
        finally:
            _close_streams(connection)
        ended.append(error)
        started.event.set()
        self._break("connection", self._reason(error)[1], connection)

    async def _watch(self, connection: BaseConnection) -> None:
        """Pass on the messages of subscriptions."""
        messages: AsyncIterator[list[Any]] = connection.push_messages
        try:
            async for message in messages:
                if message[0] == b"message":
                    self.on_message(message[1].decode(), message[2])
        except Exception as error:
            self._break("connection", self._reason(error)[1], connection)


async def _answer(request: Request, deadline: float) -> Any:
    """Wait for an answer. Raises `TimeoutError`, but not for an answer that has arrived while this
    process was late to read it.
    """
    with trio.move_on_at(deadline):
        return await request
    for _ in range(_LATE_TURNS):
        await trio.lowlevel.checkpoint()
        if request.complete:
            return await request
    raise TimeoutError


def _close_streams(connection: BaseConnection) -> None:
    """Close the channels of a connection: coredis leaves them open if it was never established."""
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    for item in vars(connection).values():
        if isinstance(item, MemoryObjectReceiveStream | MemoryObjectSendStream):
            item.close()


class _Started:
    """An AnyIO task status that an event shows."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: object = None) -> None:
        self.event.set()
