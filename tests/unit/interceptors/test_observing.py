"""What an `Observer` records does not depend on how the answer is cut."""

from __future__ import annotations

import msgspec
from providers.transcripts import Case, load_cases, pieces_of

from interceptors.observing import Observer, owner_of
from interceptors.operation import Operation


def record(case: Case, pieces: list[bytes]) -> tuple[Operation, int]:
    """The record without its times, and the number of events."""
    dialect = "anthropic" if case.api == "messages" else "openai"
    operation, ended = Operation(dialect), 0

    def note(count: int, at: float) -> None:
        nonlocal ended
        ended += count

    observer = Observer(
        operation, owner_of(dialect), "/", case.path, max_bytes=1 << 20, note_events=note
    )
    for piece in pieces:
        observer.feed(piece, 0, len(piece))
    observer.end(complete=True)
    operation.first_token_at = operation.last_token_at = None
    return operation, ended


async def test_every_cut() -> None:
    wrong = []
    for case in load_cases():
        if case.is_sse or case.is_json:
            whole, count = record(case, [case.data])
            for largest in (1, 7, 300):
                cut, cut_count = record(case, pieces_of(case.data, largest))
                same = msgspec.structs.asdict(cut) == msgspec.structs.asdict(whole)
                wrong += [] if same and cut_count == count else [case.id]
    assert not wrong
