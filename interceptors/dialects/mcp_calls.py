"""Which request an MCP response answers, in a session of many exchanges. Sans I/O; knows neither
messages nor streams.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MAX_AGE_S", "MAX_CALLS", "Call", "Calls", "RequestId"]

RequestId = str | int
"""Narrower than in JSON-RPC: no null, no fraction. `1` and `"1"` are two ids."""

MAX_CALLS = 10_000
MAX_AGE_S = 3600.0
_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """What is kept of a request: never its parameters."""

    id: RequestId
    method: str
    name: str | None
    """The tool, resource (URI) or prompt that it is about."""
    from_client: bool


class Calls:
    """Requests across exchanges: a response to a server's request comes in a later POST, and a
    resumed stream brings responses to earlier POSTs.

    Keyed by session, direction and id. Keeps the newest `max_calls` of all sessions, each for
    `max_age_s` seconds, also after its response, which may be sent again. A request whose method,
    name and ids have over 4096 characters is not kept. Other processes do not share it.
    """

    def __init__(
        self,
        max_calls: int = MAX_CALLS,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_calls = max_calls
        self._max_age_s = max_age_s
        self._clock = clock
        self._calls: OrderedDict[tuple[str, bool, RequestId], tuple[float, Call]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def remember(self, session: str, call: Call) -> None:
        """Keep a request; it replaces an older one with the same id."""
        if (
            len(session) + len(str(call.id)) + len(call.method) + len(call.name or "")
            > _MAX_CHARACTERS
        ):
            return
        now = self._clock()
        key = (session, call.from_client, call.id)
        self._calls.pop(key, None)
        self._calls[key] = (now, call)
        while self._calls:
            oldest, (since, _) = next(iter(self._calls.items()))
            if len(self._calls) <= self._max_calls and now - since <= self._max_age_s:
                return
            del self._calls[oldest]

    def find(self, session: str, request_id: RequestId, *, from_client: bool) -> Call | None:
        """The request of the client (or the server) with this id; None if it is not known."""
        since, call = self._calls.get((session, from_client, request_id), (0.0, None))
        return call if call is not None and self._clock() - since <= self._max_age_s else None
