"""`/dashboard`: in headless Chromium under load, and as HTML without a script."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import trio
from support.browser import Page, open_browser
from support.client import fetch, open_client
from support.npm_packages import SCRIPTS, CannotInstall, install
from support.process import running
from support.proxy import config_for, open_proxy
from support.required import lacking
from support.scene import ENVIRONMENT, KEY, TOKEN, open_scene
from support.upstream import open_stream_of, open_upstream

LOCAL = [("Host", "127.0.0.1")]
LIVE = "document.querySelector('#connection').dataset.state === 'live'"
HOSTILE = """<img src=x onerror="document.title='hacked'">"""
VIEWS: list[dict[str, Any]] = [
    {"width": 1360, "height": 1000},
    {"width": 1360, "height": 1000, "dark": True},
    {"width": 390, "height": 844},
]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    try:
        install()
    except CannotInstall as error:
        lacking(str(error), "WEIRPOOL_REQUIRE_NPM")
    return (SCRIPTS / "node_modules/axe-core/axe.min.js").read_text()


async def serious(page: Page, axe: str) -> list[str]:
    """What axe finds: serious and critical."""
    await page.run(f"{axe}; 0")
    found = await page.run("axe.run().then(r => JSON.stringify(r.violations))")
    return [
        f"{item['id']}: {item['help']}: {[node['html'] for node in item['nodes']][:3]}"
        for item in json.loads(found)
        if item["impact"] in ("serious", "critical")
    ]


def number(text: str) -> float:
    """A count as it is shown."""
    return float(text.replace("\u202f", ""))


def sample(metrics: bytes, pattern: str) -> float:
    """The sum of the series that match."""
    found = re.findall(rf"(?m)^{pattern} (\S+)$", metrics.decode())
    assert found, pattern
    return sum(map(float, found))


async def cells(page: Page, table: str) -> list[list[str]]:
    script = f"[...document.querySelectorAll('#{table}-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    return list(await page.run(script))


@pytest.mark.xdist_group("chromium")
async def test_the_dashboard_moves_under_load_and_agrees_with_the_metrics(
    tmp_path: Path, axe: str
) -> None:
    """Light, dark and on a telephone: no error in the console, nothing serious for axe. Its table is
    filtered and sorted by keyboard, what clients send is text, and a page without news says so
    and comes back.
    """
    async with (
        open_scene(tmp_path) as scene,
        open_browser(tmp_path) as browser,
        trio.open_nursery() as nursery,
    ):
        scope = trio.CancelScope()

        async def load() -> None:
            with scope:
                await scene.load(20, rng=random.Random(1))

        nursery.start_soon(load)
        for _ in range(12):  # an endpoint is ejected after three failures in a worker
            await fetch(scene.port, "/old/page")
        page = await browser.new_page()
        for view in VIEWS:
            await page.look(**view)
            await page.open(scene.dashboard)
            await page.until(LIVE)
            await page.until("document.querySelector('#figure-events').textContent !== '0.0'")
            assert await serious(page, axe) == [], view
            width = await page.run("document.documentElement.scrollWidth")
            assert width <= view["width"], "the page scrolls sideways"
        before = await page.run("document.querySelector('#figure-bytes').textContent")
        await page.until(f"document.querySelector('#figure-bytes').textContent !== '{before}'")
        await page.until("document.querySelector('#line-streams').getAttribute('d').includes('L')")

        # At rest the numbers are those of the metrics.
        scope.cancel()
        await page.until("document.querySelector('#figure-streams').textContent === '0'")
        await trio.sleep(1.5)
        metrics = await scene.page("/metrics")
        rows = {row[0]: row for row in await cells(page, "routes")}
        heads = await page.run(
            "[...document.querySelectorAll('#routes-table th')].map(h => h.textContent.replace('\u200b', ''))"
        )
        assert rows.keys() == {"/v1", "/tools", "/old"}
        for route, row in rows.items():
            for outcome in ("completed", "client_disconnected", "upstream_error", "refused"):
                name = rf'weirpool_exchanges_total\{{outcome="{outcome}",route="{route}"\}}'
                assert number(row[heads.index(outcome)]) == sample(metrics, name), (route, outcome)
        for row in await cells(page, "pools"):
            for column, name in ((7, "allocations"), (8, "reuses"), (5, "high_water")):
                kind = "_total" if column > 6 else ""
                series = rf'buffer_pool_{name}{kind}\{{pool="{row[0]}"\}}'
                assert number(row[column]) == sample(metrics, series)
        endpoints = await cells(page, "endpoints")
        assert ["old", "http://127.0.0.1:9", "ejected"] in [row[:3] for row in endpoints]
        assert {row[0] for row in await cells(page, "interceptors")} >= {
            "limit",
            "budget",
            "redact",
        }
        assert ["budget", "route/tokens/hour//v1"] in [
            row[:2] for row in await cells(page, "budgets")
        ]
        configuration = await page.run("document.querySelector('#configuration-text').textContent")
        assert 'upstream: "***"' in configuration
        assert KEY not in await page.run("document.documentElement.outerHTML")

        await the_table_by_keyboard(page, scene.port)
        assert page.problems == []
        page.ignore_network = True
        await scene.process.stop()
        await page.until(
            "document.querySelector('#connection').textContent.startsWith('stale since')"
        )
        assert await page.run("document.body.hasAttribute('data-stale')")
        async with running(scene.command, env=ENVIRONMENT) as process:
            await page.until(LIVE)  # it comes back by itself
            assert not await page.run("document.body.hasAttribute('data-stale')")
            await process.stop()
        assert page.problems == []


async def the_table_by_keyboard(page: Page, port: int) -> None:
    """Three streams are open; one has a hostile name of a model."""
    clients = [await open_client(port) for _ in range(3)]
    hostile, *others = clients
    for client, target in zip(others, ("/tools/a-1", "/tools/b-1"), strict=True):
        await client.send("POST", target, [("Content-Length", "1")], None)
    body = json.dumps({"model": HOSTILE, "messages": [], "stream": True}).encode()
    key = ("Authorization", "Bearer key-of-ann")
    await hostile.send("POST", "/v1/chat/completions?hold", [key], body)
    shown = "[...document.querySelectorAll('#exchanges-table tbody tr')]"
    await page.until(f"{shown}.length === 3 && {shown}.some(r => r.cells[4].textContent !== '–')")
    rows = [(row[1], *row[3:5]) for row in await cells(page, "exchanges")]
    assert sorted(rows) == [
        ("127.0.0.1", "/tools/a-1", "–"),
        ("127.0.0.1", "/tools/b-1", "–"),
        ("ann", "/v1/chat/completions", HOSTILE),
    ]
    port_of_page = int(await page.run("location.port"))
    html = (await fetch(port_of_page, "/dashboard", headers=LOCAL)).body.decode()
    assert HOSTILE not in html
    assert "&lt;img src=x onerror=" in html
    assert await page.run("document.title") == "Weirpool"
    await page.run("document.body.focus()")
    await page.key("/", "/")
    for letter in "-1":
        await page.key(letter, letter)
    await page.until(f"{shown}.length === 2")
    assert await page.run("document.querySelector('#exchanges-filter').value") == "-1"
    heads = "[...document.querySelectorAll('#exchanges-table th')]"
    for _ in range(40):  # to the button of the column Path
        await page.key("Tab")
        if await page.run("document.activeElement.textContent === 'Path'"):
            break
    for order, first in (("ascending", "/tools/a-1"), ("descending", "/tools/b-1")):
        await page.key("Enter", "\r")
        await page.until(f"{heads}[3].getAttribute('aria-sort') === '{order}'")
        assert (await cells(page, "exchanges"))[0][3] == first
        sorted_by = await page.run(f"{heads}.filter(h => h.hasAttribute('aria-sort')).length")
        assert sorted_by == 1
    for client in clients:
        await client.aclose()


@pytest.mark.xdist_group("chromium")
async def test_the_dashboard_asks_for_the_token_and_keeps_it(tmp_path: Path, axe: str) -> None:
    """For the session of the tab. Its HTML then has no data."""
    async with (
        open_scene(tmp_path, workers=1, token=True) as scene,
        open_browser(tmp_path) as browser,
    ):
        html = (await fetch(scene.admin, "/dashboard", headers=LOCAL)).body.decode()
        assert "127.0.0.1:9" not in html
        page = await browser.new_page()
        page.ignore_network = True  # it reports the 401
        await page.look(**VIEWS[0])
        await page.open(scene.dashboard)
        for given, state in (("wrong", "wait"), ("\u201cquoted\u201d", "wait"), (TOKEN, "live")):
            await page.until("!document.querySelector('#token').hidden")
            assert await page.run("document.activeElement.id") == "token-text"
            assert await serious(page, axe) == []
            for letter in given:
                await page.key(letter, letter)
            await page.key("Enter", "\r")
            await page.until(f"document.querySelector('#connection').dataset.state === '{state}'")
            if given != TOKEN:
                await page.until("document.querySelector('#token-problem').textContent")
                await page.until("!document.querySelector('#token-text').value")
        assert (await cells(page, "endpoints"))[0][2] == "up"
        assert await page.run("document.querySelector('nav a[href=inspect]').textContent")
        await page.open(scene.dashboard)
        await page.until(LIVE)
        assert page.problems == []


class Texts(HTMLParser):
    """The cells of tables, and what elements with an id contain."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.by_id: dict[str, str] = {}
        self._at: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._at.append((tag, dict(attrs).get("id")))
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        tag, name = self._at[-1] if self._at else ("", None)
        if tag == "td":
            self.cells.append(data)
        if name is not None:
            self.by_id[name] = self.by_id.get(name, "") + data

    def handle_endtag(self, tag: str) -> None:
        while self._at and self._at.pop()[0] != tag:
            pass


async def test_the_page_has_its_numbers_without_a_script_and_may_load_nothing_else() -> None:
    """On the main port it is public: it shows neither paths nor the configuration."""
    async with (
        open_upstream(open_stream_of(b"data: 1\n\n")) as upstream,
        open_proxy(config_for(upstream.url, proxy="secret: " + "s" * 32)) as proxy,
    ):
        client = await open_client(proxy.port)
        await client.send("GET", "/a/path")
        await client.read_until(await client.head(), b"data: 1\n\n")
        answer = await fetch(proxy.port, "/dashboard")
        assert answer.all("content-type") == [b"text/html; charset=utf-8"]
        (policy,) = answer.all("content-security-policy")
        assert b"default-src 'none'" in policy
        assert b"unsafe" not in policy
        assert answer.all("x-frame-options") == [b"DENY"]
        assert answer.all("referrer-policy") == [b"no-referrer"]
        assert answer.all("cross-origin-resource-policy") == [b"same-origin"]
        html = answer.body.decode()
        texts = Texts()
        texts.feed(html)
        assert texts.by_id["figure-streams"] == "1"
        assert {"relay", "9 B", upstream.url} <= set(texts.cells)
        for hidden in ("/a/path", "s" * 32, "max_pooled:"):
            assert hidden not in html
        assert "://" not in re.sub(re.escape(upstream.url), "", html)
        for name in re.findall(r'(?:src|href)="([^#"]+)"', html):
            asset = await fetch(proxy.port, f"/{name}")
            assert (asset.status, asset.all("x-content-type-options")) == (200, [b"nosniff"])
            assert b"innerHTML" not in asset.body
        await client.aclose()


def test_the_files_of_the_page_are_in_the_distribution() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    folder = root / "proxy/server/dashboard"
    packed = {file for pattern in data["proxy.server.dashboard"] for file in folder.glob(pattern)}
    assert packed == {file for file in folder.iterdir() if file.suffix not in (".py", "")}
