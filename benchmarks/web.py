"""How long the page of a bundle takes for a frame: from a slider's new value to the painted image.

    python -m benchmarks.web BUNDLE [--web-runtime FOLDER] [--frames N]

It moves the first slider by a step a frame, in the system's Chromium without a window, as a person does who drags it.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from pathlib import Path

import numpy as np
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--web-runtime", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    options = parser.parse_args()
    with Preview(options.bundle, 0, options.web_runtime) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#main[aria-busy=false]")
        durations = np.array(page.evaluate(_DRAG, options.frames))
        version = browser.version
        browser.close()
        server.shutdown()
    middle, most = np.percentile(durations, [50, 99])
    print(f"{options.bundle}: {len(durations)} frames in Chromium {version}, wasm, one thread")
    print(f"decode and paint: median {middle:.2f} ms, 99 % within {most:.2f} ms, longest {durations.max():.2f} ms")


if __name__ == "__main__":
    main()
