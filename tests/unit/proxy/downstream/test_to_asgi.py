"""An app behind the proxy's own connections, such as the admin pages."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from proxy.downstream.to_asgi import serve_asgi
from proxy.errors import ClientGone, SendStalled


class Stream:
    """A client that accepts the head only."""

    started = gone = complete = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def start(self, status: int, headers: Any, *, whole: bool) -> bool:
        return True

    def write(self, parts: Any) -> bool:
        return False

    async def drain(self) -> bool:
        raise self.error


@pytest.mark.parametrize("error", [ClientGone(), SendStalled()], ids=repr)
async def test_a_client_that_leaves_or_stalls_is_no_error_of_the_app(error: Exception) -> None:
    """Such as one that watches `/status/stream` and reads nothing any more."""
    failures: list[OSError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery():  # as Quart
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            except OSError as failure:
                failures.append(failure)
                raise

    await serve_asgi(app, Stream(error), {})  # type: ignore[arg-type]
    assert len(failures) == 1
