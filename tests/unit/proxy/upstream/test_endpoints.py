"""The choice of an endpoint: least busy first, ejection and the way back, probes, checks; and what
holds whatever happens.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.upstream.endpoints import Endpoint, Endpoints, NoneInService, Turn


def several(count: int, **settings: float) -> Endpoints:
    rules = {"consecutive_failures": 2, "consecutive_breaks": 2, "eject_s": 10, "max_eject_s": 35}
    rules |= settings
    return Endpoints([Endpoint(f"http://{name}") for name in "abcd"[:count]], **rules)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "base", "host", "name"),
    [
        ("http://h:8080", b"", b"h:8080", "http://h:8080"),
        ("https://h/base", b"/base", b"h", "https://h/base"),
        ("https://h:443/base/", b"/base", b"h", "https://h/base"),
        ("http://[::1]:81/a//", b"/a", b"[::1]:81", "http://[::1]:81/a"),
    ],
)
def test_an_endpoint_has_its_path_and_host(url: str, base: bytes, host: bytes, name: str) -> None:
    """The path without a slash at its end, the host without the scheme's default port."""
    endpoint = Endpoint(url)
    assert (endpoint.base, endpoint.host, endpoint.name) == (base, host, name)


STORIES = {
    # The next endpoint is the least busy one; ties rotate, also for one request at a time.
    "least busy": (3, "get a, get b, get c, get a, get b, get c, end b, get b, end c, end c, get c"),
    "rotation": (3, "get a, end a, get b, end b, get c, end c, get a"),
    # What was tried is the last resort.
    "tried": (2, "pin b, pin b, tried a: get b, tried ab: get a, fail b, fail b!, tried a: get a"),
    # Failures in a row eject for 10 s; a success resets their count.
    "failures in a row": (2, "fail a, ok a, fail a, at 1, fail a!, is ejected up, get b, get b"),
    "none is up": (2, "at 1, fail a, fail a!, at 4, fail b, fail b!, at 5, none for 6"),
    # A due endpoint gets one probe at a time. One that is cancelled makes room for the next.
    "probe": (1, "fail a, fail a!, at 10, get a*, end a, is ejected, get a*, is probing, none for 0,"
        " answer a!, is up, get a"),
    "failed probe": (2, "fail a, fail a!, at 10, get a*, lose a!, is ejected up, at 29, get b"),
    # Streams from before its ejection do not keep a due endpoint from its probe.
    "busy and due": (2, "pin a, pin a, pin a, fail a, fail a!, at 10, get a*, get b"),
    # Only the first report of a turn counts.
    "two reports": (1, "fail a, pin a, answer a, lose a, fail a, is up"),
    # What began before an ejection does not prolong or end it, nor does a turn pinned before it is due.
    "late reports": (2, "pin a, pin a, fail a, fail a!, at 5, pin a, lose a, end a, answer a, end a,"
        " answer a, at 9, is ejected up, get b, at 10, get a*"),
    "pinned probe": (2, "fail a, fail a!, at 10, pin a*, pin a, answer a!, is up up"),
    # Each ejection is twice as long, up to 35 s, unless it has been up for as long as it was out.
    "longer": (2, "fail a, fail a! 10, at 10, fail a! 20, at 30, fail a! 35, at 65, fail a! 35, at 100,"
        " ok a!, at 134, fail a, fail a! 35, at 169, ok a!, at 204, fail a, fail a! 10"),
    # While no other is up, a longer ejection would only prolong the outage.
    "alone": (1, "fail a, fail a! 10, at 10, fail a! 10, at 20, fail a! 10"),
    "all out": (2, "fail b, fail b!, fail a, fail a! 10, at 10, fail a! 10, at 20, fail a! 10"),
    # Checks are counted separately from requests.
    "checks": (2, "fail a, healthy a, fail a!, ill b, ok b, ill b!, is ejected ejected"),
    # Responses that break off after their head; their heads are successes.
    "breaks in a row": (2, "cut a, whole a, cut a, cut a!, is ejected up, at 10, cut a, is up up"),
    "breaks and failures": (2, "fail a, cut a, fail a, cut a!, is ejected up"),
    "breaks of the last one": (2, "cut a, cut a!, cut b, cut b, cut b, is ejected up"),
    # A restart breaks many at once: that is one break.
    "a restart": (2, "open a, open a, open a, at 1, break a, break a, break a, is up up, at 2, cut a!"),
    # A check restores an endpoint that is due, and changes nothing before.
    "checked": (1, "fail a, fail a!, at 9, healthy a, at 10, ill a, is ejected, at 11, healthy a!, is up"),
}  # fmt: skip


@pytest.mark.parametrize(("count", "story"), STORIES.values(), ids=STORIES)
def test_what_happens_to_endpoints(count: int, story: str) -> None:
    """`*`: the turn is a probe. `!`: the report has ejected or restored the endpoint; then, the
    seconds of the ejection. `answer`, `lose`, `end`: the oldest open turn.
    """
    play(several(count), story)


def test_with_checks_a_request_is_a_probe_only_if_no_other_endpoint_is_up() -> None:
    play(
        several(2, checked=True),
        "fail a, fail a!, at 20, get b, get b, get b, fail b, fail b!, at 21, get a*",
    )


def play(endpoints: Endpoints, story: str) -> None:
    now, turns = 0.0, defaultdict[str, list[Turn]](list)
    for step in story.split(","):
        tried, _, words = step.rpartition(":")
        verb, *rest = words.split()
        name = rest[0].rstrip("*!")
        endpoint = dict(zip("abc", endpoints.all, strict=False)).get(name)
        changed: bool | None = None
        if verb == "at":
            now = float(name)
        elif verb == "is":
            assert [item.state for item in endpoints.states()] == rest
        elif verb == "none":
            with pytest.raises(NoneInService) as caught:
                endpoints.choose(now)
            assert caught.value.retry_after_s == float(rest[1])
        elif verb in ("get", "pin"):
            asked = [item for item in endpoints.all if item.name[-1] in tried.split(" ")[-1]]
            assert endpoint is not None
            turn = endpoints.choose(now, asked) if verb == "get" else endpoints.pin(endpoint, now)
            assert (turn.endpoint, turn.probe) == (endpoint, rest[0].endswith("*")), step
            turns[name].append(turn)
        elif verb == "end":
            turns[name].pop(0).end()
        elif verb in ("cut", "whole", "open"):
            assert endpoint is not None
            turn = endpoints.pin(endpoint, now)
            turn.succeed(now)
            turns[name].append(turn)
            if verb == "cut":
                changed = turn.broke(now)
            elif verb == "whole":
                turn.completed()
            if verb != "open":
                turns[name].pop().end()
        elif verb == "break":
            turn = turns[name].pop(0)
            changed = turn.broke(now)
            turn.end()
        elif verb in ("healthy", "ill"):
            assert endpoint is not None
            check = endpoints.check_succeeded if verb == "healthy" else endpoints.check_failed
            changed = check(endpoint, now)
        else:
            assert endpoint is not None
            is_new = verb in ("ok", "fail")
            turn = endpoints.pin(endpoint, now) if is_new else turns[name][0]
            changed = (turn.succeed if verb in ("ok", "answer") else turn.fail)(now)
            if is_new:
                turn.end()
        if changed is not None:
            assert changed == rest[0].endswith("!"), step
        if len(rest) == 2 and changed:
            assert endpoint is not None
            assert endpoint.ejected_until == now + float(rest[1]), step


# Whatever happens


class Anything(RuleBasedStateMachine):
    """Turns, verdicts, ends, checks and time in any order, beside a model that only counts."""

    @initialize(count=st.integers(1, 4), failures=st.integers(1, 3), checked=st.booleans())
    def begin(self, count: int, failures: int, checked: bool) -> None:
        self.endpoints = several(count, consecutive_failures=failures, checked=checked)
        self.now = 0.0
        self.turns: list[Turn] = []

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 10.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(tried=st.sets(st.integers(0, 3)))
    def choose(self, tried: set[int]) -> None:
        before = {item: (item.ejected_until, item.probing) for item in self.endpoints.all}
        usable = [
            item
            for item, (until, probing) in before.items()
            if until is None or (until <= self.now and not probing)
        ]
        try:
            turn = self.endpoints.choose(
                self.now, [self.endpoints.all[i] for i in tried if i < len(before)]
            )
        except NoneInService:
            assert not usable
            return
        assert turn.endpoint in usable
        assert turn.probe == (before[turn.endpoint][0] is not None)
        self.turns.append(turn)

    @rule(number=st.integers(0, 3))
    def pin(self, number: int) -> None:
        endpoint = self.endpoints.all[number % len(self.endpoints.all)]
        turn = self.endpoints.pin(endpoint, self.now)
        assert turn.endpoint is endpoint
        self.turns.append(turn)

    @precondition(lambda self: self.turns)
    @rule(which=st.integers(0, 100), good=st.booleans())
    def settle(self, which: int, good: bool) -> None:
        turn = self.turns[which % len(self.turns)]
        (turn.succeed if good else turn.fail)(self.now)

    @precondition(lambda self: self.turns)
    @rule(which=st.integers(0, 100), again=st.booleans())
    def end(self, which: int, again: bool) -> None:
        turn = self.turns.pop(which % len(self.turns))
        turn.end()
        if again:
            turn.end()

    @rule(number=st.integers(0, 3), good=st.booleans())
    def check(self, number: int, good: bool) -> None:
        endpoint = self.endpoints.all[number % len(self.endpoints.all)]
        (self.endpoints.check_succeeded if good else self.endpoints.check_failed)(
            endpoint, self.now
        )

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "endpoints"):
            return
        for endpoint in self.endpoints.all:
            assert endpoint.outstanding == sum(turn.endpoint is endpoint for turn in self.turns)
            probes = [
                item
                for item in self.turns
                if item.endpoint is endpoint and item.probe and not item._settled
            ]
            assert len(probes) == endpoint.probing
            if endpoint.ejected_until is not None:
                assert 10 <= endpoint.ejected_for <= 35
                assert endpoint.ejected_until <= self.now + 35


TestWhateverHappens = Anything.TestCase
TestWhateverHappens.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
