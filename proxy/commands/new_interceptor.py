"""`weirpool new-interceptor NAME`: write a small, commented interceptor and its test."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from ..errors import ConfigError

__all__ = ["new_interceptor"]

_OWN = ("interceptors", "pools", "proxy")
_NEEDED = ("pytest",)  # imported by the test, even if not installed yet
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]++)*")

_MODULE = '''\
"""{title}: what it does, in a sentence."""

from dataclasses import dataclass

from interceptors import (
    Event,
    EventResult,
    Interceptor,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)


@dataclass
class Options:
    """The keys of `options` in the configuration; wrong names and types are errors at start."""

    field: str = "seen_by"
    value: str = "{name}"


class {title}(Interceptor):
    """One per process."""

    on_error = "abort"  # or "skip": log what a hook raises, and continue as if it had done nothing

    def __init__(self, options: Options) -> None:
        self.options = options

    async def on_request(self, request: Request) -> Response | None:
        """Read a request, change it, or answer it: `return request.refuse(403, "no", "no")`."""
        request.headers["x-seen-by"] = self.options.value
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        """One object for each event stream; None to stay out of it."""
        return {title}Stream(self.options)


class {title}Stream(StreamInterceptor):
    """One stream. Delete the hooks that you do not need: one that is not there costs nothing."""

    # Only events with these bytes in them are shown to on_event; None shows every event.
    needs = (b"{{",)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.changed = 0

    def on_start(self, head: ResponseHead) -> None:
        """The stream begins."""

    def on_event(self, event: Event) -> EventResult:
        """Return the event, event.replace(...), a list of events, End(...), or None to drop it."""
        message = event.json()  # decoded once, when first asked
        message[self.options.field] = self.options.value
        self.changed += 1
        return event.replace(json=message)

    def on_end(self, outcome: Outcome) -> None:
        """The stream is over, however it ended. Called exactly once."""
'''

_TEST = '''\
"""Run with pytest. No network and no proxy are needed."""

from {module} import Options, {title}

from interceptors import Request
from interceptors.testing import run_chain, run_request


def test_events_are_marked() -> None:
    """Every JSON object gets the field, however the bytes are cut; other data passes unchanged."""
    result = run_chain([{title}(Options())], [b'data: {{"a"', b": 1}}\\n\\ndata: [DONE]\\n\\n"])
    assert result.output == b'data: {{"a":1,"seen_by":"{name}"}}\\n\\ndata: [DONE]\\n\\n'


def test_requests_are_marked() -> None:
    """The upstream gets a header more."""
    request = Request(path="/v1/chat")
    assert run_request([{title}(Options(value="me"))], request) is None
    assert request.headers["x-seen-by"] == "me"
'''

_NEXT = """\
Wrote {module}.py and test_{module}.py. Run the test (requires pytest: pip install pytest):

    {python} -m pytest test_{module}.py

Then add the interceptor to your configuration (weirpool.yaml):

    interceptors: [{{name: {name}, use: "./{module}.py:{title}", options: {{value: "{name}"}}}}]
    reverse_proxy: {{..., routes: [{{path: /, upstream: ..., interceptors: [{name}]}}]}}

and check it:

    weirpool check weirpool.yaml
"""


_IMPORTED = {*re.findall(r"^    (\w+),$", _MODULE, re.MULTILINE), "Options"}
"""Names that the module imports."""


def _hidden_by(module: str, directory: Path) -> str | None:
    """Return what a file of that name, or its test, would hide from Python's imports; None if
    nothing.
    """
    for name in (module, f"test_{module}"):
        if name in sys.stdlib_module_names:
            return f"Python's module {name}"
        if name in _OWN:
            return f"Weirpool's package {name}"
        places = [
            place for place in sys.path if Path(place or ".").resolve() != directory.resolve()
        ]
        if name in _NEEDED or PathFinder.find_spec(name, places) is not None:
            return f"the installed module {name}"
    return None


def new_interceptor(name: str, directory: Path) -> str:
    """Write the two files. Returns the next steps as text. Raises `ConfigError` for an invalid
    name; never overwrites a file.
    """
    module = name.replace("-", "_")
    title = "".join(part.capitalize() for part in module.split("_"))
    if keyword.iskeyword(module):
        raise ConfigError(
            f"{name!r} cannot be a name: it is a Python keyword; choose another, such as my-{name}"
        )
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name!r} cannot be a name: must be lower-case letters and digits, joined by - or _,"
            " such as redact-keys"
        )
    hidden = _hidden_by(module, directory)
    if hidden is not None:
        raise ConfigError(
            f"{name!r} cannot be a name: {module}.py would hide {hidden};"
            f" choose another, such as my-{name}"
        )
    if title in _IMPORTED:
        raise ConfigError(
            f"{name!r} cannot be a name: class {title} would hide Weirpool's {title};"
            f" choose another, such as my-{name}"
        )
    words = {
        "python": sys.executable if " " not in sys.executable else "python",
        "name": name,
        "module": module,
        "title": title,
    }
    for file, text in ((f"{module}.py", _MODULE), (f"test_{module}.py", _TEST)):
        try:
            with (directory / file).open("x", encoding="utf-8") as target:
                target.write(text.format(**words))
        except FileExistsError:
            raise ConfigError(f"{file} exists; nothing was overwritten") from None
        except OSError as error:
            raise ConfigError(f"{directory / file}: {error.strerror}") from error
    return _NEXT.format(**words)
