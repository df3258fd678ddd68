"""Skips tests for lack of a tool, except where the environment requires them."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["lacking"]


def lacking(what: str, variable: str) -> NoReturn:
    """Skip the test for lack of `what`, or fail it if `variable` is set, as `.ci/run` does."""
    if os.environ.get(variable):
        pytest.fail(f"there is no {what} here, and {variable} is set", pytrace=False)
    pytest.skip(f"there is no {what} here")
