"""Load interceptors by name, with their options, and refuse what could only fail later.

`use` is `package.module:Class`, `./file.py:Class`, or the name of an entry point in the group
`weirpool.interceptors`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard, Union, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.inspect import AnyType, type_info

from .api import Interceptor
from .checks import check_interceptor, check_settings
from .errors import LoadError
from .values import Checker, Mistake, nearest

__all__ = ["ENTRY_POINT_GROUP", "load_interceptor"]

ENTRY_POINT_GROUP = "weirpool.interceptors"
_FAILURES = (
    Exception,
    SystemExit,
)  # a module that is a script ends with SystemExit: it must not end the proxy
# How an exception's message may begin, so that it is shown at the option that it is about:
# `patterns[0]: `, `keys.ann: `.
_OPTION_PATH = re.compile(r"(?P<path>(?P<option>\w+)(?:\.[\w-]++|\[\d++\])*): ")


def load_interceptor(use: str, options: Mapping[str, Any]) -> Interceptor:
    """Import the class that `use` names, check it, and make it with `options`. Raises `LoadError`;
    may import and so block.

    An exception of `__init__` whose message begins with an option's path and a colon is shown at
    that path. An `ExceptionGroup` of them shows each. The error has every mistake
    (`LoadError.errors`), and in `made` the interceptor as far as it could be made.

    Whatever the module, the class or its `__init__` raises becomes a `LoadError`, `SystemExit`
    included.
    """
    try:
        return _load(use, options)
    except LoadError:
        raise
    except _FAILURES as error:
        raise LoadError(f"{use!r} cannot be loaded: {_said(error)}") from error


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
        arguments, wrong = _check_options(cls, options)
    except LoadError as error:
        raise _joined([*mistakes, error]) from error
    mistakes += [LoadError(item.message, item.path, item.hint) for item in wrong]
    if arguments is not None:
        try:
            made = cls(**arguments)
            check_settings(made)
        except _FAILURES as error:
            if not mistakes and isinstance(error, LoadError):
                raise
            known = {item.option for item in mistakes}
            found = list(_from_init(use, error, _option_names(cls)))
            # Beside mistakes, only what is clearly about another option: the object was made of
            # what was left.
            mistakes += [
                item for item in found if item.option not in known and (item.option or not known)
            ]
            raise _joined(mistakes) from error
        if not mistakes:
            return made
        joined = _joined(mistakes)
        joined.made = made
        raise joined
    raise _joined(mistakes)


def _joined(mistakes: Sequence[LoadError]) -> LoadError:
    first, *others = mistakes
    return LoadError(first.problem, first.option, first.hint, others)


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the process (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}"


def _from_init(use: str, error: BaseException, names: Collection[str]) -> Iterator[LoadError]:
    """What `__init__` has found wrong. `names`: the options that there are."""
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
            why = error if isinstance(error, ValueError) else _said(error)
            yield LoadError(f"{use!r} refused its options: {why}")


def _find_class(use: str) -> Any:
    module_name, colon, class_name = use.partition(":")
    if not colon:
        points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        if use not in points:
            near = nearest(use, points)
            raise LoadError(
                f"{use!r} is neither package.module:Class, nor file.py:Class, nor an entry point of the group "
                f"{ENTRY_POINT_GROUP!r}",
                hint=f"did you mean {near!r}?"
                if near
                else f"the names here are {', '.join(sorted(points))}",
            )
        try:
            return points[use].load()
        except _FAILURES as error:
            raise LoadError(f"the entry point {use!r} cannot be loaded: {_said(error)}") from error
    if module_name.endswith(".py"):
        module = _import_file(module_name)
    else:
        try:
            module = importlib.import_module(module_name)
        except _FAILURES as error:  # whatever a user's module does while it is imported
            raise LoadError(f"cannot import {module_name!r}: {_said(error)}") from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        classes = [
            name
            for name, item in vars(module).items()
            if isinstance(item, type) and issubclass(item, Interceptor)
        ]
        near = nearest(class_name, classes)
        raise LoadError(
            f"{module_name!r} has no {class_name!r}", hint=f"did you mean {near!r}?" if near else ""
        ) from None


def _import_file(name: str) -> ModuleType:
    """Import a file by its name, once per process. Its own directory is importable for it, as for a
    script.
    """
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
        raise LoadError(f"cannot import {name!r}: {_said(error)}") from error
    return module


def _check_options(
    cls: type[Interceptor], options: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, list[Mistake]]:
    """The arguments for `__init__`, by its annotations, or the class that its only parameter
    `options` names; and all mistakes.

    Beside mistakes, the arguments are those that are right, so that `__init__` can find more; None
    where it cannot be called.
    """
    parameters = _parameters_of(cls)
    hints = _hints_of(cls) if parameters else {}
    checker = Checker("option")
    if list(parameters) == ["options"]:
        if _is_options_class(hint := hints.get("options")):
            made = _convert(checker, options, hint)
            return None if made is None else {"options": made}, checker.mistakes
        if "options" not in options and parameters["options"].default is inspect.Parameter.empty:
            raise LoadError(
                f"{cls.__qualname__}.__init__ takes `options`, whose annotation must be a dataclass or a msgspec.Struct; "
                "or let each option be a parameter of its own"
            )
    named = {
        name: item
        for name, item in parameters.items()
        if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    given = {name: value for name, value in options.items() if name in named or not takes_any}
    fields: list[Any] = []
    for name, item in named.items():
        hint = hints.get(name, Any)
        fields.append(
            (name, hint) if item.default is item.empty else (name, Union[hint, UnsetType], UNSET)  # noqa: UP007
        )
    made = _convert(checker, given, msgspec.defstruct("Options", fields, kw_only=True))
    if made is None:
        return None, checker.mistakes
    arguments = {name: value for name in named if (value := getattr(made, name)) is not UNSET}
    if takes_any:
        arguments |= {name: value for name, value in options.items() if name not in named}
    return arguments, checker.mistakes


def _convert(checker: Checker, options: Mapping[str, Any], cls: type) -> Any:
    """Make a record from the configuration, of what is right in it; None when that is not enough.
    Mistakes are in `checker`.
    """
    try:
        kind = type_info(cls)
    except (TypeError, NameError):  # an annotation that msgspec cannot take apart
        kind = AnyType()
    values = checker.check(kind, dict(options))
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:  # a type that only msgspec knows
        if not checker.mistakes:
            problem, _, path = str(error).partition(" - at `$")
            checker.wrong(path.rstrip("`").removeprefix("."), problem)
    return None


def _parameters_of(cls: type[Interceptor]) -> Mapping[str, inspect.Parameter]:
    signature = (
        inspect.signature(cls.__init__)
        if cls.__init__ is not object.__init__
        else inspect.Signature()
    )
    return {name: item for name, item in signature.parameters.items() if name != "self"}


def _hints_of(cls: type[Interceptor]) -> Mapping[str, Any]:
    """The annotations of `__init__`. Raises `LoadError`."""
    try:
        return get_type_hints(cls.__init__)
    except (
        Exception
    ) as error:  # get_type_hints resolves what is imported for type checkers only at run time
        raise LoadError(
            f"the annotations of {cls.__name__}.__init__ cannot be resolved: {error}",
            hint="import what they name outside of `if TYPE_CHECKING:`",
        ) from error


def _option_names(cls: type[Interceptor]) -> Collection[str]:
    """The options that `__init__` takes: its parameters, or the fields of the class that its only
    one names.
    """
    names = list(_parameters_of(cls))
    if names == ["options"] and _is_options_class(hint := _hints_of(cls).get("options")):
        return [
            item.name
            for item in (fields(hint) if is_dataclass(hint) else msgspec.structs.fields(hint))
        ]
    return names


def _is_options_class(hint: Any) -> TypeGuard[type[Any]]:
    return isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, msgspec.Struct))
