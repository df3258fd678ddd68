"""Loads an interceptor from the configuration, and reports everything that could only fail later.

`use` is `package.module:Class`, `./file.py:Class`, or the name of an entry point in the group
`weirpool.interceptors`. Finding the class is separate from converting its options: `options`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .api import Interceptor
from .checks import check_interceptor, check_settings
from .errors import LoadError
from .options import convert_options, option_names
from .values import nearest

__all__ = ["ENTRY_POINT_GROUP", "load_interceptor"]

ENTRY_POINT_GROUP = "weirpool.interceptors"
_FAILURES = (Exception, SystemExit)  # importing a script can raise SystemExit
# The path of the option that an exception's message is about: `patterns[0]: `, `keys.ann: `.
_OPTION_PATH = re.compile(r"(?P<path>(?P<option>\w+)(?:\.[\w-]++|\[\d++\])*): ")


def load_interceptor(use: str, options: Mapping[str, Any]) -> Interceptor:
    """Import the class that `use` names, check it, and create it with `options`. Blocks on imports.

    Raises `LoadError` with every mistake (`LoadError.errors`); its `made` is the interceptor, if it
    could be created from the valid options. Every exception of the module, the class or its
    `__init__` becomes a `LoadError`, `SystemExit` included. If the message of an exception of
    `__init__` starts with an option's path and a colon, the mistake is reported at that path; each
    exception of an `ExceptionGroup` is reported.
    """
    try:
        return _load(use, options)
    except LoadError:
        raise
    except _FAILURES as error:
        raise LoadError(f"cannot load {use!r}: {_text_of(error)}") from error


def _load(use: str, options: Mapping[str, Any]) -> Interceptor:
    cls = _find_class(use)
    if not (isinstance(cls, type) and issubclass(cls, Interceptor)):
        raise LoadError(f"{use!r} is not a subclass of interceptors.Interceptor")
    mistakes: list[LoadError] = []
    try:
        check_interceptor(cls)
    except LoadError as error:
        mistakes += error.errors
    try:
        arguments, wrong = convert_options(cls, options)
    except LoadError as error:
        raise _joined([*mistakes, error]) from error
    mistakes += [LoadError(item.message, item.path, item.hint) for item in wrong]
    if arguments is None:
        raise _joined(mistakes)
    try:
        made = cls(**arguments)
        check_settings(made)
    except _FAILURES as error:
        if not mistakes and isinstance(error, LoadError):
            raise
        # Beside other mistakes, keep only those about another option: the rest can be a
        # consequence, because `__init__` did not get the invalid options.
        known = {item.option for item in mistakes}
        mistakes += [
            item
            for item in _from_init(use, error, option_names(cls))
            if item.option not in known and (item.option or not known)
        ]
        raise _joined(mistakes) from error
    if mistakes:
        joined = _joined(mistakes)
        joined.made = made
        raise joined
    return made


def _joined(mistakes: Sequence[LoadError]) -> LoadError:
    first, *others = mistakes
    return LoadError(first.problem, first.option, first.hint, others)


def _text_of(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the process (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}"


def _from_init(use: str, error: BaseException, names: Collection[str]) -> Iterator[LoadError]:
    """The mistakes that an exception of `__init__` reports. `names`: the accepted options."""
    if isinstance(error, ExceptionGroup):
        for item in error.exceptions:
            yield from _from_init(use, item, names)
    elif isinstance(error, LoadError):
        yield from error.errors
    else:
        path = _OPTION_PATH.match(str(error))
        if path is not None and path["option"] in names:
            yield LoadError(str(error)[path.end() :], path["path"])
        else:
            why = error if isinstance(error, ValueError) else _text_of(error)
            yield LoadError(f"{use!r} refused its options: {why}")


def _find_class(use: str) -> Any:
    module_name, colon, class_name = use.partition(":")
    if not colon:
        return _load_entry_point(use)
    if module_name.endswith(".py"):
        module = _import_file(module_name)
    else:
        try:
            module = importlib.import_module(module_name)
        except _FAILURES as error:
            raise LoadError(f"cannot import {module_name!r}: {_text_of(error)}") from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        classes = [
            name
            for name, item in vars(module).items()
            if isinstance(item, type) and issubclass(item, Interceptor)
        ]
        near = nearest(class_name, classes)
        hint = f"did you mean {near!r}?" if near else ""
        raise LoadError(f"{module_name!r} has no {class_name!r}", hint=hint) from None


def _load_entry_point(name: str) -> Any:
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        near = nearest(name, points)
        known = f"the names here are {', '.join(sorted(points))}"
        raise LoadError(
            f"{name!r} is neither package.module:Class, nor file.py:Class, nor an entry point "
            f"of the group {ENTRY_POINT_GROUP!r}",
            hint=f"did you mean {near!r}?" if near else known,
        )
    try:
        return points[name].load()
    except _FAILURES as error:
        raise LoadError(f"cannot load the entry point {name!r}: {_text_of(error)}") from error


def _import_file(name: str) -> ModuleType:
    """Import a file once per process. It can import from its own directory, like a script."""
    path = Path(name).resolve()
    module_name = f"weirpool_file_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if not path.is_file():
        raise LoadError(f"there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except _FAILURES as error:
        del sys.modules[module_name]
        raise LoadError(f"cannot import {name!r}: {_text_of(error)}") from error
    return module
