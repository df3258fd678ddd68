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
    PATHS,
    RESPONSES,
    anthropic_body,
    chat_body,
    choice,
    chunk,
    chunkings,
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
    StreamContext,
    StreamInterceptor,
)
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json, run_request
from interceptors.usage import KINDS, Usage

GPT, CLAUDE = "gpt-4o-2024-08-06", "claude-sonnet-4-20250514"
RESPONDED = response(
    "completed",
    [message_item(text_part("Hi"))],
    usage={
        "input_tokens": 37,
        "output_tokens": 11,
        "output_tokens_details": {"reasoning_tokens": 3},
    },
)
TOLD = [
    chunk(choice({"content": "Hi"})),
    chunk(choice({}, "stop")),
    chunk(usage=CHAT_USAGE),
    "[DONE]",
]


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


def line_of(logs: list[Any]) -> dict[str, Any]:
    """The one line of the one answer."""
    (line,) = [dict(log) for log in logs if log["event"] == "usage"]
    return line


def tokens_in(line: dict[str, Any]) -> list[Any]:
    return [line[kind] for kind in KINDS]


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
    """Streamed however it is cut, and not streamed: the same counts, and one line; the answer
    leaves byte for byte.
    """
    bytes_of = stream_of(answer, named=path != CHAT) if streamed else json.dumps(answer).encode()
    for chunks in chunkings(bytes_of) if streamed else [[bytes_of]]:
        usage = Usage()
        with capture_logs() as logs:
            if streamed:
                assert run_chain([usage], chunks, request=request(path, "ann")).output == bytes_of
            else:
                assert run_json([usage], bytes_of, request=request(path, "ann")) == bytes_of
        told = {
            ("tokens", model, "ann", kind): count
            for kind, count in zip(KINDS, tokens, strict=True)
            if count is not None
        }
        assert metrics(usage) == {("requests", model, "ann"): 1, **told}
        line = line_of(logs)
        assert tokens_in(line) == tokens
        assert (line["route"], line["model"], line["client"], line["status"]) == (
            "/llm",
            model,
            "ann",
            200,
        )
        assert (line["finish_reason"], line["outcome"], line["streamed"]) == (
            reason,
            "completed",
            streamed,
        )
        assert "Hi" not in str(line)


def test_an_explicit_zero_is_kept_and_is_not_what_was_never_told() -> None:
    """0 makes a series at 0 and a 0 in the log; a missing count makes no series, and null in the
    log.
    """
    body = chat_body({"content": ""}, usage={"prompt_tokens": 5, "completion_tokens": 0})
    usage = Usage()
    with capture_logs() as logs:
        run_json([usage], json.dumps(body).encode(), request=request())
    assert metrics(usage) == {
        ("requests", "gpt-4o", "-"): 1,
        ("tokens", "gpt-4o", "-", "input"): 5,
        ("tokens", "gpt-4o", "-", "output"): 0,
    }
    assert tokens_in(line_of(logs)) == [5, 0, None, None, None]


@pytest.mark.parametrize("path", PATHS.values())
def test_an_answer_that_tells_no_usage_is_counted_as_such(path: str) -> None:
    """Nothing is guessed from its deltas: there are no tokens, and a metric counts how many such
    answers there were.
    """
    bodies = {
        CHAT: chat_body({"content": "Hi"}, usage=None),
        RESPONSES: response("completed", [message_item(text_part("Hi"))]),
        ANTHROPIC: {**anthropic_body({"type": "text", "text": "Hi"}), "usage": None},
    }
    usage = Usage()
    with capture_logs() as logs:
        run_json([usage], json.dumps(bodies[path]).encode(), request=request(path))
    model = bodies[path]["model"]
    assert metrics(usage) == {("requests", model, "-"): 1, ("answers_without_usage", model, "-"): 1}
    assert tokens_in(line_of(logs)) == [None] * 5


def test_what_is_told_several_times_counts_once_and_the_last_word_counts() -> None:
    """Anthropic reports cumulative output, and some servers of OpenAI's dialect report everything
    in every chunk.
    """
    messages = [
        message_start(),
        *text_block(0, "Hi"),
        {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 30}},
        *message_end(output_tokens=41),
    ]
    usage = Usage()
    run_chain([usage], [stream_of(messages, named=True)], request=request(ANTHROPIC))
    assert metrics(usage)["tokens", CLAUDE, "-", "output"] == 41
    usage = Usage()
    chunks = [
        chunk(choice({"content": "x"}), usage={"prompt_tokens": 7, "completion_tokens": count})
        for count in range(1, 5)
    ]
    run_chain([usage], [stream_of([*chunks, "[DONE]"], named=False)], request=request())
    assert (
        metrics(usage)["tokens", GPT, "-", "input"],
        metrics(usage)["tokens", GPT, "-", "output"],
    ) == (7, 4)


def test_a_stream_that_breaks_off_counts_what_was_told_so_far() -> None:
    """Anthropic's streams report input at the beginning: it is counted once, although no end
    arrived.
    """

    class Breaking(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            class BreakingStream(StreamInterceptor):
                needs = (b"content_block_delta",)

                def on_event(self, event: Any) -> Any:
                    raise RuntimeError

            return BreakingStream()

    usage = Usage()
    with capture_logs() as logs:
        stream = stream_of([message_start(), *text_block(0, "Hi"), *message_end()], named=True)
        assert (
            run_chain([usage, Breaking()], [stream], request=request(ANTHROPIC)).failure is not None
        )
    assert metrics(usage)["tokens", CLAUDE, "-", "input"] == 472
    assert metrics(usage)["requests", CLAUDE, "-"] == 1
    line = line_of(logs)
    assert (line["outcome"], line["finish_reason"], line["input"], line["output"]) == (
        "intercepted",
        None,
        472,
        2,
    )


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (
            CHAT,
            {"error": {"message": "no", "type": "invalid_request_error", "code": None}},
            "invalid_request_error",
        ),
        (
            RESPONSES,
            {"error": {"message": "no", "type": None, "code": "rate_limit_exceeded"}},
            "rate_limit_exceeded",
        ),
        (
            ANTHROPIC,
            {"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
            "overloaded_error",
        ),
        (CHAT, {"detail": "not found"}, None),
    ],
)
def test_a_failure_is_a_request_without_usage(path: str, body: Any, error: str | None) -> None:
    """It is counted as a request, and not among the answers without usage; the line has the error's
    type.
    """
    usage = Usage()
    with capture_logs() as logs:
        run_json([usage], json.dumps(body).encode(), request=request(path), head=head(429))
    assert metrics(usage) == {("requests", "-", "-"): 1}
    line = line_of(logs)
    assert (line["status"], line["error"], line["finish_reason"]) == (429, error, None)


def test_a_failed_request_cannot_make_up_models() -> None:
    """The name is whatever the client sent: it gets no label, but counts under a known one."""
    usage = Usage(ask=True)
    for model, status in (("gpt", 200), ("made-up", 404), ("gpt", 429)):
        asking = Request(
            method="POST", path=CHAT, route="/llm", body=json.dumps({"model": model}).encode()
        )
        run_request([usage], asking)
        body = {"error": {}} if status >= 400 else {"choices": []}
        run_json([usage], json.dumps(body).encode(), request=asking, head=head(status))
    assert {key: value for key, value in metrics(usage).items() if key[0] == "requests"} == {
        ("requests", "gpt", "-"): 2,
        ("requests", "other", "-"): 1,
    }


def test_labels_are_bounded() -> None:
    """Beyond so many models and clients they are `other`; the log has the names, cut where they are
    absurd.
    """
    usage = Usage(max_models=2, max_clients=1)
    with capture_logs() as logs:
        for model, client in (
            ("a", "ann"),
            ("b", "bob"),
            ("c", "ann"),
            ("a", None),
            ("d" * 500, "bob"),
        ):
            body = {**chat_body({"content": ""}, usage=None), "model": model}
            run_json([usage], json.dumps(body).encode(), request=request(client=client))
    counted = [key[1:] for key in metrics(usage) if key[0] == "requests"]
    assert counted == [
        ("a", "ann"),
        ("b", "other"),
        ("other", "ann"),
        ("a", "-"),
        ("other", "other"),
    ]
    assert [(log["model"], log["client"]) for log in logs] == [
        ("a", "ann"), ("b", "bob"), ("c", "ann"), ("a", "-"), ("d" * 200, "bob"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "dialect", "method", "body"),
    [
        ("/v1/models", "openai", "GET", {"object": "list", "data": []}),
        ("/v1/responses/resp_1", "openai", "GET", RESPONDED),
        ("/v1/responses", "generic", "GET", RESPONDED),
        ("/v1/messages/count_tokens", "anthropic", "POST", {"input_tokens": 12}),
        ("/v1/messages/batches", "anthropic", "POST", {"type": "message_batch", "id": "b"}),
        (
            "/v1/embeddings",
            "openai",
            "POST",
            {"object": "list", "data": [], "usage": {"prompt_tokens": 3}},
        ),
        (
            "/messages",
            "mcp",
            "POST",
            {"jsonrpc": "2.0", "id": 1, "result": {"usage": {"input_tokens": 1}}},
        ),
    ],
)
def test_what_is_no_answer_of_a_model_is_not_counted(
    path: str, dialect: str, method: str, body: Any
) -> None:
    """Lists, stored answers, batches, embeddings, MCP: neither metrics nor a line, and a stored
    answer is not counted again.
    """
    usage = Usage()
    with capture_logs() as logs:
        run_json(
            [usage],
            json.dumps(body).encode(),
            request=request(path, dialect=dialect, method=method),
        )
    assert metrics(usage) == {}
    assert without_times(logs) == []


def test_usage_that_is_nonsense_stops_nothing() -> None:
    """The answer leaves unchanged, a negative count is as not told, and the request is counted."""
    for told, counted in (
        ({"prompt_tokens": "seven"}, {}),
        ({"prompt_tokens": -7, "completion_tokens": 2}, {"output": 2}),
    ):
        body = json.dumps(chat_body({"content": "Hi"}, usage=told)).encode()
        usage = Usage()
        with capture_logs() as logs:
            assert run_json([usage], body, request=request()) == body
        assert {
            key[3]: value for key, value in metrics(usage).items() if key[0] == "tokens"
        } == counted
        assert line_of(logs)["status"] == 200


# --- ask
# ----------------------------------------------------------------------------------------------------------------


def asked(usage: Usage, body: bytes, path: str = CHAT) -> Request:
    """A request as it goes upstream."""
    made = Request(method="POST", path=path, route="/llm", body=body)
    run_request([usage], made)
    return made


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b'{"n": 1e2, "stream":true}',
            b'{"n":1e2,"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":null}',
            b'{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream_options":{"include_usage":false,"x":1},"stream":true}',
            b'{"stream_options":{"include_usage":true,"x":1},"stream":true}',
        ),
    ],
)
def test_ask_has_a_chat_stream_tell_its_usage_and_hides_that_from_the_client(
    before: bytes, after: bytes
) -> None:
    """Only `stream_options` is added to the request; the chunk that has nothing but usage is
    counted and does not leave.
    """
    usage = Usage(ask=True)
    sent = asked(usage, before)
    assert sent.body == after
    told = [
        {**item, "usage": None} if isinstance(item, dict) and "usage" not in item else item
        for item in TOLD
    ]
    output = run_chain([usage], [stream_of(told, named=False)], request=sent).output
    assert output == stream_of([item for item in told if item is not told[2]], named=False)
    assert metrics(usage)["tokens", GPT, "-", "output"] == 46


def test_ask_hides_nothing_from_a_client_that_has_asked() -> None:
    """Nor does it change its request."""
    usage = Usage(ask=True)
    body = b'{"stream": true, "stream_options": {"include_usage": true}}'
    sent = asked(usage, body)
    assert sent.body == body
    assert not sent.body_replaced
    stream = stream_of(TOLD, named=False)
    assert run_chain([usage], [stream], request=sent).output == stream


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
    """A chunk with usage and text leaves, one without choices and usage (Azure's first) does, too,
    and so does a JSON body.
    """
    usage = Usage(ask=True)
    stream = stream_of(
        [
            chunk(prompt_filter_results=[]),
            chunk(choice({"content": "x"}, "stop"), usage=CHAT_USAGE),
            "[DONE]",
        ],
        named=False,
    )
    assert run_chain([usage], [stream], request=asked(usage, b'{"stream":true}')).output == stream
    body = json.dumps({"choices": [], "usage": {}}).encode()
    assert run_json([usage], body, request=asked(usage, b'{"stream":true}')) == body


def test_with_ask_the_requests_model_stands_in_where_none_was_told() -> None:
    """The provider's name is the one that counts."""
    usage = Usage(ask=True)
    with capture_logs() as logs:
        run_chain(
            [usage], [b"data: [DONE]\n\n"], request=asked(usage, b'{"model":"gpt","stream":true}')
        )
        run_chain(
            [usage],
            [stream_of(TOLD, named=False)],
            request=asked(usage, b'{"model":"gpt","stream":true}'),
        )
    assert [log["model"] for log in logs] == ["gpt", GPT]


# --- options
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"max_models": 0}, "max_models"),
        ({"max_clients": -1}, "max_clients"),
        ({"asks": True}, "asks"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_their_path(
    options: dict[str, Any], path: str
) -> None:
    """At start, by the name of the entry point."""
    with pytest.raises(LoadError) as caught:
        load_interceptor("usage", options)
    assert caught.value.option == path


def test_without_ask_no_body_is_collected() -> None:
    """Uploads pass as they arrive; usage by itself asks for nothing."""
    assert not load_interceptor("usage", {}).wants_body
    assert load_interceptor("usage", {"ask": True}).wants_body
