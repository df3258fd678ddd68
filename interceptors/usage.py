"""`usage`: tokens and requests by route, model and client, as the provider reports them.

    interceptors:
      - name: usage
        use: usage
        options: {ask: true}

Only events with usage, an error or the end of an answer are read; others pass unparsed, and nothing
is estimated. Reports are counted once, after the answer, however it ended: the last one counts, and
a count that was not reported is not 0. A failure of this interceptor stops no answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from prometheus_client import Counter
from prometheus_client.registry import Collector

from . import dialects
from .api import EventResult, Outcome, StreamContext, StreamInterceptor
from .dialects import Finish, MessageInterceptor, MessageStream, ProviderError
from .dialects.answers import is_call, is_chat, readers_for
from .dialects.parts import Tokens
from .dialects.tokens import COUNTS as KINDS
from .dialects.tokens import merge_counts
from .errors import NotJson, refuse_options
from .event import Event
from .message import Request, Response, ResponseHead

__all__ = ["KINDS", "Usage"]

_OTHER = "other"
_FAILED = frozenset(("error", "failed"))
_MODEL = "usage.model"
_ASKED = "usage.asked"
_MAX_NAME = 200
_MAX_REASONS = 10


class _Asked(msgspec.Struct):
    """The members of a request that matter here."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None


def _name(text: str) -> str:
    """A name for labels and logs: cut, and without lone surrogates, which metrics cannot show."""
    return text[:_MAX_NAME].encode("utf-8", "replace").decode()


class _Labels:
    """The values of a label: at most `most` different ones, then `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known = {"-"}

    def of(self, value: str | None, *, new: bool = True) -> str:
        """The label for a value, `-` for None. `new`: it may take a new label."""
        value = value or "-"
        if value not in self._known:
            if not new or len(self._known) > self._most:
                return _OTHER
            self._known.add(value)
        return value


class Usage(MessageInterceptor):
    """Options: `ask`: request usage in OpenAI chat streams, and know the model of a request;
    `max_models`, `max_clients`: how many get a label; the rest is `other`.
    """

    on_error = "skip"
    sets_state = ()

    def __init__(self, ask: bool = False, max_models: int = 100, max_clients: int = 1000) -> None:
        counts = {"max_models": max_models, "max_clients": max_clients}
        refuse_options(
            [f"{option}: expected 1 or more" for option, value in counts.items() if value < 1]
        )
        self.wants_body = ask
        self._models = _Labels(max_models)
        self._clients = _Labels(max_clients)
        names = ["route", "model", "client"]
        self._tokens = Counter(
            "weirpool_llm_tokens",
            "Tokens as reported by providers: input, output, cached, cache_written, reasoning.",
            [*names, "kind"],
            registry=None,
        )
        self._requests = Counter(
            "weirpool_llm_requests",
            "Requests to models that were answered, failures included.",
            names,
            registry=None,
        )
        self._without_usage = Counter(
            "weirpool_llm_answers_without_usage",
            "Answers without usage, failures excluded.",
            names,
            registry=None,
        )

    def collectors(self) -> Iterable[Collector]:
        return self._tokens, self._requests, self._without_usage

    async def on_request(self, request: Request) -> Response | None:
        if (
            not self.wants_body
            or request.method != "POST"
            or not readers_for(request.dialect, request.path)
        ):
            return None
        body = request.body
        try:
            asked = msgspec.json.decode(body, type=_Asked)
        except (msgspec.DecodeError, RecursionError):
            return None  # the upstream decides
        if isinstance(asked.model, str):
            request.state[_MODEL] = asked.model
        options = asked.stream_options
        if asked.stream is not True or not is_chat(request.path):
            return None
        if options is None or (
            isinstance(options, dict) and options.get("include_usage") is not True
        ):
            fields = msgspec.json.decode(
                body, type=dict[str, msgspec.Raw]
            )  # other fields keep their bytes
            fields["stream_options"] = msgspec.Raw(
                msgspec.json.encode({**(options or {}), "include_usage": True})
            )
            request.replace_body(msgspec.json.encode(fields))
            request.state[_ASKED] = True
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        stream = super().open_stream(context)
        return (
            _Hiding(stream)
            if isinstance(stream, _UsageStream) and context.state.get(_ASKED)
            else stream
        )

    def open_messages(self, context: StreamContext) -> MessageStream | None:
        # An answer that GET shows was counted when it was made.
        return _UsageStream(self, context) if context.method == "POST" else None

    def count(
        self,
        route: str,
        model: str | None,
        client: str | None,
        counts: dict[str, Tokens],
        *,
        failed: bool,
    ) -> None:
        """Count one answer."""
        # A failed request may have any model name: it must not use up the labels.
        labels = (
            route,
            self._models.of(model, new=not failed or bool(counts)),
            self._clients.of(client),
        )
        self._requests.labels(*labels).inc()
        for kind, tokens in counts.items():
            self._tokens.labels(*labels, kind).inc(tokens)
        if not counts and not failed:
            self._without_usage.labels(*labels).inc()


class _UsageStream(MessageStream):
    passes_unseen = True

    def __init__(self, usage: Usage, context: StreamContext) -> None:
        self._usage = usage
        self._context = context
        self._is_call = is_call(context.path)
        self._status = 0
        self._streamed = not context.is_body
        self._counts: dict[str, Tokens] = {}
        self._reasons: dict[str, None] = {}
        self._error: str | None = None

    def on_start(self, head: ResponseHead) -> None:
        self._status = head.status

    def on_usage(self, usage: dialects.Usage) -> None:
        self._is_call = True
        merge_counts(self._counts, {kind: getattr(usage, kind) for kind in KINDS})

    def on_finish(self, finish: Finish) -> None:
        self._is_call = True
        if len(self._reasons) < _MAX_REASONS or finish.reason in _FAILED:
            self._reasons[_name(finish.reason)] = None

    def on_provider_error(self, error: ProviderError) -> None:
        self._error = _name(error.type or error.code or "error")

    def on_end(self, outcome: Outcome) -> None:
        if not self._is_call:
            return  # not an answer: a list of models, a batch
        context, counts = self._context, self._counts
        model = self.model or context.state.get(_MODEL)
        client = context.state.get("client_key")
        model = None if model is None else _name(model)
        client = None if client is None else _name(str(client))
        failed = (
            self._status >= 400 or self._error is not None or not _FAILED.isdisjoint(self._reasons)
        )
        self._usage.count(context.route, model, client, counts, failed=failed)
        context.log.info(
            "usage",
            model=model or "-",
            client=client or "-",
            status=self._status,
            streamed=self._streamed,
            finish_reason=",".join(self._reasons) or None,
            error=self._error,
            outcome=outcome.value,
            **{kind: counts.get(kind) for kind in KINDS},
        )


class _Hiding(StreamInterceptor):
    """Hides the chunk that has only usage from a client that did not ask for it."""

    passes_unseen = True

    def __init__(self, counting: _UsageStream) -> None:
        self._counting = counting
        self.needs = counting.needs

    def on_start(self, head: ResponseHead) -> None:
        self._counting.on_start(head)

    def on_event(self, event: Event) -> EventResult:
        answer = self._counting.on_event(event)
        try:
            message = event.json()
        except NotJson:
            return answer
        only_usage = (
            isinstance(message, dict)
            and message.get("choices") == []
            and isinstance(message.get("usage"), dict)
        )
        return None if only_usage and not event.is_body else answer

    def on_end(self, outcome: Outcome) -> None:
        self._counting.on_end(outcome)
