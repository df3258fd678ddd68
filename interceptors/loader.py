"""Load interceptors by name, with their options, and refuse what could only fail later.

`use` is `package.module:Class`, `./file.py:Class`, or the name of an entry point in the group `weirpool.interceptors`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import msgspec

from .api import Interceptor
from .checks import check_interceptor, check_settings
from .errors import LoadError

__all__ = ["ENTRY_POINT_GROUP", "load_interceptor"]

ENTRY_POINT_GROUP = "weirpool.interceptors"
# How an exception's message may begin, so that it is shown at the option that it is about: `patterns[0]: `, `keys.ann: `.
_OPTION_PATH = re.compile(r"(?P<path>(?P<option>\w+)(?:\.[\w-]+|\[\d+\])*): ")


def load_interceptor(use: str, options: Mapping[str, Any]) -> Interceptor:
    """Import the class that `use` names, check it, and make it with `options`. Raises `LoadError`; may import and so block.

    An exception of `__init__` whose message begins with an option's path and a colon is shown at that path.
    """
    cls = _find_class(use)
    if not (isinstance(cls, type) and issubclass(cls, Interceptor)):
        raise LoadError(f"{use!r} is not a subclass of interceptors.Interceptor")
    check_interceptor(cls)
    try:
        arguments = _check_options(cls, options)
        made = cls(**arguments)
        check_settings(made)
        return made
    except LoadError:
        raise
    except Exception as error:
        path = _OPTION_PATH.match(str(error))
        if path is not None and path["option"] in _option_names(cls):
            raise LoadError(str(error)[path.end() :], path["path"]) from error
        raise LoadError(f"{use!r} refused its options: {error}") from error


def _find_class(use: str) -> Any:
    module_name, colon, class_name = use.partition(":")
    if not colon:
        found = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == use]
        if not found:
            raise LoadError(
                f"{use!r} is neither package.module:Class, nor file.py:Class, nor an entry point of the group {ENTRY_POINT_GROUP!r}"
            )
        try:
            return found[0].load()
        except Exception as error:
            raise LoadError(f"the entry point {use!r} cannot be loaded: {error}") from error
    if module_name.endswith(".py"):
        module = _import_file(module_name)
    else:
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever a user's module does while it is imported
            raise LoadError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise LoadError(f"{module_name!r} has no {class_name!r}") from None


def _import_file(name: str) -> ModuleType:
    """Import a file by its name, once per process. Its own directory is importable for it, as for a script."""
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
    except Exception as error:
        del sys.modules[module_name]
        raise LoadError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error
    return module


def _check_options(cls: type[Interceptor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the annotations of `__init__`, or of the class that its only parameter `options` names."""
    signature = inspect.signature(cls.__init__) if cls.__init__ is not object.__init__ else inspect.Signature()
    parameters = {name: item for name, item in signature.parameters.items() if name != "self"}
    if list(parameters) == ["options"] and _is_options_class(hints := get_type_hints(cls.__init__)["options"]):
        return {"options": _convert_options(options, hints)}
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


def _option_names(cls: type[Interceptor]) -> Collection[str]:
    """The options that `__init__` takes: its parameters, or the fields of the class that its only one names."""
    names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    if names == ["options"] and _is_options_class(hint := get_type_hints(cls.__init__)["options"]):
        return _field_names(hint)
    return names


def _field_names(cls: Any) -> list[str]:
    return [item.name for item in (fields(cls) if is_dataclass(cls) else msgspec.structs.fields(cls))]


def _is_options_class(hint: Any) -> bool:
    return isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, msgspec.Struct))


def _convert_options(options: Mapping[str, Any], cls: type) -> Any:
    """Make an options class from the configuration. Raises `LoadError` with the path of the mistake, also for unknown names."""
    known = _field_names(cls)
    for name in options:
        if name not in known:
            raise LoadError(f"there is no option {name!r}; the options are: {', '.join(known) or 'none'}", name)
    try:
        return msgspec.convert(dict(options), cls)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise LoadError(problem, path.rstrip("`").removeprefix(".")) from None
