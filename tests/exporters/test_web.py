"""The page of a bundle, in Chromium: what it shows is what onnxruntime computes, and what fails is said."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tools
import torch
from gate_helpers import decoder, encoder, export
from genkit_onnx.exporter import OnnxExporter
from helpers import Genkit, started, tree
from numpy.typing import NDArray
from PIL import Image
from test_recipes import ColourDecoder, LabelledPrior, drawn_normal, whole
from torch import Tensor, nn

import genkit
from genkit.web import Preview, add_page

Array = NDArray[Any]


# Bundles: grey images; coloured ones, told a label, of a learned prior; points; images of codes that nothing draws


class PointDecoder(nn.Module):
    """z -> a point in the plane, by one matrix."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.point = nn.Linear(latents, 2)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.point(z),)


class LabelledEncoder(nn.Module):
    """x, condition -> mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3 * 8 * 12, 8)
        self.label = nn.Embedding(10, 8)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        return (self.mean(x.flatten(1)) + self.label(condition),)


class CodeDecoder(nn.Module):
    """4 by 4 codes of 16 -> grey images of 8 by 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.pixels = nn.Linear(16 * 8, 64)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.pixels(self.embedding(z).flatten(1)).sigmoid().unflatten(1, (1, 8, 8)),)


def grey() -> list[genkit.Graph | genkit.NoGraph]:
    graph = decoder()
    return [encoder(), genkit.Graph("decoder", graph.module, {"z": drawn_normal(20)}, ("x",), graph.ranges)]


def colour() -> list[genkit.Graph | genkit.NoGraph]:
    latent = genkit.Input((8,), torch.float32, lambda n, g: torch.randn(n, 8, generator=g))
    picture = genkit.Input((3, 8, 12), torch.float32, lambda n, g: torch.rand(n, 3, 8, 12, generator=g))
    unit, labels = {"x": (0.0, 1.0)}, {"condition": whole(10)}
    return [
        genkit.Graph("encoder", LabelledEncoder(), {"x": picture, **labels}, ("mean",), unit),
        genkit.Graph("prior", LabelledPrior(), {"noise": drawn_normal(8), **labels}, ("z",)),
        genkit.Graph("decoder", ColourDecoder(), {"z": latent, **labels}, ("x", "log_scale"), unit),
    ]


def points() -> list[genkit.Graph | genkit.NoGraph]:
    return [
        genkit.NoGraph("encoder", "nobody trained one"),
        genkit.Graph("decoder", PointDecoder(3), {"z": drawn_normal(3)}, ("x",)),
    ]


def codes() -> list[genkit.Graph | genkit.NoGraph]:
    latent = genkit.Input((4, 4), torch.int64, lambda n, g: torch.randint(16, (n, 4, 4), generator=g))
    return [
        genkit.NoGraph("prior", "each code hangs on those before"),
        genkit.Graph("decoder", CodeDecoder(), {"z": latent}, ("x",), {"x": (0.0, 1.0)}),
    ]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the four."""
    folder = tmp_path_factory.mktemp("bundles")
    for graphs in (grey, colour, points, codes):
        torch.manual_seed(0)
        assert export(folder / graphs.__name__, *graphs()).ok
    return folder


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """The folder of onnxruntime-web."""
    with tempfile.TemporaryDirectory() as directory:
        yield tools.install_npm(Path(directory)) / "onnxruntime-web"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with tools.chromium() as browser:
        yield browser


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def visited(browser: Any, url: str, *, before: str = "", **options: Any) -> Iterator[Any]:
    """The page at ``url`` when it has loaded, or has said why not. It may ask nobody else for anything."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        asked: list[str] = []
        raised: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: raised.append(str(error)))
        page.on("console", lambda message: raised.append(message.text) if "Content Security" in message.text else None)
        page.add_init_script(before)
        page.goto(url)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("#loading", state="hidden")
        yield page
        home = url.split("/web/", maxsplit=1)[0]
        assert [other for other in asked if not other.startswith((home, "data:", "blob:"))] == []
        assert raised == []


@contextmanager
def previewed(browser: Any, bundle: Path, runtime: Path, **options: Any) -> Iterator[Any]:
    with running(server := Preview(bundle, 0, runtime)), visited(browser, server.url, **options) as page:
        yield page


# What is shown, and what should be


def pixels(page: Any, canvas: str = "#image") -> Array:
    """Of a canvas, ``(height, width, 3)`` from 0 to 255."""
    size, data = page.eval_on_selector(
        canvas,
        """canvas => {
          const { width, height } = canvas;
          return [[height, width, 4], [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
        }""",
    )
    return np.array(data).reshape(size)[..., :3]


def present(page: Any) -> dict[str, Any]:
    """The latents and the label, by the button that copies them."""
    page.click("#copy")
    settled(page)
    found: dict[str, Any] = json.loads(page.input_value("#copied"))
    return found


def run(bundle: Path, graph: str, **inputs: object) -> Array:
    """The first output of a graph in onnxruntime, for one row."""
    session = onnxruntime.InferenceSession(bundle / f"{graph}.onnx")
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feeds = {value.name: np.array([inputs[value.name]], kinds[value.type]) for value in session.get_inputs()}
    first: Array = session.run(None, feeds)[0][0]
    return first


def expected(bundle: Path, shown: dict[str, Any]) -> Array:
    """What a canvas should show for z and a label, before it is rounded."""
    image = run(bundle, "decoder", **shown)
    return np.broadcast_to(255.0 * np.moveaxis(image, 0, -1), (*image.shape[1:], 3))


def assert_shown(page: Any, bundle: Path, canvas: str = "#image") -> None:
    """Whether the canvas shows onnxruntime's image of the present z, up to the rounding to whole grey levels."""
    wanted = expected(bundle, present(page))
    assert np.ptp(wanted) > 20
    assert np.abs(pixels(page, canvas) - wanted).max() <= 0.5 + 1e-3


def settled(page: Any) -> None:
    """Waits until everything that was asked for has been computed and painted."""
    page.wait_for_selector("#main[aria-busy=false]")


# Playing


def test_a_slider_moved_by_the_keyboard_redraws_the_image_that_onnxruntime_computes(
    browser: Any, bundles: Path, runtime: Path
) -> None:
    with previewed(browser, bundles / "grey", runtime) as page:
        before, image = present(page), pixels(page)
        slider = page.locator("#sliders input").first
        slider.focus()
        for _ in range(5):
            page.keyboard.press("PageUp")
        settled(page)
        after = present(page)
        moved = [i for i, (one, other) in enumerate(zip(before["z"], after["z"], strict=True)) if one != other]
        assert [f"latent-{i}" for i in moved] == [slider.get_attribute("id")]
        assert np.abs(pixels(page) - image).max() > 5
        assert page.input_value("#seed") == ""
        assert_shown(page, bundles / "grey")


def test_the_floats_of_a_sample_keep_the_limits_of_the_gate(browser: Any, bundles: Path, runtime: Path) -> None:
    entry = next(g for g in genkit.Bundle.open(bundles / "grey").manifest.graphs if g.name == "decoder")
    with previewed(browser, bundles / "grey", runtime) as page:
        z, x = page.evaluate(
            """async () => {
              const { Model } = await import("./model.js");
              const model = await Model.open(new URL("../", location.href));
              const z = await model.sample(Array.from({ length: 64 }, (_, i) => i), 0);
              return [z.map(Math.fround), [...(await model.decode(z, 64, 0))]];
            }"""
        )
    session = onnxruntime.InferenceSession(bundles / "grey" / "decoder.onnx")
    (wanted,) = session.run(None, {"z": np.array(z, np.float32).reshape(64, 20)})
    error = np.array(x).reshape(wanted.shape) - wanted
    limit = entry.errors["x"]
    assert np.sqrt(np.mean(error**2)) <= 16 * limit.rms
    assert np.abs(error).max() <= 32 * limit.max


def test_a_sample_can_be_told_by_its_seed(browser: Any, bundles: Path, runtime: Path) -> None:
    with previewed(browser, bundles / "grey", runtime) as page:
        page.click("#sample")
        settled(page)
        assert_shown(page, bundles / "grey")
        seed, first = page.input_value("#seed"), present(page)
        page.click("#sample")
        settled(page)
        assert present(page) != first
        page.fill("#seed", seed)
        page.keyboard.press("Enter")
        settled(page)
        assert present(page) == first
    with previewed(browser, bundles / "grey", runtime) as other:
        other.fill("#seed", seed)
        other.keyboard.press("Tab")
        settled(other)
        assert present(other) == first


def test_samples_steps_between_two_and_along_a_latent_can_be_gone_to(
    browser: Any, bundles: Path, runtime: Path
) -> None:
    with previewed(browser, bundles / "grey", runtime) as page:
        page.locator("#samples button").first.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        settled(page)
        assert page.input_value("#seed") == "3"
        assert (pixels(page) == pixels(page, "#samples button:nth-child(3) canvas")).all()
        assert_shown(page, bundles / "grey")
        b = present(page)["z"]
        page.click("#set-b")
        page.fill("#seed", "1")
        page.keyboard.press("Tab")
        settled(page)
        a = present(page)["z"]
        page.click("#between-strip button:nth-child(5)")
        settled(page)
        share = 4 / 11
        np.testing.assert_allclose(present(page)["z"], (1 - share) * np.array(a) + share * np.array(b), atol=1e-6)
        assert (pixels(page) == pixels(page, "#between-strip button:nth-child(5) canvas")).all()
        index = int(page.input_value("#walk"))
        page.click("#walk-strip button:last-child")
        settled(page)
        assert present(page)["z"][index] == 3
        assert_shown(page, bundles / "grey")


def test_a_label_goes_to_the_learned_prior_and_to_the_decoder(browser: Any, bundles: Path, runtime: Path) -> None:
    bundle = bundles / "colour"
    with previewed(browser, bundle, runtime) as page:
        images = []
        for label in ("0", "7"):
            page.select_option("#label", label)
            settled(page)
            shown = present(page)
            assert shown["condition"] == int(label)
            noise = page.evaluate(
                """async () => {
                  const { draw, uniforms } = await import("./random.js");
                  return draw({ kind: "normal", parameters: [0, 1] }, 8, uniforms(1));
                }"""
            )
            z = run(bundle, "prior", noise=noise, condition=int(label))
            np.testing.assert_allclose(shown["z"], z, rtol=1e-5, atol=1e-6)
            assert_shown(page, bundle)
            images.append(pixels(page))
        assert np.abs(images[0] - images[1]).max() > 20


def test_points_are_shown_among_draws(browser: Any, bundles: Path, runtime: Path) -> None:
    with previewed(browser, bundles / "points", runtime) as page:
        label = page.get_attribute("#image", "aria-label")
        shown = [float(number) for number in label.split("the point ")[1].split(", ")]
        np.testing.assert_allclose(shown, run(bundles / "points", "decoder", **present(page)), atol=0.005 + 1e-6)
        before = pixels(page)
        page.locator("#sliders input").first.fill("-3")
        settled(page)
        assert (pixels(page) != before).any()
        assert "nobody trained one" in page.inner_text("#no-encoder")


def test_codes_have_sliders_of_whole_numbers_and_where_nothing_draws_them_the_reason(
    browser: Any, bundles: Path, runtime: Path
) -> None:
    bundle = bundles / "codes"
    with previewed(browser, bundle, runtime) as page:
        assert "each code hangs on those before" in page.inner_text("#no-sampling")
        assert page.is_disabled("#sample")
        assert page.is_hidden("#between-tools")
        assert np.shape(present(page)["z"]) == (4, 4)
        slider = page.locator("#sliders input").first
        assert (slider.get_attribute("min"), slider.get_attribute("max"), slider.get_attribute("step")) == (
            "0",
            "15",
            "1",
        )
        before = pixels(page)
        slider.fill("15" if slider.input_value() != "15" else "0")
        settled(page)
        assert (pixels(page) != before).any()
        assert_shown(page, bundle)


def test_what_changes_the_output_most_comes_first(browser: Any, tmp_path: Path, runtime: Path) -> None:
    module = PointDecoder(30)
    scales = torch.tensor([0.0] * 3 + [float(i + 1) for i in np.random.default_rng(0).permutation(27)])
    with torch.no_grad():
        module.point.weight[:] = 4 ** (scales / 3) * (scales > 0)
    assert export(tmp_path / "bundle", genkit.Graph("decoder", module, {"z": drawn_normal(30)}, ("x",))).ok
    with previewed(browser, tmp_path / "bundle", runtime) as page:
        assert "3 of 30 change nothing" in page.inner_text("#order")
        first = [page.locator("#sliders label").nth(i).inner_text() for i in range(20)]
        order = scales.argsort(descending=True).tolist()
        assert len({*first[:10]} & {f"z[{i}]" for i in order[:12]}) == 10
        page.click("#next")
        assert page.inner_text("#page") == "21 to 30 of 30"
        last = [page.locator("#sliders label").nth(7 + i).inner_text() for i in range(3)]
        assert {*last} == {"z[0]", "z[1]", "z[2]"}


NOISE = [
    ("normal", [1.0, 2.0], 1.0, 2.0),
    ("laplace", [1.0, 2.0], 1.0, 2.0 * 2**0.5),
    ("gumbel", [1.0, 2.0], 1.0 + 2.0 * np.euler_gamma, 2.0 * np.pi / 6**0.5),
    ("uniform", [1.0, 3.0], 2.0, 2.0 / 12**0.5),
    ("integers", [0, 10], 4.5, 8.25**0.5),
    ("normal", [[[1.0] * 50] * 2, [[2.0] * 50] * 2], 1.0, 2.0),
]
"""Kind and parameters as in a manifest, the mean and the standard deviation."""


def test_noise_has_the_distribution_of_the_manifest(browser: Any, bundles: Path, runtime: Path) -> None:
    with previewed(browser, bundles / "grey", runtime) as page:
        drawn = page.evaluate(
            """async (distributions) => {
              const { draw, uniforms } = await import("./random.js");
              const rows = Array.from({ length: 1000 }, (_, seed) => seed);
              return distributions.map((drawn) => rows.map((seed) => draw(drawn, 100, uniforms(seed))));
            }""",
            [{"kind": kind, "parameters": parameters} for kind, parameters, *_ in NOISE],
        )
    for found, (kind, _, mean, deviation) in zip(np.array(drawn), NOISE, strict=True):
        assert found.shape == (1000, 100)
        assert abs(found.mean() - mean) < 5 * deviation / 100_000**0.5, kind
        assert abs(found.std() / deviation - 1) < 0.02, kind
        assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02, "neighbouring seeds"


def test_weights_may_lie_beside_their_graph(browser: Any, tmp_path: Path, runtime: Path) -> None:
    graphs, about = grey(), {"prior": {"use": "standard_normal"}}
    exporter = OnnxExporter(inline_limit=1000)
    assert exporter.export(graphs, tmp_path / "bundle", about=about, opset=18, runtimes=[]).ok
    assert (tmp_path / "bundle" / "decoder.onnx.data").exists()
    with previewed(browser, tmp_path / "bundle", runtime) as page:
        assert_shown(page, tmp_path / "bundle")


# A person's picture


def drop(page: Any, name: str, content: bytes) -> None:
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name));
          return transfer;
        }""",
        [name, list(content)],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_a_dropped_picture_is_reconstructed_and_the_sliders_go_there(
    browser: Any, bundles: Path, runtime: Path
) -> None:
    bundle = bundles / "grey"
    levels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    with previewed(browser, bundle, runtime) as page:
        drop(page, "noise.png", encoded(Image.fromarray(levels)))
        settled(page)
        assert (pixels(page, "#original") == levels[..., None]).all()
        assert "noise.png" in page.inner_text("#status")
        mean = run(bundle, "encoder", x=levels[None] / 255)
        np.testing.assert_allclose(present(page)["z"], mean, rtol=1e-4, atol=1e-5)
        for canvas in ("#reconstruction", "#image"):
            assert np.abs(pixels(page, canvas) - expected(bundle, {"z": mean})).max() <= 0.5 + 1e-2


def test_a_chosen_picture_is_cropped_made_grey_and_inverted(browser: Any, bundles: Path, runtime: Path) -> None:
    wide = np.full((140, 300, 3), [255, 0, 0], np.uint8)  # red at the sides, of which nothing may be left
    wide[:, 80:220] = [0, 0, 255]
    file = {"name": "wide.jpg", "mimeType": "image/jpeg", "buffer": encoded(Image.fromarray(wide), "JPEG")}
    with previewed(browser, bundles / "grey", runtime) as page:
        page.set_input_files("#file", file)
        settled(page)
        inner = pixels(page, "#original")[:, 1:-1]
        assert np.abs(inner - 0.114 * 255).max() < 6
        page.check("#invert")
        settled(page)
        assert np.abs(pixels(page, "#original")[:, 1:-1] - (255 - inner)).max() <= 1


def test_coloured_pictures_are_encoded_with_the_label(browser: Any, bundles: Path, runtime: Path) -> None:
    bundle = bundles / "colour"
    levels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    with previewed(browser, bundle, runtime) as page:
        page.select_option("#label", "3")
        settled(page)
        drop(page, "noise.png", encoded(Image.fromarray(levels)))
        settled(page)
        assert (pixels(page, "#original") == levels).all()
        mean = run(bundle, "encoder", x=np.moveaxis(levels, -1, 0) / 255, condition=3)
        shown = present(page)
        np.testing.assert_allclose(shown["z"], mean, rtol=1e-4, atol=1e-5)
        assert np.abs(pixels(page, "#reconstruction") - expected(bundle, shown)).max() <= 0.5 + 1e-2


def test_a_file_that_is_no_picture_is_refused_and_the_page_goes_on(browser: Any, bundles: Path, runtime: Path) -> None:
    with previewed(browser, bundles / "grey", runtime) as page:
        drop(page, "notes.txt", b"not a picture")
        page.wait_for_selector("#notice")
        assert "notes.txt is no picture that this browser can read" in page.inner_text("#notice")
        page.click("#sample")
        settled(page)
        assert page.is_hidden("#notice")
        assert_shown(page, bundles / "grey")


# What fails


@pytest.fixture
def broken(bundles: Path, tmp_path: Path, runtime: Path) -> Path:
    """A bundle with a page, to break."""
    shutil.copytree(bundles / "grey", tmp_path / "broken")
    add_page(tmp_path / "broken", runtime / "dist")
    return tmp_path / "broken"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("decoder.onnx", b"not a graph", "decoder.onnx is damaged: it is not the file that was exported"),
        ("decoder.onnx", None, "decoder.onnx cannot be loaded: /decoder.onnx answers HTTP 404"),
        ("manifest.json", b"{", "manifest.json is damaged"),
        ("manifest.json", None, "manifest.json cannot be loaded"),
        ("web/ort/ort-wasm-simd-threaded.wasm", None, "ort-wasm-simd-threaded.wasm cannot be loaded"),
        ("web/ort/ort.wasm.min.js", None, "onnxruntime-web cannot be loaded"),
        ("web/app.js", None, "app.js"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    browser: Any, broken: Path, file: str, content: bytes | None, message: str
) -> None:
    handler = partial(_Quiet, directory=str(broken))
    (broken / file).unlink()
    if content is not None:
        (broken / file).write_bytes(content)
    with (
        running(server := ThreadingHTTPServer(("127.0.0.1", 0), handler)),
        visited(browser, f"http://127.0.0.1:{server.server_port}/web/") as page,
    ):
        assert message in page.inner_text("[role=alert]")
        assert page.is_hidden("#main")


def test_a_graph_that_the_runtime_does_not_open_is_named(browser: Any, broken: Path, runtime: Path) -> None:
    (broken / "decoder.onnx").write_bytes(b"not a graph")
    genkit.seal(broken, genkit.Bundle.open(broken).manifest)
    with previewed(browser, broken, runtime) as page:
        assert "decoder.onnx cannot be opened by onnxruntime-web 1." in page.inner_text("[role=alert]")


def test_without_an_encoder_that_works_the_rest_does(browser: Any, broken: Path, runtime: Path) -> None:
    (broken / "encoder.onnx").write_bytes(b"not a graph")
    with previewed(browser, broken, runtime) as page:
        assert "encoder.onnx is damaged" in page.inner_text("#no-encoder")
        assert page.is_hidden("#encode-tools")
        assert_shown(page, broken)


def test_a_page_from_the_disk_says_how_to_serve_it(browser: Any, broken: Path) -> None:
    with visited(browser, (broken / "web" / "index.html").as_uri()) as page:
        assert "python -m http.server" in page.inner_text("[role=alert]")


def test_browsers_that_cannot_compute_are_told(browser: Any, bundles: Path, runtime: Path) -> None:
    with previewed(browser, bundles / "grey", runtime, before="delete globalThis.WebAssembly") as page:
        assert "no WebAssembly" in page.inner_text("[role=alert]")
    with previewed(browser, bundles / "grey", runtime, java_script_enabled=False) as page:
        assert "needs JavaScript" in page.inner_text("noscript")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


# For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(browser: Any, bundles: Path, runtime: Path, scheme: str) -> None:
    phone = {"width": 360, "height": 740}
    with previewed(browser, bundles / "colour", runtime, viewport=phone, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#sliders input").last.scroll_into_view_if_needed()
        assert page.locator("#image").bounding_box()["y"] >= 0  # still in sight
        pairs = [("ink", "paper"), ("muted", "paper"), ("on-accent", "accent"), ("alarm", "alarm-paper")]
        for text, ground in pairs:
            assert contrast(*(custom_colour(page, name) for name in (text, ground))) >= 4.5, (text, ground)
        for part in ("accent", "edge"):
            assert contrast(custom_colour(page, part), custom_colour(page, "paper")) >= 3, part


def custom_colour(page: Any, name: str) -> list[int]:
    value = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    return [int(value[i : i + 2], 16) for i in (1, 3, 5)]


def contrast(one: list[int], other: list[int]) -> float:
    """Of WCAG 2."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot([0.2126, 0.7152, 0.0722], parts))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_everything_that_can_be_used_has_a_name(browser: Any, bundles: Path, runtime: Path) -> None:
    with previewed(browser, bundles / "colour", runtime) as page:
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, canvas")].filter((element) =>
              !element.labels?.length && !element.getAttribute("aria-label") && !element.textContent.trim() &&
              !element.querySelector("[aria-label]")).map((element) => element.outerHTML)"""
        )
        assert nameless == []


# The folder, and who serves it


def test_an_exported_page_is_verified_and_works_from_any_folder_of_any_host(
    here: Genkit, mnist_run: Path, tmp_path: Path, browser: Any, runtime: Path
) -> None:
    bundle = tmp_path / "some" / "where" / "bundle"
    said = here("export", mnist_run, "--out", bundle, "--web", "--web-runtime", runtime).stdout
    assert f"genkit preview {bundle}" in said
    here("verify", bundle)
    with (
        running(server := ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))),
        visited(browser, f"http://127.0.0.1:{server.server_port}/some/where/bundle/web/") as page,
    ):
        assert page.title() == "mnist_vae"
        page.click("#sample")
        settled(page)
        assert_shown(page, bundle)
    (bundle / "web" / "app.js").write_text("changed")
    done = here("verify", bundle, check=False)
    assert (done.returncode, "web/app.js: changed" in done.stderr) == (1, True)
    with pytest.raises(genkit.VerificationFailed, match=r"web/app.js: changed"):
        add_page(bundle, runtime / "dist")


def test_a_page_takes_the_place_of_an_earlier_one(broken: Path, runtime: Path) -> None:
    before = tree(broken)
    add_page(broken, runtime / "dist")
    assert tree(broken) == before
    assert {name.split("/")[0] for name in before} > {"web", "decoder.onnx", "test_data"}


def test_the_preview_serves_the_bundle_and_the_page_and_nothing_else(bundles: Path, runtime: Path) -> None:
    (bundles / "secret.txt").write_text("secret")
    with running(server := Preview(bundles / "grey", 0, runtime)):
        assert server.server_address[0] == "127.0.0.1"

        def ask(path: str, method: str = "GET") -> tuple[int, str | None, str | None, int]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request(method, path)
            answer = connection.getresponse()
            found = (
                answer.status,
                answer.getheader("Content-Type"),
                answer.getheader("Cache-Control"),
                len(answer.read()),
            )
            connection.close()
            return found

        size = (bundles / "grey" / "decoder.onnx").stat().st_size
        assert ask("/web/")[:3] == (200, "text/html; charset=utf-8", "no-store")
        assert ask("/web/app.js")[1] == ask("/web/ort/ort.wasm.min.js")[1] == "text/javascript; charset=utf-8"
        assert ask("/web/ort/ort-wasm-simd-threaded.wasm", "HEAD") == (200, "application/wasm", "no-store", 0)
        assert ask("/decoder.onnx") == (200, "application/octet-stream", "no-store", size)
        assert ask("/")[0] == ask("/web")[0] == 302
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/web/../../secret.txt",
            "//etc/passwd",
            "/test_data/",
            "/no",
        ):
            assert ask(path)[0] == 404, path


def test_the_preview_ends_quietly_with_ctrl_c_and_never_imports_torch(bundles: Path, runtime: Path) -> None:
    program = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # off in the background
from genkit.cli import main
status = main(sys.argv[1:])
sys.exit(status or "torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, "preview", bundles / "grey", "--port", "0", "--web-runtime", runtime]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, env={**os.environ, "PYTHONUNBUFFERED": ""}, **pipes) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().removeprefix("http://127.0.0.1:").split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/web/")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def test_what_a_page_needs_is_asked_for_before_anything_is_written(
    here: Genkit, mnist_run: Path, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for arguments in (["export", mnist_run, "--out", out, "--web"], ["preview", bundles / "grey"]):
        done = here(*arguments, check=False)
        assert done.returncode == 2
        assert "npm install onnxruntime-web" in done.stderr
        assert len(done.stderr.splitlines()) == 2
        done = here(*arguments, "--web-runtime", tmp_path, check=False)
        assert done.returncode == 2
        assert f"{tmp_path} has no ort.wasm.min.mjs; name the folder" in done.stderr
        assert "--web-runtime" in done.stderr
    done = here("export", mnist_run, "--out", out, "--web-runtime", tmp_path, check=False)
    assert (done.returncode, "give --web as well" in done.stderr) == (2, True)
    assert not tree(tmp_path)


def test_the_runtime_is_found_in_node_modules_from_here_upwards(
    here: Genkit, mnist_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (dist / name).write_text(name)
    (dist.parent / "package.json").write_text("{}")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    here("export", mnist_run, "--out", tmp_path / "bundle", "--web")
    assert (tmp_path / "bundle/web/ort/ort.wasm.min.js").read_text() == "ort.wasm.min.mjs"


def test_ports_and_folders_that_cannot_be_served(here: Genkit, bundles: Path, tmp_path: Path, runtime: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = here("preview", bundles / "grey", "--port", port, "--web-runtime", runtime, check=False)
    assert done.returncode == 2
    assert f"--port {port}: " in done.stderr
    assert "choose another one, or 0" in done.stderr
    done = here("preview", tmp_path, check=False)
    assert (done.returncode, "is not a bundle" in done.stderr) == (2, True)
