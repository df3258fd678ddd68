"""The options of an interceptor: from a mapping to the arguments of `__init__`.

The annotations of `__init__` are the accepted types: one parameter per option, or one parameter
`options`, annotated with a dataclass or a msgspec Struct. Nothing here creates the interceptor.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeGuard, Union, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.inspect import AnyType, type_info

from .api import Interceptor
from .errors import LoadError
from .values import Checker, Mistake

__all__ = ["convert_options", "option_names"]

_Converted = tuple[dict[str, Any] | None, list[Mistake]]


def convert_options(cls: type[Interceptor], options: Mapping[str, Any]) -> _Converted:
    """Convert options to arguments of `__init__`. Returns them with all mistakes.

    Invalid options are left out of the arguments, so that `__init__` can report more. The arguments
    are None if `__init__` cannot be called without them. Raises `LoadError` if the signature itself
    is wrong.
    """
    parameters = _parameters_of(cls)
    hints = _hints_of(cls) if parameters else {}
    if list(parameters) == ["options"]:
        if _is_options_class(hint := hints.get("options")):
            checker = Checker("option")
            made = _convert(checker, options, hint)
            return None if made is None else {"options": made}, checker.mistakes
        if "options" not in options and parameters["options"].default is inspect.Parameter.empty:
            raise LoadError(
                f"{cls.__qualname__}.__init__ takes `options`, whose annotation must be a "
                "dataclass or a msgspec.Struct; or let each option be a parameter"
            )
    return _convert_named(parameters, hints, options)


def _convert_named(
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    options: Mapping[str, Any],
) -> _Converted:
    """Convert options that are parameters of their own. `**kwargs` takes every other option."""
    named = {
        name: item
        for name, item in parameters.items()
        if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    given = {name: value for name, value in options.items() if name in named or not takes_any}
    record: list[Any] = []
    for name, item in named.items():
        hint = hints.get(name, Any)
        is_required = item.default is item.empty
        record.append((name, hint) if is_required else (name, _or_unset(hint), UNSET))
    checker = Checker("option")
    made = _convert(checker, given, msgspec.defstruct("Options", record, kw_only=True))
    if made is None:
        return None, checker.mistakes
    arguments = {name: value for name in named if (value := getattr(made, name)) is not UNSET}
    if takes_any:
        arguments |= {name: value for name, value in options.items() if name not in named}
    return arguments, checker.mistakes


def _or_unset(hint: Any) -> Any:
    return Union[hint, UnsetType]  # noqa: UP007 - `|` refuses a hint that is a string


def _convert(checker: Checker, options: Mapping[str, Any], cls: type) -> Any:
    """Create a record from the valid options, or None. Mistakes are added to `checker`."""
    try:
        kind = type_info(cls)
    except (TypeError, NameError):  # an annotation that msgspec cannot inspect
        kind = AnyType()
    values = checker.check(kind, dict(options))
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:  # a type that only msgspec checks
        if not checker.mistakes:
            problem, _, path = str(error).partition(" - at `$")
            checker.wrong(path.rstrip("`").removeprefix("."), problem)
    return None


def _parameters_of(cls: type[Interceptor]) -> Mapping[str, inspect.Parameter]:
    if cls.__init__ is object.__init__:
        return {}
    parameters = inspect.signature(cls.__init__).parameters
    return {name: item for name, item in parameters.items() if name != "self"}


def _hints_of(cls: type[Interceptor]) -> Mapping[str, Any]:
    """The annotations of `__init__`. Raises `LoadError`."""
    try:
        return get_type_hints(cls.__init__)
    except Exception as error:  # names that are only imported for type checkers do not resolve
        raise LoadError(
            f"the annotations of {cls.__name__}.__init__ cannot be resolved: {error}",
            hint="import what they name outside of `if TYPE_CHECKING:`",
        ) from error


def option_names(cls: type[Interceptor]) -> Collection[str]:
    """The options that a class accepts."""
    names = list(_parameters_of(cls))
    if names == ["options"] and _is_options_class(hint := _hints_of(cls).get("options")):
        found = fields(hint) if is_dataclass(hint) else msgspec.structs.fields(hint)
        return [item.name for item in found]
    return names


def _is_options_class(hint: Any) -> TypeGuard[type[Any]]:
    return isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, msgspec.Struct))
