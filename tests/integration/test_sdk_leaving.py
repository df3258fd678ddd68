"""When an SDK's user leaves an answer, the upstream's connection is closed at once, whatever chain
lies between.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import trio
from support.chains import config_of
from support.interceptors import Log, until
from support.llm_sdks import HEADERS, LEAVES, Leave, leave
from support.llm_upstream import open_llm_upstream
from support.proxy import open_proxy

pytestmark = [  # the SDKs leave generators to the garbage collector, which may find them when their loop has gone
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*async_generator:pytest.PytestUnraisableExceptionWarning"),
]

CHAINS = ["none", "built-ins"]


@pytest.mark.parametrize(
    ("provider", "leaving"),
    [
        *(("openai", leaving) for leaving in LEAVES),
        *(("anthropic", leaving) for leaving in LEAVES if leaving.way == "trio"),
    ],
    ids=str,
)
async def test_leaving_closes_the_upstream_connection(
    provider: str, leaving: Leave, tmp_path: Path, log: Log
) -> None:
    """Before the head, before the first event, after it, within a JSON body: through every chain,
    and the outcome names the reason.
    """
    async with open_llm_upstream() as upstream:

        async def leave_through(url: str) -> None:
            waits, left = upstream.waits, len(upstream.left_at)
            with trio.fail_after(60):
                await leave(leaving, provider, url, lambda: upstream.waits > waits)
            with trio.fail_after(5):
                while len(upstream.left_at) == left:
                    await trio.sleep(0.001)

        await leave_through(upstream.url)
        for chain in CHAINS:
            log.clear()
            config = config_of(upstream.url, chain, tmp_path, header=HEADERS[provider])
            async with open_proxy(config) as proxy:
                await leave_through(proxy.url)
                await until(lambda: any(line["event"] == "exchange" for line in log))
                assert [line["outcome"] for line in log if line["event"] == "exchange"] == [
                    "client_disconnected"
                ]
                await until(lambda: proxy.lent() == 0)
        gc.collect()  # here, and not in a test that does not expect them
        assert upstream.asked == {leaving.model: len(CHAINS) + 1}
