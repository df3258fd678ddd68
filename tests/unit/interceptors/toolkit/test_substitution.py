"""Substitutions over text in pieces: what leaves is what `re.sub` makes of the whole, and it leaves
as soon as it is certain.
"""

from __future__ import annotations

import re
import warnings
from time import thread_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.interceptors.toolkit.patterns import ALPHABET, PATTERNS, RUNS, patterns

from interceptors.toolkit.search import Budget, EmptyMatch, Pattern
from interceptors.toolkit.substitution import Flow, ReachesBack, Substitution

TEMPLATE = r"<\g<0>>"


def substitution(pattern: str, template: str = TEMPLATE) -> Substitution:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # "possible nested set", and what it will mean one day
        return Substitution(pattern, template)


def fed(pattern: str, pieces: list[str], *, window: int = 1000) -> list[str]:
    """What leaves after each piece, and at the end."""
    flow = Flow(substitution(pattern, "#"), window)
    return [*(flow.feed(piece) for piece in pieces), flow.feed("", final=True)]


@pytest.mark.parametrize("pattern", [*PATTERNS, *RUNS])
@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.lists(st.sampled_from(ALPHABET), max_size=6).map("".join), max_size=6))
@example(pieces=["abab", "ab", "c", ""])
def test_what_leaves_is_what_re_makes_of_the_whole(pattern: str, pieces: list[str]) -> None:
    """For any text and any cuts, whatever a pattern looks at around its matches."""
    flow = Flow(substitution(pattern), 10_000)
    left = "".join(flow.feed(piece) for piece in pieces) + flow.feed("", final=True)
    assert left == substitution(pattern).sub("".join(pieces))


@settings(
    max_examples=600, deadline=None, derandomize=True
)  # an oddity of an engine's must not fail somebody else's change
@given(
    pattern=patterns,
    flags=st.sampled_from(["", "(?i)", "(?m)", "(?s)"]),
    pieces=st.lists(st.text("aaabbc \nA²\u0301", max_size=4), max_size=5),
)
def test_unusual_patterns(pattern: str, flags: str, pieces: list[str]) -> None:
    """Any pattern is either refused or found in pieces as in the whole."""
    try:
        made = substitution(flags + pattern)
    except ValueError:
        return
    flow = Flow(made, 10_000)
    assert "".join(flow.feed(piece) for piece in pieces) + flow.feed("", final=True) == made.sub(
        "".join(pieces)
    )


@pytest.mark.parametrize(("pattern", "pieces", "left"), [
    ("secret", ["a plain text", " and more"], ["a plain text", " and more", ""]),
    ("secret", ["a se", "a", "se", "cre", "t!"], ["a ", "sea", "", "", "#!", ""]),
    ("secret", ["a ses", "es", "ecr", "x"], ["a se", "se", "", "secrx", ""]),
    ("secret", ["a secr"], ["a ", "secr"]), ("secret", ["secret"], ["#", ""]),
    ("sk-[a-z]{3,}", ["s", "k", "-ab", "c", "d", " e"], ["", "", "", "", "", "# e", ""]),
    ("sk-[a-z]{3,5}", ["sk-abc", "de", "f"], ["", "#", "f", ""]),
    ("sk-[a-z]{3}", ["xsk-ab", "cd"], ["x", "#d", ""]),
    ("a.*?b", ["xaxx", "b", "x"], ["x", "#", "x", ""]),
    (r"\bass\b", ["cl", "ass", "ical ass", "!"], ["cl", "ass", "ical ", "#!", ""]),
    (r"\bass\b", ["an ass"], ["an ", "#"]),
    ("end$", ["the end", " is", " no end"], ["the ", "end is", " no ", "#"]),
    ("(?<=aab)s", ["xaab", "s!"], ["xaab", "#!", ""]), ("ab?c", ["xa", "c!"], ["x", "#!", ""]),
    ("(?i)SECRET", ["seC", "ReT"], ["", "#", ""]),
])  # fmt: skip
def test_a_text_waits_no_longer_than_it_must(
    pattern: str, pieces: list[str], left: list[str]
) -> None:
    """After each piece everything has left but the longest end that could still become a match, or
    of which one could grow.
    """
    assert fed(pattern, pieces) == left


@pytest.mark.parametrize("step", [1, 7, 150])
def test_of_a_match_longer_than_the_window_nothing_leaves(step: int) -> None:
    """It is replaced when the window is full, and what continues matching goes with it."""
    text = "key sk-" + "a" * 500 + " end sk-abc"
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    left = fed("sk-[a-z]{3,}", pieces, window=100)
    assert "".join(left) == "key # end #"
    assert "#" in "".join(left[: (110 + 150) // step + 1])


@pytest.mark.parametrize("step", [1, 7, 150])
def test_what_grows_by_more_than_one_character_at_a_time_is_one_match(step: int) -> None:
    """Beyond the window, too."""
    text = "x" + "1234-" * 100 + "12ab"
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    assert "".join(fed(r"(?:\d{4}-)+", pieces, window=60)) == "x#12ab"


def test_what_could_become_a_match_for_longer_than_the_window_is_given_up() -> None:
    """It is sent from its beginning; what follows is still found."""
    flow = Flow(substitution("BEGIN[^.]*END", "#"), 50)
    fed_so_far = left = ""
    for piece in ["BEGIN", *["x" * 9] * 40, "BEGIN secret ", "END."]:
        fed_so_far += piece
        left += flow.feed(piece)
        assert len(fed_so_far) - len(left) <= 50 or "#" in left
    assert left + flow.feed("", final=True) == "BEGIN" + "x" * 360 + "#."


def test_of_a_piece_larger_than_the_window_all_but_the_window_leaves() -> None:
    """At once, although a match could begin anywhere in it."""
    flow = Flow(substitution("[a-z]+=", "#"), 100)
    assert flow.feed("-" * 1000 + "a" * 2000) == "-" * 1000 + "a" * 1900
    assert flow.feed("=") == "#"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "missing \\)"),
        *(
            (pattern, "can match the empty string")
            for pattern in (
                *("a*", r"\b", "(?=a)", "a|$", "(?=secret)", "(?=secret)s?", "(?=(?:c){2})"),
                *("(?=b)^", "(?:a|b*)(?!c)", "x{0,3}", "(a)?(?(1)b)", "(?#c)", "(?x) a?  # c", ""),
            )
        ),
        ("a(?x: b )", "one of its parts is verbose, or ASCII"),
        (r"a(?a:\w)", "one of its parts is verbose, or ASCII"),
        ("(?<=a(?=b))b", "lookahead inside a lookbehind"),
    ],
)
def test_what_could_not_be_found_in_pieces_is_refused(pattern: str, message: str) -> None:
    """A ValueError that names the reason, and nothing that silently means something else."""
    with pytest.raises(ValueError, match=message):
        substitution(pattern)


def test_a_template_with_groups_is_filled_in() -> None:
    """By number and by name, of matches that were cut."""
    pattern, template = r"(?P<user>\w+)(\+\w+)?@(\w+)", r"\3:\g<user>\2"
    flow = Flow(Substitution(pattern, template), 100)
    pieces = ["an", "n@ho", "me, bob", "+x@w", "ork"]
    left = "".join(flow.feed(piece) for piece in pieces) + flow.feed("", final=True)
    assert left == "home:ann, work:bob+x" == re.sub(pattern, template, "".join(pieces))


def test_an_empty_match_fails() -> None:
    """A search never goes on past one: it would pass text unseen, or not end."""
    with pytest.raises(EmptyMatch):
        list(Pattern("(?=b)", "patterns[0]", Budget()).find_all("ab"))


@pytest.mark.parametrize(
    "pattern",
    [r"(?P<user>[a-z.]+)@example\.com", "sk-[A-Za-z0-9]{20,}", "[a-z][a-z.]*@x", ".*secret"],
)
def test_a_delta_costs_little_however_much_waits(pattern: str) -> None:
    """With 1000 characters held back, a delta takes far less than half a millisecond."""
    flow = Flow(Substitution(pattern, "#"), 1000)
    flow.feed("a" * 1000)
    began_s = thread_time()
    left = "".join(flow.feed("aaaa") for _ in range(500))
    assert thread_time() - began_s < 0.25
    assert set(left) <= {"a"}


@pytest.mark.parametrize(("pattern", "secret"), [
    (r"(?i)password\s*[:=]\s*\S+", "Password = hunter2"),
    (r"(?i)bearer\s+[a-z0-9._~+/-]+=*", "Bearer abc.def=="),
    (r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", "eyJh.eyJz.sig"),
    (r"[\w.+-]+@[\w-]+\.[\w.]+", "a@b.c"),
])  # fmt: skip
def test_usual_patterns_pass_a_megabyte(pattern: str, secret: str) -> None:
    text = "iVBORw0KGgoAAAANSUhEUgAAQd0pASSw8+/" * 30_000
    assert Substitution(pattern, "#").sub(f"{text} {secret}") == f"{text} #"


def test_a_match_over_the_end_of_a_text_is_an_error() -> None:
    """A text that continues after its end: the beginning of the match has left."""
    flow = Flow(Substitution("secret", "#"), 100)
    assert flow.feed("a sec", final=True) == "a sec"
    with pytest.raises(ReachesBack):
        flow.feed("ret")
    flow = Flow(Substitution("secret", "#"), 100)
    assert [flow.feed("a sec", final=True), flow.feed("ond", final=True)] == ["a sec", "ond"]
