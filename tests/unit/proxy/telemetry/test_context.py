"""W3C Trace Context, level 1: what a message's fields mean, and what goes upstream."""

from __future__ import annotations

import json

import pytest

from proxy.telemetry import (
    ExchangeSpan,
    TraceContext,
    context_in_message,
    message_with_context,
    read_context,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
IDS = f"{TRACE}-{SPAN}"


@pytest.mark.parametrize(
    ("parents", "flags"),
    [
        ([f"00-{IDS}-01"], 1),
        ([f"00-{IDS}-00"], 0),
        ([f"00-{IDS}-03"], 3),
        ([f"00-{IDS}-ff"], 3),  # flags that level 1 does not know are not passed on
        ([f" \t00-{IDS}-01\t "], 1),
        ([f"cc-{IDS}-01"], 1),  # an unknown version may have more fields
        ([f"cc-{IDS}-01-what-the-future-will-be"], 1),
        ([f"cc-{IDS}-01."], None),
        ([f"00-{IDS}-01-"], None),
        ([f"ff-{IDS}-01"], None),
        ([f"0-{IDS}-01"], None),
        ([f"00-{IDS}"], None),
        ([f"00-{IDS}-1"], None),
        ([f"00-{IDS.upper()}-01"], None),
        ([f"00-{'0' * 32}-{SPAN}-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE[1:]}-{SPAN}-01"], None),
        ([f"00-{TRACE}0-{SPAN}-01"], None),
        ([f"00-{IDS}-0g"], None),
        ([f"00_{IDS}_01"], None),
        ([f"00-{IDS}-01,00-{IDS}-01"], None),
        ([f"00-{IDS}-01", f"00-{IDS}-01"], None),
        ([""], None),
        ([], None),
    ],
)
def test_traceparent(parents: list[str], flags: int | None) -> None:
    found = read_context([parent.encode() for parent in parents])
    assert found == (None if flags is None else TraceContext(TRACE, SPAN, flags))


LONG = "long=" + "x" * 124


@pytest.mark.parametrize(
    ("states", "passed"),
    [
        (["a=1,b=2"], "a=1,b=2"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1 ,\t b=2,,"], "a=1,b=2"),
        (["tenant@system=x y"], "tenant@system=x y"),
        (["0a=1"], "0a=1"),
        (["A=1"], ""),
        (["a=1,b"], ""),
        (["a==1"], ""),
        (["a=\x7f"], ""),
        (["a=1,a=2"], ""),
        (["a" * 257 + "=1"], ""),
        (["a=" + "x" * 257], ""),
        ([""], ""),
        ([",".join(f"k{number}=1" for number in range(32))], ...),
        ([",".join(f"k{number}=1" for number in range(33))], ""),
        ([",".join(f"k{number:02}={'x' * 12}" for number in range(30))], ...),  # 509 bytes
        ([",".join([LONG, "a=1"])], ...),
        # More than 512 bytes: members of more than 128 go first, then the last ones.
        ([",".join([LONG, *(f"k{number:02}={'x' * 12}" for number in range(30))])], "k00"),
        ([",".join(f"k{number:02}={'x' * 13}" for number in range(31))], "k00"),
    ],
)
def test_tracestate(states: list[str], passed: str) -> None:
    context = read_context([f"00-{IDS}-01".encode()], [state.encode("latin-1") for state in states])
    assert context is not None
    state = context.state.decode()
    if passed == "k00":
        whole = [member for member in states[0].split(",") if member != LONG]
        kept = state.split(",")
        assert kept == whole[: len(kept)]
        assert 512 - len(whole[0]) <= len(state) <= 512
    else:
        assert state == (states[0] if passed is ... else passed)


@pytest.mark.parametrize("sampled", [True, False])
def test_the_context_that_goes_upstream(sampled: bool) -> None:
    """A new trace, then the client's: its trace id, this span's id, this sampler's decision."""
    asked = []

    def samples(trace_id: str, parent: TraceContext | None) -> bool:
        asked.append((trace_id, parent))
        return sampled

    span = ExchangeSpan(None, 1.0, samples)
    new = span.trace_id
    assert span.fields() == [(b"traceparent", f"00-{new}-{span.span_id}-0{2 + sampled}".encode())]
    assert read_context([span.fields()[0][1]]) == TraceContext(new, span.span_id, 2 + sampled)
    parent = TraceContext(TRACE, SPAN, 1, b"a=1")
    span.join(parent)
    assert span.fields() == [
        (b"traceparent", f"00-{TRACE}-{span.span_id}-0{int(sampled)}".encode()),
        (b"tracestate", b"a=1"),
    ]
    assert asked == [(new, None), (TRACE, parent)]
    for number in range(200):
        span.add_event("reconnect", number)
    assert len(span.events) == (100 if sampled else 0)


CALL = '{"jsonrpc": "2.0", "id": 1.0, "method": "tools/call"%s}'
META = f'"_meta": {{"progressToken": 1e2, "traceparent": "00-{IDS}-01", "tracestate": "a=1"}}'


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (CALL % f', "params": {{"name": "\\u0061", {META}}}', "a=1"),
        (CALL % f', "params": {{"_meta": {{"traceparent": "00-{IDS}-01"}}}}', ""),
        (
            CALL % f', "params": {{"_meta": {{"traceparent": "00-{IDS}-01", "tracestate": 1}}}}',
            None,
        ),
        (CALL % ', "params": {"_meta": {"traceparent": "00-1-1-01"}}', None),
        (CALL % ', "params": {"_meta": {"traceparent": "00-\\u00e9"}}', None),
        (CALL % ', "params": {"_meta": ["traceparent"]}', None),
        (CALL % ', "params": ["traceparent"]', None),
        ("[" + CALL % f', "params": {{{META}}}' + "]", None),
        ('{"traceparent": ', None),
        ("\xff traceparent", None),
    ],
)
def test_the_context_in_a_message(body: str, state: str | None) -> None:
    found = context_in_message(body.encode("latin-1"))
    if state is None:
        assert found is None
    else:
        assert found == TraceContext(TRACE, SPAN, 1, state.encode())


@pytest.mark.parametrize(
    ("body", "others"),
    [
        (CALL % f', "params": {{"name": "\\u0061", {META}}}', '{"progressToken":1e2'),
        (CALL % ', "params": {"name": "a", "n": 1.00, "n2": 12345678901234567890123}', "{"),
        (CALL % "", "{"),
        (CALL % ', "params": {"_meta": {"a": [1, 2]}}', '{"a":[1, 2]'),
        (CALL % ', "params": {"_meta": null}', None),
        (CALL % ', "params": [1]', None),
        ('{"jsonrpc": "2.0", "id": 1, "result": {}}', None),
        ("[]", None),
        ("7", None),
        ("\xff", None),
    ],
)
def test_a_message_with_the_context(body: str, others: str | None) -> None:
    """Only `params._meta` changes; all else keeps its bytes."""
    span = ExchangeSpan(TraceContext(TRACE, SPAN, 1, b"b=2"), 0.0, lambda *_: True)
    changed = message_with_context(body.encode("latin-1"), span)
    if others is None:
        assert changed is None
        return
    assert changed is not None
    context = f'"traceparent":"{span.traceparent}","tracestate":"b=2"'
    comma = "" if others == "{" else ","
    assert f'"_meta":{others}{comma}{context}}}'.encode() in changed
    before, after = json.loads(body), json.loads(changed)
    for message in (before, after):
        message.get("params", {}).pop("_meta", None)
        if not message.get("params"):
            message.pop("params", None)
    assert before == after
    for bytes_kept in (b'"\\u0061"', b"1.00", b"12345678901234567890123", b'"id":1.0'):
        assert (bytes_kept in changed) == (
            bytes_kept.replace(b":", b": ") in body.encode("latin-1")
        )
