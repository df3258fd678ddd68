"""Load interceptors by name, with their options, and refuse what could only fail later.

`use` is `package.module:Class`, or the name of an entry point in the group `weirpool.interceptors`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, get_args, get_type_hints

import msgspec

from .api import Interceptor, OnError, StreamInterceptor
from .errors import LoadError

__all__ = ["ENTRY_POINT_GROUP", "load_interceptor"]

ENTRY_POINT_GROUP = "weirpool.interceptors"


def load_interceptor(use: str, options: Mapping[str, Any]) -> Interceptor:
    """Import the class that `use` names, check it, and make it with `options`. Raises `LoadError`; may import and so block."""
    cls = _find_class(use)
    if not (isinstance(cls, type) and issubclass(cls, Interceptor)):
        raise LoadError(f"{use!r} is not a subclass of interceptors.Interceptor")
    _check_hooks(cls, Interceptor)
    if inspect.iscoroutinefunction(cls.open_stream):
        raise LoadError(f"{cls.__qualname__}.open_stream is async; the hooks of a stream are synchronous")
    # The streams are made later, by open_stream; a misspelt hook on their class is refused here all the same.
    for value in vars(sys.modules[cls.__module__]).values():
        if inspect.isclass(value) and issubclass(value, StreamInterceptor) and value.__module__ == cls.__module__:
            _check_hooks(value, StreamInterceptor)
    if cls.on_error not in get_args(OnError):
        raise LoadError(f"{use!r}: on_error is {cls.on_error!r}, expected one of {', '.join(get_args(OnError))}")
    try:
        arguments = _check_options(cls, options)
        return cls(**arguments)
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(f"{use!r} refused its options: {error}") from error


def _find_class(use: str) -> Any:
    module_name, colon, class_name = use.partition(":")
    if not colon:
        found = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == use]
        if not found:
            raise LoadError(f"{use!r} is neither package.module:Class nor an entry point of the group {ENTRY_POINT_GROUP!r}")
        try:
            return found[0].load()
        except Exception as error:
            raise LoadError(f"the entry point {use!r} cannot be loaded: {error}") from error
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does while it is imported
        raise LoadError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise LoadError(f"{module_name!r} has no {class_name!r}") from None


def _check_hooks(cls: type, base: type) -> None:
    """A method `on_*` that nobody calls is a mistake that would show only as something that never happens."""
    known = sorted(name for name in dir(base) if name.startswith("on_"))
    for name in dir(cls):
        if not name.startswith("on_"):
            continue
        if name not in known:
            raise LoadError(f"{cls.__qualname__} has an unknown hook {name!r}; known are: {', '.join(known)}")
        if name != "on_error" and inspect.iscoroutinefunction(getattr(cls, name)):
            raise LoadError(f"{cls.__qualname__}.{name} is async; the hooks of a stream are synchronous")


def _check_options(cls: type[Interceptor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the annotations of `__init__` and convert them."""
    signature = inspect.signature(cls.__init__) if cls.__init__ is not object.__init__ else inspect.Signature()
    parameters = {name: item for name, item in signature.parameters.items() if name != "self"}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    hints = get_type_hints(cls.__init__) if parameters else {}
    for name in options:
        if name not in parameters and not takes_any:
            known = ", ".join(parameters) or "none"
            raise LoadError(f"{cls.__qualname__} has no option {name!r}; its options are: {known}", name)
    arguments: dict[str, Any] = {}
    for name, item in parameters.items():
        if item.kind in (item.VAR_KEYWORD, item.VAR_POSITIONAL):
            continue
        if name not in options:
            if item.default is item.empty:
                raise LoadError(f"{cls.__qualname__} needs the option {name!r}", name)
            continue
        try:
            arguments[name] = msgspec.convert(options[name], hints.get(name, Any))
        except msgspec.ValidationError as error:
            raise LoadError(str(error), name) from None
    if takes_any:
        arguments |= {name: value for name, value in options.items() if name not in arguments}
    return arguments
