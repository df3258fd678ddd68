"""Every regular expression of the code takes linear time: no neighbouring repetitions that can
match the same character, and no repetition of a repetition, unless what repeats is possessive.

Only one character or set is repeated possessively: before Python 3.11.5, `re` matches `(?:ab?c)*+`
in `a` (gh-106052).
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("interceptors", "pools", "proxy")
CHARACTERS = [*map(chr, range(0x180)), "\u2028", "\u3000", "\ufeff"]  # distinguish the sets here
LONG = 16  # a repetition that may match so often counts as one without a bound
GREEDY = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
REPEATS = (*GREEDY, _constants.POSSESSIVE_REPEAT)
LOOKS = (_constants.ASSERT, _constants.ASSERT_NOT)
ONE = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)


class Edges(NamedTuple):
    """The characters that repeat at the beginning and at the end of a part of a pattern, a set for
    each repetition; whether it can match nothing.
    """

    first: list[set[str]]
    last: list[set[str]]
    nullable: bool


class Audit:
    """Collects what is wrong in one pattern."""

    def __init__(self, pattern: str | bytes, flags: int = 0) -> None:
        self.problems: list[str] = []
        parsed = _parser.parse(pattern, flags)
        self._state = parsed.state
        self._sequence(parsed, parsed.state.flags)

    def _characters(self, node: Any, flags: int) -> set[str]:
        one = _compiler.compile(_parser.SubPattern(self._state, [node]), flags)
        return set(filter(one.match, CHARACTERS))

    def _sequence(self, nodes: Any, flags: int) -> Edges:
        first: list[set[str]] = []
        last: list[set[str]] = []
        nullable = True
        for op, value in nodes:
            here = self._node(op, value, flags)
            if any(left & right for left in last for right in here.first):
                self.problems.append("neighbouring repetitions match the same character")
            if nullable:
                first += here.first
            last = [*last, *here.last] if here.nullable else here.last
            nullable = nullable and here.nullable
        return Edges(first, last, nullable)

    def _node(self, op: Any, value: Any, flags: int) -> Edges:
        if op in REPEATS:
            return self._repetition(op, value, flags)
        if op is _constants.SUBPATTERN:
            return self._sequence(value[-1], flags | value[1])
        if op is _constants.ATOMIC_GROUP:
            repeated = value[0][1][2] if len(value) == 1 and value[0][0] in GREEDY else value
            if len(repeated) != 1 or repeated[0][0] not in ONE:
                self.problems.append("an atomic group of more than one character's repetition")
            return self._sequence(value, flags)._replace(last=[])
        if op is _constants.BRANCH:
            branches = [self._sequence(branch, flags) for branch in value[1]]
            return Edges(
                [each for branch in branches for each in branch.first],
                [each for branch in branches for each in branch.last],
                any(branch.nullable for branch in branches),
            )
        if op in LOOKS:
            self._sequence(value[1], flags)
        return Edges([], [], op in (*LOOKS, _constants.AT))

    def _repetition(self, op: Any, value: Any, flags: int) -> Edges:
        least, most, item = value
        possessive = op is _constants.POSSESSIVE_REPEAT
        if len(item) == 1 and item[0][0] in ONE:
            here = [self._characters(item[0], flags)] if most >= LONG else []
            return Edges(here, [] if possessive else here, least == 0)
        if possessive:
            self.problems.append("a possessive repetition of a group")
        elif most >= LONG and repeats(item):
            self.problems.append("a repetition of a repetition")
        inner = self._sequence(item, flags)
        return Edges(inner.first, [] if possessive else inner.last, least == 0 or inner.nullable)


def repeats(nodes: Any) -> bool:
    """Whether there is a repetition without a bound into which a search can go back."""
    if isinstance(nodes, _parser.SubPattern):
        nodes = nodes.data
    if isinstance(nodes, tuple) and len(nodes) == 2:
        if nodes[0] in GREEDY and nodes[1][1] >= LONG:
            return True
        if nodes[0] in (_constants.POSSESSIVE_REPEAT, _constants.ATOMIC_GROUP, *LOOKS):
            return False
    return isinstance(nodes, (list, tuple)) and any(map(repeats, nodes))


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Every pattern of the code, and where it is."""
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            classes = [value for value in vars(module).values() if isinstance(value, type)]
            for name, value in (
                item for holder in (module, *classes) for item in vars(holder).items()
            ):
                for each in value.values() if isinstance(value, dict) else [value]:
                    if isinstance(each, re.Pattern):
                        yield f"{module.__name__}.{name}", each
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=function, args=[ast.Constant(value), *_]):
                    if ast.unparse(function).startswith(("re.", "regex.")):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", re.compile(value)


def test_every_pattern_of_the_code_is_linear() -> None:
    found = list(patterns())
    assert len(found) > 60
    audits = ((where, each, Audit(each.pattern, each.flags & ~re.UNICODE)) for where, each in found)
    assert [(where, each, audit.problems) for where, each, audit in audits if audit.problems] == []


@pytest.mark.parametrize(("wrong", "pattern"), [
    *((True, pattern) for pattern in (
        r"[A-Za-z][A-Za-z0-9+.\-]*:[/\\]*[^/?#]*\\[^/?#]*@", "a*a*", "a+b?a+", "(a*)(?:b|a+)", "(a+)+", "(?:a+b)*",
        "a{1,40}[ab]+", r"\w+\s?\w+", "(?i)a+A+", r"(?:a|[bc]+)+", "a*(?=b)a*", "(?:x*|y)z?x*", "(?:ab)*+", "(?:a|bc)?+",
        "(?>ab|a)c", "(?>a+b)",
    )),
    *((False, pattern) for pattern in (
        "a*b*", "a*xa*", "a*+a", "(?:a++b)*", "(?>a+)+b", "(?:ab)*", "(?:a)++", "(?>[ab]*)c", r"[\t ]*[!-~]+", "a+[^a]+",
        "a{2}a{3}",
    )),
])  # fmt: skip
def test_the_audit_finds_what_it_must(pattern: str, wrong: bool) -> None:
    assert bool(Audit(pattern).problems) is wrong
