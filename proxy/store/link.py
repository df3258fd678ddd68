"""The connection of one worker to the store's server: scripts in, answers out, and a breaker.

One pipelined connection carries every call and every subscription: no command waits for another
command's answer. The owner of the connection is `run`, so cancelling a call neither loses a
connection nor shifts the answers of other calls.

The breaker: when the connection ends, the server refuses all calls, or no call was answered in time
during a whole timeout, the link is down, and calls fail at once. `run` then tries, with backoff and
jitter, until a probe that writes has been answered in time.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from random import random
from typing import Any

import structlog
import trio

from interceptors.store import StoreUnavailable

from .address import Address
from .resp import Answer, Connection, Push, ServerError
from .scripts import SCRIPTS, Call, Script

__all__ = ["KINDS", "Link"]

KINDS = ("timeout", "connection", "reply", "away")
"""Kinds of failed calls."""

_CONNECT_S = 2.0
"""Deadline of a connection: TCP, TLS and the handshake, which takes several round trips."""
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 1.0
_LEAST_VERSION = 7
_LATE_TURNS = 10
"""Turns of the event loop in which answers are read that have arrived."""
# Errors of the whole server. Any other error is about a key, and fails only its call.
_OF_SERVER = (
    *("OOM", "MISCONF", "MASTERDOWN", "BUSY ", "CLUSTERDOWN", "NOREPLICAS", "READONLY", "LOADING"),
    *("NOAUTH", "NOPERM", "MOVED"),
)


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
        self._ca_file = ca_file
        self._first_calls = first_calls
        self._connection: Connection | None = None
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
        if self._connection is not None:
            self._connection.send(*command)

    def post(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> None:
        """Run a script that the server knows before any later call, if the link is up. Its answer is
        not read.
        """
        if self._connection is not None:
            self._connection.ask(b"EVALSHA", script.sha, len(keys), *keys, *args)

    async def _ask(self, *forms: tuple[Any, ...]) -> Any:
        """Send a command; if the server does not know its script, the next form of it."""
        connection, began = self._connection, self._answers
        if connection is None:
            raise self._failed("away", "the store is away")
        deadline = trio.current_time() + self.timeout_s
        try:
            for form in forms:
                try:
                    answer = await _answer(connection.ask(*form), deadline)
                except ServerError as error:
                    if form is not forms[-1] and str(error).startswith("NOSCRIPT"):
                        continue
                    raise
                self._answers += 1
                return answer
        except TimeoutError:
            text = f"no answer within {self.timeout_s:g} s"
            if self._answers == began:
                self._break("timeout", text, connection)
            raise self._failed("timeout", text) from None
        except Exception as error:
            kind, text = _reason(error)
            if kind == "connection" or text.startswith(_OF_SERVER):
                self._break(kind, text, connection)
            else:
                self._answers += 1
            raise self._failed(kind, text) from error
        raise AssertionError("the last form returns or raises")

    def broken(self, what: str) -> StoreUnavailable:
        """The error for an answer that makes no sense; the link goes down."""
        if self._connection is not None:
            self._break("reply", what, self._connection)
        return self._failed("reply", what)

    def _failed(self, kind: str, text: str) -> StoreUnavailable:
        self.failures[kind] += 1
        return StoreUnavailable(text, kind)

    def _break(self, kind: str, text: str, connection: Connection) -> None:
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

    def _went_up(self, connection: Connection) -> None:
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
                    await self._ended.wait()
                nursery.cancel_scope.cancel()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            backoff_s = min(_FIRST_BACKOFF_S * 2**failed_attempts, _MAX_BACKOFF_S)
            # S311: jitter, so that workers do not connect at once.
            await trio.sleep(backoff_s * (0.5 + random() / 2))  # noqa: S311

    async def _connect(self, nursery: trio.Nursery) -> Connection:
        """Connect and probe. Raises `StoreUnavailable`, which counts as no failed call."""
        try:
            with trio.fail_after(_CONNECT_S):
                connection = Connection(await self._open(), self._pushed)
                nursery.start_soon(self._serve, connection)
                await self._greet(connection)
            for script, keys, args in self._first_calls():
                command = (b"EVALSHA", script.sha, len(keys), *keys, *args)
                deadline = trio.current_time() + self.timeout_s
                await _answer(connection.ask(*command), deadline)
        except trio.TooSlowError:
            raise StoreUnavailable(f"no connection within {_CONNECT_S:g} s", "timeout") from None
        except TimeoutError:
            text = f"no answer within {self.timeout_s:g} s"
            raise StoreUnavailable(text, "timeout") from None
        except StoreUnavailable:
            raise
        except Exception as error:
            kind, text = _reason(error)
            raise StoreUnavailable(text, kind) from error
        return connection

    async def _open(self) -> trio.abc.Stream:
        address = self.address
        if address.path:
            return await trio.open_unix_socket(address.path)
        stream = await trio.open_tcp_stream(address.host, address.port)
        if not address.tls:
            return stream
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
            secure = trio.SSLStream(stream, context, server_hostname=address.host)
            await secure.do_handshake()
        except BaseException:
            stream.socket.close()
            raise
        return secure

    async def _greet(self, connection: Connection) -> None:
        """Authenticate, select the database and load the scripts, in one round trip."""
        address = self.address
        login: tuple[str, ...] = ()
        if address.username is not None or address.password is not None:
            login = ("AUTH", address.username or "default", address.password or "")
        answers = [connection.ask(b"HELLO", 3, *login, b"SETNAME", b"weirpool")]
        if address.database:
            answers.append(connection.ask(b"SELECT", address.database))
        answers += [connection.ask(b"SCRIPT", b"LOAD", item.text) for item in SCRIPTS]
        hello = await answers[0].get()
        version = hello.get(b"version", b"") if isinstance(hello, dict) else b""
        major = version.partition(b".")[0] if isinstance(version, bytes) else b""
        if not major.isdigit() or int(major) < _LEAST_VERSION:
            text = version.decode("utf-8", "backslashreplace") if major else "unknown"
            raise StoreUnavailable(f"the server's version is {text}; 7.0 is required", "reply")
        for answer in answers[1:]:
            await answer.get()

    async def _serve(self, connection: Connection) -> None:
        error = await connection.run()
        self._break("connection", _reason(error)[1], connection)

    def _pushed(self, push: Push) -> None:
        if len(push) == 3 and push[0] == b"message":
            self.on_message(push[1].decode("utf-8", "surrogatepass"), push[2])


def _reason(error: BaseException) -> tuple[str, str]:
    """The kind and text of an error."""
    if isinstance(error, ServerError):
        return "reply", str(error)
    cause = error.__cause__  # of several addresses: Trio's error has no reason
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return "connection", str(cause or error) or type(error).__name__


async def _answer(answer: Answer, deadline: float) -> Any:
    """Wait for an answer. Raises `TimeoutError`, but not for an answer that has arrived while this
    process was late to read it.
    """
    with trio.move_on_at(deadline):
        return await answer.get()
    for _ in range(_LATE_TURNS):
        await trio.lowlevel.checkpoint()
        if answer.is_there:
            return await answer.get()
    raise TimeoutError
