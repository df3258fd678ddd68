"""Every public item has a test that reaches it as its user does: `tests/reach.txt` lists both.

`support/items.py` finds the items in the code. A new item without a test fails here.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from support.items import ROOT, items

TESTS = ROOT / "tests"
USERS_WAY = ("integration/", "providers/", "unit/test_documentation.py", "unit/test_deploy.py")
"""Tests that use processes, sockets, files named in a configuration, or the docs' examples."""
SECTIONS = {"reverse_proxy", "routes", "upstreams", "interceptors", "buffer_pools"}
"""Parts of a key's path that helpers write."""
HOW = """
Each of these needs a test that reaches it as its user does (a class from a file named in YAML, a key from YAML over a real socket,
a metric from GET /metrics, a log event from the log, a header over a socket, an option of the command line), and then a line in
tests/reach.txt: `kind name = file::test`. There are tables for it: tests/integration/test_reach_*.py."""


def table() -> dict[str, str]:
    """Each item with its test."""
    lines = (TESTS / "reach.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" = ") for line in lines if line and not line.startswith("#"))


TABLE = table()


class Module:
    """The source of a module of tests, by the names at its top."""

    def __init__(self, path: Path) -> None:
        self.lines = path.read_text(encoding="utf-8").splitlines()
        self.named: dict[str, ast.stmt] = {}
        for node in ast.parse("\n".join(self.lines)).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.named[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [item for target in targets for item in ast.walk(target)]
                self.named |= {item.id: node for item in names if isinstance(item, ast.Name)}

    @cache  # noqa: B019 - modules live as long as the tests
    def source_of(self, name: str) -> str:
        """The source of a test, its parametrisation, and what it uses of the module."""
        found: dict[str, str] = {}
        wanted = [name]
        while wanted:
            name = wanted.pop()
            if name not in found and name in self.named:
                node = self.named[name]
                first = min(item.lineno for item in [node, *getattr(node, "decorator_list", ())])
                found[name] = "\n".join(self.lines[first - 1 : node.end_lineno])
                wanted += re.findall(r"\w+", found[name])
        return "\n".join(found.values())


@cache
def module(path: str) -> Module:
    return Module(TESTS / path)


def words_of(item: str) -> list[str]:
    """The words that the source of an item's test must contain."""
    kind, _, name = item.partition(" ")
    if kind == "class":
        return [name.rpartition(".")[2]]
    if kind == "key":
        words = [word for word in name.split(".") if word not in SECTIONS]
        return words or [name.rpartition(".")[2]]
    if kind == "command":
        words = name.split()
        return [words[1]] if words[0] == "weirpool" else [word for word in words if word.islower()]
    return name.split(".") if kind in ("hook", "option") else [name]


def mentions(source: str, word: str, kind: str) -> bool:
    suffix = "(_total|_count|_sum|_bucket)?" if kind == "metric" else ""
    pattern = rf"(?<![\w-]){re.escape(word)}{suffix}(?![\w-])"
    return re.search(pattern, source, re.IGNORECASE if kind == "header" else 0) is not None


def test_every_item_has_a_test() -> None:
    found = items()
    assert len(found) > 400, "support/items.py finds too little"
    missing, gone = sorted(found - set(TABLE)), sorted(set(TABLE) - found)
    assert not missing, f"no test reaches {', '.join(missing)}.{HOW}"
    assert not gone, f"remove from tests/reach.txt, these items are gone: {', '.join(gone)}"


def test_every_test_is_there_and_reaches_its_item() -> None:
    """It exists, works as a user does, and its source has the item's name."""
    wrong = []
    for item, place in TABLE.items():
        kind, (path, _, name) = item.partition(" ")[0], place.partition("::")
        if not path.startswith(USERS_WAY):
            wrong.append(f"{item}: {path} does not reach it as a user does")
        elif not (TESTS / path).is_file() or name not in module(path).named or name[:5] != "test_":
            wrong.append(f"{item}: there is no test {place}")
        else:
            source = module(path).source_of(name)
            missing = [word for word in words_of(item) if not mentions(source, word, kind)]
            if missing:
                wrong.append(f"{item}: {place} has no {', '.join(missing)}")
    assert not wrong, "\n".join(wrong) + HOW


def test_the_table_is_sorted_and_has_each_item_once() -> None:
    """So that changes conflict only where they are about the same item."""
    text = (TESTS / "reach.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == sorted(lines, key=lambda line: line.split(" = "))
    assert len(lines) == len(TABLE)


def test_the_monitoring_page_lists_every_error_type() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    section = page.partition("### Error types\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall("`([a-z_]+)`", row)]
    assert sorted(listed) == sorted(
        item.partition(" ")[2] for item in items() if item.startswith("error ")
    )
