/** The page: what a person does becomes latents, and latents become pictures. */

import { describe, measure } from "./latents.js";
import { Model, isWhole, sizeOf } from "./model.js";
import { pixelsOf } from "./picture.js";
import { Sliders } from "./sliders.js";
import { Strip } from "./strip.js";
import { viewOf } from "./views.js";

const SAMPLES = 24;
const STEPS = 12; // of a walk, and from A to B
const DRAWS = 64; // that ranges and activities are measured on
const CLOUD = 500; // points behind a point
const LARGEST_SEED = 2 ** 32 - 1;

/** @param {string} id */
const $ = (id) => document.getElementById(id);

/** Whole numbers from 0. */
const range = (length) => Array.from({ length }, (_, i) => i);

/** @param {string} message */
function complain(message) {
  $("notice").textContent = message;
  $("notice").hidden = false;
}

let busy = 0;

/** Says that the page computes while a handler does, and puts a problem with it where a person sees it. */
const guarded = (handler) => async (...given) => {
  if (!busy++) $("notice").hidden = true;
  $("main").setAttribute("aria-busy", true);
  try {
    await handler(...given);
  } catch (error) {
    complain(error.message);
  }
  busy--;
  $("main").setAttribute("aria-busy", busy > 0);
};

class Page {
  #stale = false;
  #painting = false;
  #seconds = [];
  #picture = null;

  constructor(model) {
    this.model = model;
    this.size = sizeOf(model.z);
    this.z = [];
    this.seeds = [];
  }

  get label() {
    return Number($("label").value || 0);
  }

  /** What has to be known before anything is shown: how far the latents go, what hangs on each, how x looks. */
  async prepare() {
    const { model, size } = this;
    const drawn = !model.noSampling;
    const draws = drawn ? await model.sample(range(DRAWS), 0) : await model.goldenLatents();
    this.latents = describe(model.z, draws);
    const measured = await measure(model, this.latents, draws, 0);
    this.ordered = measured ? this.latents.toSorted((one, other) => other.activity - one.activity) : this.latents;
    this.ends = [1, SAMPLES / 2].map((row) => draws.slice(row * size, (row + 1) * size));
    this.z = [...this.ends[0]];
    const cloud = drawn && sizeOf(model.x) === 2 ? await model.sample(range(CLOUD), 0) : draws;
    this.view = viewOf(model.x, await model.decode(cloud, cloud.length / size, 0));
    const still = this.latents.filter(({ activity }) => measured && activity === 0).length;
    $("order").textContent = measured
      ? `Those that change the output most come first.${still ? ` ${still} of ${size} change nothing.` : ""}`
      : "In the model's own order.";
  }

  /** Everything that can be done, and where something cannot, why. */
  build() {
    const { model, view } = this;
    this.sliders = new Sliders(this.ordered, this.z, (settled) => {
      $("seed").value = "";
      return this.redraw({ settled });
    });
    this.samples = new Strip($("samples"), "Samples", view, (row) => this.#goTo(this.sampled, row, this.seeds[row]));
    this.between = new Strip($("between-strip"), "From A to B", view, (row) => this.#goBetween(row / (STEPS - 1)));
    this.walk = new Strip($("walk-strip"), "Along one latent", view, (row) => this.#goTo(this.walked, row));
    $("label").append(...range(model.classes).map((label) => new Option(label, label)));
    $("label-field").hidden = !model.classes;
    $("walk").append(...this.ordered.map(({ name, index }) => new Option(name, index)));
    this.#prepareSampling();
    this.#prepareBetween();
    this.#prepareEncoding();
    $("centre").addEventListener("click", () => this.#goTo(this.#middle()));
    $("copy").addEventListener("click", guarded(() => this.#copy()));
    $("walk").addEventListener("change", guarded(() => this.#showWalk()));
    $("label").addEventListener("change", guarded(() => this.#relabel()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
  }

  async begin() {
    if (this.model.noSampling) await this.#goTo(this.z);
    else await Promise.all([this.#draw(Number($("seed").value)), this.#showSamples(1)]);
    await this.#showBetween();
  }

  #prepareSampling() {
    const { noSampling } = this.model;
    for (const id of ["sample", "seed", "more"]) $(id).disabled = Boolean(noSampling);
    $("samples-section").hidden = Boolean(noSampling);
    $("no-sampling").hidden = !noSampling;
    if (noSampling) {
      const begin = "The sliders begin at latents that travel with the bundle.";
      $("no-sampling").textContent = `No new samples: ${noSampling}. ${begin}`;
    }
    $("samples-remark").append(" ", this.view.remark);
    $("sample").addEventListener("click", guarded(() => this.#draw(Math.floor(Math.random() * LARGEST_SEED))));
    $("seed").addEventListener("change", guarded(() => $("seed").reportValidity() && this.#draw($("seed").valueAsNumber)));
    $("more").addEventListener("click", guarded(() => this.#showSamples(this.seeds.at(-1) + 1)));
  }

  #prepareBetween() {
    if (isWhole(this.model.z)) {
      $("between-remark").textContent = "The latents are codes: between two of them there is nothing.";
      $("between-tools").hidden = true;
      return;
    }
    for (const [id, end] of [["set-a", 0], ["set-b", 1]]) {
      $(id).addEventListener("click", guarded(() => {
        this.ends[end] = [...this.z];
        return this.#showBetween();
      }));
    }
    $("between").addEventListener("input", () => this.#goBetween($("between").valueAsNumber, { settled: false }));
    $("between").addEventListener("change", () => this.redraw({ settled: true }));
  }

  #prepareEncoding() {
    const { model, view } = this;
    const [input] = model.graphs.encoder?.inputs ?? [];
    let reason = model.noEncoding;
    if (!reason && view.kind !== "image") reason = "The observations of this model are no pictures.";
    else if (!reason && !input.range) reason = "The encoder takes values without a range; those of a picture have one.";
    $("encode-tools").hidden = Boolean(reason);
    $("no-encoder").hidden = !reason;
    $("no-encoder").textContent = reason;
    if (reason) return;
    const take = guarded((file) => file && this.#reconstruct(file));
    $("file").addEventListener("change", () => take($("file").files[0]));
    $("invert").addEventListener("change", () => take(this.#picture));
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        event.preventDefault(); // beside the field, too: else the browser would leave for the picture
        $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
        if (kind === "drop") take(event.dataTransfer.files[0]);
      });
    }
  }

  /**
   * Shows the present z in the next frame. While that is computed, later changes are not lost, and not queued either.
   *
   * @param {{settled: boolean}} options Whether what hangs on z but takes longer is shown as well.
   */
  redraw = guarded(async ({ settled }) => {
    this.#stale = true;
    if (!this.#painting) {
      this.#painting = true;
      try {
        while (this.#stale) {
          await new Promise(requestAnimationFrame);
          this.#stale = false;
          await this.#frame();
        }
      } finally {
        this.#painting = false;
      }
    }
    if (settled) await this.#showWalk();
  });

  async #frame() {
    const start = performance.now();
    this.x = await this.model.decode(this.z, 1, this.label);
    this.view.paint($("image"), this.x);
    const { duration } = performance.measure("frame", { start });
    performance.clearMeasures("frame");
    this.view.describe($("image"), "What the decoder makes of the sliders", this.x);
    this.#seconds = [...this.#seconds.slice(-59), duration];
    const median = this.#seconds.toSorted((one, other) => one - other)[this.#seconds.length >> 1];
    $("speed").value = `Decoded and painted in ${median.toFixed(1)} ms.`;
  }

  /** Moves the sliders to one row of some latents, which are those of a seed or of none. */
  #goTo(latents, row = 0, seed = "") {
    for (let i = 0; i < this.size; i++) this.z[i] = latents[row * this.size + i];
    this.sliders.refresh();
    $("seed").value = seed;
    return this.redraw({ settled: true });
  }

  #goBetween(share, { settled = true } = {}) {
    const [a, b] = this.ends;
    a.forEach((value, i) => (this.z[i] = value + share * (b[i] - value)));
    $("between").value = share;
    $("seed").value = "";
    this.sliders.refresh();
    this.redraw({ settled });
  }

  #middle() {
    return this.latents.map(({ low, high, whole }) => (whole ? Math.round((low + high) / 2) : (low + high) / 2));
  }

  async #draw(seed) {
    await this.#goTo(await this.model.sample([seed], this.label), 0, seed);
    $("status").textContent = `The sample of seed ${seed}.`;
  }

  async #showSamples(firstSeed) {
    this.seeds = range(SAMPLES).map((i) => (firstSeed + i) % (LARGEST_SEED + 1));
    this.sampled = await this.model.sample(this.seeds, this.label);
    const x = await this.model.decode(this.sampled, SAMPLES, this.label);
    this.samples.show(x, this.seeds.map((seed) => `Sample of seed ${seed}`));
  }

  async #showBetween() {
    if (isWhole(this.model.z)) return;
    const [a, b] = this.ends;
    const z = range(STEPS).flatMap((step) => a.map((value, i) => value + (step / (STEPS - 1)) * (b[i] - value)));
    const names = range(STEPS).map((step) => `${Math.round((100 * step) / (STEPS - 1))} % of the way from A to B`);
    this.between.show(await this.model.decode(z, STEPS, this.label), names);
  }

  async #showWalk() {
    const { index, low, high, whole, name } = this.latents[Number($("walk").value)];
    const places = range(STEPS).map((i) => low + (i / (STEPS - 1)) * (high - low));
    const values = whole ? [...new Set(places.map(Math.round))] : places;
    this.walked = values.flatMap((value) => this.z.with(index, value));
    const x = await this.model.decode(this.walked, values.length, this.label);
    this.walk.show(x, values.map((value) => `${name} at ${whole ? value : value.toFixed(2)}`));
  }

  async #relabel() {
    const seed = $("seed").valueAsNumber;
    await (Number.isNaN(seed) ? this.redraw({ settled: true }) : this.#draw(seed));
    if (!this.model.noSampling) await this.#showSamples(this.seeds[0]);
    await this.#showBetween();
  }

  async #reconstruct(file) {
    const { x } = this.model;
    const picture = await pixelsOf(file, { shape: x.shape.slice(1), invert: $("invert").checked });
    this.#picture = file;
    const z = await this.model.encode(picture, this.label);
    this.original = picture;
    this.reconstructed = await this.model.decode(z, 1, this.label);
    $("pair").hidden = false;
    this.#paintPair();
    await this.#goTo(z);
    $("status").textContent = `The sliders are where the encoder puts ${file.name}.`;
  }

  async #copy() {
    const nested = this.model.z.shape.slice(2).reduceRight(
      (rows, size) => range(rows.length / size).map((i) => rows.slice(i * size, (i + 1) * size)),
      isWhole(this.model.z) ? this.z : this.z.map(Math.fround),
    );
    const text = JSON.stringify({ z: nested, ...(this.model.classes && { condition: this.label }) });
    $("copied").value = text;
    try {
      await navigator.clipboard.writeText(text);
      $("status").textContent = "Copied. In Python: model.decode([z]).";
    } catch { // without https there is no clipboard
      $("copied").hidden = false;
      $("copied").select();
      $("status").textContent = "This browser does not let the page copy; here it is.";
    }
  }

  #paintPair() {
    this.view.paint($("original"), this.original);
    this.view.paint($("reconstruction"), this.reconstructed);
  }

  /** Plots have the colours of the page. */
  #repaint() {
    this.view.paint($("image"), this.x);
    for (const strip of [this.samples, this.between, this.walk]) if (strip.x) strip.repaint();
  }
}

/** Opens the bundle in the folder above this one. What goes wrong is for `start.js` to say. */
export async function start() {
  const model = await Model.open(new URL("../", import.meta.url));
  const page = new Page(model);
  $("title").textContent = document.title = model.name;
  const { epoch } = model.manifest.checkpoint ?? {};
  $("versions").textContent =
    `${model.name}${epoch ? ` after ${epoch} epochs` : ""}. ` +
    `Computed here by onnxruntime-web ${model.version}, on one thread of WebAssembly.`;
  await page.prepare();
  page.build();
  $("main").hidden = false;
  await page.begin();
  $("loading").hidden = true;
}
