"""Every regular expression of the code takes linear time: no neighbouring repetitions that can
match the same character, and no repetition of a repetition, unless what repeats is possessive, so
that nothing goes back into it.

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
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("interceptors", "pools", "proxy")
CHARACTERS = [
    *range(0x180),
    0x2028,
    0x3000,
    0xFEFF,
]  # enough to distinguish the sets of this code
LONG = 16  # a repetition that may match so often counts as one without a bound
FUNCTIONS = (
    "compile", "sub", "subn", "match", "search", "fullmatch", "split", "findall", "finditer",
)  # fmt: skip
REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
ONE = (
    _constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN,
    _constants.CATEGORY, _constants.RANGE,
)  # fmt: skip
CATEGORIES = {
    "DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w",
    "NOT_WORD": r"\W",
}  # fmt: skip


class Edges(NamedTuple):
    """What repeats at the beginning and at the end of a part of a pattern, as sets of characters;
    whether it can match nothing.
    """

    first: list[frozenset[int]]
    last: list[frozenset[int]]
    nullable: bool


def characters(op: Any, value: Any, flags: int) -> frozenset[int]:
    if op is _constants.IN:
        negated = value[0][0] is _constants.NEGATE
        found: set[int] = set()
        for item in value[negated:]:
            found |= characters(*item, flags)
        return frozenset(CHARACTERS) - found if negated else frozenset(found)
    if op is _constants.LITERAL:
        both = {value, *map(ord, chr(value).swapcase())} if flags & re.IGNORECASE else {value}
        return frozenset(both)
    if op is _constants.NOT_LITERAL:
        return frozenset(CHARACTERS) - {value}
    if op is _constants.RANGE:
        return frozenset(range(value[0], min(value[1], 0xFFFF) + 1))
    if op is _constants.CATEGORY:
        one = re.compile(CATEGORIES[str(value).removeprefix("CATEGORY_").removeprefix("UNI_")])
        return frozenset(character for character in CHARACTERS if one.match(chr(character)))
    return frozenset(CHARACTERS)


def edges(nodes: Any, flags: int, problems: list[str]) -> Edges:
    """Of a sequence. Adds what is wrong in it to `problems`."""
    first: list[frozenset[int]] = []
    last: list[frozenset[int]] = []
    nullable = True
    for op, value in nodes:
        one = edges_of_one(op, value, flags, problems)
        if any(left & right for left in last for right in one.first):
            problems.append("neighbouring repetitions match the same character")
        if nullable:
            first += one.first
        last = [*last, *one.last] if one.nullable else one.last
        nullable = nullable and one.nullable
    return Edges(first, last, nullable)


def edges_of_one(op: Any, value: Any, flags: int, problems: list[str]) -> Edges:
    if op in REPEATS or op is _constants.POSSESSIVE_REPEAT:
        least, most, item = value
        is_one = len(item) == 1 and item[0][0] in ONE
        if op is _constants.POSSESSIVE_REPEAT and not is_one:
            problems.append("a possessive repetition of a group")
        if is_one:
            here = [characters(*item[0], flags)] if most >= LONG else []
            return Edges(here, [] if op is _constants.POSSESSIVE_REPEAT else here, least == 0)
        inner = edges(item, flags, problems)
        if op in REPEATS and most >= LONG and repeats(item):
            problems.append("a repetition of a repetition")
        return Edges(
            inner.first,
            [] if op is _constants.POSSESSIVE_REPEAT else inner.last,
            least == 0 or inner.nullable,
        )
    if op is _constants.SUBPATTERN:
        return edges(value[-1], flags | value[1], problems)
    if op is _constants.ATOMIC_GROUP:
        repeated = value[0][1][2] if len(value) == 1 and value[0][0] in REPEATS else value
        if len(repeated) != 1 or repeated[0][0] not in ONE:
            problems.append("an atomic group of more than one character's repetition")
        return edges(value, flags, problems)._replace(last=[])
    if op is _constants.BRANCH:
        branches = [edges(branch, flags, problems) for branch in value[1]]
        return Edges(
            [each for branch in branches for each in branch.first],
            [each for branch in branches for each in branch.last],
            any(branch.nullable for branch in branches),
        )
    if op in (_constants.ASSERT, _constants.ASSERT_NOT):
        edges(value[1], flags, problems)
        return Edges([], [], True)
    return Edges([], [], op is _constants.AT)


def repeats(nodes: Any) -> bool:
    """Whether there is a repetition without a bound into which a search can go back."""
    if isinstance(nodes, _parser.SubPattern):
        nodes = nodes.data
    if isinstance(nodes, tuple) and len(nodes) == 2:
        if nodes[0] in REPEATS and nodes[1][1] >= LONG:
            return True
        if nodes[0] in (
            _constants.POSSESSIVE_REPEAT,
            _constants.ATOMIC_GROUP,
            _constants.ASSERT,
            _constants.ASSERT_NOT,
        ):
            return False
    return isinstance(nodes, (list, tuple)) and any(map(repeats, nodes))


def audit(pattern: str | bytes, flags: int = 0) -> list[str]:
    problems: list[str] = []
    parsed = _parser.parse(pattern, flags)
    edges(parsed, parsed.state.flags, problems)
    return problems


def modules() -> Iterator[Any]:
    for package in PACKAGES:
        top = importlib.import_module(package)
        yield top
        for found in pkgutil.walk_packages(top.__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def patterns() -> dict[str, re.Pattern[Any]]:
    """Every pattern of the code, by where it is."""
    found: dict[str, re.Pattern[Any]] = {}
    for module in modules():
        holders = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        for holder in holders:
            for name, value in vars(holder).items():
                for number, item in enumerate(
                    value.values() if isinstance(value, dict) else [value]
                ):
                    if isinstance(item, re.Pattern):
                        found[
                            f"{module.__name__}.{name}"
                            + (f"[{number}]" if isinstance(value, dict) else "")
                        ] = item
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in ("re", "regex")
                    and node.func.attr in FUNCTIONS
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                    and isinstance(node.args[0].value, (str, bytes))
                ):
                    found[f"{path.relative_to(ROOT)}:{node.lineno}"] = re.compile(
                        node.args[0].value
                    )
    return found


KNOWN: dict[str, str] = {}
"""Patterns that are not as they must be, each with the reason why it may stay."""


def test_every_pattern_of_the_code_is_linear() -> None:
    """By its parse tree."""
    found = patterns()
    assert len(found) > 60
    wrong = {
        where: (audit(each.pattern, each.flags & ~re.UNICODE), each.pattern)
        for where, each in found.items()
    }
    assert {
        where: problem for where, problem in wrong.items() if problem[0] and where not in KNOWN
    } == {}


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        (r"[A-Za-z][A-Za-z0-9+.\-]*:[/\\]*[^/?#]*\\[^/?#]*@", True),
        ("a*a*", True), ("a+b?a+", True), ("(a*)(?:b|a+)", True), ("(a+)+", True), ("(?:a+b)*", True), ("a{1,40}[ab]+", True),
        (r"\w+\s?\w+", True), ("(?i)a+A+", True), (r"(?:a|[bc]+)+", True), ("a*(?=b)a*", True), ("(?:x*|y)z?x*", True),
        ("a*b*", False), ("a*xa*", False), ("a*+a", False), ("(?:a++b)*", False), ("(?>a+)+b", False), ("(?:ab)*", False),
        ("(?:ab)*+", True), ("(?:a)++", False), ("(?:a|bc)?+", True), ("(?>ab|a)c", True), ("(?>a+b)", True), ("(?>[ab]*)c", False),
        (r"[\t ]*[!-~]+", False), ("a+[^a]+", False), ("a{2}a{3}", False),
    ],
)  # fmt: skip
def test_the_audit_finds_what_it_must(pattern: str, wrong: bool) -> None:
    """Neighbours, also over what may be absent and through groups and branches, and nested
    repetitions.
    """
    assert bool(audit(pattern)) is wrong
