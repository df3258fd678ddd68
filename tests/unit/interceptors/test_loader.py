"""The loader finds a class by name, and reports with a path what could only fail later."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from interceptors import Event, Interceptor, LoadError, StreamInterceptor, loader
from interceptors.loader import ENTRY_POINT_GROUP, load_interceptor
from interceptors.redact import Redact


class Plain(Interceptor):
    """No options."""


class Tuned(Interceptor):
    def __init__(
        self,
        words: list[str],
        limit: int = 3,
        mode: Literal["a", "b"] = "a",
        scale: float | None = None,
    ) -> None:
        self.given = (words, limit, mode, scale)


class KeywordOnly(Interceptor):
    def __init__(self, *, limit: int, **others: Any) -> None:
        self.given = (limit, others)


class Untyped(Interceptor):
    def __init__(self, anything) -> None:  # type: ignore[no-untyped-def]
        self.given = anything


class Picky(Interceptor):
    def __init__(self, words: list[str], limit: int = 3) -> None:
        wrong = [
            ValueError(f"words[{index}]: is empty") for index, word in enumerate(words) if not word
        ]
        if limit < 0:
            wrong.append(ValueError("limit is negative"))
        if wrong:
            raise ExceptionGroup("options", wrong)


class Misspelt(Interceptor):
    def on_evnet(self, event: Event) -> Event:
        return event


class InheritsMisspelt(Misspelt):
    pass


class MisspeltStream(StreamInterceptor):
    def on_events(self, event: Event) -> Event:
        return event


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Puts classes into an importable module. Returns `use` for the first."""

    def put(*classes: type) -> str:
        monkeypatch.setattr("interceptors.checks._checked", set())  # else a class is checked once
        made = types.ModuleType("users_module")
        for cls in classes:
            monkeypatch.setattr(cls, "__module__", "users_module")
            setattr(made, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, "users_module", made)
        return f"users_module:{classes[0].__name__}"

    return put


def refused(use: str, options: dict[str, Any] | None = None) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_interceptor(use, options or {})
    return caught.value


# Finding the class


def test_a_class_is_loaded_by_module_and_name() -> None:
    assert type(load_interceptor("interceptors.redact:Redact", {"patterns": ["a"]})) is Redact


NEITHER = "neither package.module:Class, nor file.py:Class, nor an entry point of the group"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("no_such_module:X", "cannot import 'no_such_module': ModuleNotFoundError"),
        ("interceptors.redact:Nope", "'interceptors.redact' has no 'Nope'"),
        ("interceptors.loader:ENTRY_POINT_GROUP", "not a subclass of interceptors.Interceptor"),
        ("interceptors.redact:StreamInterceptor", "not a subclass of interceptors.Interceptor"),
        ("nobody-registered-this", f"{NEITHER} 'weirpool.interceptors'"),
        ("interceptors.redact", NEITHER),
        (":Redact", "cannot import ''"),
        ("interceptors.redact:", "has no ''"),
        ("./no_such_file.py:X", "there is no file"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(use: str, message: str) -> None:
    error = refused(use)
    assert message in str(error)
    assert error.option == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise KeyError('set MY_TOKEN')", "KeyError: 'set MY_TOKEN'"),
        ("raise SystemExit(0)", "it ends the process (SystemExit: 0)"),
        ("class Mine(Interceptor):\n    def __init__(self): raise SystemExit", "it ends the process (SystemExit: None)"),
        ("class Mine(Interceptor):\n    def __init__(self, key: 'Decimal'): ...",
         "the annotations of Mine.__init__ cannot be resolved: name 'Decimal' is not defined"),
    ],
)  # fmt: skip
def test_what_a_module_does_is_a_load_error(text: str, message: str, tmp_path: Path) -> None:
    """With the cause; a script that ends the process must not end the proxy."""
    (tmp_path / "mine.py").write_text(f"from interceptors import Interceptor\n{text}\n")
    error = refused(f"{tmp_path}/mine.py:Mine", {"key": "1"} if "key" in text else {})
    assert message in str(error)
    assert error.__cause__ is not None


def test_a_misspelt_class_or_entry_point_gets_the_nearest_name(tmp_path: Path) -> None:
    text = "from interceptors import Interceptor\nclass Guard(Interceptor): ...\n"
    (tmp_path / "near.py").write_text(text)
    assert refused(f"{tmp_path}/near.py:Gaurd").hint == "did you mean 'Guard'?"
    assert refused("api_key").hint == "did you mean 'api_keys'?"
    assert "rate_limit" in refused("nothing-like-it").hint


class FakeEntryPoint:
    def __init__(self, name: str, loaded: Any) -> None:
        self.name = name
        self.loaded = loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_a_name_without_colon_is_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        FakeEntryPoint("redact", Redact),
        FakeEntryPoint("broken", ImportError("no module named tokenizers")),
        FakeEntryPoint("no-class", lambda: None),
    ]

    def installed(*, group: str) -> list[FakeEntryPoint]:
        assert group == ENTRY_POINT_GROUP == "weirpool.interceptors"
        return points

    monkeypatch.setattr(loader, "entry_points", installed)
    assert type(load_interceptor("redact", {"patterns": ["a"]})) is Redact
    assert refused("redact", {"patterns": 3}).option == "patterns"
    broken = "cannot load the entry point 'broken': ImportError: no module named tokenizers"
    assert str(refused("broken")) == broken
    assert "not a subclass" in str(refused("no-class"))


# Options


@pytest.mark.parametrize(
    ("cls", "options", "given"),
    [
        (Tuned, {"words": ["a"]}, (["a"], 3, "a", None)),
        (Tuned, {"scale": 2, "mode": "b", "limit": 7, "words": []}, ([], 7, "b", 2.0)),
        (Tuned, {"words": ["7"], "limit": "7", "scale": "1e-1"}, (["7"], 7, "a", 0.1)),
        (KeywordOnly, {"limit": 1, "x": [1], "y": None}, (1, {"x": [1], "y": None})),
        (Untyped, {"anything": {"any": ["thing", 1, None]}}, {"any": ["thing", 1, None]}),
    ],
)
def test_options_reach_init(
    module: Callable[..., str], cls: type, options: dict[str, Any], given: object
) -> None:
    """By name, converted: text that spells a number is one; absent options keep their defaults."""
    made: Any = load_interceptor(module(cls), options)
    assert made.given == given
    assert repr(made.given) == repr(given)


WHOLE = {"limit": "must be a whole number"}


@pytest.mark.parametrize(
    ("cls", "options", "found"),
    [
        (Plain, {"limit": 1}, {"limit": "unknown option `limit`: the options here are none"}),
        (Tuned, {}, {"words": "missing option `words`"}),
        (Tuned, {"words": "abc"}, {"words": "must be a list: write it in brackets"}),
        (Tuned, {"words": ["a", 3]}, {"words[1]": "must be a string: write it in quotes"}),
        *((Tuned, {"words": [], "limit": value}, WHOLE) for value in ("many", None, "7.5", "7s", "", " 7", "0x7")),
        (Tuned, {"words": [], "mode": "c"}, {"mode": "must be one of a, b"}),
        (Tuned, {"words": [], "limti": 7}, {"limti": "unknown option `limti`: did you mean `lim"}),
        (KeywordOnly, {"limit": "x"}, WHOLE),
        (KeywordOnly, {"x": 1}, {"limit": "missing"}),
        (Picky, {"words": [], "limit": -1}, {"": "refused its options: limit is negative"}),
        (Picky, {"words": [""], "limit": -1}, {"words[0]": "is empty", "": "limit is negative"}),
        (Picky, {"words": ["", "a", ""], "limit": "x", "limti": 3},
         {"limit": "must", "limti": "unknown", "words[0]": "is empty", "words[2]": "is empty"}),
        (Picky, {"words": [], "limit": -1, "more": 1}, {"more": "unknown"}),  # may be a consequence
        (Picky, {"limit": None, "more": 1}, {"limit": "must", "more": "unknown", "words": "miss"}),
    ],
)  # fmt: skip
def test_every_wrong_option_is_reported_at_its_path(
    module: Callable[..., str], cls: type, options: dict[str, Any], found: dict[str, str]
) -> None:
    """Unknown, missing and mistyped options, and what `__init__` rejects in the others, at once."""
    mistakes = refused(module(cls), options).errors
    errors = {item.option: str(item) for item in mistakes}
    assert sorted(item.option for item in mistakes) == sorted(found)
    for option, message in found.items():
        assert message in errors[option]


@pytest.mark.parametrize(
    ("use", "options", "paths"),
    [
        ("redact", {"patterns": ["(", "a", "["], "window": 0}, "patterns[0] patterns[2] window"),
        ("guard", {"patterns": ["(", "a*", "b"], "window": 0, "kinds": ["x"]}, "kinds[0] patterns[0] patterns[1] window"),
        ("api_keys", {"keys": {"ann": "x", "bob": ["y"]}, "upstream": "", "header": ""}, "header keys.ann keys.bob[0] upstream"),
        ("rate_limit", {"requests_per_minute": 0, "burst": 0, "max_clients": 0, "by": "x"}, "burst by max_clients requests_per_minute"),
        ("usage", {"max_models": 0, "max_clients": 0, "ask": "maybe"}, "ask max_clients max_models"),
        ("mcp_policy", {"tools": {"allow": [""], "deny": [""]}, "prompts": {"deny": [""]}}, "prompts.deny[0] tools.allow[0] tools.deny[0]"),
        ("audit", {"path": "a", "keep": 0, "headers": ["cookie", "x", "authorization"]}, "headers[0] headers[2] keep"),
        ("audit", {"path": "a", "headers": ["cookie", "x"]}, "headers[0]"),
    ],
)  # fmt: skip
def test_a_built_in_reports_every_mistake(use: str, options: dict[str, Any], paths: str) -> None:
    """Types, ranges and what only the class knows."""
    assert sorted(item.option for item in refused(use, options).errors) == paths.split()


# The checks of classes: see test_checks


def test_inherited_hooks_are_checked(module: Callable[..., str]) -> None:
    """Not those of classes that are only imported."""
    assert "InheritsMisspelt has an unknown hook" in str(refused(module(InheritsMisspelt)))
    assert "MisspeltStream has an unknown hook" in str(refused(module(Plain, MisspeltStream)))


def test_imported_stream_classes_are_not_checked(
    module: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use = module(Plain)
    sys.modules["users_module"].Foreign = MisspeltStream  # type: ignore[attr-defined]
    assert type(load_interceptor(use, {})) is Plain
