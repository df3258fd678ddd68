"""Misspelled and misplaced names are refused at load, with the right place; authors' own are not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    HookError,
    Interceptor,
    LoadError,
    StreamContext,
    StreamInterceptor,
)
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_request
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain

IMPORTS = "\n".join(
    f"from {item.__module__} import {item.__name__}"
    for item in (
        Interceptor, StreamInterceptor, AsyncStreamInterceptor, MessageInterceptor, MessageStream, McpInterceptor, on_mcp_request
    )
)  # fmt: skip
INTERCEPTORS = ("Interceptor", "MessageInterceptor", "McpInterceptor")
STREAMS = ("StreamInterceptor", "AsyncStreamInterceptor", "MessageStream")


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Interceptor]:
    """Loads a file that has a class with this base and this body, as `use: ./file.py:Mine` does."""

    monkeypatch.setattr(sys, "path", sys.path[:])  # the loader adds the file's directory

    def load(base: str, body: str) -> Interceptor:
        name = "Mine" if base in INTERCEPTORS else "MyStream"
        text = f"{IMPORTS}\nclass {name}({base}):\n{indent(dedent(body), '    ')}\n"
        text += "" if name == "Mine" else "class Mine(Interceptor): pass\n"
        (tmp_path / "mine.py").write_text(text)
        return load_interceptor(f"{tmp_path}/mine.py:Mine", {})

    return load


DECLARED = ("sets_state", "needs_state", "uses_state", "sets_headers")
WRONG = [
    ("StreamInterceptor", "def on_event(event): return event", "MyStream.on_event takes (event), expected (self, event)"),
    ("StreamInterceptor", "@classmethod\ndef on_end(cls): pass", "MyStream.on_end takes (), expected (self, outcome)"),
    ("StreamInterceptor", "on_complete = lambda: None", "MyStream.on_complete takes (), expected (self)"),
    ("MessageStream", "def on_text_delta(self, delta, more): pass", "takes (self, delta, more), expected (self, delta)"),
    ("Interceptor", "async def on_request(self, request, more): pass", "takes (self, request, more), expected (self, request)"),
    ("Interceptor", "def collectors(): return []", "Mine.collectors takes (), expected (self)"),
    ("Interceptor", "async def on_request(self, request): yield", "because it has a yield: nothing would run it"),
    ("Interceptor", "def __init__(self, options): pass", "Mine.__init__ takes `options`, whose annotation must be"),
    ("Interceptor", "def __init__(self, options: dict): pass", "whose annotation must be a dataclass or a msgspec.Struct"),
    ("Interceptor", "def __init__(self, most: 'Mosst' = 1): pass", "Mine.__init__ cannot be resolved: name 'Mosst' is not"),
    ("StreamInterceptor", "hook_timeout_s = 5", "it belongs on a class that extends Interceptor"),
    ("MessageStream", "hook_timeout_s = 5", "it belongs on a class that extends Interceptor"),
    ("Interceptor", "hook_timeout = 5", "did you mean 'hook_timeout_s'?"),
    ("AsyncStreamInterceptor", "hook_timeout_ms = 5", "did you mean 'hook_timeout_s', which belongs on"),
    ("MessageStream", "hold_tool_calls = True", "did you mean 'holds_tool_calls'?"),
    ("MessageInterceptor", "holds_tool_calls = True", "it belongs on a class that extends MessageStream"),
    ("Interceptor", "hold_tool_calls = True", "did you mean 'holds_tool_calls', which belongs on"),
    ("StreamInterceptor", "holds_tool_calls = True", "it belongs on a class that extends MessageStream"),
    ("StreamInterceptor", "pass_unseen = True", "did you mean 'passes_unseen'?"),
    ("Interceptor", "passes_unseen = True", "it belongs on a class that extends StreamInterceptor"),
    ("McpInterceptor", "passes_unseen: bool = True", "it belongs on a class that extends StreamInterceptor"),
    ("Interceptor", "needs = (b'x',)", "it belongs on a class that extends StreamInterceptor"),
    ("StreamInterceptor", "need = (b'x',)", "did you mean 'needs'?"),
    ("MessageStream", "needs = (b'x',)", "derives from its hooks"),
    ("Interceptor", "want_json = True", "did you mean 'wants_json'?"),
    ("Interceptor", "wants_jsons = 3", "known are: wants_body, wants_dialect, wants_json"),
    ("Interceptor", "wants_json = 'yes'", "expected True or False"),
    ("StreamInterceptor", "passes_unseen = None", "expected True or False"),
    ("Interceptor", "hook_timeout_s = True", "expected a positive number of seconds"),
    ("Interceptor", "hook_timeout_s = float('nan')", "expected a positive number of seconds"),
    ("MessageStream", "async def on_text_delta(self, delta): ...", "on_text_delta is async, but the hooks of a MessageStream"),
    ("MessageStream", "def on_text(self, text): ...", "unknown hook 'on_text'"),
    ("MessageStream", "def on_toolcall(self, call): ...", "did you mean 'on_tool_call'?"),
    ("MessageStream", "def onFinish(self, call): ...", "did you mean 'on_finish'?"),
    ("MessageStream", "def on_finish(self, call):\n    yield call", "because it has a yield"),
    ("AsyncStreamInterceptor", "async def on_event(self, event):\n    yield event", "because it has a yield"),
    ("AsyncStreamInterceptor", "def on_event(self, event): return event", "on_event must be async"),
    ("StreamInterceptor", "on_event = None", "on_event is None, expected a method"),
    ("StreamInterceptor", "def on_text_delta(self, delta): ...", "it belongs on a class that extends MessageStream"),
    ("Interceptor", "def open_messages(self, context): ...", "it belongs on a class that extends MessageInterceptor"),
    ("MessageInterceptor", "def open_message(self, context): ...", "did you mean 'open_messages'?"),
    ("MessageInterceptor", "async def open_messages(self, context): ...", "open_messages is async, but it must not be"),
    ("MessageInterceptor", "def on_text_delta(self, delta): ...", "it belongs on a class that extends MessageStream"),
    ("Interceptor", "async def open_stream(self, context): ...", "open_stream is async, but it must not be"),
    ("Interceptor", "async def lifespan(self):\n    yield", "contextlib.asynccontextmanager"),
    ("Interceptor", "async def lifespan(self): ...", "contextlib.asynccontextmanager"),
    ("Interceptor", "def on_response(self, head): ...", "on_response must be async"),
    ("Interceptor", "@on_mcp_request()\ndef look(self, message): ...", "has an effect on a McpInterceptor only"),
    ("Interceptor", "def __init__(self): self.hook_timeout_s = 'x'", "expected a positive number of seconds"),
    ("Interceptor", "def __init__(self): self.on_error = 'skipp'", "expected one of abort, skip"),
    ("Interceptor", "def __init__(self): self.on_request = print", "make it a method"),
    ("Interceptor", "def on_evnet(self, event): ...", "did you mean 'on_event', which belongs on a class that extends Stream"),
    ("Interceptor", "def on_weekdays(self): ...", "unknown hook 'on_weekdays'; known are: on_request, on_response"),
    ("StreamInterceptor", "def on_events(self, event): ...", "unknown hook 'on_events': did you mean 'on_event'?"),
    ("StreamInterceptor", "async def on_event(self, event): ...", "subclass AsyncStreamInterceptor to await in them"),
    ("StreamInterceptor", "needs = ('error',)", "MyStream: needs is"),
    ("Interceptor", "hook_timeout_s = '30'", "hook_timeout_s is '30', expected a positive number of seconds"),
    ("Interceptor", "hook_timeout_s = 0", "hook_timeout_s is 0, expected a positive number of seconds"),
    *[("Interceptor", f"on_error = {value!r}", f"on_error is {value!r}, expected one of abort") for value in ("abrot", "", None)],
    *[("Interceptor", f"{name} = 'key'", f"{name} is 'key', expected a tuple of strings") for name in DECLARED],
]  # fmt: skip


@pytest.mark.parametrize(("base", "body", "message"), WRONG)
def test_a_name_without_effect_is_refused(load: Any, base: str, body: str, message: str) -> None:
    """With the name that was meant, and the class where it belongs."""
    with pytest.raises(LoadError) as caught:
        load(base, body)
    assert message in str(caught.value)
    assert ("Mine" if base in INTERCEPTORS else "MyStream") in str(caught.value)


RIGHT = [
    *[("Interceptor", f"{name} = ('key',)") for name in DECLARED],
    *[("Interceptor", f"hook_timeout_s = {value}") for value in (None, 1)],
    ("StreamInterceptor", "@classmethod\ndef on_event(cls, event): return event"),
    ("StreamInterceptor", "on_event = lambda self, event: event"),
    ("StreamInterceptor", "def on_event(self, *args, **more): return args[0]"),
    ("StreamInterceptor", "def on_start(self, a_head, extra=None, *, word=1): pass"),
    ("StreamInterceptor", "from operator import itemgetter\non_event = itemgetter(0)"),
    ("Interceptor", "def __init__(self, options=None): pass"),
    ("Interceptor", "from contextlib import asynccontextmanager\n@asynccontextmanager\nasync def lifespan(self):\n    yield"),
    *[(base, "strict = True\nmodel = 'm'\ndef finish(self): ...") for base in ("Interceptor", "StreamInterceptor")],
    *[
        (base, "timeout_s = 5\ntimeout = 3\nhook = print\nname = 'x'\nstream = None\nevent = b''\nbody = b'x'\n_needs = (b'x',)")
        for base in (*INTERCEPTORS, *STREAMS)
    ],
    *[
        (base, "def close(self): ...\ndef one_event(self): ...\ndef request(self): ...\nasync def text_delta(self): ...\n"
               "def once(self): ...\ndef only_json(self): ...\nonline = True\ndef onboard(self): ...")
        for base in (*INTERCEPTORS, *STREAMS)
    ],
    ("Interceptor", "needs = ['gpu', 'disk']\nneeded = True\npasses = 3"),
    ("Interceptor", "def open_stream(self, context): ...\ndef open_streams(self): return 3"),
    ("Interceptor", "open_streams = 0\ncollector = None\nlifespan_s = 5"),
    ("StreamInterceptor", "passes_unseen = True\nneeds = (b'x',)\nneed = (b'y',)\nwanted_json = 'x'\nhook_timeouts = []"),
    ("MessageStream", "passes_unseen = True\nholds_tool_calls = True\nsees_other_texts = True\nheld_tool_calls = []"),
    ("McpInterceptor", "strict = True\n@on_mcp_request('x')\ndef on_call(self, message): ..."),
    ("StreamInterceptor", "@property\ndef needs(self): return (b'x',)\n@property\ndef passes_unseen(self): return True"),
    ("StreamInterceptor", "@staticmethod\ndef on_event(event): return event\n@classmethod\ndef on_start(cls, head): ..."),
    ("Interceptor", "def __init__(self):\n    self.passes_unseen = True\n    self.holds_tool_calls = True\n    self.needs = ()"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "body"), RIGHT)
def test_an_authors_own_names_are_accepted(load: Any, base: str, body: str) -> None:
    """Also similar ones: a value of another kind, another word, a name beside the right one."""
    assert isinstance(load(base, body), Interceptor)


def test_all_mistakes_of_a_file_are_reported_at_once(load: Any) -> None:
    """Not one after the other, run by run."""
    with pytest.raises(LoadError) as caught:
        load(
            "MessageStream",
            "hold_tool_calls = True\nhook_timeout_s = 1\nasync def on_finish(self, finish): ...",
        )
    assert str(caught.value).count("MyStream") == 3


class Deferred(Interceptor):
    """Opens what it is given: a stream whose class no loader has seen."""

    def __init__(self, stream: Callable[[], Any]) -> None:
        self.stream = stream

    def open_stream(self, context: StreamContext) -> Any:
        return self.stream()


class SetsOnObject(StreamInterceptor):
    def __init__(self, **names: Any) -> None:
        vars(self).update(names)


class Mixin:
    async def on_event(self, event: Event) -> Event:
        return event


def made(*bases: type) -> Any:
    """An object of a local class: a check sees all classes of a module."""
    return type("Made", bases, {})()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (partial(SetsOnObject, hook_timeout_s=1.0), "hook_timeout_s"),
        (partial(SetsOnObject, pass_unseen=True), "did you mean 'passes_unseen'"),
        (
            partial(SetsOnObject, holds_tool_calls=True),
            "belongs on a class that extends MessageStream",
        ),
        (partial(SetsOnObject, on_event=print), "make it a method"),
        (lambda: made(StreamInterceptor, AsyncStreamInterceptor), "subclass one of them"),
        (lambda: made(Mixin, StreamInterceptor), "on_event is async"),
    ],
)
def test_a_stream_is_checked_when_it_opens(stream: Callable[[], Any], message: str) -> None:
    """Its class may be defined anywhere, and what it sets on its objects is known only then."""
    with pytest.raises((LoadError, HookError), match=message):
        run_chain([Deferred(stream)], [b"data: a\n\n"])


def test_what_a_stream_may_set_on_itself_is_accepted() -> None:
    names = {"timeout_s": 1, "finish": print, "model": "m", "context": None}
    stream = partial(SetsOnObject, needs=(b"x",), passes_unseen=True, **names)
    assert run_chain([Deferred(stream)], [b"data: a\n\n"]).failure is None
