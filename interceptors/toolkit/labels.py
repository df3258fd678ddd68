"""Label values of metrics, of which only so many may be different."""

from __future__ import annotations

__all__ = ["OTHER", "Labels"]

OTHER = "other"


class Labels:
    """The values of a label: at most `most` different ones, then `other`."""

    def __init__(self, most: int, absent: str = "-") -> None:
        """`absent`: the value for None and ""."""
        self.most = most
        """May change; values that have a label keep it."""
        self._known = {absent}
        self._absent = absent

    def of(self, value: str | None, *, new: bool = True) -> str:
        """The label for a value. `new`: it may take a new label."""
        value = value or self._absent
        if value not in self._known:
            if not new or len(self._known) > self.most:
                return OTHER
            self._known.add(value)
        return value
