"""Finds mistakes in an author's classes that would otherwise have no visible effect.

For example a misspelled hook, a hook that should or should not be async, a setting that nothing
reads. The closest base class in this package defines which hooks and settings exist, and which
hooks are async. The loader and `testing` check a class before use, the chain when its first stream
opens.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from types import FunctionType
from typing import Any, TypeGuard, get_args
from weakref import WeakSet

from .api import AsyncStreamInterceptor, Interceptor, OnError, StreamInterceptor
from .dialects.mcp_hooks import McpInterceptor
from .dialects.mcp_marks import MARKS
from .dialects.messages import MessageInterceptor, MessageStream
from .errors import LoadError
from .needs import finder_of

__all__ = ["check_interceptor", "check_settings", "check_stream"]

_BASES = (
    Interceptor,
    StreamInterceptor,
    AsyncStreamInterceptor,
    MessageInterceptor,
    MessageStream,
    McpInterceptor,
)
_OURS = __name__.partition(".")[0]
_COMMON_WORDS = {"finish", "model", "strict"}  # likely to be an author's own attributes
_NAMES = {"sets_state", "needs_state", "uses_state", "sets_headers"}
_LIKENESS = 0.85
_checked: WeakSet[type] = WeakSet()


def check_interceptor(cls: type[Interceptor]) -> None:
    """Check a class and the stream classes in its module. Raises `LoadError` with all mistakes."""
    if cls in _checked:
        return
    problems = list(_problems(cls))
    for value in list(getattr(sys.modules.get(cls.__module__), "__dict__", {}).values()):
        is_own = inspect.isclass(value) and value.__module__ == cls.__module__
        if is_own and issubclass(value, (StreamInterceptor, AsyncStreamInterceptor)):
            problems += _problems(value)
    if problems:
        raise LoadError("; ".join(problems))
    _checked.add(cls)


def check_stream(stream: StreamInterceptor | AsyncStreamInterceptor) -> None:
    """Check the class of an opened stream and this object, until one passes. Raises `LoadError`."""
    cls = type(stream)
    if cls in _checked:
        return
    problems = [*_problems(cls), *_problems_of_object(stream)]
    if problems:
        raise LoadError("; ".join(problems))
    _checked.add(cls)


def check_settings(interceptor: Interceptor) -> None:
    """Check the attributes that `__init__` set. Raises `LoadError`."""
    cls = type(interceptor)
    own = {
        name: value
        for name, value in getattr(interceptor, "__dict__", {}).items()
        if hasattr(_base_of(cls), name)
    }
    problems = [
        problem for name, value in own.items() for problem in _wrong_value(cls, name, value)
    ]
    problems += _hooks_of_object(interceptor)
    if problems:
        raise LoadError("; ".join(problems))


def _base_of(cls: type) -> type:
    """The closest base class in this package. Only its hooks and settings are ever used."""
    return next(item for item in cls.__mro__ if item.__module__.partition(".")[0] == _OURS)


def _own(cls: type) -> dict[str, Any]:
    """The attributes of a class and of its base classes outside of this package."""
    found: dict[str, Any] = {}
    for item in reversed(cls.__mro__):
        if item.__module__.partition(".")[0] not in (_OURS, "builtins", "typing"):
            found |= vars(item)
    return found


def _problems(cls: type) -> Iterator[str]:
    base, name = _base_of(cls), cls.__qualname__
    if issubclass(cls, StreamInterceptor) and issubclass(cls, AsyncStreamInterceptor):
        yield (
            f"{name} is both a StreamInterceptor and an AsyncStreamInterceptor: "
            "subclass one of them"
        )
        return
    for attribute, value in _own(cls).items():
        if hasattr(value, MARKS) and not issubclass(cls, McpInterceptor):
            yield (
                f"{name}.{attribute} is marked with on_mcp_..., "
                "which has an effect on a McpInterceptor only"
            )
        if attribute.startswith("_"):
            continue
        if not hasattr(base, attribute):
            yield from _unknown(cls, attribute, value)
        elif issubclass(cls, MessageStream) and attribute == "needs":
            yield (
                f"{name}.needs has no effect: "
                "a MessageStream derives from its hooks which events they need"
            )
        elif isinstance(getattr(base, attribute), FunctionType):
            yield from _wrong_method(cls, base, attribute)
        else:
            yield from _wrong_value(cls, attribute, value)


def _problems_of_object(stream: StreamInterceptor | AsyncStreamInterceptor) -> Iterator[str]:
    """Attributes that a stream's `__init__` set and that have no effect."""
    cls, base = type(stream), _base_of(type(stream))
    for attribute, value in getattr(stream, "__dict__", {}).items():
        if not attribute.startswith("_") and not hasattr(base, attribute):
            place, ours = _nearest(cls, attribute, value)
            if place is not None and not isinstance(value, FunctionType):
                yield _misplaced(cls, attribute, place, ours)
    yield from _hooks_of_object(stream)


def _hooks_of_object(made: object) -> Iterator[str]:
    """Hooks that were set on an object: only those of the class are called."""
    cls, base = type(made), _base_of(type(made))
    for attribute in getattr(made, "__dict__", {}):
        ours = getattr(base, attribute, None)
        if (
            isinstance(ours, FunctionType)
            and attribute.startswith(("on_", "open_"))
            and getattr(cls, attribute) is ours
        ):
            yield (
                f"{cls.__qualname__}.{attribute} was set on the object, and has no effect there: "
                "make it a method"
            )


def _wrong_method(cls: type, base: type, name: str) -> Iterator[str]:
    where, method = f"{cls.__qualname__}.{name}", getattr(cls, name)
    if not callable(method):
        yield f"{where} is {method!r}, expected a method"
        return
    plain = method if name == "lifespan" else inspect.unwrap(method)
    is_async = inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(
        type(plain).__call__
    )
    if name == "lifespan":
        if is_async or inspect.isasyncgenfunction(plain):
            yield (
                f"{where} must return an async context manager: "
                "decorate it with contextlib.asynccontextmanager"
            )
    elif name.startswith("on_") and (
        inspect.isasyncgenfunction(plain) or inspect.isgeneratorfunction(plain)
    ):
        instead = ". Return a list instead" if name in ("on_event", "on_complete") else ""
        yield f"{where} is a generator, because it has a yield: nothing would run it{instead}"
    elif inspect.iscoroutinefunction(getattr(base, name)):
        if not is_async:
            yield f"{where} must be async: async def {name}(...)"
    elif is_async:
        yield f"{where} is async, but {_why_not_async(cls, name)}"
    yield from _wrong_parameters(cls, base, name)


def _wrong_parameters(cls: type, base: type, name: str) -> Iterator[str]:
    """A method that cannot take the arguments of its base class, for example without `self`."""
    asked = [item for item in inspect.signature(getattr(base, name)).parameters if item != "self"]
    found = inspect.getattr_static(cls, name)
    try:
        signature = inspect.signature(getattr(cls, name), follow_wrapped=False)
    except (TypeError, ValueError):
        return  # not written in Python
    try:
        signature.bind(*[None] * (len(asked) + isinstance(found, FunctionType)))
    except TypeError:
        expected = ", ".join(["self", *asked])
        yield f"{cls.__qualname__}.{name} takes {signature}, expected ({expected})"


def _why_not_async(cls: type, name: str) -> str:
    if name == "open_stream":
        return "it must not be: what it returns may be an AsyncStreamInterceptor"
    if issubclass(cls, MessageStream):
        return (
            "the hooks of a MessageStream are not; "
            "to await something, start a task: context.start_soon"
        )
    if issubclass(cls, StreamInterceptor):
        return (
            "the hooks of a StreamInterceptor are not; "
            "subclass AsyncStreamInterceptor to await in them"
        )
    return "it must not be"


def _wrong_value(cls: type, name: str, value: Any) -> Iterator[str]:
    """A setting with an invalid value."""
    if hasattr(type(value), "__get__"):
        return  # a property: its value is known only for an object
    if name == "needs":
        try:
            finder_of(value)
        except TypeError as error:
            yield f"{cls.__qualname__}: {error}"
        return
    default, expected = getattr(_base_of(cls), name), ""
    if name == "hook_timeout_s":
        if value is not None and not (_is_number(value) and value > 0):
            expected = "a positive number of seconds, or None"
    elif name == "on_error":
        if value not in get_args(OnError):
            expected = f"one of {', '.join(get_args(OnError))}"
    elif name in _NAMES:
        is_default = value is None and default is None
        if not is_default and not _is_tuple_of_strings(value):
            expected = 'a tuple of strings, such as ("client_key",)'
    elif isinstance(default, bool) and not isinstance(value, bool):
        expected = "True or False"
    if expected:
        yield f"{cls.__qualname__}: {name} is {value!r}, expected {expected}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_tuple_of_strings(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def _unknown(cls: type, name: str, value: Any) -> Iterator[str]:
    """A name that no base class has: an author's own, unless it resembles a hook or setting."""
    if hasattr(value, MARKS) and issubclass(cls, McpInterceptor):
        return
    place, ours = _nearest(cls, name, value)
    if place is not None:
        yield _misplaced(cls, name, place, ours)
    elif name.startswith(("on_", "wants_")):
        prefix, base = name[: name.index("_") + 1], _base_of(cls)
        known = (
            ", ".join(item for item in dir(base) if item.startswith(prefix) and item != "on_error")
            or "none"
        )
        yield f"{cls.__qualname__} has an unknown {_kind(name)} {name!r}; known are: {known}"


def _misplaced(cls: type, name: str, place: type, ours: str) -> str:
    what = f"{cls.__qualname__} has an unknown {_kind(ours)} {name!r}"
    if name == ours:
        return f"{what}: it belongs on a class that extends {place.__name__}"
    if hasattr(_base_of(cls), ours):
        return f"{what}: did you mean {ours!r}?"
    return f"{what}: did you mean {ours!r}, which belongs on a class that extends {place.__name__}?"


def _kind(name: str) -> str:
    if name.startswith("on_") and name != "on_error":
        return "hook"
    return "method" if name in _METHODS else "setting"


def _nearest(cls: type, name: str, value: Any) -> tuple[type | None, str]:
    """The hook or setting that a name most likely misspells, and its class, or (None, "").

    Kinds must agree: a method for a method, a setting for a setting that can have this value.
    """
    own = _own(cls)
    best, place, likeness = "", None, 0.0
    for base in sorted(_BASES, key=lambda item: not issubclass(cls, item)):
        for ours, kind in _names_of(base).items():
            if not _is_of_kind(ours, kind, value, name):
                continue
            like = 1.0 if ours == name else _likeness(name, ours)
            # If the class also has the right name, a similar one is the author's own.
            if like > likeness and (like == 1.0 or ours not in own):
                best, place, likeness = ours, base, like
    return (place, best) if likeness >= _LIKENESS else (None, "")


def _names_of(base: type) -> Mapping[str, Any]:
    names = {
        name: value
        for name, value in vars(base).items()
        if not name.startswith("_") and name not in _COMMON_WORDS
    }
    return {name: value for name, value in names.items() if not isinstance(value, property)}


def _is_of_kind(ours: str, kind: Any, value: Any, name: str) -> bool:
    if isinstance(kind, FunctionType):
        return callable(value) or isinstance(value, (staticmethod, classmethod))
    if name == ours and ours != "needs":
        return True
    if ours == "hook_timeout_s":
        return value is None or _is_number(value)
    if ours == "needs":
        try:
            return bool(value) and finder_of(value) is not None
        except TypeError:
            return False
    return isinstance(value, type(kind))


def _likeness(name: str, ours: str) -> float:
    """The similarity, from 0 to 1; `onEvent` equals `on_event`.

    A name without `on_` must equal a hook: hooks are short, so a similar word proves nothing.
    """
    first, second = (item.replace("_", "").lower() for item in (name, ours))
    if ours.startswith("on_") and not name.startswith("on_"):
        return float(first == second)
    return SequenceMatcher(None, first, second).ratio()


_METHODS = {
    name for base in _BASES for name, value in vars(base).items() if isinstance(value, FunctionType)
}
