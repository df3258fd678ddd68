"""The table of sessions: found while used, forgotten on request, bounded in number and age."""

from __future__ import annotations

import pytest

from proxy.upstream import affinity as affinity_module
from proxy.upstream.affinity import MAX_SESSION_AGE_S, Affinity

ONE, TWO = "http://one 80", "http://two 80"


def remembering(*keys: bytes) -> Affinity:
    sessions = Affinity()
    for now, key in enumerate(keys):
        sessions.remember(key, ONE, now)
    return sessions


def found(sessions: Affinity, now: float, *keys: bytes) -> list[str | None]:
    return [sessions.find(key, now) for key in keys]


def test_a_session_is_found_until_it_is_forgotten() -> None:
    """Its id is a credential, and as long as a server likes: only a digest is kept."""
    long = b"secret" * 10_000
    sessions = remembering(b"a", b"b", long)
    sessions.remember(b"b", TWO, 0)
    sessions.forget(b"a")
    sessions.forget(b"c")
    assert found(sessions, 0, b"a", b"b", b"c", long) == [None, TWO, None, ONE]
    assert all(len(key) == 16 for key in sessions._sessions)


def test_a_session_ages_from_its_last_use() -> None:
    """An open response is use. A look-up is not, because a client may fail for days."""
    sessions, age = remembering(b"streaming", b"used", b"unused"), MAX_SESSION_AGE_S
    sessions.hold(b"streaming")
    sessions.renew(b"used", age)
    assert sessions.find(b"unused", age) is ONE
    assert found(sessions, age + 3, b"used", b"unused", b"streaming") == [ONE, None, ONE]
    sessions.release(b"streaming", 2 * age)
    assert found(sessions, 3 * age, b"used", b"streaming") == [None, ONE]
    assert sessions.find(b"streaming", 3 * age + 1) is None
    assert len(sessions) == len(sessions._held) == 0


def test_the_one_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity_module, "MAX_SESSIONS", 3)
    sessions = remembering(b"a", b"b", b"c")
    sessions.renew(b"a", 5)
    sessions.remember(b"d", TWO, 6)
    assert found(sessions, 7, b"a", b"b", b"c", b"d") == [ONE, None, ONE, TWO]
