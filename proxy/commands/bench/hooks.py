"""The interceptors of the benchmark."""

from __future__ import annotations

from interceptors import Event, Interceptor, StreamContext, StreamInterceptor

__all__ = ["Edit", "Inspect"]


class Inspect(Interceptor):
    """Decodes every event and every JSON body."""

    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _Inspect()


class _Inspect(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        event.json()
        return event


class Edit(Interceptor):
    """Decodes every event and every JSON body, changes one field, and encodes it."""

    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _Edit()


class _Edit(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        message = event.json()
        message["i"] = 2
        return event.replace(json=message)
