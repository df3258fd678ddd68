"""Usage: what the provider reported is counted once, for its client; what it did not report is not
counted as 0.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs
from support.llm_events import event
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    CHAT_USAGE,
    RESPONSES,
    anthropic_body,
    chat_body,
    choice,
    chunk,
    chunkings,
    delta,
    message_end,
    message_item,
    message_start,
    response,
    responses_stream,
    stream_of,
    text_block,
    text_events,
    text_part,
)

from interceptors import Interceptor, LoadError, Request, ResponseHead, StreamInterceptor
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json, run_request
from interceptors.usage import KINDS, Usage

GPT, CLAUDE = "gpt-4o-2024-08-06", "claude-sonnet-4-20250514"
OTHER_GPT = "gpt-4.1-2025-04-14"
TOKENS = {"input_tokens": 37, "output_tokens": 11}
RESPONDED = response(
    "completed",
    [message_item(text_part("Hi"))],
    usage={**TOKENS, "output_tokens_details": {"reasoning_tokens": 3}},
)
TOLD = [delta(content="Hi"), delta("stop"), chunk(usage=CHAT_USAGE), "[DONE]"]


def request(
    path: str = CHAT, client: str | None = None, dialect: str = "generic", method: str = "POST"
) -> Request:
    """`client` as `api_keys` leaves it."""
    made = Request(method=method, path=path, dialect=dialect, route="/llm")
    if client is not None:
        made.state["client_key"] = client
    return made


class Counted:
    """An interceptor, and the log lines of what it has seen."""

    def __init__(self, **options: Any) -> None:
        self.usage = Usage(**options)
        self.lines: list[Any] = []

    def body(self, body: Any, made: Request | None = None, status: int = 200) -> bytes:
        head = ResponseHead(status, [(b"content-type", b"application/json")])
        with capture_logs() as logs:
            left = run_json(
                [self.usage], json.dumps(body).encode(), request=made or request(), head=head
            )
        self.lines += logs
        return left

    def stream(self, messages: list[Any], made: Request | None = None) -> bytes:
        made = made or request()
        stream = stream_of(messages, named=made.path != CHAT)
        with capture_logs() as logs:
            left = run_chain([self.usage], [stream], request=made).output
        self.lines += logs
        return left

    def asked(self, body: bytes, path: str = CHAT) -> Request:
        """A request as it goes upstream."""
        made = Request(method="POST", path=path, route="/llm", body=body)
        run_request([self.usage], made)
        return made

    @property
    def line(self) -> dict[str, Any]:
        (line,) = [line for line in self.lines if line["event"] == "usage"]
        return dict(line)

    @property
    def tokens(self) -> list[Any]:
        return [self.line[kind] for kind in KINDS]

    @property
    def metrics(self) -> dict[tuple[str, ...], float]:
        """Every sample: what it counts, and its labels without the route."""
        found = {}
        for collector in self.usage.collectors():
            for sample in (sample for metric in collector.collect() for sample in metric.samples):
                if sample.name.endswith("_total"):
                    labels = dict(sample.labels)
                    assert labels.pop("route") == "/llm"
                    name = sample.name.removeprefix("weirpool_llm_").removesuffix("_total")
                    found[(name, *labels.values())] = sample.value
        return found

    @property
    def requests(self) -> dict[tuple[str, ...], float]:
        """The count of requests by model and client."""
        return {key[1:]: value for key, value in self.metrics.items() if key[0] == "requests"}


ANSWERS: dict[str, tuple[str, bool, Any, str, str, list[int | None]]] = {
    "chat, streamed": (CHAT, True, TOLD, GPT, "stop", [1117, 46, 1024, None, 0]),
    "chat": (CHAT, False, chat_body({"content": "Hi"}), "gpt-4o", "stop", [1117, 46, 1024, None, 0]),
    "responses, streamed": (
        RESPONSES, True, responses_stream(text_events(["H", "i"])), OTHER_GPT, "completed", [37, 11, 0, 0, 3],
    ),
    "responses": (RESPONSES, False, RESPONDED, OTHER_GPT, "completed", [37, 11, None, None, 3]),
    "anthropic, streamed": (
        ANTHROPIC, True, [message_start(), *text_block(0, "Hi"), *message_end()], CLAUDE, "end_turn", [472, 89, 0, 0, None],
    ),
    "anthropic": (
        ANTHROPIC, False, anthropic_body({"type": "text", "text": "Hi"}), "claude-opus-4-1", "end_turn", [472, 2, 0, 0, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "streamed", "answer", "model", "reason", "tokens"), ANSWERS.values(), ids=ANSWERS
)
def test_an_answer_is_counted_by_route_model_and_client(
    path: str, streamed: bool, answer: Any, model: str, reason: str, tokens: list[int | None]
) -> None:
    """With one line; the answer leaves byte for byte, however it is cut."""
    sent = stream_of(answer, named=path != CHAT) if streamed else json.dumps(answer).encode()
    for chunks in chunkings(sent) if streamed else [[sent]]:
        counted, made = Counted(), request(path, "ann")
        with capture_logs() as counted.lines:
            if streamed:
                assert run_chain([counted.usage], chunks, request=made).output == sent
            else:
                assert run_json([counted.usage], sent, request=made) == sent
        counts = zip(KINDS, tokens, strict=True)
        told = {("tokens", model, "ann", kind): n for kind, n in counts if n is not None}
        assert counted.metrics == {("requests", model, "ann"): 1, **told}
        assert counted.tokens == tokens
        keys = ("route", "model", "client", "status", "finish_reason", "outcome", "streamed")
        expected = ["/llm", model, "ann", 200, reason, "completed", streamed]
        assert [counted.line[key] for key in keys] == expected
        assert "Hi" not in str(counted.line)


COUNTS = """
11 5 8 - -     {"prompt_tokens":11,"completion_tokens":5,"total_tokens":16,"cached_tokens":8}
11 5 - - -     {"input_tokens":11,"output_tokens":5,"total_tokens":16}
11 5 - - -     {"prompt_tokens":0,"completion_tokens":0,"input_tokens":11,"output_tokens":5}
11 5 - - -     {"prompt_tokens":11,"completion_tokens":5,"input_tokens":0,"output_tokens":0}
- 5 8 - -      {"completion_tokens":5,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":3}
11 - 8 2 -     {"prompt_tokens":11,"cache_read_input_tokens":8,"cache_creation_input_tokens":2}
- - 8 - -      {"input_tokens_details":{"cached_tokens":8}}
- - - - 3      {"output_tokens_details":{"reasoning_tokens":3}}
11 0 - - -     {"prompt_tokens":11,"completion_tokens":0}
- 5 - - 2.5    {"prompt_tokens":null,"completion_tokens":"5","reasoning_tokens":2.5}
11 - - - -     {"prompt_tokens":11,"prompt_tokens_details":[]}
57 14417.92 - - -  {"prompt_tokens":57.0,"completion_tokens":14417.92}
- 2 - - -      {"prompt_tokens":-7,"completion_tokens":2}
- 3 - - -      {"prompt_tokens":"seven","completion_tokens":3}
"""
"""Input, output, cached, cache_written and reasoning tokens, and the usage that a server sends."""


@pytest.mark.parametrize("row", COUNTS.strip().split("\n"))
def test_usage_is_counted_in_every_place_and_spelling(row: str) -> None:
    """earendil-works/pi#2017, #2326, #8119, NousResearch/hermes-agent#61871, BerriAI/litellm#28001."""
    expected = [None if word == "-" else float(word) for word in row.partition("{")[0].split()]
    usage = json.loads(row[row.index("{") :])
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    for message in (
        {"choices": [ended], "usage": usage},
        {"choices": [{**ended, "usage": usage}]},
        {"choices": [ended], "x_groq": {"id": "req_1", "usage": usage}},
    ):
        counted, body = Counted(), Counted()
        counted.stream([message, "[DONE]"])
        body.body(message)
        for each in (counted, body):
            assert each.tokens == expected
            total = sum(value for key, value in each.metrics.items() if key[0] == "tokens")
            assert total == pytest.approx(sum(filter(None, expected)))


def test_an_absent_count_makes_no_series_and_a_zero_does() -> None:
    counted = Counted()
    counted.body(chat_body({}, usage={"prompt_tokens": 5, "completion_tokens": 0}))
    assert counted.metrics == {
        ("requests", "gpt-4o", "-"): 1,
        ("tokens", "gpt-4o", "-", "input"): 5,
        ("tokens", "gpt-4o", "-", "output"): 0,
    }


USED = {"prompt_tokens": 11, "completion_tokens": 5}
CACHED = {"input_tokens": 1500, "cache_read_input_tokens": 900}
LATER = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7}


@pytest.mark.parametrize(
    ("path", "messages", "tokens"),
    [
        # Anthropic's output is cumulative, some servers send OpenAI's usage with every chunk.
        (ANTHROPIC, [message_start(), *message_end(output_tokens=30)[:1], *message_end(output_tokens=41)], [472, 41, 0, 0, None]),
        (CHAT, [chunk(choice({"content": "x"}), usage={**USED, "completion_tokens": n}) for n in range(1, 5)], [11, 4, None, None, None]),
        # BerriAI/litellm#28001, envoyproxy/ai-gateway#1631: what is no object or a zero erases nothing.
        (CHAT, [chunk(usage=""), chunk(usage=USED), chunk(usage=USED)], [11, 5, None, None, None]),
        (CHAT, [chunk({**choice({}, "stop"), "usage": USED}, usage=USED)], [11, 5, None, None, None]),
        (ANTHROPIC, [message_start(**CACHED), {"type": "message_delta", "delta": {}, "usage": LATER}], [1500, 7, 900, 0, None]),
    ],
)  # fmt: skip
def test_repeated_usage_counts_once(path: str, messages: list[Any], tokens: list[Any]) -> None:
    """The last counts."""
    counted = Counted()
    counted.stream(messages, request(path))
    assert counted.tokens == tokens
    told = [value for key, value in counted.metrics.items() if key[0] == "tokens"]
    assert told == [count for count in tokens if count is not None]


def test_a_stream_that_breaks_off_counts_the_usage_so_far() -> None:
    """Anthropic sends the input's at the beginning: it counts although no end came, once."""

    class Breaking(StreamInterceptor):
        needs = (b"content_block_delta",)

        def on_event(self, event: Any) -> Any:
            raise RuntimeError

    counted = Counted()
    breaking = type("Broken", (Interceptor,), {"open_stream": lambda self, _: Breaking()})()
    stream = stream_of([message_start(), *text_block(0, "Hi"), *message_end()], named=True)
    with capture_logs() as logs:
        result = run_chain([counted.usage, breaking], [stream], request=request(ANTHROPIC))
    assert result.failure is not None
    assert counted.metrics["tokens", CLAUDE, "-", "input"] == 472
    assert counted.requests == {(CLAUDE, "-"): 1}
    (line,) = [log for log in logs if log["event"] == "usage"]
    keys = ("outcome", "finish_reason", "input", "output")
    assert [line[key] for key in keys] == ["intercepted", None, 472, 2]


# --- Failures, and answers without usage

FAILED = {"status": "failed", "output": []}
INCOMPLETE = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
BROKEN = {"type": "error", "error": {"type": "server_error", "code": "server_error"}}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error"}}
LATE = event("failed", response={**FAILED, "error": {"code": "server_error"}})
HALF = delta(content="Half")
ENDINGS: list[tuple[str, list[Any], str | None, bool]] = [
    (CHAT, [HALF, chunk(choice({"content": ""}, "error"), error={"code": 502}), "[DONE]"], "502", True),
    (CHAT, [HALF, chunk({**choice({}), "error": {"code": 502}}), delta("stop")], "502", True),
    (CHAT, [HALF, {"error": {"type": "server_error"}}, delta("stop"), "[DONE]"], "server_error", True),
    (CHAT, [HALF, delta("error"), "[DONE]"], None, True),
    (CHAT, [*(delta(f"reason-{number}") for number in range(3000)), delta("error")], None, True),
    (CHAT, [{"object": "error", "message": "no", "type": "BadRequest", "code": 4}], "BadRequest", True),
    (RESPONSES, [BROKEN, LATE], "server_error", True),
    (RESPONSES, [event("failed", response=FAILED)], None, True),
    (ANTHROPIC, [OVERLOADED], "overloaded_error", True),
    (CHAT, [HALF, delta("length"), "[DONE]"], None, False),
    (CHAT, [HALF, delta("content_filter"), "[DONE]"], None, False),
    (CHAT, [HALF, delta("stop"), "[DONE]"], None, False),
    (RESPONSES, [event("incomplete", response={"output": [], **INCOMPLETE})], None, False),
]  # fmt: skip


@pytest.mark.parametrize(("path", "messages", "error", "failed"), ENDINGS)
def test_a_failure_inside_a_200_is_not_an_answer_without_usage(
    path: str, messages: list[Any], error: str | None, failed: bool
) -> None:
    """damianvtran/local-operator#223, gethouston/houston#1211, decolua/9router#4104."""
    counted = Counted()
    counted.stream(messages, request(path))
    assert counted.line["error"] == error
    assert len((counted.line["finish_reason"] or "").split(",")) <= 11
    assert list(counted.requests.values()) == [1]
    untold = [value for key, value in counted.metrics.items() if key[0] == "answers_without_usage"]
    assert untold == ([] if failed else [1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body({"content": "Hi"}, usage=None)),
        (RESPONSES, response("completed", [message_item(text_part("Hi"))])),
        (ANTHROPIC, {**anthropic_body({"type": "text", "text": "Hi"}), "usage": None}),
    ],
)
def test_an_answer_without_usage_is_counted_as_such(path: str, body: Any) -> None:
    """Nothing is guessed from its texts."""
    counted, model = Counted(), body["model"]
    counted.body(body, request(path))
    untold = {("requests", model, "-"): 1, ("answers_without_usage", model, "-"): 1}
    assert counted.metrics == untold
    assert counted.tokens == [None] * 5


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (CHAT, {"error": {"type": "invalid_request_error", "code": None}}, "invalid_request_error"),
        (RESPONSES, {"error": {"type": None, "code": "rate_limit"}}, "rate_limit"),
        (ANTHROPIC, {"type": "error", "error": {"type": "overloaded_error"}}, "overloaded_error"),
        (CHAT, {"detail": "not found"}, None),
    ],
)
def test_an_error_has_no_usage(path: str, body: Any, error: str | None) -> None:
    counted = Counted()
    counted.body(body, request(path), 429)
    assert counted.metrics == {("requests", "-", "-"): 1}
    line = counted.line
    assert (line["status"], line["error"], line["finish_reason"]) == (429, error, None)


@pytest.mark.parametrize(
    ("path", "dialect", "method", "body"),
    [
        ("/v1/models", "openai", "GET", {"object": "list", "data": []}),
        ("/v1/responses/resp_1", "openai", "GET", RESPONDED),
        ("/v1/responses", "generic", "GET", RESPONDED),
        ("/v1/messages/count_tokens", "anthropic", "POST", {"input_tokens": 12}),
        ("/v1/messages/batches", "anthropic", "POST", {"type": "message_batch", "id": "b"}),
        ("/v1/embeddings", "openai", "POST", {"object": "list", "usage": {"prompt_tokens": 3}}),
        ("/messages", "mcp", "POST", {"jsonrpc": "2.0", "id": 1, "result": {"usage": TOKENS}}),
    ],
)
def test_other_responses_are_not_counted(path: str, dialect: str, method: str, body: Any) -> None:
    """Lists, stored answers, batches, embeddings, MCP: neither metrics nor a line."""
    counted = Counted()
    counted.body(body, request(path, dialect=dialect, method=method))
    assert (counted.metrics, counted.lines) == ({}, [])


# --- Labels


def test_a_failed_request_cannot_make_up_models() -> None:
    """Clients write the name: an unknown one gets no label."""
    counted = Counted(ask=True)
    for model, status in (("gpt", 200), ("made-up", 404), ("gpt", 429)):
        sent = counted.asked(json.dumps({"model": model}).encode())
        counted.body({"error": {}} if status >= 400 else {"choices": []}, sent, status)
    assert counted.requests == {("gpt", "-"): 2, ("other", "-"): 1}


def test_labels_are_bounded() -> None:
    """More models and clients are `other`; the log has the names, long ones cut."""
    counted, other = Counted(max_models=2, max_clients=1), "other"
    names = [("a", "ann"), ("b", "bob"), ("c", "ann"), ("a", None), ("d" * 500, "bob")]
    for model, client in names:
        counted.body({**chat_body({}, usage=None), "model": model}, request(client=client))
    labels = [("a", "ann"), ("b", other), (other, "ann"), ("a", "-"), (other, other)]
    assert list(counted.requests) == labels
    logged = [(model[:200], client) for model, client in names]
    assert [(line["model"], line["client"]) for line in counted.lines] == logged


def test_half_a_character_in_a_name_leaves_the_metrics_readable() -> None:
    """A model's name is a label, and Prometheus's text is UTF-8, which cannot encode it."""
    counted, registry = Counted(), CollectorRegistry()
    for collector in counted.usage.collectors():
        registry.register(collector)
    counted.stream([{**delta("\ud83d"), "model": "gpt-\ud83d", "usage": {"prompt_tokens": 3}}])
    assert b'model="gpt-?"' in generate_latest(registry)
    assert counted.line["model"] == "gpt-?"


# --- ask


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"n": 1e2, "stream":true}', b'{"n":1e2,"stream":true,"stream_options":%s}'),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":%s}'),
        (
            b'{"stream_options":{"include_usage":false,"x":1},"stream":true}',
            b'{"stream_options":{"include_usage":true,"x":1},"stream":true}',
        ),
    ],
)
def test_asked_usage_is_hidden_from_the_client(before: bytes, after: bytes) -> None:
    """Only `stream_options` is added; the chunk that has only usage does not leave."""
    counted = Counted(ask=True)
    sent = counted.asked(before)
    assert sent.body == after.replace(b"%s", b'{"include_usage":true}')
    text, stop, told, done = TOLD
    first = [{**item, "usage": None} for item in (text, stop)]  # type: ignore[dict-item]
    left = counted.stream([*first, told, done], sent)
    assert left == stream_of([*first, done], named=False)
    assert counted.metrics["tokens", GPT, "-", "output"] == 46


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"stream": true, "stream_options": {"include_usage": true}}'),
        (CHAT, b'{"model":"m"}'),
        (CHAT, b'{"stream":false}'),
        (CHAT, b'{"stream":true,"stream_options":"x"}'),
        (CHAT, b"[1]"),
        (CHAT, b"\xff not JSON"),
        (CHAT, b""),
        (RESPONSES, b'{"stream":true}'),
        (ANTHROPIC, b'{"stream":true}'),
        ("/v1/completions", b'{"stream":true}'),
    ],
)
def test_ask_leaves_every_other_request_as_it_is(path: str, body: bytes) -> None:
    """Other dialects report usage without a request for it, and a client that asked sees it."""
    counted = Counted(ask=True)
    sent = counted.asked(body, path)
    assert (sent.body, sent.body_replaced) == (body, False)
    if path == CHAT:
        assert counted.stream(TOLD, sent) == stream_of(TOLD, named=False)


def test_ask_hides_only_chunks_that_have_nothing_else() -> None:
    """Not those with usage and text, nor those without choices and usage (Azure's first)."""
    counted, body = Counted(ask=True), {"choices": [], "usage": {}}
    both = chunk(choice({"content": "x"}, "stop"), usage=CHAT_USAGE)
    messages = [chunk(prompt_filter_results=[]), both, "[DONE]"]
    asked = counted.asked(b'{"stream":true}')
    assert counted.stream(messages, asked) == stream_of(messages, named=False)
    assert counted.body(body, asked) == json.dumps(body).encode()


def test_with_ask_the_requests_model_counts_if_the_answer_has_none() -> None:
    counted = Counted(ask=True)
    for messages in (["[DONE]"], TOLD):
        counted.stream(messages, counted.asked(b'{"model":"gpt","stream":true}'))
    assert [line["model"] for line in counted.lines] == ["gpt", GPT]


@pytest.mark.parametrize("options", [{"max_models": 0}, {"max_clients": -1}, {"asks": True}])
def test_options_that_do_not_fit_are_refused_at_their_path(options: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        load_interceptor("usage", options)
    assert caught.value.option == next(iter(options))


def test_without_ask_no_body_is_collected() -> None:
    """Uploads pass as they arrive."""
    assert not load_interceptor("usage", {}).wants_body
    assert load_interceptor("usage", {"ask": True}).wants_body
