"""The choice of an endpoint: least busy first, ejection and the way back, probes, checks; and what
holds whatever happens.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.upstream.endpoints import Endpoint, Endpoints, NoneInService, Turn


def several(count: int, **kwargs: float) -> Endpoints:
    rules = {"consecutive_failures": 2, "eject_s": 10, "max_eject_s": 35} | kwargs
    return Endpoints([Endpoint(f"http://e{number}") for number in range(count)], **rules)  # type: ignore[arg-type]


def chosen(endpoints: Endpoints, now: float = 0, tried: tuple[Endpoint, ...] = ()) -> int:
    """The number of the endpoint that a request gets and keeps."""
    return endpoints.all.index(endpoints.choose(now, tried).endpoint)


def fail(endpoints: Endpoints, number: int, now: float, times: int = 1) -> bool:
    """Failures of turns at one endpoint, in a row. Whether the last has ejected it."""
    ejected = False
    for _ in range(times):
        turn = endpoints.pin(endpoints.all[number], now)
        ejected = turn.fail(now)
        turn.end()
    return ejected


def succeed(endpoints: Endpoints, number: int, now: float) -> bool:
    turn = endpoints.pin(endpoints.all[number], now)
    back = turn.succeed(now)
    turn.end()
    return back


def states(endpoints: Endpoints) -> list[str]:
    return [item.state for item in endpoints.states()]


# An endpoint


@pytest.mark.parametrize(
    ("url", "base", "host", "name"),
    [
        ("http://h:8080", b"", b"h:8080", "http://h:8080"),
        ("https://h/base", b"/base", b"h", "https://h/base"),
        ("https://h:443/base/", b"/base", b"h", "https://h/base"),
        ("http://[::1]:81/a//", b"/a", b"[::1]:81", "http://[::1]:81/a"),
    ],
)
def test_an_endpoint_has_its_own_path_and_host(
    url: str, base: bytes, host: bytes, name: str
) -> None:
    """The path without a slash at its end, the host without a port that is the scheme's own (RFC
    9110, section 7.2).
    """
    endpoint = Endpoint(url)
    assert (endpoint.base, endpoint.host, endpoint.name) == (base, host, name)


# Who is next


def test_the_least_busy_is_next_and_ties_go_round() -> None:
    endpoints = several(3)
    turns = [endpoints.choose(0) for _ in range(6)]
    assert [endpoints.all.index(turn.endpoint) for turn in turns] == [0, 1, 2, 0, 1, 2]
    turns[1].end()
    assert chosen(endpoints) == 1
    turns[2].end()
    turns[5].end()
    assert [chosen(endpoints), chosen(endpoints)] == [2, 2]


def test_one_request_at_a_time_goes_round_too() -> None:
    """No endpoint is busy then, and still not all calls go to the first."""
    endpoints = several(3)
    order = []
    for _ in range(6):
        turn = endpoints.choose(0)
        order.append(endpoints.all.index(turn.endpoint))
        turn.end()
    assert order == [0, 1, 2, 0, 1, 2]


def test_a_turn_counts_until_it_ends_and_only_once() -> None:
    endpoints = several(1)
    turn = endpoints.choose(0)
    turn.succeed(0)
    assert endpoints.all[0].outstanding == 1
    turn.end()
    turn.end()
    assert endpoints.all[0].outstanding == 0


def test_what_was_tried_is_taken_only_when_nothing_else_can_be() -> None:
    endpoints = several(2)
    for _ in range(5):
        endpoints.pin(endpoints.all[1], 0)
    assert chosen(endpoints, tried=(endpoints.all[0],)) == 1
    assert chosen(endpoints, tried=endpoints.all) == 0
    fail(endpoints, 1, 0, times=2)
    assert chosen(endpoints, tried=(endpoints.all[0],)) == 0


# Out and back


def test_failures_in_a_row_eject_for_a_time() -> None:
    """Then nothing goes there, and when nothing is left, the time until the first comes back is
    told.
    """
    endpoints = several(2)
    assert not fail(endpoints, 0, 0)
    succeed(endpoints, 0, 0)
    assert not fail(endpoints, 0, 0)
    assert fail(endpoints, 0, 1)
    assert states(endpoints) == ["ejected", "up"]
    assert [chosen(endpoints, 2) for _ in range(3)] == [1, 1, 1]
    assert fail(endpoints, 1, 4, times=2)
    with pytest.raises(NoneInService) as caught:
        endpoints.choose(5)
    assert caught.value.retry_after_s == 6


def test_one_probe_at_a_time_lets_it_back() -> None:
    endpoints = several(1)
    fail(endpoints, 0, 0, times=2)
    probe = endpoints.choose(10)
    assert probe.probe
    assert states(endpoints) == ["probing"]
    with pytest.raises(NoneInService) as caught:
        endpoints.choose(10)
    assert caught.value.retry_after_s == 0
    assert probe.succeed(11)
    assert states(endpoints) == ["up"]
    assert not endpoints.choose(11).probe


def test_a_due_endpoint_gets_the_next_request_however_busy_it_is() -> None:
    """Streams of before its ejection may continue for hours, and would keep it from ever being the
    least busy.
    """
    endpoints = several(2)
    old = [endpoints.pin(endpoints.all[0], 0) for _ in range(5)]
    fail(endpoints, 0, 0, times=2)
    turn = endpoints.choose(10)
    assert (turn.endpoint, turn.probe) == (endpoints.all[0], True)
    assert chosen(endpoints, 10) == 1
    assert endpoints.all[0].outstanding == len(old) + 1


def test_a_cancelled_probe_counts_for_nothing_and_leaves_its_place_to_the_next() -> None:
    """Its client has left, for example."""
    endpoints = several(1)
    fail(endpoints, 0, 0, times=2)
    endpoints.choose(10).end()
    assert states(endpoints) == ["ejected"]
    assert endpoints.choose(10).probe


def test_each_ejection_is_twice_as_long_up_to_the_most() -> None:
    """While another endpoint is up; and one that has stayed up for as long as it was out begins
    anew.
    """
    endpoints = several(2)
    now, lasted = 0.0, []
    fail(endpoints, 0, now, times=2)
    for _ in range(4):
        endpoint = endpoints.all[0]
        assert endpoint.ejected_until is not None
        lasted.append(endpoint.ejected_until - now)
        now = endpoint.ejected_until
        assert fail(endpoints, 0, now)  # as a probe, one failure is enough
    assert lasted == [10, 20, 35, 35]
    now = endpoints.all[0].ejected_until or 0
    assert succeed(endpoints, 0, now)
    fail(endpoints, 0, now + 34, times=2)
    assert endpoints.all[0].ejected_for == 35
    now = endpoints.all[0].ejected_until or 0
    assert succeed(endpoints, 0, now)
    fail(endpoints, 0, now + 35, times=2)
    assert endpoints.all[0].ejected_for == 10
    assert endpoints.states()[0].ejections == 7


def test_ejections_do_not_grow_while_no_other_endpoint_is_up() -> None:
    """They would only make an outage longer than it is."""
    for endpoints in (several(1), several(2)):
        if len(endpoints.all) == 2:
            fail(endpoints, 1, 0, times=2)
        now = 0.0
        fail(endpoints, 0, now, times=2)
        for _ in range(5):
            assert endpoints.all[0].ejected_until == now + 10
            now += 10
            assert fail(endpoints, 0, now)


def test_what_began_before_an_ejection_does_not_count_afterwards() -> None:
    """Neither does its failure make the ejection longer, nor its answer let the endpoint back."""
    endpoints = several(2)
    late = [endpoints.pin(endpoints.all[0], 0) for _ in range(2)]
    fail(endpoints, 0, 0, times=2)
    assert not late[0].fail(5)
    assert not late[1].succeed(5)
    assert endpoints.all[0].ejected_until == 10
    assert states(endpoints) == ["ejected", "up"]


def test_only_the_first_verdict_of_a_turn_counts() -> None:
    endpoints = several(1, consecutive_failures=1)
    turn = endpoints.choose(0)
    assert not turn.succeed(0)
    assert not turn.fail(0)
    assert states(endpoints) == ["up"]


def test_a_pinned_turn_goes_to_its_endpoint_and_may_be_its_probe() -> None:
    """Also while that is ejected; once its time is over, as the probe, if there is none."""
    endpoints = several(2)
    fail(endpoints, 0, 0, times=2)
    early = endpoints.pin(endpoints.all[0], 5)
    assert not early.probe
    assert not early.succeed(5)
    probe, other = endpoints.pin(endpoints.all[0], 10), endpoints.pin(endpoints.all[0], 10)
    assert (probe.probe, other.probe) == (True, False)
    assert probe.succeed(10)
    assert states(endpoints) == ["up", "up"]


# Checks


def test_checks_count_by_themselves() -> None:
    """A check that succeeds does not make up for requests that fail, nor the other way round."""
    endpoints = several(2)
    one = endpoints.all[0]
    fail(endpoints, 0, 0)
    assert not endpoints.check_succeeded(one, 0)
    assert fail(endpoints, 0, 0)
    one = endpoints.all[1]
    assert not endpoints.check_failed(one, 0)
    succeed(endpoints, 1, 0)
    assert endpoints.check_failed(one, 0)
    assert states(endpoints) == ["ejected", "ejected"]


def test_a_check_lets_back_when_the_time_is_over_and_not_before() -> None:
    """It may know less than the requests that failed; and one that fails meanwhile changes nothing."""
    endpoints = several(1)
    fail(endpoints, 0, 0, times=2)
    assert not endpoints.check_succeeded(endpoints.all[0], 9)
    assert not endpoints.check_failed(endpoints.all[0], 10)
    assert endpoints.all[0].ejected_until == 10
    assert endpoints.check_succeeded(endpoints.all[0], 11)
    assert states(endpoints) == ["up"]


def test_where_there_are_checks_no_request_is_risked_while_another_endpoint_is_up() -> None:
    """When none is, it is the probe all the same: waiting for the next check would only make the
    outage longer.
    """
    endpoints = several(2, checked=True)
    fail(endpoints, 0, 0, times=2)
    assert [chosen(endpoints, 20) for _ in range(3)] == [1, 1, 1]
    assert fail(endpoints, 1, 20, times=2)
    probe = endpoints.choose(21)
    assert (probe.endpoint, probe.probe) == (endpoints.all[0], True)
    probe.end()
    assert endpoints.check_succeeded(endpoints.all[0], 22)
    assert chosen(endpoints, 22) == 0


# Whatever happens


class Anything(RuleBasedStateMachine):
    """Turns, verdicts, ends, checks and time in any order, beside a model that only counts."""

    @initialize(count=st.integers(1, 4), failures=st.integers(1, 3), checked=st.booleans())
    def begin(self, count: int, failures: int, checked: bool) -> None:
        self.endpoints = several(count, consecutive_failures=failures, checked=checked)
        self.now = 0.0
        self.turns: list[Turn] = []
        self.settled: set[int] = set()

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
                self.now,
                [item for number, item in enumerate(self.endpoints.all) if number in tried],
            )
        except NoneInService:
            assert not usable
            return
        until, probing = before[turn.endpoint]
        assert turn.endpoint in usable
        assert turn.probe == (until is not None)
        assert not (turn.probe and probing)
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
                turn
                for turn in self.turns
                if turn.endpoint is endpoint and turn.probe and not turn._settled
            ]
            assert len(probes) <= 1
            assert endpoint.probing == bool(probes)
            if endpoint.ejected_until is not None:
                assert 10 <= endpoint.ejected_for <= 35
                assert endpoint.ejected_until <= self.now + 35

    def teardown(self) -> None:
        if hasattr(self, "turns"):
            for turn in self.turns:
                turn.end()
            assert all(item.outstanding == 0 and not item.probing for item in self.endpoints.all)


TestWhateverHappens = Anything.TestCase
TestWhateverHappens.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(count=st.integers(1, 5), busy=st.lists(st.integers(0, 4), max_size=30))
def test_up_endpoints_share_as_evenly_as_whole_numbers_can(count: int, busy: list[int]) -> None:
    """Of endpoints that answer alike, none ever has two more under way than another, when all turns
    last.
    """
    endpoints = several(count)
    for _ in busy:
        endpoints.choose(0)
        loads = [item.outstanding for item in endpoints.all]
        assert max(loads) - min(loads) <= 1
