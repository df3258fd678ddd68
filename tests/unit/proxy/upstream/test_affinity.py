"""The table of sessions: found while used, forgotten on request, bounded in number and age."""

from __future__ import annotations

import pytest

from proxy.upstream import affinity as affinity_module
from proxy.upstream.affinity import MAX_SESSION_AGE_S, Affinity

ONE, TWO = "http://one 80", "http://two 80"


def test_a_session_is_found_until_it_is_forgotten() -> None:
    sessions = Affinity()
    sessions.remember(b"a", ONE, 0)
    sessions.remember(b"b", TWO, 0)
    sessions.remember(b"b", ONE, 0)
    assert (sessions.find(b"a", 0), sessions.find(b"b", 0), sessions.find(b"c", 0)) == (
        ONE,
        ONE,
        None,
    )
    sessions.forget(b"a")
    sessions.forget(b"c")
    assert sessions.find(b"a", 0) is None
    assert len(sessions) == 1


def test_a_session_ages_from_its_last_use() -> None:
    """A use is a response of its endpoint, and lasts as long as that: a look-up is not a use,
    because a client may fail for days.
    """
    sessions = Affinity()
    for key in (b"used", b"unused", b"streaming"):
        sessions.remember(key, ONE, 0)
    sessions.hold(b"streaming")
    sessions.renew(b"used", MAX_SESSION_AGE_S)
    assert sessions.find(b"unused", MAX_SESSION_AGE_S) is ONE
    assert [
        sessions.find(key, MAX_SESSION_AGE_S + 1) for key in (b"used", b"unused", b"streaming")
    ] == [ONE, None, ONE]
    sessions.release(b"streaming", 2 * MAX_SESSION_AGE_S)
    assert [sessions.find(key, 3 * MAX_SESSION_AGE_S) for key in (b"used", b"streaming")] == [
        None,
        ONE,
    ]
    assert sessions.find(b"streaming", 3 * MAX_SESSION_AGE_S + 1) is None
    assert len(sessions) == 0
    assert not sessions._held


def test_the_one_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity_module, "MAX_SESSIONS", 3)
    sessions = Affinity()
    for now, key in enumerate([b"a", b"b", b"c"]):
        sessions.remember(key, ONE, now)
    sessions.renew(b"a", 5)
    sessions.remember(b"d", TWO, 6)
    assert [sessions.find(key, 7) for key in (b"a", b"b", b"c", b"d")] == [ONE, None, ONE, TWO]


def test_session_ids_are_not_kept() -> None:
    """They are as good as credentials, and as long as a server likes."""
    sessions = Affinity()
    sessions.remember(b"secret" * 10_000, ONE, 0)
    assert all(len(key) == 16 for key in sessions._sessions)
