"""Searches that end in time: however a search is done, it finds what `re` finds, and no pattern
holds the loop for long.
"""

from __future__ import annotations

import re
import warnings
from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.interceptors.test_substitute import ALPHABET, ATOMS, PATTERNS, larger

from interceptors import bounded
from interceptors.bounded import Around, Budget, Pattern, PatternTooSlow
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.substitute import Flow, Substitution

RUNS = [
    "(?P<user>[a-z.]+)@example", "[a-z]*b", r"\s+$", ".*s", "(?s).+=", "(?:[ab]+@)+", r"([ab]+)-\1", "a|[ab]+c", "[ab]+?c",
    "(?:a|b)+c", "(?i)[a-k]+@", r"[^\s]+@", r"\W+a", "[]a]+b", "[^]a]+a", "((a+)b)?c", "(?:(?i:a+))b", "a+(?<=aa)b", r"\.+a",
    r"(?i)ab\s*c+a", "(?:a|bc)[^b]*b", "(?=a.*c)[ab]{2}.*c", r"([ab]{2})+c\1", "(?!b.*c)[ab].*c", r"\b(?:ab?){1,2}[ab]*c",
    "(?<=a)b+c+a", "(?:(?i:aB)c*)+a", "(?:a(?:b|c*a)b)+c", "(?>a[bc]*)b?c", "(?:ab|c)+?a*b", r"(a)?b(?(1)c*|a*)b",
]  # fmt: skip
HOSTILE = {
    "a+": ("[a-z.]+@example\\.com", "a" * 300_000 + " @example.com"),
    "a+!": (r"(\w+\s?)+!", "a" * 40 + "?" + "b" * 2000 + "! no"),
    "mail": (r"[\w.+-]+@[\w-]+\.[\w.]+", "a" * 300_000 + "@"),
    "x?": ("x?[a-z]+@", "a" * 300_000 + " @"),
    "two": ("[a-z]*[a-z]*[a-z]*@", "a" * 100_000 + " @"),
    "ends": (r"\s+$", " " * 300_000 + "x"),
    "alternatives": ("(?:a|a)*b", "a" * 5000 + "cb"),
    "nested": ("(?:(?:a*)*)*[bc]d", "a" * 5000 + "b"),
    "reference": (r"(a+)\1*\1*b", "a" * 20_000 + "c b"),
    "ahead": (r"(?=(a*)*b)ab", "a" * 5000 + "ab"),
    "card": (r"(?:\d[ -]?){13,16}x", "1 " * 200_000 + "x"),
    "prefix": ("key[a-z]*[a-z]*=", "key" + "a" * 200_000 + " ="),
}


def made(pattern: str, *, cheap: int | None = None) -> Pattern:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        result = Pattern(re.compile(pattern), "patterns[1]", Budget())
    if cheap is not None:
        result._cheap = min(result._cheap, cheap)
        result._step = min(result._step, 3)
    return result


def places(pattern: Pattern, text: str) -> list[tuple[int, int]]:
    return [found.span() for found in pattern.find_all(text)]


def check(pattern: str, text: str) -> None:
    compiled = re.compile(pattern)
    if compiled.match(""):
        return
    expected = [found.span() for found in compiled.finditer(text)]
    if any(start == end for start, end in expected):
        return
    for linear in (True, False):
        searched = made(pattern, cheap=0)
        if not linear:
            searched._linear = 0
        assert places(searched, text) == expected
        assert searched.first_place(text) == (expected[0][0] if expected else -1)
        for start, end in expected:
            found = searched.match(text, start)
            assert found is not None
            assert found.span() == (start, end)


@pytest.mark.parametrize("pattern", [*PATTERNS, *RUNS])
@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(ALPHABET), max_size=30).map("".join))
def test_every_way_to_search_finds_what_re_finds(pattern: str, text: str) -> None:
    """In turns, only where runs begin, and with `regex`: the same matches, in the same order."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "_FIRST_LOOK",
            "_FINE",
            "_FIRST_PLACES",
            "_MOST_PLACES",
            "_FEW_HEADS",
            "_SPARSE",
        ):
            patch.setattr(bounded, name, 2)
        patch.setattr(bounded, "_LEAST_HEAD", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            check(pattern, text)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(pattern=st.recursive(ATOMS, larger, max_leaves=7), text=st.text("aaabbc \nA", max_size=14))
def test_patterns_nobody_thought_of(pattern: str, text: str) -> None:
    """Any pattern that `redact` takes finds the same, however it is searched."""
    try:
        Substitution(pattern, "#")
    except ValueError:
        return
    check(pattern, text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_search_ends_in_time(name: str) -> None:
    """Either it is over, or it says which pattern took too long; the bound has room for a slow
    machine.
    """
    pattern, text = HOSTILE[name]
    for searched in (text, text + " secret"):
        bounded_pattern = made(pattern)
        began_s = thread_time()
        problem = ""
        try:
            places(bounded_pattern, searched)
        except PatternTooSlow as error:
            problem = str(error)
        assert not problem or problem.startswith("patterns[1] took longer")
        assert "aaa" not in problem
        assert thread_time() - began_s < 2


def test_the_time_is_that_of_one_event() -> None:
    """What one event has used up is there again for the next."""
    budget = Budget()
    pattern = Pattern(re.compile("(?:a|a)*b"), "patterns[0]", budget)
    for _ in range(2):
        with pytest.raises(PatternTooSlow):
            pattern.search("a" * 200 + "cb")
        with pytest.raises(PatternTooSlow):
            pattern.search("a" * 200 + "cb")
        budget.begin()
        assert pattern.search("a" * 200 + "b") is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "sk-[A-Za-z0-9]{20,}", r"\b[a-z.]{1,64}@example\.com", "(?i)internal use only", r"\bproject nightjar\b", "sk-.*",
        r"\b\d{3}-\d{2}-\d{4}\b", r"AKIA[0-9A-Z]{16}", r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
    ],
)  # fmt: skip
def test_good_patterns_are_searched_by_re_alone(pattern: str) -> None:
    """They are cheap on any text, and `regex` is never asked."""
    assert made(pattern)._step > 0
    assert made(pattern).is_cheap(500)


@pytest.mark.parametrize(
    ("pattern", "around"),
    [
        ("a[^$]b", "NOTHING"),
        (r"\ba", "BOUNDARIES"),
        ("a$", "ANYTHING"),
        ("(?<=a)b", "ANYTHING"),
        ("a++b", "ANYTHING"),
    ],
)
def test_what_a_pattern_looks_at_around_its_matches(pattern: str, around: str) -> None:
    """As the parser of `re` reads it: a dollar in a set is a character."""
    assert made(pattern).looks_around is Around[around]


@pytest.mark.parametrize(
    "pattern",
    ["(?P<user>[a-z.]+)@example\\.com", "sk-[A-Za-z0-9]{20,}", "[a-z][a-z.]*@x", ".*secret"],
)
def test_a_delta_costs_little_however_much_waits(pattern: str) -> None:
    """1000 characters wait, and each further delta looks at few places: 500 deltas take far less
    than half a millisecond each.
    """
    flow = Flow(Substitution(pattern, "#"), 1000)
    flow.feed("a" * 1000)
    began_s = thread_time()
    left = "".join(flow.feed("aaaa") for _ in range(500))
    assert thread_time() - began_s < 0.25
    assert set(left) <= {"a"}


@pytest.mark.parametrize("pattern", ["(?:ab?c)*+x", "x(?:(?!c).)++", "(?:a|(?:bc){1,3}+)d"])
@pytest.mark.parametrize("name", ["redact", "guard"])
def test_where_re_gets_possessive_groups_wrong_they_are_refused(
    pattern: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Debian 12 has it, Python 3.11.2. Of one character they are right, and so are atomic
    groups.
    """
    monkeypatch.setattr(bounded, "_POSSESSIVE_GROUPS_ARE_WRONG", True)
    make = {"redact": Redact, "guard": Guard}[name]
    make([r"a[bc]*+d", r"(?>(?:ab?c)*)x", r"\d++!"])
    with pytest.raises(ValueError, match=r"patterns\[1\]: Python before 3\.11\.5 .* write \(\?>"):
        make(["a", pattern])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("(?>a+)b", "aaaab"), ("c(?>(?:ab?)+)c", "xcabac"), ("(?>a+|b)(?>c*)d", "aaaccd")],
)
def test_an_atomic_group_reaches_as_far_as_its_repetition(pattern: str, text: str) -> None:
    """What follows it depends on all that it took, so turns must not cut it."""
    check(pattern, text)


def test_an_atomic_group_over_the_edge_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_TURN", 1 << 10)
    run = "k" + "a" * 500 + "b"
    for before in range(0, 2000, 100):
        pattern = Pattern(re.compile("[kq](?>a+)b"), "patterns[0]", Budget())
        assert places(pattern, "x" * before + run + "x" * 6000) == [(before, before + len(run))]


@pytest.mark.parametrize("least", range(40))
def test_numbers_of_repetitions_are_no_operations(least: int) -> None:
    """The parser's operations equal small numbers."""
    assert made(f"a{{{least},40}}b").looks_around is Around.NOTHING
    assert made(f"[a-z]+(?:bc){{{least},40}}d")._run is not None


@pytest.mark.parametrize(
    ("pattern", "secret"),
    [
        (r"(?i)password\s*[:=]\s*\S+", "Password = hunter2"),
        (r"(?i)bearer\s+[a-z0-9._~+/-]+=*", "Bearer abc.def=="),
        (r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", "eyJh.eyJz.sig"),
    ],
)
def test_usual_patterns_pass_a_megabyte(pattern: str, secret: str) -> None:
    """Where `regex` alone took longer than it may: what the pattern begins with is nowhere but at
    the end.
    """
    text = "iVBORw0KGgoAAAANSUhEUgAAQd0pASSw8+/" * 30_000
    assert Substitution(pattern, "#").sub(f"{text} {secret}") == f"{text} #"
