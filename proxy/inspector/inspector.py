"""`Inspector`: joins the views of a worker with its exchanges.

It exists with `admin.inspect`. Without a view it costs an exchange one test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from .tap import Tap
from .view import View, ViewFeed
from .wanted import Wanted

__all__ = ["MOST_VIEWS", "Inspected", "Inspector", "TooManyViews"]

MOST_VIEWS = 64
"""Views of one worker: of its own clients, and of those of the other workers."""

_SHOWN = ("id", "route", "client", "method", "path", "age")


class TooManyViews(Exception):
    """The worker has `MOST_VIEWS` views."""


class Inspected(Protocol):
    """What the inspector needs of an exchange."""

    started_at: float
    """Trio's time."""

    @property
    def tap(self) -> Tap | None:
        """What `watch` was called with last."""
        ...

    @property
    def request_id(self) -> str:
        """The request's id; "" if it has none."""
        ...

    @property
    def dialect_name(self) -> str:
        """The dialect of its route; "" without a route."""
        ...

    def watch(self, tap: Tap | None) -> None:
        """Show events to the tap from now on, and the head, if there is one. None: stop."""
        ...

    def describe(self) -> dict[str, Any]:
        """The exchange in `/status`."""
        ...


class Inspector:
    """The views of one worker."""

    def __init__(self, worker: int, live: Callable[[], Iterable[Inspected]]) -> None:
        """`worker`: its number. `live`: its exchanges."""
        self.worker = worker
        self._live = live
        self.views: set[View] = set()

    def open(self, wanted: Wanted) -> View:
        """A view of the streams that begin from now on, and, unless it is for the next one, of live
        ones. The caller must `close` it. Raises `TooManyViews`.
        """
        if len(self.views) >= MOST_VIEWS:
            raise TooManyViews
        view = View(wanted)
        self.views.add(view)
        if not wanted.once or wanted.exchange is not None:
            for exchange in tuple(self._live()):
                self._show(exchange, (view,), joined=True)
        return view

    def close(self, view: View) -> None:
        """End a view."""
        self.views.discard(view)
        view.close()

    def begin(self, exchange: Inspected) -> None:
        """An exchange begins. Call it if there are `views`."""
        self._show(exchange, [view for view in self.views if view.accepts], joined=False)

    def _show(self, exchange: Inspected, views: Iterable[View], *, joined: bool) -> None:
        about: dict[str, Any] | None = None
        for view in views:
            about = about or self._about(exchange, {"joined": True} if joined else {})
            if view.wants(about):
                if exchange.tap is None:
                    exchange.watch(Tap(exchange.started_at, partial(exchange.watch, None)))
                assert exchange.tap is not None
                ViewFeed(view, about, exchange.tap)

    def _about(self, exchange: Inspected, more: dict[str, Any]) -> dict[str, Any]:
        described = exchange.describe()
        return {
            "exchange": f"{self.worker}-{described['id']}",
            "worker": self.worker,
            **{name: described[name] for name in _SHOWN},
            "request_id": exchange.request_id,
            "dialect": exchange.dialect_name,
            **more,
        }
