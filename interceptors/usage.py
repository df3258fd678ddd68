"""`usage`: tokens and requests by route, model and client, as the provider reports them.

    interceptors:
      - name: usage
        use: usage
        options: {ask: true}

Sums by the hour are kept in the store, over all workers, for `weirpool usage`.

Only events with usage, an error or the end of an answer are read; others pass unparsed, and nothing
is estimated. Reports are counted once, after the answer, however it ended: the last one counts, and
a count that was not reported is not 0. A failure of this interceptor stops no answer.
"""

from __future__ import annotations

import time
from collections import Counter as Sums
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from secrets import token_hex

import msgspec
import trio
from prometheus_client import Counter
from prometheus_client.registry import Collector

from .api import Outcome, StreamContext
from .errors import refuse_options
from .message import Request, Response
from .metering import COUNTS as KINDS
from .metering import CallStream, Metering, Tokens, ask_for_usage, cut_name, read_call
from .store import StoreUnavailable
from .toolkit.labels import Labels

__all__ = ["KEEP_S", "KINDS", "Usage", "hour_of", "read_sums"]

KEEP_S = 35 * 86400.0
"""How long the sums of an hour are kept."""
_MODEL = "usage.model"
_FLUSH_S = 1.0
_LAST_FLUSH_S = 5.0


def hour_of(time_s: float) -> str:
    """The key of the hour that a time, in seconds since 1970, belongs to."""
    return f"hour/{int(time_s // 3600)}"


def read_sums(sums: dict[str, int]) -> dict[tuple[str, str, str], dict[str, int]]:
    """The counters of an hour, by route, model and client; then by kind, `requests` included."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for name, number in sums.items():
        route, model, client, kind = msgspec.json.decode(name, type=tuple[str, str, str, str])
        found.setdefault((route, model, client), {})[kind] = number
    return found


class Usage(Metering):
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
        self._sums: dict[str, Sums[str]] = {}
        # On its way to the store: sent again, with its id, until the store has answered.
        self._batch: tuple[str, str, Sums[str]] | None = None
        self._counted = trio.Event()
        self._models = Labels(max_models)
        self._clients = Labels(max_clients)
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

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        return self._adding_up()

    @asynccontextmanager
    async def _adding_up(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._add_up)
            yield
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.move_on_after(_LAST_FLUSH_S):
            await self._flush()

    async def _add_up(self) -> None:
        while True:
            await self._counted.wait()
            await trio.sleep(_FLUSH_S)
            self._counted = trio.Event()
            if not await self._flush():
                self._counted.set()

    async def _flush(self) -> bool:
        """Add what was counted to the sums. Returns whether the store has all of it."""
        while self._sums or self._batch is not None:
            if self._batch is None:
                hour = next(iter(self._sums))
                self._batch = hour, token_hex(8), self._sums.pop(hour)
            hour, ident, sums = self._batch
            try:
                await self.store.count(hour, sums, keep_s=KEEP_S, id=ident)
            except StoreUnavailable:
                return False
            self._batch = None
        return True

    async def on_request(self, request: Request) -> Response | None:
        asked = read_call(request) if self.wants_body else None
        if asked is not None:
            ask_for_usage(request, asked)
            if isinstance(asked.model, str):
                request.state[_MODEL] = asked.model
        return None

    def open_messages(self, context: StreamContext) -> CallStream | None:
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
        sums = self._sums.setdefault(hour_of(time.time()), Sums())
        self._requests.labels(*labels).inc()
        sums[_name_of(*labels, "requests")] += 1
        for kind, tokens in counts.items():
            self._tokens.labels(*labels, kind).inc(tokens)
            sums[_name_of(*labels, kind)] += round(tokens)
        if not counts and not failed:
            self._without_usage.labels(*labels).inc()
        self._counted.set()


def _name_of(route: str, model: str, client: str, kind: str) -> str:
    """The name of a counter in the store."""
    return msgspec.json.encode((route, model, client, kind)).decode()


class _UsageStream(CallStream):
    def __init__(self, usage: Usage, context: StreamContext) -> None:
        super().__init__(context)
        self._usage = usage
        self._streamed = not context.is_body

    def on_end(self, outcome: Outcome) -> None:
        if not self.is_call:
            return  # not an answer: a list of models, a batch
        context, counts = self.context, self.counts
        model = self.model or context.state.get(_MODEL)
        client = context.state.get("client_key")
        model = None if model is None else cut_name(model)
        client = None if client is None else cut_name(str(client))
        self._usage.count(context.route, model, client, counts, failed=self.failed)
        context.log.info(
            "usage",
            model=model or "-",
            client=client or context.client,
            status=self.status,
            streamed=self._streamed,
            finish_reason=",".join(self.reasons) or None,
            error=self.error,
            outcome=outcome.value,
            **{kind: counts.get(kind) for kind in KINDS},
        )
