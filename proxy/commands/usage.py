"""`weirpool usage`: the sums that the interceptor `usage` keeps in the store, as a table, JSON or CSV.

It reads only. Hours are whole: the one in which `--since` begins counts from its beginning.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from io import StringIO

import trio

from interceptors import StoreUnavailable
from interceptors.usage import KEEP_S, KINDS, Usage, hour_of, read_sums

from ..config import Config, check_config, load_interceptors
from ..errors import ConfigError
from ..worker.stores import Stores

__all__ = ["COLUMNS", "parse_columns", "parse_since", "run_usage"]

COLUMNS = ("route", "model", "client")
_NUMBERS = ("requests", *KINDS)
_UNITS_S = {"h": 3600, "d": 86400}

Row = dict[str, str | int]


def parse_since(text: str) -> float:
    """Seconds of a text such as `24h` or `7d`. Raises `ValueError`."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", text)
    seconds = float(int(found[1]) * _UNITS_S[found[2]]) if found else 0.0
    if not 0 < seconds <= KEEP_S:
        raise ValueError(
            f"--since must be hours or days such as 24h or 7d, at most {KEEP_S / 86400:g}d "
            f"(got {text!r})"
        )
    return seconds


def parse_columns(text: str) -> list[str]:
    """The columns of a text such as `client,model`. Raises `ValueError`."""
    columns = text.split(",")
    if not set(columns) <= set(COLUMNS) or len(set(columns)) < len(columns):
        raise ValueError(f"--by must be some of {', '.join(COLUMNS)}, with commas (got {text!r})")
    return columns


def run_usage(file: str, columns: Sequence[str], since_s: float, form: str) -> str:
    """The output. Raises `ConfigError`, also if the store does not answer."""
    config = check_config(file).require()
    names = [
        name
        for name, owner in load_interceptors(config).items()
        if isinstance(owner.interceptor, Usage)
    ]
    if not names:
        raise ConfigError(f'{file}: no interceptor has "use: usage", so nothing is summed')
    if config.store.url is None:
        raise ConfigError(
            f"{file}: without store.url only the running proxy has the sums: set it to keep them in "
            "a server, such as valkey://127.0.0.1"
        )
    rows = trio.run(_read, config, names, columns, since_s)
    if isinstance(rows, StoreUnavailable):
        raise ConfigError(f"{file}: the store cannot be read: {rows}")
    header = [*columns, *_NUMBERS]
    if form == "json":
        return json.dumps(rows, indent=2) + "\n"
    if form == "csv":
        text = StringIO()
        writer = csv.DictWriter(text, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    return _table(header, len(columns), rows)


async def _read(
    config: Config, names: Sequence[str], columns: Sequence[str], since_s: float
) -> list[Row] | StoreUnavailable:
    """The sums by `columns`, the most output tokens first, or why the store cannot be read."""
    stores = Stores(config.store)
    sums: dict[tuple[str, ...], dict[str, int]] = {}
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(stores.run)
        try:
            now = await stores.of(names[0]).now()
            hours = {hour_of(now - back) for back in range(0, int(since_s), 3600)}
            hours.add(hour_of(now - since_s))
            for store in map(stores.of, names):
                for hour in hours:
                    _add(sums, columns, await store.counts(hour))
        except StoreUnavailable as error:  # returned: a nursery would wrap it
            return error
        finally:
            scope.cancel()
    ordered = sorted(sums.items(), key=lambda item: (-item[1].get("output", 0), item[0]))
    return [
        {
            **dict(zip(columns, names, strict=True)),
            **{kind: found.get(kind, 0) for kind in _NUMBERS},
        }
        for names, found in ordered
    ]


def _add(
    sums: dict[tuple[str, ...], dict[str, int]], columns: Sequence[str], counts: dict[str, int]
) -> None:
    for labels, found in read_sums(counts).items():
        values = dict(zip(COLUMNS, labels, strict=True))
        total = sums.setdefault(tuple(values[column] for column in columns), {})
        for kind, number in found.items():
            total[kind] = total.get(kind, 0) + number


def _table(header: Sequence[str], texts: int, rows: Sequence[Row]) -> str:
    """`texts`: how many of the columns are text, and aligned to the left."""
    cells = [header, *([str(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(header))]
    return "".join(
        "  ".join(
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in cells
    )
