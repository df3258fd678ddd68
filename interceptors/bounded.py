"""Searches with the patterns of a configuration that end in time, whatever the pattern and the text
are.

A pattern is taken apart once, when it is loaded. What a search can cost then decides how it is
done:

- A short text, or a cheap pattern, is searched by `re`.
- A pattern whose matches depend on a bounded number of characters (besides a repetition at its end)
  is searched by `re` in turns, with a look at the clock between them.
- A pattern that begins with an unbounded repetition is tried only where a run of its characters
  begins: where it fails there, it fails inside the run, too.
- Of other patterns, `re` finds where what they begin with is, if that is bounded (`(?i)key` of
  `(?i)key *= *x`): they are tried there.
- Everything else is searched by `regex`, which can stop in the middle (`timeout`). It looks at the
  clock after many steps, and a step over a long text is long: there, the places where a match may
  begin are tried in turns.

`Budget` has the time for one event. Sans I/O; knows nothing of events, and nothing of what is done
with matches.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum, auto
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]  # private: it alone shows what a pattern is made of
from time import perf_counter, thread_time
from typing import Any, NamedTuple, Protocol

import regex

from .rewrite import source_for_regex

__all__ = ["MAX_HOLD_S", "Around", "Budget", "Found", "Pattern", "PatternTooSlow"]

MAX_HOLD_S = 0.2
"""CPU seconds that the patterns of one interceptor may take for one event, delta, body or message.
What stops them looks at the clock now and then, so that the loop is free again after 0.25 s at the
latest.
"""

_QUICK = 1 << 18  # steps of one search by `re` that nothing can stop: less than a millisecond
_TURN = 1 << 20  # steps of one turn: some milliseconds
_WHOLE = 1 << 24  # steps of a search that is linear: some hundredths of a second
_MOST_REACH = 1 << 16
_MOST_CHARACTERS = 1 << 22
_FIRST_LOOK = 1 << 8  # characters
_FINE = 1 << 15  # up to so many characters, what stops `regex` is fine enough
_TURN_CHARACTERS = 1 << 24  # so many characters at most are gone over from the places of one turn
_FIRST_PLACES, _MOST_PLACES = 16, 1 << 16
_SLOW_TURN_S = 0.01
_LEAST_HEAD = 3  # characters
_FEW_HEADS, _SPARSE = 1000, 24
_NEVER = float("inf")
_ONE_CHARACTER = frozenset(
    (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)
)
_POSSESSIVE_GROUPS_ARE_WRONG = sys.version_info < (
    3,
    11,
    5,
)  # (?:ab?c)*+ matches "a" (gh-106052, gh-100061)
_DEPENDS_ON_MORE = (
    _constants.ASSERT,
    _constants.ASSERT_NOT,
    _constants.ATOMIC_GROUP,
    _constants.POSSESSIVE_REPEAT,
)
_REFERENCES = (_constants.GROUPREF, _constants.GROUPREF_EXISTS)
_REPEATS = frozenset((_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT))


class Found(Protocol):
    """A match, of `re` or of `regex`."""

    def start(self) -> int: ...
    def end(self) -> int: ...
    def span(self) -> tuple[int, int]: ...
    def expand(self, template: str) -> str: ...


class PatternTooSlow(Exception):
    """A search did not end in time. It names the pattern by its place, and shows nothing of the
    text.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} took longer than {MAX_HOLD_S} s of CPU time for one event: write it so that it is cheap"
        )


class Budget:
    """The time that one interceptor's patterns may take for one event. Not for several threads."""

    __slots__ = ("_before_s", "_began_s")

    def __init__(self) -> None:
        self._began_s: float | None = None  # by the clock on the wall, which costs less to read
        self._before_s = 0.0

    def begin(self) -> None:
        """Another event."""
        self._began_s = None

    def left_s(self, name: str) -> float:
        """At least what is left, in seconds, from the first call for an event on. Raises
        `PatternTooSlow` when nothing is.
        """
        now_s = perf_counter()
        if self._began_s is None:
            self._began_s, self._before_s = now_s, thread_time()
            return MAX_HOLD_S
        left_s = MAX_HOLD_S - (now_s - self._began_s)
        if left_s > MAX_HOLD_S / 2:
            return left_s  # no thread takes more of the processor's time than passes
        left_s = MAX_HOLD_S - (thread_time() - self._before_s)
        if left_s <= 0:
            raise PatternTooSlow(name)
        return left_s


class Pattern:
    """One pattern as `re` takes it; searches that look like those of `re.Pattern`, and raise
    `PatternTooSlow`.
    """

    __slots__ = (
        "_budget",
        "_cheap",
        "_head",
        "_linear",
        "_literal",
        "_reach",
        "_run",
        "_slow",
        "_source",
        "_step",
        "_turns",
        "looks_around",
        "name",
        "prefix",
        "re",
    )

    def __init__(self, compiled: re.Pattern[str], name: str, budget: Budget) -> None:
        """Raises `ValueError` for what cannot be written for `regex`, if it is needed, and for what
        this Python's `re` gets wrong; `regex.error`.
        """
        self.re = compiled
        self.name = name
        self._budget = budget
        parsed = _parser.parse(compiled.pattern)
        if _POSSESSIVE_GROUPS_ARE_WRONG and _has_possessive_group(parsed):
            raise ValueError(
                "Python before 3.11.5 gets a possessive repetition of a group wrong: write (?>(?:...)*), not (?:...)*+"
            )
        self.looks_around = _looks_around(parsed)
        self._literal, self.prefix = _literals_of(parsed)
        cost = _cost_of(parsed, _MOST_CHARACTERS)
        self._reach = self._step = self._linear = 0
        self._run: re.Pattern[str] | None = None
        if cost.reach <= _MOST_REACH and cost.steps <= _TURN // 64:
            self._reach = int(cost.reach)
            self._step = max(_TURN // max(1, int(cost.steps)), 64)
            self._cheap = self._step + self._reach
        else:
            self._cheap = _cheap_size(parsed)
            rest = _after_run(parsed)
            if rest is not None:
                behind = _cost_of(rest, _MOST_CHARACTERS)
                self._run = _only_where_runs_begin(compiled, parsed)
                self._linear = int(min(_WHOLE // (behind.steps + 2), _MOST_CHARACTERS))
        self._head = None if self._step or self._run is not None else _head_of(parsed)
        self._slow: Any = None
        self._source = ""
        if not self._step:
            source, flags = source_for_regex(compiled)
            self._source = f"(?:{source}\n)" if flags & regex.VERBOSE else f"(?:{source})"
            if self._run is not None:
                behind_it, _ = source_for_regex(
                    re.compile(f"(?<!{_first_piece(compiled)})", compiled.flags)
                )
                self._source = rf"(?:\G|{behind_it}){self._source}"  # \G: where the search begins
            self._slow = regex.compile(self._source, flags)
        self._turns: dict[int, Any] = {}

    def is_cheap(self, size: int) -> bool:
        """Whether no search in so many characters can take long."""
        return size <= self._cheap

    def left_s(self) -> float:
        """As `Budget.left_s`."""
        return self._budget.left_s(self.name)

    def search(self, text: str, at: int = 0) -> Found | None:
        """The first match that begins at `at` or later. What looks back sees the text before."""
        if self._literal is not None:
            at = self._skip(text, at)
            if at < 0:
                return None
        size = len(text) - at
        if size <= self._cheap:
            return self.re.search(text, at)
        if self._step:
            return self._search_in_turns(text, at)
        if size <= self._linear and self._run is not None:
            self.left_s()
            return self.re.match(text, at) or self._run.search(text, at)
        return self._search_slowly(text, at)

    def first_place(self, text: str, at: int = 0) -> int:
        """Where the first match begins, or -1. Cheaper than `search` where a match may be long."""
        found: Found | None
        if not self._step:
            found = self.search(text, at)
            return -1 if found is None else found.start()
        if self._literal is not None:
            at = self._skip(text, at)
            if at < 0:
                return -1
        search, reach, size = self.re.search, self._reach, min(_FIRST_LOOK, self._step)
        while at + size + reach < len(text):
            self.left_s()
            found = search(text, at, at + size + reach)
            if found is not None and found.start() < at + size:
                return found.start()
            at = self._skip(text, at + size)
            if at < 0:
                return -1
            size = min(size * 2, self._step)
        found = search(text, at)
        return -1 if found is None else found.start()

    def match(self, text: str, at: int) -> Found | None:
        """The match that begins at `at`."""
        if self._step or len(text) - at <= max(self._cheap, self._linear):
            return self.re.match(text, at)
        return self._timed(self._slow.match, text, at)

    def find_all(self, text: str, at: int = 0) -> Iterator[Found]:
        """Every match from `at` on, as `re.finditer`. Of a pattern that matches nothing empty."""
        if len(text) - at <= self._cheap:
            yield from self.re.finditer(text, at)
            return
        while (found := self.search(text, at)) is not None:
            yield found
            at = found.end()

    def _search_in_turns(self, text: str, at: int) -> Found | None:
        search, step, reach, end = self.re.search, self._step, self._reach, len(text)
        while at + step + reach < end:
            self.left_s()
            found = search(text, at, at + step + reach)
            if found is not None and found.start() < at + step:
                # What repeats at its end may go on.
                return (
                    self.re.match(text, found.start())
                    if found.end() == at + step + reach
                    else found
                )
            at = self._skip(text, at + step)
            if at < 0:
                return None
        return search(text, at)

    def _skip(self, text: str, at: int) -> int:
        """The first place from `at` on at which a match may begin, by the text that is in every
        match; -1 if there is none.
        """
        if self._literal is None:
            return at
        place = text.find(self._literal, at)
        if place < 0:
            return -1
        return max(at, place - self._reach) if self._step else at

    def _search_slowly(self, text: str, at: int) -> Found | None:
        found: Found | None
        if len(self.prefix) > 1:
            # It begins where this text is: few places, and each is tried by itself.
            place = text.find(self.prefix, at)
            while place >= 0:
                found = self._timed(self._slow.match, text, place)
                if found is not None:
                    return found
                place = text.find(self.prefix, place + 1)
            return None
        if self._head is not None:
            began = at
            for tried in itertools.count(1):
                at = self._head.first_place(text, at, self.left_s)
                if at < 0:
                    return None
                found = self._timed(self._slow.match, text, at)
                if found is not None:
                    return found
                at += 1
                if tried > _FEW_HEADS and at - began < tried * _SPARSE:
                    break  # nearly everywhere: `regex` is sooner done without it
        size = len(text) - at
        if size <= _FINE:
            return self._timed(self._slow.search, text, at)
        most = _MOST_PLACES if self._run is not None else max(1, _TURN_CHARACTERS // size)
        places = min(most, _FIRST_PLACES)
        while at < len(text):
            before_s = self.left_s()
            found = self._timed(self._places(places).match, text, at)
            if found is not None:
                return found
            at += 1 << (places.bit_length() - 1)
            was_slow = before_s - self.left_s() > _SLOW_TURN_S
            places = max(places // 4, 1) if was_slow else min(places * 4, most)
        return None

    def _places(self, number: int) -> Any:
        """What matches where the pattern matches at one of the next so many characters."""
        # Powers of two, so that few are made.
        number = 1 << (number.bit_length() - 1)
        turn = self._turns.get(number)
        if turn is None:
            turn = self._turns[number] = regex.compile(
                rf"(?s:.{{0,{number - 1}}}?)\K{self._source}", self._slow.flags
            )
        return turn

    def _timed(self, method: Callable[..., Found | None], text: str, at: int) -> Found | None:
        try:
            return method(text, at, timeout=self.left_s())
        except TimeoutError:
            raise PatternTooSlow(self.name) from None


class _Head:
    """What every match of a pattern begins with: it looks at a bounded number of characters, and
    `re` finds it.
    """

    __slots__ = ("_reach", "_search", "_step")

    def __init__(self, nodes: Any, cost: _Cost) -> None:
        self._search = _compiler.compile(nodes).search
        self._reach = int(cost.reach)
        self._step = max(_TURN // max(1, int(cost.steps)), 64)

    def first_place(self, text: str, at: int, left_s: Callable[[], float]) -> int:
        """Where, from `at` on, it is first; -1 if nowhere. `left_s` may raise between turns."""
        search, reach, size = self._search, self._reach, _FIRST_LOOK
        while at + size + reach < len(text):
            left_s()
            found = search(text, at, at + size + reach)
            if found is not None and found.start() < at + size:
                return int(found.start())
            at += size
            size = min(size * 2, self._step)
        found = search(text, at)
        return -1 if found is None else int(found.start())


def _head_of(parsed: Any) -> _Head | None:
    """Of a parsed pattern; None where that would be nearly everywhere, or costs too much."""
    head = _parser.SubPattern(parsed.state, _beginning(parsed))
    cost = _cost_of(head, _MOST_CHARACTERS)
    if head.getwidth()[0] < _LEAST_HEAD or cost.reach > _MOST_REACH or cost.steps > _TURN // 64:
        return None
    return _Head(head, cost)


def _beginning(nodes: Any) -> list[Any]:
    """The first nodes, as far as they look at a bounded number of characters. Matches wherever all
    of them match.
    """
    beginning: list[Any] = []
    for op, value in nodes:
        cost = _cost_of_one(op, value, _MOST_CHARACTERS, last=False)
        if cost.reach <= _MOST_REACH and cost.steps <= _TURN // 64:
            beginning.append((op, value))
        elif op is _constants.SUBPATTERN:
            inner = _parser.SubPattern(value[-1].state, _beginning(value[-1]))
            return [*beginning, (op, (None, *value[1:-1], inner))]
        elif op in _REPEATS and value[0] > 0:
            least, _, item = value
            if len(item) == 1 and item[0][0] in _ONE_CHARACTER:
                return [*beginning, (_constants.MAX_REPEAT, (least, least, item))]
            return [*beginning, *_beginning(item)]
        elif op not in (
            _constants.ASSERT,
            _constants.ASSERT_NOT,
        ):  # without an assertion, it matches at more places
            break
    return beginning


class _Cost(NamedTuple):
    """What one attempt to match costs at most, before it fails; infinite where that is not bounded
    by anything useful.
    """

    steps: float
    ways: float
    """In how many ways it can match, so often is tried what follows."""
    reach: float
    """How many characters it looks at, besides a repetition at the end."""


def _cost_of(nodes: Any, size: int, *, last: bool = True) -> _Cost:
    """Of a parsed pattern, on `size` characters. `last`: nothing follows it."""
    steps, ways, reach = 0.0, 1.0, 0.0
    for position, (op, value) in enumerate(nodes):
        cost = _cost_of_one(op, value, size, last=last and position == len(nodes) - 1)
        steps += ways * cost.steps
        ways *= cost.ways
        reach += cost.reach
        if steps > _MOST_CHARACTERS or ways > _MOST_CHARACTERS:
            return _Cost(_NEVER, _NEVER, _NEVER)
    return _Cost(steps, ways, reach)


def _cost_of_one(op: Any, value: Any, size: int, *, last: bool) -> _Cost:
    if op in _REPEATS:
        least, most, item = value
        return _cost_of_repeat(op, least, most, item, size, last=last)
    if op is _constants.SUBPATTERN:
        return _cost_of(value[-1], size, last=last)
    if op is _constants.ATOMIC_GROUP:
        return _cost_of(value, size, last=last)._replace(ways=1)
    if op in (_constants.ASSERT, _constants.ASSERT_NOT):
        cost = _cost_of(value[1], size, last=False)
        return _Cost(cost.steps, 1, cost.reach if value[0] > 0 else 0)
    if op is _constants.BRANCH:
        costs = [_cost_of(branch, size, last=last) for branch in value[1]]
        return _Cost(
            sum(c.steps for c in costs), sum(c.ways for c in costs), max(c.reach for c in costs)
        )
    if op is _constants.GROUPREF:
        return _Cost(size, 1, _NEVER)
    if op is _constants.GROUPREF_EXISTS:
        costs = [_cost_of(branch, size, last=False) for branch in value[1:] if branch is not None]
        return _Cost(sum(c.steps for c in costs), sum(c.ways for c in costs), _NEVER)
    return _Cost(
        1, 1, 2 if op is _constants.AT else 1
    )  # $ looks at the line end, and at what follows it


def _cost_of_repeat(op: Any, least: int, most: int, item: Any, size: int, *, last: bool) -> _Cost:
    endless = most is _constants.MAXREPEAT or most > size
    times = max(least, size if endless else most)
    if len(item) == 1 and item[0][0] in _ONE_CHARACTER:
        if last and endless:
            return _Cost(least + 1, 1, least + 1)
        cost = _Cost(times, times - least + 1, _NEVER if endless else times)
    else:
        one = _cost_of(item, size, last=False)
        if one.ways > 1 and times * (one.ways - 1) > 40:
            return _Cost(_NEVER, _NEVER, _NEVER)
        most_ways = one.ways**times if one.ways > 1 else 1.0
        cost = _Cost(
            one.steps * times * most_ways,
            (times - least + 1) * most_ways,
            _NEVER if endless else one.reach * times,
        )
    return cost._replace(ways=1) if op is _constants.POSSESSIVE_REPEAT else cost


def _cheap_size(parsed: Any) -> int:
    """Up to how many characters a search by `re` is quick."""
    size = 1 << 12
    while size and size * _cost_of(parsed, size).steps > _QUICK:
        size //= 2
    return size


def _after_run(parsed: Any) -> Any:
    """What follows the unbounded repetition of one character that a pattern begins with; None where
    it does not, or where what follows depends on how much was repeated.
    """
    if _refers_back(parsed):
        return None
    nodes = list(parsed)
    rest: list[Any] = []
    while nodes and nodes[0][0] is _constants.SUBPATTERN:
        rest = nodes[1:] + rest
        if nodes[0][1][1] or nodes[0][1][2]:
            return None  # flags of its own
        nodes = list(nodes[0][1][-1])
    if not nodes or nodes[0][0] not in _REPEATS:
        return None
    _, most, item = nodes[0][1]
    if most is not _constants.MAXREPEAT or len(item) != 1 or item[0][0] not in _ONE_CHARACTER:
        return None
    return nodes[1:] + rest


def _refers_back(node: Any) -> bool:
    if isinstance(node, _parser.SubPattern):
        node = node.data
    if isinstance(node, tuple) and node and _is_one_of(node[0], _REFERENCES):
        return True
    return isinstance(node, (list, tuple)) and any(map(_refers_back, node))


def _is_one_of(item: Any, ops: tuple[Any, ...]) -> bool:
    """Not by `in`: operations equal numbers, and 4 repetitions are no assertion."""
    return any(item is op for op in ops)


def _only_where_runs_begin(compiled: re.Pattern[str], parsed: Any) -> re.Pattern[str] | None:
    """A pattern that begins with a run, for the places that have nothing of that run before them;
    None if it cannot be written.
    """
    source = compiled.pattern
    if compiled.flags & re.VERBOSE or (found := _FIRST_PIECE.match(source)) is None:
        return None
    first = _parser.parse(found["piece"], compiled.flags & ~re.UNICODE)
    nodes = parsed
    while nodes[0][0] is _constants.SUBPATTERN:
        nodes = nodes[0][1][-1]
    if list(first) != list(nodes[0][1][2]):
        return None  # the parser has made one set of several alternatives
    return re.compile(f"{found['flags']}(?<!{found['piece']}){source[found.end('flags') :]}")


def _first_piece(compiled: re.Pattern[str]) -> str:
    found = _FIRST_PIECE.match(compiled.pattern)
    assert found is not None
    return found["piece"]


# What the source of a pattern begins with: flags, groups that open, and one character or set.
_FIRST_PIECE = re.compile(
    r"(?P<flags>(?:\(\?[aiLmsux]++\))*)(?:\((?:\?(?:P<\w++>|:))?)*"
    r"(?P<piece>\[\^?\]?(?:\\.|[^\]\\])*\]|\\[^N0-9xuUAbBZz]|[^\\\[()|^$?*+{])",
    re.DOTALL,
)


def _has_possessive_group(node: Any) -> bool:
    if isinstance(node, _parser.SubPattern):
        node = node.data
    if isinstance(node, tuple) and len(node) == 2 and node[0] is _constants.POSSESSIVE_REPEAT:
        item = node[1][2]
        return len(item) != 1 or item[0][0] not in _ONE_CHARACTER
    return isinstance(node, (list, tuple)) and any(map(_has_possessive_group, node))


class Around(Enum):
    """What a pattern looks at besides the characters that it matches."""

    NOTHING = auto()
    """What matches in a text matches in a part of it that has the match, and the other way round.
    """
    BOUNDARIES = auto()
    """The same, if no letter of a word stands next to that part."""
    ANYTHING = auto()


def _looks_around(node: Any) -> Around:
    if isinstance(node, _parser.SubPattern):
        node = node.data
    if not isinstance(node, (list, tuple)):
        return Around.NOTHING
    if len(node) == 2 and node[0] is _constants.AT:
        boundary = node[1] in (_constants.AT_BOUNDARY, _constants.AT_NON_BOUNDARY)
        return Around.BOUNDARIES if boundary else Around.ANYTHING
    if node and _is_one_of(node[0], _DEPENDS_ON_MORE):
        return Around.ANYTHING
    return max(map(_looks_around, node), key=lambda around: around.value, default=Around.NOTHING)


def _literals_of(parsed: Any) -> tuple[str | None, str]:
    """A text that is in every match, and one that every match begins with."""
    if parsed.state.flags & re.IGNORECASE:
        return None, ""
    prefix: str | None = None
    longest = text = ""
    for op, value in parsed:
        if op is _constants.LITERAL:
            text += chr(value)
        else:
            prefix = text if prefix is None else prefix
            text = ""
        longest = max(longest, text, key=len)
    prefix = text if prefix is None else prefix
    return longest or None, prefix
