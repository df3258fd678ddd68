"""`run_tail`: reads `/inspect/stream` and writes what comes, until the stream is over or the reader
has gone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import httpx
import trio

from ...errors import ConfigError
from ..causes import cause_of
from ..place import TOKEN_VARIABLE, Place, read_place
from .lines import Lines
from .tape import TapeOf

__all__ = ["Asked", "run_tail"]

_SILENCE_S = 60.0  # the proxy sends a comment every 15 s
_AGAIN_S = 1.0
_MAX_TEXT = 500


class Asked(NamedTuple):
    """The command's options."""

    url: str
    token: str | None
    query: dict[str, str]
    json: bool = False
    tape: str | None = None


class _Failed(Exception):
    """The command cannot go on; its text is for people."""


def run_tail(asked: Asked) -> int:
    """Write what the proxy shows. Returns the exit status. Raises `ConfigError` for wrong options."""
    try:
        place = read_place(asked.url, asked.token or os.environ.get(TOKEN_VARIABLE) or None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tape: BinaryIO | None = None
    if asked.tape is not None:
        try:
            # SIM115: closed in the `finally` below.
            tape = open(asked.tape, "xb", opener=_open_private)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"--tape {asked.tape}: {error.strerror}") from None
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return trio.run(_Tail(asked, place, tape).run)
    except _Failed as error:
        print(f"weirpool: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it again at exit
        return 0
    finally:
        if tape is not None:
            tape.close()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Tail:
    def __init__(self, asked: Asked, place: Place, tape: BinaryIO | None) -> None:
        self._asked = asked
        self._place = place
        self._is_one = "exchange" in asked.query or "once" in asked.query
        self._lines = Lines()
        self._file = tape
        self._tape = TapeOf()
        self._shown = self._over = False

    async def run(self) -> int:
        url = f"{self._place.url}/inspect/stream"
        was_connected = is_connected = False
        async with httpx.AsyncClient(**self._place.options(_SILENCE_S)) as client:
            while True:
                try:
                    async with client.stream("GET", url, params=self._asked.query) as response:
                        await _check(response, url)
                        was_connected = is_connected = True
                        async for kind, fields in _messages(response):
                            self._take(kind, fields)
                except httpx.TransportError as error:
                    if not was_connected:
                        raise _Failed(f"cannot connect to {url}: {cause_of(error)}") from None
                if self._over:
                    return self._finish()
                if self._shown and self._is_one:
                    self._finish()
                    raise _Failed("the connection has ended before the stream")
                if is_connected:
                    print("weirpool: the connection has ended, trying again", file=sys.stderr)
                is_connected = False
                await trio.sleep(_AGAIN_S)

    def _take(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "gone":
            raise _Failed("there is no live stream with the id of --exchange")
        if self._file is not None:
            self._file.write(self._tape.lines_of(kind, fields))
            self._file.flush()
        self._shown = self._shown or kind == "begin"
        if kind == "end" and self._is_one:
            self._over = True
        if self._asked.json:
            print(json.dumps({"type": kind, **fields}, ensure_ascii=True), flush=True)
            return
        for line in self._lines.of(kind, fields):
            print(line, flush=True)

    def _finish(self) -> int:
        if self._file is not None:
            count = self._tape.events
            print(f"weirpool: {count} events on the tape {self._asked.tape}", file=sys.stderr)
        return 0


async def _check(response: httpx.Response, url: str) -> None:
    """Raise `_Failed` unless the response is the stream."""
    content_type = response.headers.get("content-type", "")
    if response.status_code == 200 and content_type.startswith("text/event-stream"):
        return
    if response.status_code == 401:
        raise _Failed(
            f"{url}: 401: give admin.token of the configuration with --token, or in the variable "
            f"{TOKEN_VARIABLE}"
        )
    if response.status_code in (200, 404):
        raise _Failed(
            f"{url}: there is no inspector: set admin.inspect: true in the configuration, restart, "
            "and give the address of admin.port with --url, and admin.prefix if it is set"
        )
    text = (await response.aread())[:_MAX_TEXT].decode("utf-8", "replace").strip()
    raise _Failed(f"{url}: {response.status_code}: {text}")


async def _messages(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The messages of the stream: one line `event`, one line `data`."""
    rest = b""
    async for data in response.aiter_raw():
        *blocks, rest = (rest + data).split(b"\n\n")
        for block in blocks:
            if block.startswith(b"event: "):
                kind, _, text = block.partition(b"\ndata: ")
                yield kind.removeprefix(b"event: ").decode(), json.loads(text)
