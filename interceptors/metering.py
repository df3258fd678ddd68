"""One reading of a call's tokens, for `usage` and `budget`: what a request asks for, and what its
answer reports. Interceptors that read the same answer get the same counts.

Some providers report the tokens of a stream only if the request asks for them. `ask_for_usage` asks,
and the last interceptor that counts hides the report from a client that did not ask.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from . import dialects
from .api import EventResult, Outcome, StreamContext, StreamInterceptor
from .dialects import Finish, MessageInterceptor, MessageStream, ProviderError
from .dialects.answers import is_call, is_chat, is_responses, readers_for
from .dialects.anthropic import AnthropicReader
from .dialects.parts import Tokens
from .dialects.tokens import COUNTS, merge_counts, read_number
from .errors import NotJson
from .event import Event
from .message import Request, ResponseHead

__all__ = [
    "COUNTS",
    "MAX_NAME",
    "AskedCall",
    "CallStream",
    "Metering",
    "Tokens",
    "ask_for_usage",
    "cut_name",
    "output_of",
    "read_asked",
    "read_call",
]

_FAILED = frozenset(("error", "failed"))
_ASKED = "usage.asked"
_LAST = "usage.last"
MAX_NAME = 200
_MOST_CHOICES = 1_000_000
_MAX_REASONS = 10


class AskedCall(msgspec.Struct):
    """The members of a request that matter here, of any type."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    n: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None


def cut_name(text: str) -> str:
    """A name for labels and logs: cut, and without lone surrogates, which metrics cannot show."""
    if len(text) <= MAX_NAME and text.isascii():
        return text
    return text[:MAX_NAME].encode("utf-8", "replace").decode()


def read_call(request: Request) -> AskedCall | None:
    """What a POST to a model asks for; None for other requests. Needs the body.

    A body that is not a JSON object asks for nothing: the upstream decides. JSON is read as lenient
    servers read it: with NaN, lone surrogates, a BOM, or in UTF-16.
    """
    if request.method != "POST" or not readers_for(request.dialect, request.path):
        return None
    return read_asked(request.body)


def read_asked(body: bytes) -> AskedCall:
    """What a body asks for, as `read_call`."""
    try:
        return msgspec.json.decode(body, type=AskedCall)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return msgspec.convert(json.loads(body), AskedCall)
    except (ValueError, RecursionError):
        return AskedCall()


def output_of(asked: AskedCall, path: str, most: int) -> int:
    """The most output tokens of a call, for all of its choices, each at most `most`.

    Of several limits the highest counts: servers ignore one that is not of their API.
    """
    given = (asked.max_tokens, asked.max_completion_tokens)
    limits = map(read_number, (asked.max_output_tokens,) if is_responses(path) else given)
    each = min(most, max((item for item in limits if item), default=most))
    return math.ceil(each * max(1, min(read_number(asked.n) or 1, _MOST_CHOICES)))


def ask_for_usage(request: Request, asked: AskedCall) -> None:
    """Ask for the usage of an OpenAI chat stream on the client's behalf. Other fields keep their
    bytes.
    """
    options = asked.stream_options
    if asked.stream is not True or not is_chat(request.path):
        return
    if options is None or (isinstance(options, dict) and options.get("include_usage") is not True):
        try:
            fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:  # only lenient servers read it
            return
        fields["stream_options"] = msgspec.Raw(
            msgspec.json.encode({**(options or {}), "include_usage": True})
        )
        request.replace_body(msgspec.json.encode(fields))
        request.state[_ASKED] = True


class Metering(MessageInterceptor):
    """An interceptor whose `open_messages` returns a `CallStream` or None."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        stream = super().open_stream(context)
        if not isinstance(stream, CallStream) or not context.state.get(_ASKED):
            return stream
        context.state[_LAST] = stream
        return _Hiding(stream, context)


class CallStream(MessageStream):
    """What one answer reports. Override `on_end`."""

    passes_unseen = True

    def __init__(self, context: StreamContext) -> None:
        self.context = context
        self.is_call = is_call(context.path)
        """Whether it is an answer of a model: not a list of models, or a batch."""
        self.status = 0
        self.counts: dict[str, Tokens] = {}
        """The last report of each of `COUNTS`; a count that was not reported is absent."""
        self.reports = 0
        self.reasons: dict[str, None] = {}
        """Why choices have ended, in order."""
        self.error: str | None = None
        """The type of the provider's error."""
        readers = readers_for(context.dialect, context.path)
        self.cached_is_apart = readers == (AnthropicReader,)
        """Whether `input` excludes cached tokens."""

    @property
    def failed(self) -> bool:
        """Whether the answer is, or has, an error."""
        return self.status >= 400 or self.error is not None or not _FAILED.isdisjoint(self.reasons)

    def on_start(self, head: ResponseHead) -> None:
        self.status = head.status

    def on_usage(self, usage: dialects.Usage) -> None:
        self.is_call = True
        self.reports += 1
        merge_counts(self.counts, {kind: getattr(usage, kind) for kind in COUNTS})

    def on_finish(self, finish: Finish) -> None:
        self.is_call = True
        if len(self.reasons) < _MAX_REASONS or finish.reason in _FAILED:
            self.reasons[cut_name(finish.reason)] = None

    def on_provider_error(self, error: ProviderError) -> None:
        self.error = cut_name(error.type or error.code or "error")


class _Hiding(StreamInterceptor):
    """Hides the chunk that has only usage, if its stream is the last one that counts."""

    passes_unseen = True

    def __init__(self, counting: CallStream, context: StreamContext) -> None:
        self._counting = counting
        self._state = context.state
        self.needs = counting.needs

    def on_start(self, head: ResponseHead) -> None:
        self._counting.on_start(head)

    def on_event(self, event: Event) -> EventResult:
        before = self._counting.reports
        answer = self._counting.on_event(event)
        is_report = self._counting.reports > before and not event.is_body
        if not is_report or self._state.get(_LAST) is not self._counting:
            return answer
        try:
            message = event.json()
        except NotJson:
            return answer
        only_usage = (
            isinstance(message, dict)
            and message.get("choices") == []
            and isinstance(message.get("usage"), dict)
        )
        return None if only_usage else answer

    def on_complete(self) -> Event | Sequence[Event] | None:
        return self._counting.on_complete()

    def on_end(self, outcome: Outcome) -> None:
        self._counting.on_end(outcome)
        self._state.pop(_LAST, None)  # it references its own state
