"""What providers send passes every built-in: bytes exact where nothing matched, secrets gone where
something did, calls seen, usage counted, and what the official SDK makes of it the same as without
a proxy. Adding a provider is adding a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry
from providers.chains import CHAINS, CHANGING, EXACT, HOLDING, load_chain
from providers.rig import Rig, key_of, open_rig
from providers.sdks import Result, read
from providers.transcripts import Case, Expected, chunkings, data_of, load_cases, normalised
from structlog.testing import capture_logs

from interceptors import Interceptor, Request, ResponseHead
from interceptors.replay import Replay, ReplayOptions
from interceptors.testing import run_chain, run_json, run_request
from interceptors.usage import KINDS

CASES = load_cases()
REPLACED = "[redacted]"


# --- what is expected
# ------------------------------------------------------------------------------------------------------


def direct(case: Case) -> Result:
    """What the SDK makes of the answer without a proxy."""
    return read(case.api, case.streamed, case.status, case.type, case.data)


def through(case: Case, output: bytes) -> Result:
    return read(case.api, case.streamed, case.status, case.type, output)


def replaced(tree: Any, secret: str) -> Any:
    """The same with each secret replaced."""
    if isinstance(tree, str):
        return tree.replace(secret, REPLACED)
    if isinstance(tree, dict):
        return {
            replaced(name, secret) if isinstance(name, str) else name: replaced(tree[name], secret)
            for name in tree
        }
    if isinstance(tree, list | tuple):
        return type(tree)(replaced(item, secret) for item in tree)
    return tree


def strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield str(name)
            yield from strings(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from strings(item)


def leaks(case: Case, output: bytes) -> list[str]:
    """The places of an output where the secret can be read: bytes, decoded values, joined deltas,
    the SDK's result.
    """
    assert case.secret is not None
    secret, found = case.secret, []
    if secret.encode() in output:
        found.append("bytes")
    for text in data_of(output) if case.is_sse else [output.decode()]:
        try:
            decoded = json.loads(text)
        except ValueError:
            decoded = text
        if any(secret in item for item in strings(decoded)):
            found.append("decoded")
    result = through(case, output)
    if any(secret in item for item in strings(result.comparable())):
        found.append("sdk")
    return found


def calls_of(seen: list[tuple[Any, str | None, str]]) -> list[dict[str, Any]]:
    """The calls that a hook was shown, comparably."""
    made = []
    for call_id, name, arguments in seen:
        try:
            decoded = json.loads(arguments) if arguments else {}
        except ValueError:
            decoded = arguments
        made.append({"id": call_id, "name": name, "arguments": decoded})
    return ordered(made)


def ordered(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls that grow side by side may be complete in any order. An id that is a number is the same
    as text, and "" is none.
    """
    return sorted(
        ({**call, "id": "" if call["id"] is None else str(call["id"])} for call in calls), key=repr
    )


def expected_calls(case: Case) -> list[dict[str, Any]]:
    expect = case.expect
    return ordered(expect.tool_calls if expect.hook_calls is None else expect.hook_calls)


def check_usage(expect: Expected, case: Case, line: dict[str, Any] | None) -> None:
    """What `usage` writes about one answer."""
    if line is None:
        assert is_foreign(case), "no line"
        return
    for kind in KINDS:
        told = (expect.usage or {}).get(kind)
        if told is None or line[kind] is None:
            assert line[kind] == told, (kind, line)
        else:
            assert abs(line[kind] - told) < 1, (kind, line)
    assert line["status"] == case.status
    assert line["finish_reason"] == expect.finish, line
    if expect.model is not None:
        assert line["model"] == expect.model
    if not expect.failed:
        assert line["error"] == expect.error


def is_foreign(case: Case) -> bool:
    """An error that `usage` need not count: no JSON, or not in the dialect on a path that is not
    the dialect's.
    """
    readable = case.is_sse or case.is_json
    return case.expect.failed and case.status >= 400 and (case.dialect != "generic" or not readable)


# --- the transcripts themselves
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_transcript_is_true(case: Case) -> None:
    """The official SDK, without a proxy, gets from the bytes what the file expects."""
    expect, result = case.expect, direct(case)
    assert result.error == expect.raises, result.error_text
    assert result.joined("text") == expect.text
    assert result.joined("thinking") == expect.thinking
    assert result.joined("refusal") == expect.refusal
    assert ordered(result.tool_calls()) == ordered(expect.tool_calls)
    if not case.failed:
        assert (",".join(result.reasons) or None) == expect.finish
    if case.secret is not None:
        assert leaks(case, case.data), "the secret is nowhere in what a client gets"


KINDS_OF_CASES = {
    "text, streamed": lambda case: case.is_sse and case.expect.text and not case.failed,
    "text, unstreamed": lambda case: case.is_json and case.expect.text and not case.failed,
    "tool calls, streamed": lambda case: case.is_sse and case.expect.tool_calls,
    "tool calls, unstreamed": lambda case: case.is_json and case.expect.tool_calls,
    "usage, streamed": lambda case: case.is_sse and case.expect.usage,
    "usage, unstreamed": lambda case: case.is_json and case.expect.usage,
    "an error before the stream": lambda case: case.status >= 400,
    # Ollama's has no event: its stream stops.
    "an error inside the stream": lambda case: (
        case.is_sse and (case.failed or case.name.startswith("error"))
    ),
}


@pytest.mark.parametrize("provider", sorted({case.provider for case in CASES}))
def test_a_provider_has_each_kind_of_case(provider: str) -> None:
    """Text and tool calls and usage, streamed and not, and an error before and inside a stream."""
    own = [case for case in CASES if case.provider == provider]
    assert [
        kind for kind, is_of in KINDS_OF_CASES.items() if not any(is_of(case) for case in own)
    ] == []


# --- in process
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the files of `audit` and `record`: one for all, since making one takes longer than most
    tests.
    """
    made = tmp_path_factory.mktemp("zoo")
    for chain in CHAINS:
        (made / chain).mkdir()
    return made


class Run:
    """One answer through one chain."""

    def __init__(self, case: Case, chain: str, directory: Path, chunks: list[bytes]) -> None:
        interceptors = load_chain(chain, directory, case.secret, key_of(case))
        headers = [(b"authorization", b"Bearer " + key_of(case).encode())]
        self.request = Request(
            method="POST",
            path=case.path,
            dialect=case.dialect,
            route="/zoo",
            headers=headers,
            body=b"{}",
        )
        kind = b"text/event-stream" if case.is_sse else b"application/json"
        head = ResponseHead(case.status, [(b"content-type", kind)], self.request)
        self.failure: Any = None
        with capture_logs() as logs:
            if "api_keys" in CHAINS[chain]:
                assert run_request(interceptors, self.request) is None
            if case.is_sse:
                result = run_chain(interceptors, chunks, request=self.request, head=head)
                self.output, self.failure = result.output, result.failure
            else:
                self.output = run_json(interceptors, case.data, request=self.request, head=head)
        self.logs = logs
        self.metrics = _metrics(interceptors)

    @property
    def seen(self) -> Any:
        return self.request.state["seen"]

    def line(self) -> dict[str, Any] | None:
        lines = [dict(line) for line in self.logs if line["event"] == "usage"]
        assert len(lines) <= 1
        return lines[0] if lines else None


def _metrics(interceptors: list[Interceptor]) -> dict[str, float]:
    registry = CollectorRegistry()
    for interceptor in interceptors:
        for collector in interceptor.collectors():
            registry.register(collector)
    found: dict[str, float] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            name = sample.name + (f".{sample.labels['kind']}" if "kind" in sample.labels else "")
            if not name.endswith("_created"):
                found[name] = found.get(name, 0) + sample.value
    return found


def ways(case: Case, chain: str) -> dict[str, list[bytes]]:
    if not case.is_sse:
        return {"whole": [case.data]}
    # Byte by byte takes long: it is for the chain that has everything, and long streams get there
    # in a few bytes at a time.
    if chain == ("all" if case.secret is None else "all-secret"):
        largest = 1 if len(case.data) <= 2500 else 8
    else:
        largest = 40 if chain == "all" else 400
    found = chunkings(case.data, f"{case}, {chain}", largest=largest)
    if len(CHAINS[chain]) == 1 and chain in EXACT:
        del found["whole"]  # so `all` gets it, too
    return found


def cells(chains: list[str] | tuple[str, ...]) -> Any:
    """Provider x case x chain."""
    readable = [case for case in CASES if case.is_sse or case.is_json]
    return pytest.mark.parametrize(
        ("case", "chain"),
        [
            pytest.param(case, chain, id=f"{case}-{chain}")
            for case in readable
            for chain in chains
            if chain not in CHANGING or case.secret is not None
        ],
    )


@cells(["usage", "audit", "watch", "redact", "guard", "all"])
def test_what_does_not_match_is_exact(case: Case, chain: str, directory: Path) -> None:
    """Every byte leaves unchanged, however the stream is cut; and `usage` and the hooks have seen
    what there was.
    """
    for way, chunks in ways(case, chain).items():
        run = Run(case, chain, directory, chunks)
        assert run.failure is None, way
        check_unchanged(case, chain, run.output)
        if chain == "audit":
            written = audited(directory)
            assert written == data_of(case.data) or not case.is_sse, way
        if "usage" in CHAINS[chain]:
            check_usage(case.expect, case, run.line())
            check_metrics(case, run.metrics)
        if "watch" in CHAINS[chain]:
            texts: dict[str, str] = {}
            for block, text in run.seen["texts"].items():
                texts[block.kind] = texts.get(block.kind, "") + text
            assert (texts.get("text", ""), texts.get("refusal", "")) == (
                case.expect.text,
                case.expect.refusal,
            ), way
            assert texts.get("thinking", "") == case.expect.thinking, way
            assert calls_of(run.seen["calls"]) == expected_calls(case), way


def audited(directory: Path) -> list[str]:
    """The data that `audit` has written down; the file is then as new."""
    file = directory / "audit" / "audit.jsonl"
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    file.unlink()
    return [line["data"] for line in lines if line["event"] == "stream_event" and line["data"]]


def check_unchanged(case: Case, chain: str, output: bytes) -> None:
    """The same bytes; where calls were held, they may have left in other pieces, which are the same
    calls.
    """
    if output == case.data:
        return
    assert case.is_sse, chain
    assert case.expect.tool_calls, chain
    assert HOLDING.intersection(CHAINS[chain]), chain
    assert without_calls(output) == without_calls(case.data), chain
    assert through(case, output).comparable() == direct(case).comparable(), chain


def without_calls(stream: bytes) -> list[str]:
    return [data for data in data_of(stream) if not any(word in data for word in _OF_CALLS)]


_OF_CALLS = ("tool_call", "function_call", "tool_use", "partial_json")


def check_metrics(case: Case, metrics: dict[str, float]) -> None:
    """Each token, request and answer without usage is counted once."""
    if is_foreign(case):
        return
    assert metrics["weirpool_llm_requests_total"] == 1
    told = {
        kind: value
        for kind in KINDS
        if (value := metrics.get(f"weirpool_llm_tokens_total.{kind}")) is not None
    }
    expected = case.expect.usage or {}
    assert told.keys() == expected.keys()
    assert all(abs(told[kind] - expected[kind]) < 1 for kind in told)
    untold = not expected and not case.failed
    assert metrics.get("weirpool_llm_answers_without_usage_total", 0) == untold


@cells(["policy"])
def test_a_policy_sees_the_calls_that_a_client_gets(
    case: Case, chain: str, directory: Path
) -> None:
    """A hook that holds calls is shown each once, complete; the client's SDK makes of the rest what
    it makes without a proxy.
    """
    for way, chunks in ways(case, chain).items():
        run = Run(case, chain, directory, chunks)
        assert run.failure is None, way
        assert calls_of(run.seen["calls"]) == expected_calls(case), way
        check_unchanged(case, chain, run.output)


@cells(["redact-secret", "all-secret"])
def test_a_secret_does_not_leave(case: Case, chain: str, directory: Path) -> None:
    """`redact` replaces it wherever it is, however it is cut; all else is the same for the SDK, and
    `guard` finds nothing.
    """
    assert case.secret is not None
    outputs = set()
    for way, chunks in ways(case, chain).items():
        run = Run(case, chain, directory, chunks)
        assert run.failure is None, way
        outputs.add(normalised(run.output))
        if "usage" in CHAINS[chain]:
            check_usage(case.expect, case, run.line())
            check_metrics(case, run.metrics)
    assert len(outputs) == 1, "it depends on how the stream was cut"
    (output,) = outputs
    assert not leaks(case, output)
    check_redacted(case, output)


def check_redacted(case: Case, output: bytes) -> None:
    assert case.secret is not None
    assert through(case, output).comparable() == replaced(direct(case).comparable(), case.secret)


@cells(["guard-secret"])
def test_guard_ends_an_answer_before_the_secret(case: Case, chain: str, directory: Path) -> None:
    """However the stream is cut, the secret does not leave, and the SDK sees that the answer has
    ended.
    """
    outputs = set()
    for way, chunks in ways(case, chain).items():
        run = Run(case, chain, directory, chunks)
        assert run.failure is None, way
        outputs.add(normalised(run.output))
    assert len(outputs) == 1, "it depends on how the stream was cut"
    check_guarded(case, outputs.pop())


def check_guarded(case: Case, output: bytes) -> None:
    """The answer has ended before the secret was whole, as its dialect ends answers, and what came
    before is as it was.
    """
    assert case.secret is not None
    assert not leaks(case, output)
    result, original = through(case, output), direct(case)
    for key, text in result.texts.items():
        assert original.texts[key].startswith(text), "a text that upstream did not send"
    if case.secret_is_in_answer:
        assert result.error is None, result.error_text
        assert result.reasons[-1] == ("refusal" if case.api == "messages" else "content_filter")
    else:
        shown = result.error or result.reasons or not (original.error or original.reasons)
        assert shown, "nothing shows the client that the answer failed"
    if case.is_sse:
        *_, last = data_of(output)
        assert (
            last == "[DONE]" if case.api == "chat" else json.loads(last)["type"] == _LAST[case.api]
        )
    else:
        json.loads(output)


_LAST = {"responses": "response.incomplete", "messages": "message_stop"}


@pytest.mark.parametrize("case", [case for case in CASES if case.is_sse], ids=str)
def test_a_recorded_answer_comes_back(case: Case, directory: Path) -> None:
    """Played back from its tape, the SDK makes the same of an answer."""
    tapes = directory / case.id
    Run(case, "record", tapes, [case.data])
    (tape,) = (tapes / "record" / "tapes").iterdir()

    async def play() -> bytes:
        replay = Replay(ReplayOptions(path=str(tape), speed="instant"))
        async with replay.lifespan():
            response = await replay.on_request(Request())
            events: Any = response.events
            return b"".join([event.raw async for event in events])

    played = trio.run(play)
    assert through(case, played).comparable() == direct(case).comparable()


# --- over a real proxy
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(CASES, tmp_path_factory.mktemp("zoo")) as rig:
        yield rig


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_over_a_real_proxy(case: Case, rig: Rig) -> None:
    """From YAML, on sockets, with the provider's status and content type: as in process, through
    each chain.
    """
    for chain in ("none", "front", "usage", "record", "all", "policy"):
        answer = rig.ask(case, chain)
        assert (answer.status, answer.content_type) == (case.status, case.type), chain
        check_unchanged(case, chain, answer.body)
    for chain in () if is_foreign(case) else ("usage", "all"):
        check_usage(case.expect, case, rig.usage(case, chain))
    if case.secret is None:
        return
    for chain in ("redact-secret", "all-secret"):
        answer = rig.ask(case, chain)
        assert (answer.status, answer.content_type) == (case.status, case.type), chain
        assert not leaks(case, answer.body), chain
        check_redacted(case, answer.body)
    answer = rig.ask(case, "guard-secret")
    assert answer.status == case.status
    check_guarded(case, answer.body)
