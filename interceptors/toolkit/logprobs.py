"""`logprobs` in answers of OpenAI's dialects: tokens that repeat a text next to them.

Chat completions have them in a choice, as `{"content": [...], "refusal": [...]}`, next to a delta
or a message; legacy completions as `{"tokens": [...]}`; responses in a delta's event and in a part,
as a list. Sans I/O.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["drop_other_tokens", "may_have_tokens"]

_TOKENS = re.compile(r'logprobs"\s*:\s*(?:\{|\[\s*[^\s\]])')


def may_have_tokens(data: str) -> bool:
    """JSON text may have `logprobs` that are not empty, also where the name has escapes."""
    return ("logprobs" in data and _TOKENS.search(data) is not None) or "\\u00" in data


def drop_other_tokens(message: Any) -> bool:
    """Remove, in place, every `logprobs` that does not spell a text next to it.

    Each becomes null, or an empty list if it is a list. Returns whether anything was removed.
    """
    dropped = False
    pending = [message]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            tokens = value.get("logprobs")
            if tokens and not _spells(tokens, value):
                value["logprobs"] = [] if isinstance(tokens, list) else None
                dropped = True
            pending += [
                inner
                for name, inner in value.items()
                if name != "logprobs" and isinstance(inner, (dict, list))
            ]
    return dropped


def _spells(tokens: Any, holder: dict[str, Any]) -> bool:
    """Each list of tokens, joined, is a text of the holder, or of its delta or message."""
    lists = (
        list(tokens.values()) if isinstance(tokens, dict) and "tokens" not in tokens else [tokens]
    )
    texts: set[bytes | None] = set()
    for place in (holder, holder.get("delta"), holder.get("message")):
        if isinstance(place, dict):
            texts |= {
                text.encode("utf-8", "surrogatepass")
                for text in place.values()
                if isinstance(text, str)
            }
    return all(not _has_text(tokens) or _spelled(tokens) in texts for tokens in lists)


def _has_text(tokens: Any) -> bool:
    """The tokens may contain a part of a text."""
    if isinstance(tokens, dict):
        return bool(tokens)
    return any(token is not None for token in tokens) if isinstance(tokens, list) else bool(tokens)


def _spelled(tokens: Any) -> bytes | None:
    """The bytes of a list of tokens; None if it is not such a list."""
    if isinstance(tokens, dict):  # legacy completions
        tokens = tokens.get("tokens")
    if not isinstance(tokens, list):
        return None
    pieces: list[bytes] = []
    for token in tokens:
        piece = (
            token.encode("utf-8", "surrogatepass") if isinstance(token, str) else _bytes_of(token)
        )
        if piece is None:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _bytes_of(token: Any) -> bytes | None:
    """The bytes of one token, None if they differ from its text.

    The text of an incomplete character may differ: it holds a replacement or an escape.
    """
    if not isinstance(token, dict) or not isinstance(token.get("token"), str):
        return None
    text: str = token["token"]
    given = token.get("bytes")
    if given is None:
        return text.encode("utf-8", "surrogatepass")
    if not isinstance(given, list):
        return None
    try:
        piece = bytes(given)
    except (TypeError, ValueError):
        return None
    try:
        same = piece.decode() == text
    except UnicodeDecodeError:
        same = "\ufffd" in text or "\\x" in text  # how servers show an incomplete character
    return piece if same else None
