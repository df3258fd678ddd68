"""Searches find what `re` finds, and end in time for any pattern and text."""

from __future__ import annotations

import re
from time import thread_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.interceptors.toolkit.patterns import patterns, unwarned

from interceptors import Request
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import run_chain
from interceptors.toolkit.search import Around, Budget, EmptyMatch, Pattern, PatternTooSlow

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
    "optional": ("(?:a?){24}a{24}b", "a" * 60),
    "lazy": ("a.*?b.*?c", "ab" * 500_000),
}


def made(pattern: str) -> Pattern:
    return unwarned(lambda: Pattern(pattern, "patterns[1]", Budget(), empty=True))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(pattern=patterns, text=st.text("aaabbc \nA", min_size=1, max_size=14))
def test_generated_patterns_find_what_re_finds(pattern: str, text: str) -> None:
    """All matches, up to the first empty one."""
    searched, expected, at = made(pattern), unwarned(re.compile, pattern), 0
    while True:
        found, other = searched.search(text, at), expected.search(text, at)
        assert (found and found.span()) == (other and other.span())
        if found is None or found.end() == at:
            return
        assert searched.match(text, found.start()).span() == found.span()
        at = found.end()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pattern=patterns, end=st.sampled_from(["", " ", "d"]))
def test_a_search_without_the_clock_is_quick(pattern: str, end: str) -> None:
    """`is_quick` must be right for every pattern: nothing stops such a search."""
    searched = made(pattern)
    size = next((size for size in (4096, 1024, 256, 64, 16) if searched.is_quick(size)), 0)
    began_s = thread_time()
    for text in ("a" * size + end, "ab" * (size // 2) + end, "abc " * (size // 4) + end):
        searched.search(text[-size:] if size else "")
    assert thread_time() - began_s < 0.3


@pytest.mark.parametrize(("pattern", "size", "quick"), [
    *((pattern, 64, False) for pattern in ("(?:a?){24}b", "(?:a|b)*c", r"(\w+\s?)+!", "(?=(?:a?){24}b)a")),
    # Patterns of the documentation, with what `guard` searches with its default window.
    *((pattern, 1032, True) for pattern in ("sk-[A-Za-z0-9]{20,}", r"\b[a-z.]{1,64}@example\.com")),
])  # fmt: skip
def test_a_pattern_that_can_explode_needs_the_clock(pattern: str, size: int, quick: bool) -> None:
    assert made(pattern).is_quick(size) is quick


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_search_ends_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, or the error names the pattern and shows nothing of the text."""
    monkeypatch.setattr("interceptors.toolkit.search.MAX_HOLD_S", 0.05)
    pattern, text = HOSTILE[name]
    searched, began_s, problem = made(pattern), thread_time(), ""
    try:
        list(searched.find_all(text))
    except PatternTooSlow as error:
        problem = str(error)
    assert not problem or problem.startswith("patterns[1] took longer")
    assert "aaa" not in problem
    assert thread_time() - began_s < 1  # room for a slow machine


def test_a_leading_run_is_tried_only_where_it_begins() -> None:
    """Every place of a long word would take seconds."""
    found = made(r"(?P<user>[a-z.]+)@example\.com").search("a" * 64_000 + " a.b@example.com")
    assert found is not None
    assert found.start() == 64_001


def test_an_empty_match_fails() -> None:
    """A search never goes on past one: it would pass text unseen, or not end."""
    with pytest.raises(EmptyMatch):
        list(Pattern("(?=b)", "patterns[0]", Budget()).find_all("ab"))


def test_the_budget_is_that_of_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interceptors.toolkit.search.MAX_HOLD_S", 0.05)
    budget = Budget()
    pattern = Pattern("(?:a|a)*b", "patterns[0]", budget)
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(PatternTooSlow):
                pattern.search("a" * 200 + "cb")
        budget.begin()
        assert pattern.search("a" * 200 + "b") is not None


@pytest.mark.parametrize(("cls", "path"), [
    (Guard, "/v1/chat/completions"), (Redact, "/v1/chat/completions"), (Redact, "/events"),
])  # fmt: skip
def test_each_event_has_the_whole_budget(
    cls: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the events before it have taken."""
    clock = iter(range(1000))
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(f"interceptors.toolkit.search.{name}", lambda: next(clock))
    monkeypatch.setattr("interceptors.toolkit.search.MAX_HOLD_S", 50)
    stream = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n' * 100
    result = run_chain([cls([r"(?:a|a)*[bz]"])], [stream], request=Request(path=path))
    assert result.failure is None
    assert next(clock) > 100


@pytest.mark.parametrize(("pattern", "prefix", "literal"), [
    (r"\bsk-[a-z]+\b", "sk-", "sk-"), ("[0-9]+!", "", "!"), ("foo+bar", "fo", "bar"), ("ab{0}c", "a", "a"),
    ("a(b|cd)ef?", "a", "a"), ("(?:ab)?cd*", "", "c"), (r"(?<=xyz)c\.d", "", "c"), ("x(?#comment)*yz", "", "yz"),
    ("foo|barbar", "", ""), ("(?i)foo", "", ""), ("(?x)f oo", "", ""),
])  # fmt: skip
def test_what_every_match_begins_with_and_contains(pattern: str, prefix: str, literal: str) -> None:
    source = made(pattern).source
    assert (source.prefix, source.literal) == (prefix, literal)


@pytest.mark.parametrize(("around", "patterns"), [
    ("NOTHING", ["a[^$]b", r"a\$", "a{2}", "(?x)a#$"]),
    ("BOUNDARIES", [r"\ba", r"a\B"]),
    ("ANYTHING", ["a$", "^a", "(?<=a)b", "a(?!b)", "a++b", "(?>a)b", "(?x:a)b"]),
])  # fmt: skip
def test_what_a_match_depends_on(around: str, patterns: list[str]) -> None:
    assert [made(each).source.around for each in patterns] == [Around[around]] * len(patterns)
