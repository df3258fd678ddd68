"""The media type and the content coding of a message, however many lines name them."""

from __future__ import annotations

from contextlib import suppress
from itertools import permutations
from time import process_time

import pytest

from interceptors import ResponseHead
from interceptors.content import Contradiction, content_coding, content_types, media_type, unify

TYPE, CODING = b"content-type", b"content-encoding"
SSE = b"text/event-stream"


def typed(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(TYPE, value) for value in values]


def coded(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(CODING, value) for value in values]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([b""], ""),
        ([SSE], "text/event-stream"),
        ([b" Text/Event-Stream ; charset=utf-8"], "text/event-stream"),
        ([SSE, SSE], "text/event-stream"),
        ([SSE, b"TEXT/Event-Stream;charset=utf-8"], "text/event-stream"),
        ([SSE + b", " + SSE], "text/event-stream"),
        ([SSE + b",\t" + SSE, SSE], "text/event-stream"),
        ([b'multipart/mixed; boundary="a,b"'], "multipart/mixed"),
        ([b'multipart/mixed; boundary="a\\",b", multipart/mixed'], "multipart/mixed"),
        ([b'text/plain; x="'], "text/plain"),
        ([b"", b""], ""),
    ],
)
def test_equal_media_types_are_one(values: list[bytes], expected: str) -> None:
    assert media_type(typed(*values)) == unify(typed(*values))[1] == expected
    assert ResponseHead(200, typed(*values)).media_type == expected


@pytest.mark.parametrize(
    "values",
    [
        [SSE, b"text/html"],
        [SSE, b""],
        [SSE + b", text/html"],
        [SSE + b","],
        [b"," + SSE],
        [b'text/html; x="a", ' + SSE],
        [b'text/html; x="\\", ' + SSE],
        [b'text/html; x="a, ' + SSE],
        [b"text/html; x='a, " + SSE + b"'"],
        [b"application/json-rpc", b"application/json"],
        [SSE, SSE, b"text/html, " + SSE],
    ],
)
def test_media_types_that_differ_contradict(values: list[bytes]) -> None:
    """An empty value differs, and the order never matters. `ResponseHead` then names none."""
    for order in permutations(values):
        with pytest.raises(Contradiction):
            media_type(typed(*order))
        with pytest.raises(Contradiction):
            unify(typed(*order))
        assert ResponseHead(200, typed(*order)).media_type == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "identity"),
        ([b" "], "identity"),
        ([b"Identity"], "identity"),
        ([b"identity", b"identity"], "identity"),
        ([b"identity", b""], "identity"),
        ([b" GZip "], "gzip"),
        ([b"gzip", b"gzip"], "gzip"),
        ([b"br, br"], "br"),
    ],
)
def test_equal_codings_are_one(values: list[bytes], expected: str) -> None:
    assert content_coding(coded(*values)) == unify(coded(*values))[2] == expected


@pytest.mark.parametrize(
    "values",
    [
        [b"identity", b"gzip"],
        [b"gzip, identity"],
        [b"gzip, br"],
        [b"gzip", b""],
        [b"gzip,"],
        [b",gzip"],
        [b"gzip", b"x-gzip"],
    ],
)
def test_codings_that_differ_are_a_coding(values: list[bytes]) -> None:
    """So an interceptor that must see the body refuses it. They pass unchanged."""
    for order in permutations(values):
        assert content_coding(coded(*order)) != "identity"
        assert unify(coded(*order))[0] == coded(*order)


def test_every_value_is_listed_with_its_parameters() -> None:
    """For a reader that allows one line only, or looks at parameters. Names in any case."""
    headers = [
        (b"Content-Type", b"a/b; c=1"),
        (b"x", b"y, z"),
        (b"CONTENT-TYPE", b'a/b;d="1,2" , c/d'),
    ]
    assert content_types(headers) == [b"a/b; c=1", b'a/b;d="1,2"', b"c/d"]
    assert content_types([]) == []
    assert content_types([(TYPE, b"")]) == [b""]


def test_the_first_of_equal_values_stays_where_it_is() -> None:
    """With its parameters. Nothing else moves, and what is there once is not touched."""
    headers = [
        (b"a", b"1"),
        *typed(b"A/B; c=1 , a/b"),
        (b"b", b"2, 3"),
        *coded(b"GZIP"),
        *typed(b"a/b"),
        *coded(b"gzip"),
    ]
    assert unify(headers)[0] == [
        (b"a", b"1"),
        (TYPE, b"A/B; c=1"),
        (b"b", b"2, 3"),
        (CODING, b"GZIP"),
    ]
    once = [(b"a", b"1"), *typed(b' a/b; c="d,e"'), *coded(b"gzip")]
    assert unify(once) == (once, "a/b", "gzip")


def test_a_long_list_costs_linear_time() -> None:
    """Ten times as many items take about ten times as long, quoted or not."""

    def seconds(item: bytes, count: int) -> float:
        value = b"a/b; x=" + item * count
        started = process_time()
        for _ in range(3):
            with suppress(Contradiction):
                media_type(typed(value, value))
        return process_time() - started

    for item in (b'"a,b"', b",", b'"\\",'):
        assert seconds(item, 20_000) < 40 * max(seconds(item, 2_000), 1e-4)
