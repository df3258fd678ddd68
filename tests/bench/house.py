"""Print the figures of the code base: structure, complexity, size, and the calls one request makes.

    pip install -e '.[lint]' && python tests/bench/house.py [ROOT] [--list] [--only PREFIX] [--no-calls]

ROOT is any checkout (default: this one). `--list` names every function and module above the limits;
`--only interceptors/` limits that list to paths with a prefix. Complexity is radon's. The calls are
counted by `sys.setprofile` in a server process that answers one GET of an event stream after a
warm-up request, with the client and the upstream in other threads, which the profile does not see.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGES = ("proxy", "interceptors", "pools")
LIMITS = {"complexity": 20, "function": 60, "module": 400}
SETTLE_S = 0.1


# -- structure ------------------------------------------------------------------------------------


def modules(root: Path) -> dict[str, Path]:
    """Dotted names and files of every module of the packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, names: dict[str, Path]) -> set[str]:
    """The modules that a module imports, imports for types included."""
    path, found = names[name], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in names else base)
    return (found & set(names)) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by mutual reachability."""
    reach = {name: reachable(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    """Every module that a module imports, directly or not."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for target in graph[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def longest_chain(graph: dict[str, set[str]], groups: list[list[str]]) -> list[str]:
    """The longest import chain. Modules of one circle count as one floor."""
    group_of = {name: group[0] for group in groups for name in group}
    edges: dict[str, set[str]] = {}
    for name, targets in graph.items():
        own = group_of.get(name, name)
        edges.setdefault(own, set()).update({group_of.get(t, t) for t in targets} - {own})
    longest: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in longest:
            below = max((chain(target) for target in sorted(edges[name])), key=len, default=[])
            longest[name] = [name, *below]
        return longest[name]

    return max((chain(name) for name in sorted(edges)), key=len)


# -- size and complexity --------------------------------------------------------------------------


@dataclass
class Sizes:
    """Functions and modules, each with its figure and its place."""

    functions: list[tuple[int, str]] = field(default_factory=list)
    files: list[tuple[int, str]] = field(default_factory=list)
    complexity: list[tuple[int, str]] = field(default_factory=list)


def measure(root: Path, paths: list[Path]) -> Sizes:
    """Lines of functions and modules, and radon's cyclomatic complexity of functions and methods."""
    try:
        from radon.complexity import cc_visit
    except ImportError:
        sys.exit("house.py needs radon: pip install -e '.[lint]'")
    sizes = Sizes()
    for path in paths:
        text, where = path.read_text(), str(path.relative_to(root))
        sizes.files.append((text.count("\n"), where))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                sizes.functions.append((lines, f"{where}:{node.lineno} {node.name}"))
        for block in cc_visit(text):
            if block.letter in "FM":
                place = f"{where}:{block.lineno} {block.fullname}"
                sizes.complexity.append((block.complexity, place))
    return sizes


def lines_by_package(root: Path, top: str) -> Counter[str]:
    """Lines of Python below a folder, by the folder one level down."""
    lines: Counter[str] = Counter()
    for path in (root / top).rglob("*.py"):
        parts = path.relative_to(root).parts
        lines["/".join(parts[:2]) if len(parts) > 2 else top] += path.read_text().count("\n")
    return lines


# -- calls of one request -------------------------------------------------------------------------

CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["http://127.0.0.1:%d"]}]
  routes: [{path: /, upstream: up, interceptors: [%s]}]
interceptors: [%s]
log: {level: error}
"""
HOOK = """
from interceptors import Interceptor, StreamInterceptor

class Each(StreamInterceptor):
    def on_event(self, event):
        return event

class Hook(Interceptor):
    def open_stream(self, context):
        return Each()
"""
GET = b"GET /stream HTTP/1.1\r\nHost: example.test\r\nAccept: text/event-stream\r\n\r\n"
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
SENDS = {"send", "sendall", "sendmsg", "sendto"}


class Recorder:
    """The profile of the server's thread. A send to the client's port is recorded as a mark."""

    def __init__(self, root: Path) -> None:
        self._folders = tuple(f"{root / package}{os.sep}" for package in PACKAGES)
        self.client_port = 0
        self.calls: list[CodeType | None] | None = None

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        calls = self.calls
        if calls is None:
            return
        if event == "call":
            if frame.f_code.co_filename.startswith(self._folders):
                calls.append(frame.f_code)
        elif event == "c_call" and getattr(arg, "__name__", "") in SENDS:
            try:
                if arg.__self__.getpeername()[1] == self.client_port:
                    calls.append(None)
            except (AttributeError, OSError, IndexError, TypeError):
                pass

    def take(self) -> list[CodeType | None]:
        """Stop recording, and return the calls in their order."""
        calls, self.calls = self.calls or [], None
        return calls


def serve_measured(root: Path, hook: bool) -> None:
    """The server process: print the calls of one head and one event as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "house_hook.py").write_text(HOOK)
        sys.path[:0] = [str(root), folder]
        import hypercorn.config
        import hypercorn.trio
        import trio

        import proxy

        if not str(Path(proxy.__file__).resolve()).startswith(str(root)):
            sys.exit(f"imported {proxy.__file__}, which is not below {root}")
        upstream = socket.create_server(("127.0.0.1", 0))
        names = ("hook", '{name: hook, use: "house_hook:Hook"}') if hook else ("", "")
        file = Path(folder) / "weirpool.yaml"
        file.write_text(CONFIG % (upstream.getsockname()[1], *names))
        app = proxy.create_app(proxy.load_config(str(file)))
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        server = hypercorn.config.Config()
        server.bind = [f"fd://{listener.detach()}"]
        server.errorlog = None
        recorder = Recorder(root)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda task_status: hypercorn.trio.serve(
                        app, server, mode="asgi", task_status=task_status
                    )
                )
                figures = await trio.to_thread.run_sync(play, recorder, upstream, address)
                print(json.dumps(figures), flush=True)
                os._exit(0)

        sys.setprofile(recorder)
        trio.run(main)


def play(recorder: Recorder, upstream: socket.socket, address: tuple[str, int]) -> dict[str, Any]:
    """Client and upstream: a warm-up request, then the measured one. Runs in a thread."""
    client = socket.create_connection(address)
    client.settimeout(10)
    recorder.client_port = client.getsockname()[1]
    upstream.settimeout(10)
    upstream_side: list[socket.socket] = []
    for measured in (False, True):
        recorder.calls = [] if measured else None
        client.sendall(GET)
        if not upstream_side:
            upstream_side.append(upstream.accept()[0])
        side = upstream_side[0]
        side.settimeout(10)
        read_until(side, b"\r\n\r\n")
        time.sleep(SETTLE_S)
        side.sendall(HEAD)
        read_until(client, b"\r\n\r\n")
        time.sleep(SETTLE_S)
        head = recorder.take()
        side.sendall(CHUNK)  # the first event opens what every stream opens once
        read_until(client, b"\n\n")
        time.sleep(SETTLE_S)
        recorder.calls = []
        side.sendall(CHUNK)
        read_until(client, b"\n\n")
        time.sleep(SETTLE_S)
        event = recorder.take()
        side.sendall(b"0\r\n\r\n")
        read_until(client, b"0\r\n\r\n")
        time.sleep(SETTLE_S)
    return {
        "head": distinct(until_send(from_app(head))),
        "head, from the first byte": distinct(until_send(head)),
        "event": distinct(until_send(event)),
    }


def read_until(sock: socket.socket, end: bytes) -> None:
    """Read until the bytes end as they should."""
    got = b""
    while end not in got:
        data = sock.recv(65536)
        if not data:
            sys.exit(f"the connection ended after {got!r}")
        got += data


def from_app(calls: list[CodeType | None]) -> list[CodeType | None]:
    """The calls from the ASGI app on: the first `__call__` that takes a scope."""
    for at, code in enumerate(calls):
        if code is None or code.co_name not in ("__call__", "asgi_entry"):
            continue
        if "scope" in code.co_varnames:
            return calls[at:]
    return calls


def until_send(calls: list[CodeType | None]) -> list[CodeType]:
    """The calls before the first send to the client."""
    end = calls.index(None) if None in calls else len(calls)
    return [code for code in calls[:end] if code is not None]


def distinct(calls: list[CodeType]) -> dict[str, Any]:
    """Distinct functions (with and without comprehensions, which Python 3.11 counts), distinct
    files, the number of calls, and the names.
    """
    functions = {
        f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}": code for code in calls
    }
    files = {code.co_filename for code in calls}
    return {
        "functions": len(functions),
        "named": sum(not code.co_name.startswith("<") for code in functions.values()),
        "files": len(files),
        "calls": len(calls),
        "names": list(functions),
    }


def count_calls(root: Path, hook: bool) -> dict[str, Any]:
    """Run the server process, and return what it counted."""
    command = [sys.executable, "-P", __file__, str(root), "--serve", "hook" if hook else "plain"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    if done.returncode:
        sys.exit(f"the server process failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# -- report ---------------------------------------------------------------------------------------


def print_structure(names: dict[str, Path]) -> None:
    graph = {name: imports(name, names) for name in names}
    groups = circles(graph)
    chain = longest_chain(graph, groups)
    print(f"modules              {len(names)}")
    print(f"floors               {len(chain)}  ({' > '.join(chain[:3])} > ... > {chain[-1]})")
    print(f"import circles       {len(groups)}")
    for group in groups:
        print(f"                     {' '.join(group)}")


def print_sizes(root: Path, names: dict[str, Path], listed: bool, only: str) -> None:
    sizes = measure(root, list(names.values()))
    figures = {
        "complexity": sizes.complexity,
        "function": sizes.functions,
        "module": sizes.files,
    }
    scores = [score for score, _ in sizes.complexity]
    print(f"functions            {len(sizes.functions)}")
    print(f"mean complexity      {sum(scores) / len(scores):.2f}")
    for kind, found in figures.items():
        limit = LIMITS[kind]
        over = sorted((item for item in found if item[0] > limit), reverse=True)
        worst = max(found)
        print(f"{kind:<20} {len(over)} above {limit}; worst {worst[0]}, {worst[1]}")
        for figure, place in over if listed else ():
            if place.startswith(only):
                print(f"    {figure:>5}  {place}")
    for title, tops in (("source", PACKAGES), ("tests", ("tests",))):
        by_package = sum((lines_by_package(root, top) for top in tops), Counter[str]())
        print(f"lines of {title:<12}{by_package.total()}")
        for package, count in sorted(by_package.items()):
            print(f"    {count:>6}  {package}")


def print_calls(root: Path, listed: bool) -> None:
    for hook in (False, True):
        for what, figures in count_calls(root, hook).items():
            if hook and what != "event":
                continue
            title = f"{what}{' (one hook)' if hook else ''}"
            print(
                f"{title:<28} {figures['functions']} functions ({figures['named']} named) "
                f"in {figures['files']} files, {figures['calls']} calls"
            )
            for name in figures["names"] if listed else ():
                print(f"    {name.removeprefix(f'{root}{os.sep}')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", default=str(Path(__file__).parents[2]))
    parser.add_argument("--list", action="store_true", help="name what is above a limit")
    parser.add_argument("--only", default="", help="list paths that start with this")
    parser.add_argument("--calls", action="store_true", help="name the functions one GET passes")
    parser.add_argument("--no-calls", action="store_true", help="do not run a server")
    parser.add_argument("--serve", choices=("plain", "hook"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root = Path(arguments.root).resolve()
    if arguments.serve:
        serve_measured(root, arguments.serve == "hook")
        return
    names = modules(root)
    print_structure(names)
    print_sizes(root, names, arguments.list, arguments.only)
    if not arguments.no_calls:
        print_calls(root, arguments.calls)


if __name__ == "__main__":
    main()
