"""Substitutions over text in pieces: what leaves is what `re.sub` makes of the whole, and it leaves
as soon as it is certain.
"""

from __future__ import annotations

import re
from time import thread_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.interceptors.toolkit.patterns import ALPHABET, PATTERNS, RUNS, UNEQUAL, patterns, unwarned

from interceptors.toolkit.substitution import Flow, ReachesBack, Substitution

TEMPLATE = r"<\g<0>>"


def fed(substitution: Substitution, pieces: list[str], window: int = 10_000) -> list[str]:
    """What leaves after each piece, and at the end."""
    flow = Flow(substitution, window)
    return [*map(flow.feed, pieces), flow.feed("", final=True)]


@pytest.mark.parametrize("pattern", [*PATTERNS, *RUNS])
@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.lists(st.sampled_from(ALPHABET), max_size=6).map("".join), max_size=6))
@example(pieces=["abab", "ab", "c", ""])
def test_what_leaves_is_what_re_makes_of_the_whole(pattern: str, pieces: list[str]) -> None:
    """For any text and any cuts, whatever a pattern looks at around its matches."""
    made, text = unwarned(Substitution, pattern, TEMPLATE), "".join(pieces)
    assert "".join(fed(made, pieces)) == made.sub(text)
    equal = "".join(character for character in text if character not in UNEQUAL)
    assert made.sub(equal) == unwarned(re.sub, pattern, TEMPLATE, equal)


# Derandomized: an oddity of an engine must not fail somebody else's change.
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    pattern=patterns,
    flags=st.sampled_from(["", "(?i)", "(?m)", "(?s)"]),
    pieces=st.lists(st.text("aaabbc \nA²\u0301", max_size=4), max_size=5),
)
def test_unusual_patterns(pattern: str, flags: str, pieces: list[str]) -> None:
    """Any pattern is either refused or found in pieces as in the whole."""
    try:
        made = unwarned(Substitution, flags + pattern, TEMPLATE)
    except ValueError:
        return
    assert "".join(fed(made, pieces)) == made.sub("".join(pieces))


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
def test_a_text_waits_only_if_it_must(pattern: str, pieces: list[str], left: list[str]) -> None:
    """After each piece everything has left but the longest end that could still become a match, or
    of which one could grow.
    """
    assert fed(Substitution(pattern, "#"), pieces) == left


@pytest.mark.parametrize("step", [1, 7, 150])
@pytest.mark.parametrize(("pattern", "text", "expected"), [
    ("sk-[a-z]{3,}", "key sk-" + "a" * 500 + " end sk-abc", "key # end #"),
    (r"(?:\d{4}-)+", "key " + "1234-" * 100 + "12ab", "key #12ab"),
])  # fmt: skip
def test_a_match_longer_than_the_window(pattern: str, text: str, expected: str, step: int) -> None:
    """It is replaced when the window is full, and what continues matching goes with it."""
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    left = fed(Substitution(pattern, "#"), pieces, 100)
    assert "".join(left) == expected
    assert "#" in "".join(left[: (110 + 150) // step + 1])


def test_what_could_become_a_match_for_longer_than_the_window_is_given_up() -> None:
    """It is sent from its beginning; what follows is still found."""
    flow = Flow(Substitution("BEGIN[^.]*END", "#"), 50)
    fed_so_far = left = ""
    for piece in ["BEGIN", *["x" * 9] * 40, "BEGIN secret ", "END."]:
        fed_so_far += piece
        left += flow.feed(piece)
        assert len(fed_so_far) - len(left) <= 50 or "#" in left
    assert left + flow.feed("", final=True) == "BEGIN" + "x" * 360 + "#."
    flow = Flow(Substitution("[a-z]+=", "#"), 100)  # one piece larger than the window
    assert flow.feed("-" * 1000 + "a" * 2000) == "-" * 1000 + "a" * 1900
    assert flow.feed("=") == "#"


@pytest.mark.parametrize(("message", "patterns"), [
    ("missing \\)", ["("]),
    ("can match the empty string", [
        "a*", r"\b", "(?=a)", "a|$", "(?=secret)", "(?=secret)s?", "(?=(?:c){2})", "(?=b)^", "(?:a|b*)(?!c)", "x{0,3}",
        "(a)?(?(1)b)", "(?#c)", "(?x) a?  # c", "",
    ]),
    ("one of its parts is verbose, or ASCII", ["a(?x: b )", r"a(?a:\w)"]),
    ("lookahead inside a lookbehind", ["(?<=a(?=b))b"]),
])  # fmt: skip
def test_what_could_not_be_found_in_pieces_is_refused(message: str, patterns: list[str]) -> None:
    for pattern in patterns:
        with pytest.raises(ValueError, match=message):
            Substitution(pattern, "#")


def test_a_template_with_groups_is_filled_in() -> None:
    """By number and by name, of matches that were cut."""
    made = Substitution(r"(?P<user>\w+)(\+\w+)?@(\w+)", r"\3:\g<user>\2")
    left = fed(made, ["an", "n@ho", "me, bob", "+x@w", "ork"])
    assert "".join(left) == "home:ann, work:bob+x"


@pytest.mark.parametrize("pattern", [
    r"(?P<user>[a-z.]+)@example\.com", "sk-[A-Za-z0-9]{20,}", "[a-z][a-z.]*@x", ".*secret",
])  # fmt: skip
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
