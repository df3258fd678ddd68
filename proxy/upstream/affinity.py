"""Which endpoint knows a session: a table in memory, bounded in number and by age. Sans I/O; the
caller passes the time.

It holds digests, not the session ids, which are credentials, and the places of endpoints
(`Endpoint.place`), which outlive a configuration: a reload makes other `Endpoint` objects for the
same places, and may remove some.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from hashlib import blake2b

__all__ = ["MAX_SESSIONS", "MAX_SESSION_AGE_S", "Affinity"]

MAX_SESSIONS = 50_000
"""Of one upstream. The one that was used longest ago makes room."""
MAX_SESSION_AGE_S = 86400.0
"""A session is forgotten when it has not been used for so long."""


class Affinity:
    """Sessions of one upstream by their keys: whatever bytes name one, such as the value of
    `Mcp-Session-Id`.
    """

    __slots__ = ("_held", "_sessions")

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, tuple[str, float]] = (
            OrderedDict()
        )  # the least recently used first
        self._held: Counter[bytes] = Counter()  # sessions with responses under way

    def __len__(self) -> int:
        return len(self._sessions)

    def remember(self, key: bytes, place: str, now: float) -> None:
        """The endpoint at this place has made the session."""
        digest = _digest(key)
        self._sessions[digest] = place, now
        self._sessions.move_to_end(digest)
        self._expire(now)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def find(self, key: bytes, now: float) -> str | None:
        """The place of a session's endpoint; None when it is not known, or no longer. Looking does
        not count as use.
        """
        self._expire(now)
        place, _ = self._sessions.get(_digest(key), (None, 0.0))
        return place

    def renew(self, key: bytes, now: float) -> None:
        """The endpoint has answered a request of the session well."""
        digest = _digest(key)
        if digest in self._sessions:
            self._sessions[digest] = self._sessions[digest][0], now
            self._sessions.move_to_end(digest)

    def forget(self, key: bytes) -> None:
        """The session has ended."""
        self._sessions.pop(_digest(key), None)

    def hold(self, key: bytes) -> None:
        """A response of the session begins. A stream may last for days: until `release`, the
        session does not age.
        """
        self._held[_digest(key)] += 1

    def release(self, key: bytes, now: float) -> None:
        """That response has ended: it was in use until now."""
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
