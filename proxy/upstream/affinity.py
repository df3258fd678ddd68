"""Which endpoint knows a session: a table in memory, bounded in number and by age. Sans I/O; the caller tells the time.

It holds digests, not the session ids, which are as good as credentials, and endpoints, never what was sent to them.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from .endpoints import Endpoint

__all__ = ["MAX_SESSIONS", "MAX_SESSION_AGE_S", "Affinity"]

MAX_SESSIONS = 50_000
"""Of one upstream. The one that was used longest ago makes room."""
MAX_SESSION_AGE_S = 86400.0
"""A session is forgotten when it has not been used for so long."""


class Affinity:
    """Sessions by their keys: whatever bytes name one, such as the value of `Mcp-Session-Id`."""

    __slots__ = ("_sessions",)

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, tuple[Endpoint, float]] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def remember(self, key: bytes, endpoint: Endpoint, now: float) -> None:
        """This endpoint has made the session, or has just shown that it knows it."""
        digest = _digest(key)
        self._sessions[digest] = endpoint, now
        self._sessions.move_to_end(digest)
        self._expire(now)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def find(self, key: bytes, now: float) -> Endpoint | None:
        """The endpoint of a session; None when it is not known, or no longer. Looking counts as use."""
        self._expire(now)
        digest = _digest(key)
        session = self._sessions.get(digest)
        if session is None:
            return None
        self._sessions[digest] = session[0], now
        self._sessions.move_to_end(digest)
        return session[0]

    def forget(self, key: bytes) -> None:
        """The session has ended."""
        self._sessions.pop(_digest(key), None)

    def _expire(self, now: float) -> None:
        while self._sessions and next(iter(self._sessions.values()))[1] < now - MAX_SESSION_AGE_S:
            self._sessions.popitem(last=False)


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
