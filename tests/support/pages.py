"""The project's pages of documentation, as readers use them: blocks of code, in their order, and
the files that they are for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "Block", "blocks_of", "files_of"]

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/interceptors.md", "docs/dialects.md", "docs/mcp.md"]

_FENCE = re.compile(r"```(\w*)")
_FILE = re.compile(r"In `([\w.]+)`:")


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    line: int
    """The number of its first line on the page."""
    text: str
    file: str | None
    """The file that it is for, if the line before it is "In `name`:"."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    found = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    before = ""
    at = 0
    while at < len(lines):
        fence = _FENCE.fullmatch(lines[at])
        if fence:
            end = lines.index("```", at + 1)
            file = _FILE.search(before)
            text = "".join(line + "\n" for line in lines[at + 1 : end])
            found.append(
                Block(
                    page, fence[1], at + 2, text, file[1] if file and before.endswith(":") else None
                )
            )
            at = end
        before = lines[at].strip() or before
        at += 1
    return found


def files_of(page: str, directory: Path) -> list[str]:
    """Write the files of a page; their names."""
    files = {block.file: block.text for block in blocks_of(page) if block.file is not None}
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return list(files)
