"""Patterns and texts for the tests of the toolkit's searches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

PATTERNS = [
    "secret", "sk-[A-Za-z0-9]{3,}", "sk-[ab]{2}", r"AKIA[0-9A-Z]{4}\b", r"\bass\b", r"(?i)SeCret", "a.*?b", "a.*b", "(?s)a.b",
    "aab|aa|b", "aa|aab", "(ab)+", "(?:ab|ac)+", "(?:(?:ab)+c){1,2}", "(?:a|b)*c", r"(a+)-\1", "(?P<x>a)b(?P=x)", "(?>a+)b",
    "a++b", "[^b]+b", "a{2,3}", r"(?<=k)s+", "(?<!k)s+", r"(?<=\bk=)s+", "(?<=a{2}b)s", "a(?=b)", "a(?!b)", "a(?=b+c)",
    "ab$", "(?m)ab$", r"ab\Z", "^ab", "(?m)^a", r"\Aab", r"a\Bb", r"a(?:\B|b)", r"a\s*$", "a$|b", "(?:ab(?:c|$))+",
    r"[\w.]+@[\w.]+\.\w+", r"(?:\d{4}-){2}\d{4}", "-----BEGIN-----[^-]+-----END-----", "(?x) a # what$ [is\n  b",
    r"[\W_]ab", r"[^\W\d]+=", r"(?:[^x]|[^a])b", r"a\W", r"\w{2}\b", r"(?a)\w{2}\b", "(?<=(?<=ab)c)s",
    "a{e<=1}", "[[:alpha:]]b", r"[\[ab]c", r"\N{LATIN SMALL LETTER A}b", "(?P<q>['\"]?)secret(?P=q)", "(a)?b(?(1)c|d)",
    r"\x61bc", r"s\u0062k", r"\U00000061b", r"\141b", r"a\x62+c", r"\0a|\x61\142", r"(a)?" * 11 + r"(b)c\12",
    r"=\bs", "a(?!$)b?", "ab?c", "sk-a*b", "s(?:a|b)k", r"x(?:ab)*(?<=b)c", r"(?m)a$\nb", "(?x)(a|b) *c", "ab(?#c)*c",
]  # fmt: skip
RUNS = [
    "(?P<user>[a-z.]+)@example", "[a-z]*b", r"\s+$", ".*s", "(?s).+=", "(?:[ab]+@)+", r"([ab]+)-\1", "a|[ab]+c", "[ab]+?c",
    "(?:a|b)+c", "(?i)[a-k]+@", r"[^\s]+@", r"\W+a", "[]a]+b", "[^]a]+a", "((a+)b)?c", "(?:(?i:a+))b", "a+(?<=aa)b", r"\.+a",
    r"(?i)ab\s*c+a", "(?:a|bc)[^b]*b", "(?=a.*c)[ab]{2}.*c", r"([ab]{2})+c\1", "(?!b.*c)[ab].*c", r"\b(?:ab?){1,2}[ab]*c",
    "(?<=a)b+c+a", "(?:(?i:aB)c*)+a", "(?:a(?:b|c*a)b)+c", "(?>a[bc]*)b?c", "(?:ab|c)+?a*b", r"(a)?b(?(1)c*|a*)b",
    "(a+)?c", "[ab]+c|b", "[ab]{1,}c", "([ab]+)c", "[ab]++c",
]  # fmt: skip
ALPHABET = [
    *'aabbckss=@.-1E \n"[', "secret", "sk-", "ab", "aab", "-----BEGIN-----", "-----END-----", "AKIA", "ass", "é",
    "²", "\u0301", "\x1c",
]  # fmt: skip
UNEQUAL = {"²", "\u0301", "\x1c"}
"""Not letters of words for one of `re` and `regex`."""

_ATOMS = st.sampled_from(
    ["a", "b", "c", r"\x61", r"\u0062", r"\143", "[ab]", "[^a]", ".", r"\w", r"\s", r"\b", r"\B", "$", "^", r"\Z", "(?<=a)", r"(?<!a\b)"]
)  # fmt: skip


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?", "+?", "??", "*+", "{,2}"])
    groups = st.sampled_from(["(%s)", "(?:%s)", "(?>%s)", "(?=%s)", "(?!%s)"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: "(?:{}|{})".format(*two)),
        st.tuples(groups, inner).map(lambda two: two[0] % two[1]),
        st.tuples(inner, repeats).map(lambda two: "(?:{}){}".format(*two)),
    )


patterns = st.recursive(_ATOMS, _larger, max_leaves=8)


def unwarned(make: Callable[..., Any], *arguments: Any) -> Any:
    """What `make` gives, without `re`'s warnings of possible nested sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make(*arguments)
