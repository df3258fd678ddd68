"""The media type and the content coding of a message, however many lines name them."""

from __future__ import annotations

from contextlib import suppress
from itertools import permutations

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
        ([b"", b""], ""),
        ([SSE], "text/event-stream"),
        ([b" Text/Event-Stream ; charset=utf-8"], "text/event-stream"),
        ([SSE, b"TEXT/Event-Stream;charset=utf-8"], "text/event-stream"),
        ([SSE + b",\t" + SSE, SSE], "text/event-stream"),
        ([b'multipart/mixed; boundary="a,b"'], "multipart/mixed"),
        ([b'multipart/mixed; boundary="a\\",b", multipart/mixed'], "multipart/mixed"),
        ([b'text/plain; x="'], "text/plain"),
        ([SSE, b"text/html"], None),
        ([SSE, b""], None),
        ([SSE + b", text/html"], None),
        ([SSE + b","], None),
        ([b"," + SSE], None),
        ([b'text/html; x="a", ' + SSE], None),
        ([b'text/html; x="\\", ' + SSE], None),
        ([b'text/html; x="a, ' + SSE], None),
        ([b"text/html; x='a, " + SSE + b"'"], None),
        ([b"application/json-rpc", b"application/json"], None),
        ([SSE, SSE, b"text/html, " + SSE], None),
    ],
)
def test_media_types_that_contradict(values: list[bytes], expected: str | None) -> None:
    """An empty value differs, and the order never matters. `ResponseHead` then names none."""
    for order in permutations(values):
        headers = typed(*order)
        assert ResponseHead(200, headers).media_type == (expected or "")
        if expected is not None:
            assert media_type(headers) == unify(headers)[1] == expected
            continue
        for read in (media_type, unify):
            with pytest.raises(Contradiction):
                read(headers)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "identity"),
        ([b" "], "identity"),
        ([b"Identity"], "identity"),
        ([b"identity", b""], "identity"),
        ([b" GZip "], "gzip"),
        ([b"gzip", b"gzip"], "gzip"),
        ([b"br, br"], "br"),
        ([b"identity", b"gzip"], None),
        ([b"gzip, identity"], None),
        ([b"gzip, br"], None),
        ([b"gzip", b""], None),
        ([b"gzip,"], None),
        ([b",gzip"], None),
        ([b"gzip", b"x-gzip"], None),
    ],
)
def test_codings_that_contradict(values: list[bytes], expected: str | None) -> None:
    """An interceptor that must see the body then refuses it; elsewhere they pass unchanged."""
    for order in permutations(values):
        headers = coded(*order)
        if expected is not None:
            assert content_coding(headers) == unify(headers)[2] == expected
        else:
            assert content_coding(headers) != "identity"
            assert unify(headers)[0] == headers


def test_the_first_of_equal_values_stays_where_it_is() -> None:
    """With its parameters. Nothing else moves, and what is there once is not touched."""
    a, b = (b"a", b"1"), (b"b", b"2, 3")
    headers = [a, *typed(b"A/B; c=1 , a/b"), b, *coded(b"GZIP"), *typed(b"a/b"), *coded(b"gzip")]
    assert unify(headers)[0] == [a, *typed(b"A/B; c=1"), b, *coded(b"GZIP")]
    once = [a, *typed(b' a/b; c="d,e"'), *coded(b"gzip")]
    assert unify(once) == (once, "a/b", "gzip")
    listed = [(b"Content-Type", b"a/b; c=1"), b, (b"CONTENT-TYPE", b'a/b;d="1,2" , c/d')]
    assert content_types(listed) == [b"a/b; c=1", b'a/b;d="1,2"', b"c/d"]
    assert content_types([]) == []
    assert content_types(typed(b"")) == [b""]


def test_a_long_list_costs_linear_time() -> None:
    """Quadratic time would not end in this test's life."""
    for item in (b'"a,b"', b",", b'"\\",'):
        with suppress(Contradiction):
            media_type(typed(b"a/b; x=" + item * 100_000))
