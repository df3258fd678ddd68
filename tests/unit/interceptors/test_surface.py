"""The public API of `interceptors`: names, signatures and types. No change is an accident.

mypy and pyright, both strict, must accept `surface/surface.py` and reject each marked line of
`surface/wrong.py`, with the packages of a wheel and of an editable install.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from collections.abc import Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.required import lacking

import interceptors
import interceptors.testing

ROOT = Path(__file__).parents[3]
SURFACE = ROOT / "tests" / "surface"
PACKAGES = ("pools", "interceptors", "proxy")

NAMES = {
    "interceptors": """
        Abort AsyncStreamInterceptor End Event EventResult EventTooLarge Headers HookError Interceptor InterceptorError LoadError
        Needs NotJson OnError Outcome Request Response ResponseHead StaleEvent StreamAborted StreamContext StreamInterceptor
        StreamOver
    """,
    "interceptors.testing": "ChainResult NothingCalled run_chain run_json run_request run_response",
}

PUBLIC = re.compile(r"interceptors\.((api|errors|event|message|needs|testing)\.|[A-Z]\w*$)")
"""The modules of the API. How a chain runs (`chain`, `stream`, `hooks`) is not part of it."""

SIGNATURES = """
class Abort(Exception)
    __init__(reason: str) -> None
class AsyncStreamInterceptor
    needs: Needs = None
    async on_complete(self) -> Event | Sequence[Event] | None
    async on_end(self, outcome: Outcome) -> None
    async on_event(self, event: Event) -> EventResult
    async on_start(self, head: ResponseHead) -> None
    passes_unseen: bool = False
class End
    __init__(*events: Event) -> None
    events
class Event
    __init__(data: str | None = None, *, json: Any = UNSET, event: str | None = None, id: str | None = None, retry: int
        | None = None) -> None
    add_to(self, output: PooledOutput) -> int
    data: str
    detach(self) -> Event
    event: str | None
    id: str | None
    is_body: bool = False
    json(self) -> Any
    made_by: Any
    raw: bytes
    replace(self, data: str | None = None, *, json: Any = UNSET, event: str | None = UNSET, id: str | None = UNSET,
        retry: int | None = UNSET) -> Event
    retry: int | None
    unknown: str
EventResult = interceptors.event.Event | collections.abc.Sequence[interceptors.event.Event] | interceptors.api.End |
        None
class EventTooLarge(InterceptorError)
    __init__(max_event_bytes: int, interceptor: str | None = None) -> None
Headers = <class 'httpx.Headers'>
class HookError(InterceptorError)
    __init__(interceptor: str, hook: str, problem: str, place: str | None = None) -> None
class Interceptor
    collectors(self) -> Iterable[Collector]
    hook_timeout_s: float | None = 30.0
    lifespan(self) -> AbstractAsyncContextManager[object]
    needs_state: tuple[str, ...] = ()
    on_error: OnError = 'abort'
    async on_request(self, request: Request) -> Response | None
    async on_response(self, head: ResponseHead) -> Response | None
    open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor | None
    sets_headers: tuple[str, ...] = ()
    sets_state: tuple[str, ...] | None = None
    uses_state: tuple[str, ...] = ()
    wants_body: bool = False
    wants_dialect: bool = False
    wants_json: bool = False
class InterceptorError(Exception)
class LoadError(InterceptorError)
    __init__(message: str, option: str = '', hint: str = '', others: Sequence[LoadError] = ()) -> None
    errors: tuple[LoadError, ...]
Needs = re.Pattern[bytes] | collections.abc.Sequence[bytes] | None
class NotJson(InterceptorError, ValueError)
OnError = typing.Literal['abort', 'skip']
class Outcome(StrEnum)
    COMPLETED = 'completed'
    CLIENT_DISCONNECTED = 'client_disconnected'
    UPSTREAM_ERROR = 'upstream_error'
    UPSTREAM_TIMEOUT = 'upstream_timeout'
    SEND_STALLED = 'send_stalled'
    INTERCEPTED = 'intercepted'
    REFUSED = 'refused'
    INTERNAL_ERROR = 'internal_error'
    DRAINING = 'draining'
class Request
    __init__(*, method: str = 'GET', path: str = '/', raw_path: bytes | None = None, query: bytes = b'', headers:
        Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers = (), body: bytes | bytearray | memoryview | None =
        b'', route: str = '/', dialect: str = 'generic', client: str | None = None, has_body: bool | None = None) ->
        None
    body: bytes
    is_preflight: bool
    json(self) -> Any
    log: Any
    path: str (may be set)
    raw_path: bytes
    refuse(self, status: int, kind: str, message: str, *, headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] |
        Headers = ()) -> Response
    replace_body(self, data: bytes | str | None = None, *, json: Any = UNSET) -> None
    set_body(self, body: bytes | bytearray | memoryview | None) -> None
    start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None
class Response
    __init__(body: bytes | str = b'', *, status: int = 200, headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] |
        Headers = (), json: Any = UNSET, events: Iterable[Event] | AsyncIterable[Event] | None = None) -> None
class ResponseHead
    __init__(status: int, headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers, request: Request | None
        = None) -> None
    media_type: str
    status: int (may be set)
class StaleEvent(InterceptorError)
    __init__() -> None
class StreamAborted(InterceptorError)
    __init__(interceptor: str, reason: str) -> None
class StreamContext
    __init__(request: Request, emit: Emit | None = None, owner: Any = None, *, is_body: bool = False) -> None
    client: str | None
    dialect: str
    async emit(self, event: Event) -> None
    headers: Headers
    is_body
    log: Any
    method: str
    note_unread(self, reason: str, event_type: str | None = None, *, count: int = 1) -> None
    path: str
    request
    route: str
    start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None
    state: dict[str, Any]
class StreamInterceptor
    needs: Needs = None
    on_complete(self) -> Event | Sequence[Event] | None
    on_end(self, outcome: Outcome) -> None
    on_event(self, event: Event) -> EventResult
    on_start(self, head: ResponseHead) -> None
    passes_unseen: bool = False
class StreamOver(InterceptorError)
    __init__() -> None
class ChainResult
    __init__(output: bytes, counts: EventCounts, failure: InterceptorError | None, ended: bool = False) -> None
    counts: EventCounts
    ended: bool
    failure: InterceptorError | None
    output: bytes
class NothingCalled(UserWarning)
run_chain(interceptors: Sequence[Interceptor], chunks: Iterable[bytes], *, request: Request | None = None, head:
        ResponseHead | None = None, max_event_bytes: int = 1048576) -> ChainResult
run_json(interceptors: Sequence[Interceptor], body: bytes, *, request: Request | None = None, head: ResponseHead | None
        = None, max_event_bytes: int = 1048576) -> bytes
run_request(interceptors: Sequence[Interceptor], request: Request) -> Response | None
run_response(interceptors: Sequence[Interceptor], head: ResponseHead) -> Response | None
"""


def modules() -> list[Any]:
    return [interceptors, interceptors.testing]


class Plain(str):
    """An annotation, which is kept as text, without its quotes."""

    __repr__ = str.__str__


def signature(value: Any) -> inspect.Signature:
    found = inspect.signature(value)
    parameters = [
        item if item.annotation is item.empty else item.replace(annotation=Plain(item.annotation))
        for item in found.parameters.values()
    ]
    return found.replace(parameters=parameters, return_annotation=Plain(found.return_annotation))


def describe_class(cls: type) -> Iterator[str]:
    """The public members that a class adds to its bases."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {cls.__name__}" + (f"({bases})" if bases else "")
    if issubclass(cls, Enum):
        yield from (f"    {name} = {item.value!r}" for name, item in cls.__members__.items())
        return
    own = vars(cls)
    if "__init__" in own:
        yield f"    __init__{signature(cls)}"
    public = {
        name
        for name in own.keys() | own.get("__annotations__", {}).keys()
        if not name.startswith("_")
    }
    for name in sorted(public):
        value, hint = own.get(name), own.get("__annotations__", {}).get(name)
        if isinstance(value, property):
            settable = "" if value.fset is None else " (may be set)"
            yield f"    {name}: {signature(value.fget).return_annotation}{settable}"
        elif inspect.isfunction(value):
            yield f"    {'async ' * inspect.iscoroutinefunction(value)}{name}{signature(value)}"
        elif hint is None or inspect.ismemberdescriptor(value):
            yield f"    {name}" + (f": {hint}" if hint else "")
        else:
            yield f"    {name}: {hint}" + (f" = {value!r}" if name in own else "")


def describe() -> str:
    lines: list[str] = []
    for module in modules():
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.isclass(value) and value.__module__.split(".")[0] == "interceptors":
                lines += describe_class(value)
            elif inspect.isfunction(value):
                lines.append(f"{name}{signature(value)}")
            else:
                lines.append(f"{name} = {value}")
    return "\n".join(
        "\n".join(textwrap.wrap(line, 120, subsequent_indent=" " * 8)) for line in lines
    )


def test_the_public_names_are_these() -> None:
    for module in modules():
        assert sorted(module.__all__) == NAMES[module.__name__].split()
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_public_signatures_are_these() -> None:
    """A change here is a change for every author, and needs a line in CHANGELOG.md."""
    assert describe() == SIGNATURES.strip()


def test_every_public_name_is_used_by_the_surface() -> None:
    tree = ast.parse((SURFACE / "surface.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert [name for module in modules() for name in module.__all__ if name not in used] == []


def test_every_public_class_and_function_has_a_docstring() -> None:
    silent = []
    for module in modules():
        for name in module.__all__:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("interceptors")
            if ours and not inspect.getdoc(value):
                silent.append(name)
    assert silent == []


@pytest.fixture(scope="module", params=["editable", "wheel"])
def interpreter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a copy of this tree installed beside this environment's dependencies."""
    for checker in ("mypy", "pyright"):
        if find_spec(checker) is None:
            lacking(checker, "WEIRPOOL_REQUIRE_CHECKERS")
    tree, wheels, home = (
        tmp_path_factory.mktemp(name) for name in ("tree", "wheels", "environment")
    )
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
    site, python = Path(paths["purelib"]), Path(paths["scripts"]) / "python"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    if request.param == "editable":
        install = (
            "pip",
            "--quiet",
            f"--python={python}",
            "install",
            "--no-deps",
            "--editable",
            str(tree),
        )
        run(wheels, *install, fails=False)
        return python
    run(wheels, "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", ".", str(tree), fails=False)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return python


def run(
    directory: Path, *arguments: str, fails: bool = True, environment: dict[str, str] | None = None
) -> str:
    """The output of a module of this environment. `fails`: it may exit with another status."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | (environment or {}),
    )
    assert fails or done.returncode == 0, done.stdout + done.stderr
    return done.stdout or done.stderr


def mypy_errors(directory: Path, python: Path) -> dict[str, dict[int, str]]:
    (directory / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-trio_util.*]\nignore_missing_imports = true\n"
    )
    printed = run(
        directory,
        *(
            "mypy",
            "--config-file=mypy.ini",
            "--cache-dir=cache",
            "--no-error-summary",
            "--hide-error-context",
            "--no-pretty",
        ),
        *(f"--python-executable={python}", "surface.py", "wrong.py"),
        environment={"MYPYPATH": ""},
    )
    found: dict[str, dict[int, str]] = {"surface.py": {}, "wrong.py": {}}
    for line in printed.splitlines():
        match = re.fullmatch(r"(.*?):(\d+): (error|note): (.*)", line)
        assert match, printed
        if match[3] == "error":
            found.setdefault(match[1], {})[int(match[2])] = match[4]
    return found


def pyright_errors(directory: Path, python: Path) -> dict[str, dict[int, str]]:
    settings = {"include": ["surface.py", "wrong.py"], "typeCheckingMode": "strict"}
    (directory / "pyrightconfig.json").write_text(json.dumps(settings))
    printed = run(directory, "pyright", "--outputjson", "--pythonpath", str(python))
    report = json.loads(printed)
    assert report["summary"]["filesAnalyzed"] >= 2, printed
    found: dict[str, dict[int, str]] = {"surface.py": {}, "wrong.py": {}}
    for item in report["generalDiagnostics"]:
        found.setdefault(Path(item["file"]).name, {})[item["range"]["start"]["line"] + 1] = item[
            "message"
        ]
    return found


@pytest.mark.parametrize("errors_of", [mypy_errors, pyright_errors], ids=["mypy", "pyright"])
def test_type_checkers_take_every_right_use_and_refuse_every_wrong_one(
    interpreter: Path, errors_of: Any, tmp_path: Path
) -> None:
    """No error in the surface; of the wrong uses exactly the marked lines."""
    for name in ("surface.py", "wrong.py"):
        shutil.copy(SURFACE / name, tmp_path)
    errors = errors_of(tmp_path, interpreter)
    assert errors.pop("surface.py") == {}
    lines = (SURFACE / "wrong.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# expect-error")}
    found = errors.pop("wrong.py")
    assert {number: lines[number - 1] for number in expected - found.keys()} == {}, (
        "these went unnoticed"
    )
    assert {number: found[number] for number in found.keys() - expected} == {}, "these are right"
    assert errors == {}
    assert len(expected) >= 40


@pytest.mark.parametrize("interpreter", ["wheel"], indirect=True)
def test_the_types_of_an_installed_package_are_complete(interpreter: Path, tmp_path: Path) -> None:
    """pyright finds `py.typed`, and infers no type of a public name."""
    python = interpreter
    site = Path(sysconfig.get_path("purelib", vars={"base": str(python.parents[1])}))
    assert [package for package in PACKAGES if not (site / package / "py.typed").is_file()] == []
    report = json.loads(
        run(
            tmp_path,
            *("pyright", "--outputjson", "--ignoreexternal", "--verifytypes", "interceptors"),
            environment={
                "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"
            },  # here it takes no --pythonpath
        )
    )
    completeness = report["typeCompleteness"]
    public = [item for item in completeness["symbols"] if PUBLIC.match(item["name"])]
    assert {item["name"]: item["diagnostics"] for item in public if not item["isTypeKnown"]} == {}
    assert len(public) > 100, report["generalDiagnostics"]
