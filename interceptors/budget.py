"""`budget`: limit tokens, requests or cost in windows of time, and answer 429 beyond that.

    interceptors:
      - name: budget
        use: budget
        options:
          limits: [{by: client_key, tokens: 1000000, per: day}]

A request reserves what it may use before it goes up, and is settled once by what its answer
reports, however it ends. Budgets are shared by all workers and machines of a store. What is reserved
by a worker that died is free again 30 s later.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio
from prometheus_client import Counter
from prometheus_client.registry import Collector

from interceptors import (
    OnError,
    Outcome,
    Request,
    Reservation,
    Response,
    ResponseHead,
    StoreUnavailable,
    StreamContext,
    WindowState,
)

from .budget_charge import Charge, Place, Use, estimate_body, estimate_bytes, size_of
from .budget_limits import (
    MILLION,
    BudgetOptions,
    first_match,
    option_mistakes,
    period_at,
    zone_of,
)
from .dialects import TextDelta, ToolCallDelta
from .errors import refuse_options
from .metering import CallStream, Metering, ask_for_usage, cut_name, output_of, read_call
from .rate_limit import add_fields, limit_fields

__all__ = ["Budget"]

_CLOCK_S = 60.0
_BUSY_S = 5
"""When to try again what only running requests leave no room for."""


@dataclass
class _Step:
    """Windows that reserve the same amount, and what the store has answered."""

    places: list[Place]
    amount: int
    soft: bool
    made: Reservation | None = None
    error: StoreUnavailable | None = None


class Budget(Metering):
    """Limits tokens, requests and cost. Raises `ValueError` for wrong options.

    `state["client_key"]` and `state["team"]` are those of `api_keys`. A client without a team, and a
    request without a model, have the name `-`.
    """

    on_error: OnError = "abort"  # fail closed
    sets_state = ()

    def __init__(self, options: BudgetOptions) -> None:
        refuse_options(list(option_mistakes(options)))
        zone = zone_of(options.time_zone)
        assert zone is not None
        self._options, self._zone = options, zone
        kinds, units = ({getattr(item, name) for item in options.limits} for name in ("by", "unit"))
        self.needs_state = tuple(name for name in ("client_key", "team") if name in kinds)
        self._reads_tokens = not units.isdisjoint(("tokens", "cost"))
        self.wants_body = self._reads_tokens or "model" in kinds
        self.wants_json = self.wants_dialect = self._reads_tokens
        self._is_calendar = any(item.per in ("day", "month") for item in options.limits)
        self._prices = {glob.lower(): price for glob, price in options.prices.items()}
        self._clock: tuple[float, float] | None = None
        self._nursery: trio.Nursery
        self._refused = Counter(
            "weirpool_budget_refused", "Requests without room.", ["limit"], registry=None
        )
        self._over = Counter(
            "weirpool_budget_over", "Requests beyond a soft limit.", ["limit"], registry=None
        )
        self._spent = Counter(
            "weirpool_budget_spent", "Settled, in the limit's unit.", ["limit"], registry=None
        )
        self._estimated = Counter(
            "weirpool_budget_estimated", "Answers settled without a whole report.", registry=None
        )
        for limit in options.limits:  # from 0 on: rates do not see a series' first value
            (self._over if limit.soft else self._refused).labels(limit.name)

    def collectors(self) -> Iterable[Collector]:
        return self._refused, self._over, self._spent, self._estimated

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        return self._settling()

    @asynccontextmanager
    async def _settling(self) -> AsyncIterator[None]:
        """Own the tasks that settle; leave when all have."""
        async with trio.open_nursery() as self._nursery:
            yield

    async def on_request(self, request: Request) -> Response | None:
        """Reserve, or answer 429. A CORS preflight passes.

        Answers 403 `model_not_priced` if a cost cannot be known, 503 if the store is away and
        `closed` is set.
        """
        if request.is_preflight:
            return None
        asked = read_call(request) if self.wants_body else None
        model = "-"
        if asked is not None and isinstance(asked.model, str):
            model = cut_name(asked.model).lower()
        try:
            places = await self._places(request, model, is_call=asked is not None)
            charge = Charge(0, first_match(self._prices, model))
            amounts = dict.fromkeys(("tokens", "requests", "cost"), 1)
            if asked is not None and self._reads_tokens:
                most = self._options.reserve_tokens
                charge.input_estimate = estimate_body(request.body)
                use = Use(plain=charge.input_estimate, output=output_of(asked, request.path, most))
                amounts = {unit: charge.amount(unit, use) for unit in amounts}
            if charge.price is None and any(item.limit.unit == "cost" for item in places):
                return request.refuse(
                    403, "model_not_priced", f"the budget has no price for the model {model!r}"
                )
            refused = await self._reserve(charge, places, amounts)
        except StoreUnavailable:
            return request.refuse(
                503,
                "store_unavailable",
                "the budget cannot be checked now; try again in 1 s",
                headers={"retry-after": "1"},
            )
        if refused is not None:
            return self._refuse(request, *refused)
        # The exchange cancels it at its end, also if no response ever comes.
        request.start_soon(self._hold, charge)
        self._note_over(request, charge, amounts)
        if asked is not None and self._reads_tokens:
            ask_for_usage(request, asked)
        request.state[self._state_key] = charge
        return None

    async def on_response(self, head: ResponseHead) -> None:
        """Add `RateLimit` and `RateLimit-Policy` after those of the upstream and of other limits."""
        charge: Charge | None = head.request.state.get(self._state_key)
        if charge is None:
            return
        charge.status = head.status
        for reservation, places in charge.held:
            for place, state in zip(places, reservation.states, strict=False):
                if not place.limit.soft:
                    add_fields(head, self._fields(place, state))

    def open_messages(self, context: StreamContext) -> CallStream | None:
        charge: Charge | None = context.state.get(self._state_key)
        if charge is None or not self._reads_tokens or context.method != "POST":
            return None
        charge.is_read.set()
        return _BudgetStream(self, charge, context)

    async def _places(self, request: Request, model: str, *, is_call: bool) -> list[Place]:
        """The limits that apply. Tokens and cost only count calls of a model."""
        now = await self._now() if self._is_calendar else time.time()
        state = request.state
        found = []
        for limit in self._options.limits:
            if limit.unit != "requests" and not is_call:
                continue
            names = {"all": "all", "route": request.route, "model": model}
            name = names[limit.by] if limit.by in names else str(state.get(limit.by) or "-")
            amount = limit.of(name)
            if amount is not None:
                period = period_at(limit.per, now, self._zone)
                found.append(Place(limit, name, amount, period))
        return found

    async def _now(self) -> float:
        """The store's clock, read once a minute."""
        now = trio.current_time()
        if self._clock is None or now - self._clock[0] > _CLOCK_S:
            try:
                self._clock = now, await self.store.now() - trio.current_time()
            except StoreUnavailable:
                self._clock = now, self._clock[1] if self._clock else time.time() - now
        return trio.current_time() + self._clock[1]

    async def _reserve(
        self, charge: Charge, places: list[Place], amounts: dict[str, int]
    ) -> tuple[Place, WindowState, int] | None:
        """Reserve in every window, or in none: then the place without room, its state and the
        amount. Windows that reserve the same amount do so in one step of the store, all steps at
        the same time.
        """
        groups: dict[tuple[bool, str, int], list[Place]] = {}
        for place in places:
            soft, amount = place.limit.soft, amounts[place.limit.unit]
            if not soft:  # what exceeds a whole budget passes when all of that is free
                amount = max(1, min(amount, place.amount))
            groups.setdefault((soft, place.limit.unit, amount), []).append(place)
        steps = [_Step(group, amount, soft) for (soft, _, amount), group in sorted(groups.items())]
        try:
            if len(steps) == 1:
                await self._step(charge, steps[0])
            elif steps:
                async with trio.open_nursery() as nursery:
                    for step in steps:
                        nursery.start_soon(self._step, charge, step)
            for step in steps:
                if step.error is not None:
                    raise step.error.with_traceback(None)
        except BaseException:
            self._settle_soon(charge, None)
            raise
        for step in steps:
            if step.made is not None and step.made.refused is not None and not step.soft:
                self._settle_soon(charge, None)
                return (
                    step.places[step.made.refused],
                    step.made.states[step.made.refused],
                    step.amount,
                )
        return None

    async def _step(self, charge: Charge, step: _Step) -> None:
        windows, policy = [place.window for place in step.places], self._options.on_store_error
        try:
            step.made = await self.store.reserve(
                step.amount, windows, force=step.soft, on_error=policy
            )
        except StoreUnavailable as error:
            step.error = error
            return
        if step.soft or step.made.refused is None:
            charge.held.append((step.made, step.places))

    def _refuse(self, request: Request, place: Place, state: WindowState, amount: int) -> Response:
        limit = place.limit
        self._refused.labels(limit.name).inc()
        wait_s = max(1, math.ceil(self._left_s(place, state)))
        if state.used + amount <= place.amount:
            wait_s = min(wait_s, _BUSY_S)
        owner = (
            "" if limit.by == "all" else f" of the {limit.by.removesuffix('_key')} {place.name!r}"
        )
        return request.refuse(
            429,
            "budget_exhausted",
            f"the budget{owner} for {limit.unit} in this {limit.per} has no room; "
            f"try again in {wait_s} s",
            headers={"retry-after": str(wait_s), **self._fields(place, state, wait_s)},
        )

    def _fields(
        self, place: Place, state: WindowState, wait_s: int | None = None
    ) -> dict[str, str]:
        """`r` is what is left after this request's reservation; cost in millionths."""
        limit = place.limit
        unit = "" if limit.unit == "requests" else f';qu="{limit.unit}"'
        policy = f"q={place.amount};w={round(place.period.length_s)}{unit}"
        reset_s = math.ceil(self._left_s(place, state)) if wait_s is None else wait_s
        return limit_fields(f"{self.store.name}/{limit.name}", policy, state.remaining, reset_s)

    @staticmethod
    def _left_s(place: Place, state: WindowState) -> float:
        return state.reset_s if place.period.number is None else place.period.left_s

    def _note_over(self, request: Request, charge: Charge, amounts: dict[str, int]) -> None:
        """Count requests beyond soft limits, and log the one that crosses a limit."""
        for reservation, places in charge.held:
            for place, state in zip(places, reservation.states, strict=False):
                used = state.used + state.reserved
                if not place.limit.soft or used <= place.amount:
                    continue
                self._over.labels(place.limit.name).inc()
                if used - amounts[place.limit.unit] <= place.amount:
                    request.log.warning(
                        "budget_over", limit=place.limit.name, name=place.name, used=used
                    )

    async def _hold(self, charge: Charge) -> None:
        """Settle at the end of the exchange what no stream will."""
        try:
            await charge.is_read.wait()  # a long stream keeps no task
        finally:
            if not charge.is_read.is_set():
                # The upstream has answered with something that is not an answer of a model.
                is_answer = 200 <= charge.status < 300
                self._settle_soon(charge, Use(plain=charge.input_estimate if is_answer else 0))

    def settle(self, charge: Charge, stream: CallStream, seen: int, outcome: Outcome) -> None:
        """Settle by what an answer reports, or, if it was cut short, by what was seen of it.

        `seen`: output tokens, estimated.
        """
        # Some servers report zeros where they count nothing. They must not make an answer free.
        counts = stream.counts if stream.failed or any(stream.counts.values()) else {}
        output = counts.get("output")
        is_whole = output is not None and (
            bool(stream.reasons) or (outcome is Outcome.COMPLETED and not stream.failed)
        )
        if not is_whole:
            if not counts and not seen and (stream.failed or not stream.is_call):
                self._settle_soon(charge, Use())
                return
            self._estimated.inc()
            output = max(output or 0, seen)
        cached, written = counts.get("cached", 0), counts.get("cache_written", 0)
        plain = counts.get("input", charge.input_estimate)
        if not stream.cached_is_apart:
            plain = max(0, plain - cached - written)
        self._settle_soon(charge, Use(plain, cached, written, output or 0))

    def _settle_soon(self, charge: Charge, use: Use | None) -> None:
        """Settle once, in a task that outlives the exchange. None: release everything."""
        if not charge.is_settled:
            charge.is_settled = True
            self._nursery.start_soon(self._settle, charge, use)

    async def _settle(self, charge: Charge, use: Use | None) -> None:
        with trio.CancelScope(shield=True):  # no call waits longer than the store's timeout
            for reservation, places in charge.held:
                unit = places[0].limit.unit
                amount = 0 if use is None else charge.amount(unit, use)
                if await self.store.settle(reservation, amount) and amount:
                    for place in places:
                        scale = MILLION if unit == "cost" else 1
                        self._spent.labels(place.limit.name).inc(amount / scale)

    @property
    def _state_key(self) -> str:
        return f"budget/{self.store.name}"


class _BudgetStream(CallStream):
    sees_other_texts = True

    def __init__(self, budget: Budget, charge: Charge, context: StreamContext) -> None:
        super().__init__(context)
        self._budget = budget
        self._charge = charge
        self._seen_bytes = 0

    def on_text_delta(self, delta: TextDelta) -> None:
        if not delta.repeated:
            self._seen_bytes += size_of(delta.text)

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        self._seen_bytes += size_of(delta.arguments)

    def on_end(self, outcome: Outcome) -> None:
        self._budget.settle(self._charge, self, estimate_bytes(self._seen_bytes), outcome)
