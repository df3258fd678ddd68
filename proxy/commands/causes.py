"""Why a request of a command failed, in a text for people."""

from __future__ import annotations

import os
import ssl

import httpx

__all__ = ["cause_of"]


def cause_of(error: httpx.HTTPError) -> str:
    """The cause, without the class names of libraries where there is a text."""
    cause: BaseException = error
    while (further := cause.__cause__ or cause.__context__) is not None:
        cause = further.exceptions[0] if isinstance(further, ExceptionGroup) else further
        if isinstance(cause, ssl.SSLError):  # its number is not one of the system
            return f"TLS failed: {getattr(cause, 'verify_message', None) or cause.reason or cause}"
        if isinstance(cause, OSError) and cause.errno is not None:
            # asyncio writes its own text; those of a name lookup have numbers below 0.
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
    return str(error) or type(error).__name__
