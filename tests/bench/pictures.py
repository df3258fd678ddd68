"""Makes the pictures of docs/dashboard.md: `PYTHONPATH=.:tests python tests/bench/pictures.py`.

    --seconds 960    load before the pictures: 15 minutes fill the charts
    --to docs        the folder for the PNG files

Requires Chromium. The PNG files get a palette of 256 colours (Pillow).
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
from pathlib import Path

import trio
from PIL import Image
from support.browser import open_browser
from support.scene import open_scene

VIEWS = {
    "dashboard-light": {"width": 1360, "height": 2150},
    "dashboard-dark": {"width": 1360, "height": 1000, "dark": True},
    "dashboard-phone": {"width": 390, "height": 844, "scale": 2},
}


async def main(seconds: float, to: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        async with (
            open_scene(directory, event_s=0.15) as scene,
            open_browser(directory) as browser,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(lambda: scene.load(30, rng=random.Random(1)))
            await trio.sleep(seconds)
            page = await browser.new_page()
            for name, view in VIEWS.items():
                await page.look(**view)
                await page.open(scene.dashboard)
                await page.until("document.querySelector('#connection').dataset.state === 'live'")
                await trio.sleep(2)
                picture = Image.open(io.BytesIO(await page.picture())).convert("RGB")
                small = picture.quantize(256, dither=Image.Dither.NONE)
                small.save(to / f"{name}.png", optimize=True)
                print(f"{name}.png: {(to / f'{name}.png').stat().st_size} bytes", page.problems)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=960)
    parser.add_argument("--to", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    trio.run(main, arguments.seconds, arguments.to)
