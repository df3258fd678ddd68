"""The loader finds a class by name and refuses, with a path, what could only fail later."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import pytest

from interceptors import (
    Event,
    Interceptor,
    LoadError,
    Request,
    StreamContext,
    StreamInterceptor,
    loader,
)
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


class Picky(Interceptor):
    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError("limit is negative")


class KeywordOnly(Interceptor):
    def __init__(self, *, limit: int, **others: Any) -> None:
        self.given = (limit, others)


class Untyped(Interceptor):
    def __init__(self, anything) -> None:  # type: ignore[no-untyped-def]
        self.given = anything


class SkipsErrors(Interceptor):
    on_error = "skip"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Puts classes into an importable module and answers with the name of the first, as `use` wants
    it.
    """

    monkeypatch.setattr(
        "interceptors.checks._checked", WeakSet()
    )  # a class is checked once, and with the others of its module

    def put(*classes: type) -> str:
        monkeypatch.setattr(
            "interceptors.checks._checked", set()
        )  # the same class stands in another module each time
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


# --- finding
# ------------------------------------------------------------------------------------------------------------


def test_a_class_is_loaded_by_module_and_name() -> None:
    """`package.module:Class` imports the module and makes the class with its options."""
    assert type(load_interceptor("interceptors.redact:Redact", {"patterns": ["a"]})) is Redact


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            "no_such_module_anywhere:X",
            r"cannot import 'no_such_module_anywhere': ModuleNotFoundError",
        ),
        ("interceptors.redact:Nope", r"'interceptors\.redact' has no 'Nope'"),
        ("interceptors.redact:re", r"not a subclass of interceptors\.Interceptor"),
        ("interceptors.redact:StreamInterceptor", r"not a subclass of interceptors\.Interceptor"),
        (
            "nobody-registered-this",
            r"neither package\.module:Class, nor file\.py:Class, nor an entry point of the group 'weirpool\.interceptors'",
        ),
        (
            "interceptors.redact",
            r"neither package\.module:Class, nor file\.py:Class, nor an entry point",
        ),
        (":Redact", r"cannot import ''"),
        ("interceptors.redact:", r"has no ''"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(use: str, message: str) -> None:
    """Each wrong `use` is a LoadError of the interceptor itself (`option` is "") that says what is
    wrong.
    """
    with pytest.raises(LoadError, match=message) as caught:
        load_interceptor(use, {})
    assert caught.value.option == ""


def test_a_module_that_fails_while_it_is_imported_is_a_load_error(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a user's module raises becomes a LoadError that names module and exception, with the
    cause kept.
    """
    (tmp_path / "broken_at_import.py").write_text("raise KeyError('set MY_TOKEN')\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = refused("broken_at_import:X")
    assert str(error) == "cannot import 'broken_at_import': KeyError: 'set MY_TOKEN'"
    assert isinstance(error.__cause__, KeyError)


class FakeEntryPoint:
    def __init__(self, name: str, loaded: Any) -> None:
        self.name = name
        self.loaded = loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed is up to the environment; these are the entry points of this test."""
    points = [
        FakeEntryPoint("redact", Redact),
        FakeEntryPoint("tuned", Tuned),
        FakeEntryPoint("broken", ImportError("no module named tokenizers")),
        FakeEntryPoint("no-class", lambda: None),
    ]

    def installed(*, group: str) -> list[FakeEntryPoint]:
        assert group == ENTRY_POINT_GROUP == "weirpool.interceptors"
        return points

    monkeypatch.setattr(loader, "entry_points", installed)


@pytest.mark.usefixtures("entry_points")
def test_a_name_without_colon_is_an_entry_point() -> None:
    """An installed interceptor is loaded by its entry point's name, with its options checked as
    ever.
    """
    assert type(load_interceptor("redact", {"patterns": ["a"]})) is Redact
    assert refused("redact", {"patterns": 3}).option == "patterns"


@pytest.mark.usefixtures("entry_points")
def test_an_entry_point_that_cannot_be_loaded_is_refused() -> None:
    """A broken one says why, one that is no interceptor says so, an unknown name says where it was
    looked for.
    """
    assert (
        str(refused("broken"))
        == "cannot load the entry point 'broken': ImportError: no module named tokenizers"
    )
    assert "not a subclass" in str(refused("no-class"))
    assert "'weirpool.interceptors'" in str(refused("unknown"))


# --- options
# ------------------------------------------------------------------------------------------------------------


def test_options_reach_init_and_absent_ones_keep_their_defaults(module: Callable[..., str]) -> None:
    """Given options are passed by name, the rest are `__init__`'s defaults."""
    use = module(Tuned)
    assert load_interceptor(use, {"words": ["a"]}).given == (["a"], 3, "a", None)  # type: ignore[attr-defined]
    full = {"scale": 2, "mode": "b", "limit": 7, "words": []}
    interceptor: Any = load_interceptor(use, full)
    assert interceptor.given == ([], 7, "b", 2.0)
    assert isinstance(interceptor.given[3], float)


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({}, "words", "missing option `words`"),
        ({"words": "abc"}, "words", "must be a list: write it in brackets"),
        ({"words": ["a", 3]}, "words[1]", "must be a string: write it in quotes"),
        ({"words": [], "limit": "many"}, "limit", "must be a whole number"),
        ({"words": [], "limit": None}, "limit", "must be a whole number"),
        ({"words": [], "mode": "c"}, "mode", "must be one of a, b"),
        ({"words": [], "limti": 7}, "limti", "unknown option `limti`: did you mean `limit`"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_its_path(
    module: Callable[..., str], options: dict[str, Any], option: str, message: str
) -> None:
    """Missing, unknown and mistyped options: `option` is the path below `options`, the message says
    what is expected.
    """
    use = module(Tuned)
    with pytest.raises(LoadError, match=message) as caught:
        load_interceptor(use, options)
    assert caught.value.option == option


def test_an_interceptor_without_options_takes_none(module: Callable[..., str]) -> None:
    """A class without `__init__` is made as it is; an option for it is refused."""
    use = module(Plain)
    assert type(load_interceptor(use, {})) is Plain
    error = refused(use, {"limit": 1})
    assert (error.option, str(error)) == (
        "limit",
        "unknown option `limit`: the options here are none",
    )


def test_keyword_arguments_take_what_is_not_named(module: Callable[..., str]) -> None:
    """`**others` accepts any option, while the named ones are still checked."""
    use = module(KeywordOnly)
    interceptor: Any = load_interceptor(use, {"limit": 1, "x": [1], "y": None})
    assert interceptor.given == (1, {"x": [1], "y": None})
    assert refused(use, {"limit": "x"}).option == "limit"
    assert refused(use, {"x": 1}).option == "limit"


def test_an_option_without_annotation_takes_anything(module: Callable[..., str]) -> None:
    """No annotation, no conversion: the value arrives as it was configured."""
    value = {"any": ["thing", 1, None]}
    assert load_interceptor(module(Untyped), {"anything": value}).given == value  # type: ignore[attr-defined]


def test_what_init_refuses_is_a_load_error(module: Callable[..., str]) -> None:
    """An exception in `__init__` becomes a LoadError with its text; the exception is the cause."""
    use = module(Picky)
    error = refused(use, {"limit": -1})
    assert str(error) == f"{use!r} refused its options: limit is negative"
    assert isinstance(error.__cause__, ValueError)


# --- hooks
# --------------------------------------------------------------------------------------------------------------


class MisspeltOnInterceptor(Interceptor):
    def on_evnet(self, event: Event) -> Event:
        return event


class StreamsHookOnInterceptor(Interceptor):
    def on_event(self, event: Event) -> Event:
        return event


class Strange(Interceptor):
    def on_weekdays(self) -> None: ...


class InheritsMisspelt(MisspeltOnInterceptor):
    pass


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            MisspeltOnInterceptor,
            "MisspeltOnInterceptor has an unknown hook 'on_evnet': "
            "did you mean 'on_event', which belongs on a class that extends StreamInterceptor?",
        ),
        (
            StreamsHookOnInterceptor,
            "StreamsHookOnInterceptor has an unknown hook 'on_event': it belongs on a class that extends StreamInterceptor",
        ),
        (
            InheritsMisspelt,
            "InheritsMisspelt has an unknown hook 'on_evnet': "
            "did you mean 'on_event', which belongs on a class that extends StreamInterceptor?",
        ),
        (Strange, "Strange has an unknown hook 'on_weekdays'; known are: on_request, on_response"),
    ],
)
def test_an_unknown_hook_on_an_interceptor_is_refused(
    module: Callable[..., str], cls: type, message: str
) -> None:
    """Misspelt, inherited, or a stream's hook on the wrong class: it would never be called, and the
    error has its place.
    """
    error = refused(module(cls))
    assert str(error) == message
    assert error.option == ""


class MisspeltStream(StreamInterceptor):
    def on_events(self, event: Event) -> Event:
        return event


class AsyncStream(StreamInterceptor):
    async def on_event(self, event: Event) -> Event:  # type: ignore[override]
        return event


class GoodStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        return event

    def once(self) -> None:
        """Not a hook by its name."""


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (
            MisspeltStream,
            "MisspeltStream has an unknown hook 'on_events': did you mean 'on_event'?",
        ),
        (
            AsyncStream,
            "AsyncStream.on_event is async, but the hooks of a StreamInterceptor are not; "
            "subclass AsyncStreamInterceptor to await in them",
        ),
    ],
)
def test_a_wrong_stream_class_in_the_module_is_refused_at_load(
    module: Callable[..., str], stream: type[StreamInterceptor], message: str
) -> None:
    """The stream classes beside the interceptor are checked before any stream opens."""
    assert str(refused(module(Plain, stream))) == message


def test_right_hooks_and_other_methods_are_accepted(module: Callable[..., str]) -> None:
    """Known hooks pass, and so does any method that does not begin with `on_`."""
    assert type(load_interceptor(module(Plain, GoodStream), {})) is Plain


def test_stream_classes_that_are_only_imported_are_not_this_modules_business(
    module: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong stream class that belongs to another module does not keep this one from loading."""
    use = module(Plain)
    sys.modules["users_module"].Foreign = MisspeltStream  # type: ignore[attr-defined]
    assert MisspeltStream.__module__ != "users_module"
    assert type(load_interceptor(use, {})) is Plain


@pytest.mark.parametrize("value", ["abrot", "", None, True])
def test_an_on_error_that_is_neither_is_refused(module: Callable[..., str], value: object) -> None:
    """`on_error` is abort or skip; a typo would otherwise silently mean one of them."""
    cls = type("Typo", (Interceptor,), {"on_error": value})
    assert f"on_error is {value!r}, expected one of abort, skip" in str(refused(module(cls)))


def test_on_error_skip_is_accepted(module: Callable[..., str]) -> None:
    """The other documented value."""
    assert load_interceptor(module(SkipsErrors), {}).on_error == "skip"


def test_a_loaded_interceptor_opens_streams(module: Callable[..., str]) -> None:
    """What comes back is ready for use: the default of an Interceptor is to stay out of a stream."""
    context = StreamContext(Request())
    assert load_interceptor(module(Plain), {}).open_stream(context) is None


def test_a_mistake_that_only_the_class_can_see_is_shown_at_its_option() -> None:
    """An exception whose message begins with an option's path is that option's; one that begins
    with another word is not.
    """
    error = refused("interceptors.redact:Redact", {"patterns": ["fine", "("]})
    assert (error.option, str(error)[:22]) == ("patterns[1]", "missing ), unterminate")
    assert refused("interceptors.mcp_policy:McpPolicy", {}).option == ""


class TextNeeds(StreamInterceptor):
    needs = ("error",)  # type: ignore[assignment]


class BareNeeds(StreamInterceptor):
    needs = b"error"


class LaterNeeds(StreamInterceptor):
    @property
    def needs(self) -> Any:  # type: ignore[override]
        return (b"error",)


@pytest.mark.parametrize("cls", [TextNeeds, BareNeeds])
def test_needs_that_are_none_are_refused_at_load(module: Callable[..., str], cls: type) -> None:
    """On a stream's class in the module, and not first when a stream opens."""
    with pytest.raises(LoadError, match=f"{cls.__name__}: needs is"):
        load_interceptor(module(Plain, cls), {})


def test_needs_that_only_an_object_knows_are_left_to_it(module: Callable[..., str]) -> None:
    assert isinstance(load_interceptor(module(Plain, LaterNeeds), {}), Plain)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hook_timeout_s", "30", "hook_timeout_s is '30'"),
        ("hook_timeout_s", 0, "hook_timeout_s is 0"),
        ("wants_bodies", True, "unknown setting 'wants_bodies'"),
    ],
)
def test_an_attribute_that_is_misspelt_or_of_the_wrong_kind_is_refused(
    module: Callable[..., str], name: str, value: object, message: str
) -> None:
    """It would do nothing, or fail in the first hook that is awaited."""
    with pytest.raises(LoadError, match=message):
        load_interceptor(module(type("Wrong", (Interceptor,), {name: value})), {})


@pytest.mark.parametrize("value", [None, 1, 0.5])
def test_a_right_timeout_is_accepted(module: Callable[..., str], value: float | None) -> None:
    load_interceptor(module(type("Right", (Interceptor,), {"hook_timeout_s": value})), {})


# --- every mistake at once
# ----------------------------------------------------------------------------------------------


class Two(Interceptor):
    def __init__(self, words: list[str], limit: int = 3) -> None:
        wrong = [
            ValueError(f"words[{index}]: is empty") for index, word in enumerate(words) if not word
        ]
        if limit < 0:
            wrong.append(ValueError("limit is negative"))
        if wrong:
            raise ExceptionGroup("options", wrong)


def test_every_wrong_option_is_told(module: Callable[..., str]) -> None:
    """Unknown, missing and mistyped options, and what `__init__` finds wrong in the others: one
    error has all of them.
    """
    found = refused(module(Two), {"words": ["", "a", ""], "limit": "x", "limti": 3}).errors
    assert sorted(item.option for item in found) == ["limit", "limti", "words[0]", "words[2]"]
    found = refused(module(Two), {"words": [""], "limit": -1}).errors
    assert (found[0].option, found[0].problem) == ("words[0]", "is empty")
    assert "limit is negative" in found[1].problem
    assert sorted(
        item.option for item in refused(module(Two), {"limit": None, "more": 1}).errors
    ) == [
        "limit",
        "more",
        "words",
    ]


@pytest.mark.parametrize(
    ("use", "options", "paths"),
    [
        (
            "redact",
            {"patterns": ["(", "a", "["], "window": 0},
            ["patterns[0]", "patterns[2]", "window"],
        ),
        (
            "guard",
            {"patterns": ["(", "a*", "b"], "window": 0, "kinds": ["x"]},
            ["kinds[0]", "patterns[0]", "patterns[1]", "window"],
        ),
        (
            "api_keys",
            {"keys": {"ann": "x", "bob": ["y"]}, "upstream": "", "header": ""},
            ["header", "keys.ann", "keys.bob[0]", "upstream"],
        ),
        (
            "rate_limit",
            {"requests_per_minute": 0, "burst": 0, "max_clients": 0, "by": "x"},
            ["burst", "by", "max_clients", "requests_per_minute"],
        ),
        (
            "usage",
            {"max_models": 0, "max_clients": 0, "ask": "maybe"},
            ["ask", "max_clients", "max_models"],
        ),
        (
            "mcp_policy",
            {"tools": {"allow": [""], "deny": [""]}, "prompts": {"deny": [""]}},
            ["prompts.deny[0]", "tools.allow[0]", "tools.deny[0]"],
        ),
        (
            "audit",
            {"path": "a", "keep": 0, "headers": ["cookie", "x", "authorization"]},
            ["headers[0]", "headers[2]", "keep"],
        ),
        (
            "audit",
            {"path": "a", "headers": ["cookie", "x", "authorization"]},
            ["headers[0]", "headers[2]"],
        ),
    ],
)
def test_a_built_in_tells_all_that_is_wrong_with_its_options(
    use: str, options: dict[str, Any], paths: list[str]
) -> None:
    """Types, ranges and what only the class knows, in one error."""
    assert sorted(item.option for item in refused(use, options).errors) == paths


def test_text_that_spells_a_number_is_taken_for_one(module: Callable[..., str]) -> None:
    """`${RATE}` in a configuration gives text. What is no number stays wrong, and an option of text
    stays text.
    """
    made: Any = load_interceptor(module(Tuned), {"words": ["7"], "limit": "7", "scale": "1e-1"})
    assert made.given == (["7"], 7, "a", 0.1)
    for text in ("7.5", "7s", "", " 7", "0x7"):
        assert refused(module(Tuned), {"words": [], "limit": text}).option == "limit"


@pytest.mark.parametrize("name", ["sets_state", "needs_state", "uses_state", "sets_headers"])
def test_declared_names_are_a_tuple_of_strings(module: Callable[..., str], name: str) -> None:
    """A string would be taken for its letters."""
    wrong = type("Declares", (Interceptor,), {name: "client_key"})
    assert f"{name} is 'client_key', expected a tuple of strings" in str(refused(module(wrong)))
    right = type("Declares", (Interceptor,), {name: ("client_key",)})
    assert getattr(load_interceptor(module(right), {}), name) == ("client_key",)


@pytest.mark.parametrize(
    "text",
    ["raise SystemExit(0)", "class Ends(Interceptor):\n    def __init__(self): raise SystemExit"],
)
def test_what_ends_the_process_is_refused_at_load(text: str, tmp_path: Path) -> None:
    """A module that is a script must not end the proxy, nor let the check pass."""
    (tmp_path / "ends.py").write_text(f"from interceptors import Interceptor\n{text}\n")
    assert "it ends the process (SystemExit: " in str(refused(f"{tmp_path}/ends.py:Ends"))


def test_annotations_that_only_a_type_checker_resolves_are_refused_at_load(tmp_path: Path) -> None:
    text = """
from __future__ import annotations
from interceptors import Interceptor

class Typed(Interceptor):
    def __init__(self, key: Decimal) -> None: ...
"""
    (tmp_path / "typed.py").write_text(text)
    error = refused(f"{tmp_path}/typed.py:Typed", {"key": "1"})
    assert str(error).startswith(
        "the annotations of Typed.__init__ cannot be resolved: name 'Decimal' is not defined"
    )


def test_a_misspelt_class_or_entry_point_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text(
        "from interceptors import Interceptor\nclass Guard(Interceptor): ...\n"
    )
    assert refused(f"{tmp_path}/near.py:Gaurd").hint == "did you mean 'Guard'?"
    assert refused("api_key").hint == "did you mean 'api_keys'?"
    assert "rate_limit" in refused("nothing-like-it").hint
