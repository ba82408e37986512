/** A slider for each latent, a page at a time, in the order that they are given in. */

const ON_A_PAGE = matchMedia("(max-width: 48rem)").matches ? 8 : 20;

/** @param {number} value As it is shown: codes as they are, other numbers to two places. */
const shown = (value, whole) => (whole ? String(value) : value.toFixed(2).replace("-", "−"));

export class Sliders {
  #page = 0;
  #inputs = new Map();

  /**
   * @param {import("./latents.js").Latent[]} latents
   * @param {number[]} z What they show, and change.
   * @param {(settled: boolean) => void} changed While one moves, and once more when it has been let go.
   */
  constructor(latents, z, changed) {
    this.latents = latents;
    this.z = z;
    this.changed = changed;
    this.element = document.getElementById("sliders");
    this.pages = Math.ceil(latents.length / ON_A_PAGE);
    document.getElementById("pager").hidden = this.pages < 2;
    for (const [id, step] of [["previous", -1], ["next", 1]]) {
      document.getElementById(id).addEventListener("click", () => this.#turn(this.#page + step));
    }
    this.#turn(0);
  }

  /** Shows what `z` has become. A slider grows where that lies beyond its end. */
  refresh() {
    for (const [latent, { input, output }] of this.#inputs) {
      const value = this.z[latent.index];
      input.min = Math.min(latent.low, value);
      input.max = Math.max(latent.high, value);
      input.value = value;
      output.value = shown(value, latent.whole);
    }
  }

  #turn(page) {
    this.#page = page;
    const first = page * ON_A_PAGE;
    const latents = this.latents.slice(first, first + ON_A_PAGE);
    this.#inputs = new Map(latents.map((latent) => [latent, this.#row(latent)]));
    this.element.replaceChildren(...[...this.#inputs.values()].map(({ row }) => row));
    document.getElementById("page").textContent =
      `${first + 1} to ${first + latents.length} of ${this.latents.length}`;
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = page === this.pages - 1;
    this.refresh();
  }

  /** @param {import("./latents.js").Latent} latent */
  #row(latent) {
    const row = document.createElement("div");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const output = document.createElement("output");
    const id = `latent-${latent.index}`;
    Object.assign(label, { htmlFor: id, textContent: latent.name });
    Object.assign(input, { id, type: "range", step: latent.whole ? 1 : "any" });
    output.htmlFor = id;
    output.setAttribute("aria-live", "off"); // the slider says its value itself
    row.className = "slider";
    row.append(label, input, output);
    input.addEventListener("input", () => {
      this.z[latent.index] = input.valueAsNumber;
      output.value = shown(input.valueAsNumber, latent.whole);
      this.changed(false);
    });
    input.addEventListener("change", () => this.changed(true));
    return { row, input, output };
  }
}
