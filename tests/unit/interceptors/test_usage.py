"""Usage: what the provider reported is counted once, for its client; what it did not report is not
counted as 0.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from support.logs import without_times
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

from interceptors import (
    Interceptor,
    LoadError,
    Request,
    ResponseHead,
    StreamInterceptor,
)
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json, run_request
from interceptors.usage import KINDS, Usage

GPT, CLAUDE = "gpt-4o-2024-08-06", "claude-sonnet-4-20250514"
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


def head(status: int, kind: str = "application/json") -> ResponseHead:
    return ResponseHead(status, [(b"content-type", kind.encode())])


def metrics(usage: Usage) -> dict[tuple[str, ...], float]:
    """Every sample: what it counts, and its labels without the route."""
    registry = CollectorRegistry()
    for collector in usage.collectors():
        registry.register(collector)
    found = {}
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                labels = dict(sample.labels)
                assert labels.pop("route") == "/llm"
                name = sample.name.removeprefix("weirpool_llm_").removesuffix("_total")
                found[(name, *labels.values())] = sample.value
    return found


def requests(usage: Usage) -> dict[tuple[str, ...], float]:
    """The count of requests by model and client."""
    return {key[1:]: value for key, value in metrics(usage).items() if key[0] == "requests"}


def line_of(logs: list[Any]) -> dict[str, Any]:
    """The one line of the one answer."""
    (line,) = [dict(log) for log in logs if log["event"] == "usage"]
    return line


def tokens_in(line: dict[str, Any]) -> list[Any]:
    return [line[kind] for kind in KINDS]


def run_body(usage: Usage, body: Any, made: Request | None = None, status: int = 200) -> bytes:
    return run_json(
        [usage], json.dumps(body).encode(), request=made or request(), head=head(status)
    )


def run_stream(usage: Usage, messages: list[Any], made: Request | None = None) -> bytes:
    made = made or request()
    stream = stream_of(messages, named=made.path != CHAT)
    return run_chain([usage], [stream], request=made).output


ANSWERS: dict[str, tuple[str, bool, Any, str, str, list[int | None]]] = {
    "chat, streamed": (CHAT, True, TOLD, GPT, "stop", [1117, 46, 1024, None, 0]),
    "chat": (CHAT, False, chat_body({"content": "Hi"}), "gpt-4o", "stop", [1117, 46, 1024, None, 0]),
    "responses, streamed": (
        RESPONSES, True, responses_stream(text_events(["H", "i"])), "gpt-4.1-2025-04-14", "completed", [37, 11, 0, 0, 3],
    ),
    "responses": (RESPONSES, False, RESPONDED, "gpt-4.1-2025-04-14", "completed", [37, 11, None, None, 3]),
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
        usage, made = Usage(), request(path, "ann")
        with capture_logs() as logs:
            if streamed:
                assert run_chain([usage], chunks, request=made).output == sent
            else:
                assert run_json([usage], sent, request=made) == sent
        counts = zip(KINDS, tokens, strict=True)
        told = {("tokens", model, "ann", kind): n for kind, n in counts if n is not None}
        assert metrics(usage) == {("requests", model, "ann"): 1, **told}
        line = line_of(logs)
        assert tokens_in(line) == tokens
        keys = ("route", "model", "client", "status", "finish_reason", "outcome", "streamed")
        expected = ["/llm", model, "ann", 200, reason, "completed", streamed]
        assert [line[key] for key in keys] == expected
        assert "Hi" not in str(line)


def test_an_explicit_zero_is_kept_and_an_absent_count_is_not_zero() -> None:
    """Zero makes a series and a 0 in the log; an absent count makes no series and null."""
    usage = Usage()
    with capture_logs() as logs:
        run_body(usage, chat_body({}, usage={"prompt_tokens": 5, "completion_tokens": 0}))
    assert metrics(usage) == {
        ("requests", "gpt-4o", "-"): 1,
        ("tokens", "gpt-4o", "-", "input"): 5,
        ("tokens", "gpt-4o", "-", "output"): 0,
    }
    assert tokens_in(line_of(logs)) == [5, 0, None, None, None]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body({"content": "Hi"}, usage=None)),
        (RESPONSES, response("completed", [message_item(text_part("Hi"))])),
        (ANTHROPIC, {**anthropic_body({"type": "text", "text": "Hi"}), "usage": None}),
    ],
)
def test_an_answer_without_usage_is_counted_as_such(path: str, body: Any) -> None:
    """Nothing is guessed from its deltas."""
    usage, model = Usage(), body["model"]
    with capture_logs() as logs:
        run_body(usage, body, request(path))
    assert metrics(usage) == {("requests", model, "-"): 1, ("answers_without_usage", model, "-"): 1}
    assert tokens_in(line_of(logs)) == [None] * 5


def test_usage_that_comes_several_times_counts_once_and_the_last_counts() -> None:
    """Anthropic's output is cumulative, and some servers send OpenAI's usage with every chunk."""
    usage = Usage()
    end = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 30}}
    messages = [message_start(), *text_block(0, "Hi"), end, *message_end(output_tokens=41)]
    run_stream(usage, messages, request(ANTHROPIC))
    assert metrics(usage)["tokens", CLAUDE, "-", "output"] == 41
    usage = Usage()
    counts = ({"prompt_tokens": 7, "completion_tokens": count} for count in range(1, 5))
    run_stream(usage, [chunk(choice({"content": "x"}), usage=each) for each in counts])
    found = metrics(usage)
    assert (found["tokens", GPT, "-", "input"], found["tokens", GPT, "-", "output"]) == (7, 4)


def test_a_stream_that_breaks_off_counts_the_usage_so_far() -> None:
    """Anthropic sends the input's at the beginning: it counts although no end came, once."""

    class Breaking(StreamInterceptor):
        needs = (b"content_block_delta",)

        def on_event(self, event: Any) -> Any:
            raise RuntimeError

    usage = Usage()
    breaking = type("Broken", (Interceptor,), {"open_stream": lambda self, _: Breaking()})()
    stream = stream_of([message_start(), *text_block(0, "Hi"), *message_end()], named=True)
    with capture_logs() as logs:
        result = run_chain([usage, breaking], [stream], request=request(ANTHROPIC))
    assert result.failure is not None
    assert metrics(usage)["tokens", CLAUDE, "-", "input"] == 472
    assert requests(usage) == {(CLAUDE, "-"): 1}
    line = line_of(logs)
    keys = ("outcome", "finish_reason", "input", "output")
    assert [line[key] for key in keys] == ["intercepted", None, 472, 2]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (CHAT, {"error": {"type": "invalid_request_error", "code": None}}, "invalid_request_error"),
        (RESPONSES, {"error": {"type": None, "code": "rate_limit"}}, "rate_limit"),
        (ANTHROPIC, {"type": "error", "error": {"type": "overloaded_error"}}, "overloaded_error"),
        (CHAT, {"detail": "not found"}, None),
    ],
)
def test_a_failure_is_a_request_without_usage(path: str, body: Any, error: str | None) -> None:
    """It is not among the answers without usage; the line has the error's type."""
    usage = Usage()
    with capture_logs() as logs:
        run_body(usage, body, request(path), 429)
    assert metrics(usage) == {("requests", "-", "-"): 1}
    line = line_of(logs)
    assert (line["status"], line["error"], line["finish_reason"]) == (429, error, None)


def test_a_failed_request_cannot_make_up_models() -> None:
    """Clients write the name: an unknown one gets no label."""
    usage = Usage(ask=True)
    for model, status in (("gpt", 200), ("made-up", 404), ("gpt", 429)):
        sent = asked(usage, json.dumps({"model": model}).encode())
        run_body(usage, {"error": {}} if status >= 400 else {"choices": []}, sent, status)
    assert requests(usage) == {("gpt", "-"): 2, ("other", "-"): 1}


def test_labels_are_bounded() -> None:
    """More models and clients are `other`; the log has the names, long ones cut."""
    usage = Usage(max_models=2, max_clients=1)
    names = [("a", "ann"), ("b", "bob"), ("c", "ann"), ("a", None), ("d" * 500, "bob")]
    with capture_logs() as logs:
        for model, client in names:
            run_body(usage, {**chat_body({}, usage=None), "model": model}, request(client=client))
    other = "other"
    labels = [("a", "ann"), ("b", other), (other, "ann"), ("a", "-"), (other, other)]
    assert list(requests(usage)) == labels
    logged = [(model[:200], client or "-") for model, client in names]
    assert [(log["model"], log["client"]) for log in logs] == logged


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
def test_responses_that_are_not_answers_of_a_model_are_not_counted(
    path: str, dialect: str, method: str, body: Any
) -> None:
    """Lists, stored answers, batches, embeddings, MCP: neither metrics nor a line."""
    usage = Usage()
    with capture_logs() as logs:
        run_body(usage, body, request(path, dialect=dialect, method=method))
    assert metrics(usage) == {}
    assert without_times(logs) == []


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ({"prompt_tokens": "seven"}, {}),
        ({"prompt_tokens": -7, "completion_tokens": 2}, {"output": 2}),
    ],
)
def test_usage_that_is_nonsense_stops_nothing(told: Any, counted: Any) -> None:
    """The answer leaves unchanged, a negative count is ignored, and the request is counted."""
    body, usage = chat_body({"content": "Hi"}, usage=told), Usage()
    with capture_logs() as logs:
        assert run_body(usage, body) == json.dumps(body).encode()
    tokens = {key[3]: value for key, value in metrics(usage).items() if key[0] == "tokens"}
    assert tokens == counted
    assert line_of(logs)["status"] == 200


# --- ask


def asked(usage: Usage, body: bytes, path: str = CHAT) -> Request:
    """A request as it goes upstream."""
    made = Request(method="POST", path=path, route="/llm", body=body)
    run_request([usage], made)
    return made


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
def test_ask_requests_the_usage_of_a_chat_stream_and_hides_it_from_the_client(
    before: bytes, after: bytes
) -> None:
    """Only `stream_options` is added; the chunk that has only usage does not leave."""
    usage = Usage(ask=True)
    sent = asked(usage, before)
    assert sent.body == after.replace(b"%s", b'{"include_usage":true}')
    text, stop, told, done = TOLD
    first = [{**item, "usage": None} for item in (text, stop)]  # type: ignore[dict-item]
    left = run_stream(usage, [*first, told, done], sent)
    assert left == stream_of([*first, done], named=False)
    assert metrics(usage)["tokens", GPT, "-", "output"] == 46


def test_ask_hides_nothing_from_a_client_that_has_asked() -> None:
    """Nor does it change its request."""
    usage = Usage(ask=True)
    body = b'{"stream": true, "stream_options": {"include_usage": true}}'
    sent = asked(usage, body)
    assert (sent.body, sent.body_replaced) == (body, False)
    assert run_stream(usage, TOLD, sent) == stream_of(TOLD, named=False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
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
    """Other dialects report usage without a request for it, and other requests are not changed."""
    assert not asked(Usage(ask=True), body, path).body_replaced


def test_ask_hides_only_chunks_that_have_nothing_else() -> None:
    """Not those with usage and text, nor those without choices and usage (Azure's first)."""
    usage, body = Usage(ask=True), {"choices": [], "usage": {}}
    both = chunk(choice({"content": "x"}, "stop"), usage=CHAT_USAGE)
    messages = [chunk(prompt_filter_results=[]), both, "[DONE]"]
    left = run_stream(usage, messages, asked(usage, b'{"stream":true}'))
    assert left == stream_of(messages, named=False)
    left = run_body(usage, body, asked(usage, b'{"stream":true}'))
    assert left == json.dumps(body).encode()


def test_with_ask_the_requests_model_counts_if_the_answer_has_none() -> None:
    usage = Usage(ask=True)
    with capture_logs() as logs:
        for messages in (["[DONE]"], TOLD):
            run_stream(usage, messages, asked(usage, b'{"model":"gpt","stream":true}'))
    assert [log["model"] for log in logs] == ["gpt", GPT]


# --- options


@pytest.mark.parametrize("options", [{"max_models": 0}, {"max_clients": -1}, {"asks": True}])
def test_options_that_do_not_fit_are_refused_at_their_path(options: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        load_interceptor("usage", options)
    assert caught.value.option == next(iter(options))


def test_without_ask_no_body_is_collected() -> None:
    """Uploads pass as they arrive."""
    assert not load_interceptor("usage", {}).wants_body
    assert load_interceptor("usage", {"ask": True}).wants_body
