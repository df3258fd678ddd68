"""Which endpoint a session is tied to: a table in memory, bounded in number and age. Sans I/O; the
caller passes the time.

It stores digests instead of session ids, which are credentials, and places (`Endpoint.place`)
instead of endpoints, which a reload replaces. A session does not expire while a response of it is
open, which `cachetools.TTLCache` cannot express.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from hashlib import blake2b

__all__ = ["MAX_SESSIONS", "MAX_SESSION_AGE_S", "Affinity"]

MAX_SESSIONS = 50_000
"""Of one upstream. The least recently used session makes room."""
MAX_SESSION_AGE_S = 86400.0
"""A session expires when it has not been used for this long."""


class Affinity:
    """Sessions of one upstream by key. Any bytes can be a key, such as an `Mcp-Session-Id`."""

    __slots__ = ("_held", "_sessions")

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # oldest use first
        self._held: Counter[bytes] = Counter()  # open responses by session

    def __len__(self) -> int:
        return len(self._sessions)

    def remember(self, key: bytes, place: str, now: float) -> None:
        """Tie a session to the endpoint at this place."""
        digest = _digest(key)
        self._sessions[digest] = place, now
        self._sessions.move_to_end(digest)
        self._expire(now)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def find(self, key: bytes, now: float) -> str | None:
        """The place of a session's endpoint; None for an unknown or expired session. Does not count
        as use.
        """
        self._expire(now)
        place, _ = self._sessions.get(_digest(key), (None, 0.0))
        return place

    def renew(self, key: bytes, now: float) -> None:
        """Note a use: the endpoint has answered a request of the session with success."""
        digest = _digest(key)
        if digest in self._sessions:
            self._sessions[digest] = self._sessions[digest][0], now
            self._sessions.move_to_end(digest)

    def forget(self, key: bytes) -> None:
        """End a session."""
        self._sessions.pop(_digest(key), None)

    def hold(self, key: bytes) -> None:
        """Note that a response is open: the session does not expire until `release`."""
        self._held[_digest(key)] += 1

    def release(self, key: bytes, now: float) -> None:
        """Note that the response has ended, which counts as use."""
        digest = _digest(key)
        self._held[digest] -= 1
        if self._held[digest] <= 0:
            del self._held[digest]
        self.renew(key, now)

    def _expire(self, now: float) -> None:
        while self._sessions:
            digest, (place, used_at) = next(iter(self._sessions.items()))
            if used_at >= now - MAX_SESSION_AGE_S:
                return
            del self._sessions[digest]
            if digest in self._held:
                self._sessions[digest] = place, now


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
