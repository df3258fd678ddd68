"""`/inspect` in headless Chromium: a stream through two interceptors from a file, served by
`weirpool serve`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from integration.test_dashboard import VIEWS, axe, serious
from integration.test_inspector import Steps
from support.browser import Page, open_browser
from support.client import fetch
from support.interceptors import until
from support.process import free_port, port_in, running, serve
from support.proxy import config_for, open_proxy
from support.upstream import answering, open_upstream

__all__ = ["axe"]

TOKEN = "token-of-the-page-01"
MODULE = """
from interceptors import Interceptor, StreamInterceptor

class Names(Interceptor):
    def open_stream(self, context):
        return NamesStream()

class NamesStream(StreamInterceptor):
    def on_event(self, event):
        return event.replace(event.data.replace("Ann", "A."))

class Calm(Interceptor):
    def open_stream(self, context):
        return CalmStream()

class CalmStream(StreamInterceptor):
    def on_event(self, event):
        if "keepalive" in event.data:
            return None
        return event.replace(event.data.replace("!", ".")) if "!" in event.data else event
"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /v1, upstream: up, dialect: openai, interceptors: [names, calm]}]
interceptors:
  - {name: names, use: "./mine.py:Names"}
  - {name: calm, use: "./mine.py:Calm"}
admin: {port: %d, inspect: true, token: "token-of-the-page-01"}
drain: {timeout: 1}
"""
HOSTILE = "<img src=x onerror=document.title=1>"


def chunk(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, **more}
    return b"data: %s\n\n" % json.dumps({"model": "m-1", "choices": [choice]}).encode()


SENT = [
    chunk("Hello Ann!"),
    b"data: keepalive\n\n",
    chunk(HOSTILE),
    chunk(" Bye", finish_reason="stop"),
    b'data: {"model":"m-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n',
    b"data: [DONE]\n\n",
]


async def events(page: Page) -> list[list[str]]:
    """The rows of the page: number, and the text of each stage."""
    script = "[...document.querySelectorAll('#events-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    return [[row[0], *row[3:]] for row in await page.run(script)]


@pytest.mark.xdist_group("chromium")
async def test_an_event_before_and_after_two_interceptors(tmp_path: Path, axe: str) -> None:
    steps = Steps()
    (tmp_path / "mine.py").write_text(MODULE)
    async with (
        open_upstream(steps.script) as upstream,
        open_browser(tmp_path) as browser,
        trio.open_nursery() as nursery,
    ):
        admin = free_port()
        (tmp_path / "weirpool.yaml").write_text(CONFIG % (upstream.url, admin))
        command = serve("--config", str(tmp_path / "weirpool.yaml"), "--workers", "2")
        async with running(command) as process:
            port = port_in((await process.event("started", 2))[0])
            page = await browser.new_page()
            page.ignore_network = True  # 401 before the token is given
            await page.open(f"http://127.0.0.1:{admin}/inspect")
            await page.until("!document.querySelector('#token').hidden")
            await page.run("document.querySelector('#token-text').value = 'wrong-wrong-wrong'")
            await page.run("document.querySelector('#token button').click()")
            await page.until("document.querySelector('#token-problem').textContent")
            await page.run("document.querySelector('#token-text').value = '\u201cquoted\u201d'")
            await page.run("document.querySelector('#token button').click()")
            await page.until("!document.querySelector('#token-text').value")
            assert not await page.run("document.querySelector('#token').hidden")
            await page.run(f"document.querySelector('#token-text').value = '{TOKEN}'")
            await page.run("document.querySelector('#token button').click()")
            await page.until("!document.querySelector('#data').hidden")
            page.ignore_network = False

            await page.run("document.querySelector('#next [name=text]').value = 'Ann'")
            await page.run("document.querySelector('#next button').click()")
            await page.until(
                "document.querySelector('#connection').textContent.startsWith('waiting')"
            )
            await trio.sleep(0.3)  # until both workers watch
            nursery.start_soon(fetch, port, "/v1/chat/completions")
            for data in SENT[:3]:
                steps.send(data)
            await page.until("document.querySelectorAll('#events-table tbody tr').length === 3")
            await page.until("document.querySelector('#streams-table tbody tr') !== null")
            for view in VIEWS:
                await page.look(**view)
                assert await serious(page, axe) == [], view
                width = await page.run("document.documentElement.scrollWidth")
                assert width <= view["width"], "the page scrolls sideways"
            await page.look(**VIEWS[0])

            first, dropped, hostile = await events(page)
            assert first[0] == "1"
            assert "Hello Ann!" in first[1]
            assert "changed" in first[2] and "Hello A.!" in first[2]  # noqa: PT018
            assert "changed" in first[3] and "Hello A.." in first[3]  # noqa: PT018
            assert "sent" in first[4] and "Hello A.." in first[4]  # noqa: PT018
            assert "unchanged" in dropped[2] or "changed" in dropped[2]
            assert dropped[3].startswith("dropped")
            assert HOSTILE in hostile[1]
            assert await page.run("document.title") == "Weirpool inspector"
            assert await page.run("document.querySelector('#events img') === null")
            heads = await page.run(
                "[...document.querySelectorAll('#events-table th')].map(h => h.textContent)"
            )
            assert heads == [
                "#",
                "Time",
                "After",
                "From upstream",
                "names",
                "calm",
                "To the client",
            ]

            # Keys: pause, events that wait, on; rows; the whole text.
            await page.run("document.activeElement.blur()")
            await page.key("p", "p")
            for data in SENT[3:]:
                steps.send(data)
            steps.send(None)
            await page.until(
                "document.querySelector('#events-count').textContent === 'paused, 3 more'"
            )
            await page.key("p", "p")
            await page.until("document.querySelectorAll('#events-table tbody tr').length === 6")
            await page.until(
                "document.querySelector('#connection').textContent === 'ended: completed'"
            )
            await page.run("document.querySelector('#events-table tbody tr').focus()")
            await page.key("ArrowDown")
            await page.key("Enter")
            assert await page.run("document.activeElement.cells[0].textContent") == "2"
            assert await page.run("document.activeElement.hasAttribute('data-open')")
            text = await page.run("document.querySelector('#answer-text').textContent")
            assert text == f"Hello A..{HOSTILE} Bye"
            usage = await page.run("document.querySelector('#answer-usage').textContent")
            assert usage == "input 9, output 4"
            parts = await page.run("document.querySelector('#answer-parts').textContent")
            assert parts == "finish reason: stop"

            await browser.call(
                "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path)
            )
            await page.key("d", "d")
            await until(lambda: list(tmp_path.glob("weirpool-*.jsonl")))
            assert page.problems == []
            await process.stop()
    (tape,) = tmp_path.glob("weirpool-*.jsonl")
    async with open_upstream(answering(b"never asked")) as upstream:
        config = config_for(
            upstream.url,
            interceptors=f"{{name: replay, use: replay, options: {{path: {tape}, speed: instant}}}}",
            names="replay",
        )
        async with open_proxy(config) as proxy:
            answer = await fetch(proxy.port, "/")
    assert answer.complete
    assert answer.body == b"".join(SENT)
