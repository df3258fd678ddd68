"""Print the figures of the code base: complexity and size.

    pip install -e '.[lint]' && python tests/bench/house.py [ROOT] [--list] [--only PREFIX]

ROOT is any checkout (default: this one). `--list` names every function and module above the limits;
`--only interceptors/` limits that list to paths with a prefix. Complexity is radon's.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("proxy", "interceptors", "pools")
LIMITS = {"complexity": 20, "function": 60, "module": 400}


@dataclass
class Sizes:
    """The figure and the place of each function and module."""

    complexity: list[tuple[int, str]] = field(default_factory=list)
    function: list[tuple[int, str]] = field(default_factory=list)
    module: list[tuple[int, str]] = field(default_factory=list)


def measure(root: Path, paths: list[Path]) -> Sizes:
    """Lines of functions and modules, and radon's cyclomatic complexity of functions and methods."""
    try:
        from radon.complexity import cc_visit
    except ImportError:
        sys.exit("house.py needs radon: pip install -e '.[lint]'")
    sizes = Sizes()
    for path in paths:
        text, where = path.read_text(), str(path.relative_to(root))
        sizes.module.append((text.count("\n"), where))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                sizes.function.append((lines, f"{where}:{node.lineno} {node.name}"))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", default=str(Path(__file__).parents[2]))
    parser.add_argument("--list", action="store_true", help="name what is above a limit")
    parser.add_argument("--only", default="", help="list paths that start with this")
    arguments = parser.parse_args()
    root = Path(arguments.root).resolve()
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    sizes = measure(root, paths)
    scores = [score for score, _ in sizes.complexity]
    print(f"modules              {len(paths)}")
    print(f"functions            {len(sizes.function)}")
    print(f"mean complexity      {sum(scores) / len(scores):.2f}")
    for kind, limit in LIMITS.items():
        found = getattr(sizes, kind)
        over = sorted((item for item in found if item[0] > limit), reverse=True)
        worst = max(found)
        print(f"{kind:<20} {len(over)} above {limit}; worst {worst[0]}, {worst[1]}")
        for figure, place in over if arguments.list else ():
            if place.startswith(arguments.only):
                print(f"    {figure:>5}  {place}")
    for title, tops in (("source", PACKAGES), ("tests", ("tests",))):
        by_package = sum((lines_by_package(root, top) for top in tops), Counter[str]())
        print(f"lines of {title:<12}{by_package.total()}")
        for package, count in sorted(by_package.items()):
            print(f"    {count:>6}  {package}")


if __name__ == "__main__":
    main()
