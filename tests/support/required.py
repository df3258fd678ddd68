"""What a test needs and a machine may lack: there the test is skipped, but not where somebody
relies on its having run.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["lacking"]


def lacking(what: str, variable: str) -> NoReturn:
    """Skip the running test for want of `what`; fail it where the environment has set `variable`,
    as `.ci/run` does.
    """
    if os.environ.get(variable):
        pytest.fail(f"there is no {what} here, and {variable} is set", pytrace=False)
    pytest.skip(f"there is no {what} here")
