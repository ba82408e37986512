"""How long the page of a bundle takes for a frame: from a slider's new value to the painted image.

    python -m benchmarks.web BUNDLE [--web-runtime FOLDER] [--frames N] [--screenshots docs/images]

It moves the first slider by a step a frame, in the system's Chromium without a window, as a person does who drags it.
The pictures of docs/web.md are taken of `mnist_vae` after 15 epochs.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from genkit.web import Preview

_DRAG = """async (frames) => {
  const durations = [];
  new PerformanceObserver((list) => durations.push(...list.getEntriesByName("frame").map((entry) => entry.duration)))
    .observe({ type: "measure" });
  const slider = document.querySelector("#sliders input");
  const [low, high] = [Number(slider.min), Number(slider.max)];
  for (let i = 0; durations.length < frames; i++) {
    slider.value = low + (high - low) * (0.5 + 0.5 * Math.sin(i / 20));
    slider.dispatchEvent(new Event("input"));
    await new Promise(requestAnimationFrame);
  }
  return durations;
}"""


_SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1120, "height": 900}},
    "dark": {"viewport": {"width": 1120, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True},
}


def _take_screenshots(browser: Any, url: str, folder: Path) -> None:
    for name, options in _SCREENS.items():
        page = browser.new_page(**options)
        page.goto(url)
        page.wait_for_selector("#main[aria-busy=false]")
        if name == "phone":
            page.locator("#order").scroll_into_view_if_needed()
            page.mouse.wheel(0, 400)
            page.wait_for_timeout(300)
        else:
            page.check("#invert")
            page.set_input_files("#file", {"name": "two.png", "mimeType": "image/png", "buffer": _handwriting()})
            page.wait_for_selector("#pair")
        page.wait_for_selector("#main[aria-busy=false]")
        with Image.open(BytesIO(page.screenshot(full_page=name != "phone"))) as picture:
            picture.convert("RGB").quantize(64).save(folder / f"web-{name}.png", optimize=True)
        page.close()


def _handwriting() -> bytes:
    """A digit in ink on paper, as a PNG."""
    paper = Image.new("L", (280, 280), 255)
    font = ImageFont.load_default(240)
    ImageDraw.Draw(paper).text((140, 140), "2", fill=0, font=font, anchor="mm", stroke_width=4)
    stream = BytesIO()
    paper.save(stream, "PNG")
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--web-runtime", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with Preview(options.bundle, 0, options.web_runtime) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#main[aria-busy=false]")
        durations = np.array(page.evaluate(_DRAG, options.frames))
        version = browser.version
        if options.screenshots:
            _take_screenshots(browser, server.url, options.screenshots)
        browser.close()
        server.shutdown()
    middle, most = np.percentile(durations, [50, 99])
    print(f"{options.bundle}: {len(durations)} frames in Chromium {version}, wasm, one thread")
    print(f"decode and paint: median {middle:.2f} ms, 99 % within {most:.2f} ms, longest {durations.max():.2f} ms")


if __name__ == "__main__":
    main()
