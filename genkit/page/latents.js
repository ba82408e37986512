/** What is known of each latent before a person touches it: its name, how far it goes, and how much hangs on it. */

import { elements } from "./random.js";
import { isWhole, sizeOf } from "./model.js";

/** @typedef {{index: number, name: string, low: number, high: number, whole: boolean, activity: number}} Latent */

const ROWS_AT_ONCE = 64;
const MOST_ROWS = 512;

/**
 * `z[3]`, or `z[1, 2]` in a latent of more dimensions.
 *
 * @param {import("./model.js").Value} z
 * @param {number} index
 */
function nameOf(z, index) {
  const place = [];
  for (const size of z.shape.slice(1).reverse()) {
    place.unshift(index % size);
    index = Math.floor(index / size);
  }
  return `${z.name}[${place.join(", ")}]`;
}

/**
 * The latents in their own order. A normal prior's go three deviations to either side, a uniform one's from end to end,
 * and others where the draws are: codes over all of them, numbers three and a half deviations from their mean.
 *
 * @param {import("./model.js").Value} z
 * @param {number[]} draws Of z: some rows.
 * @returns {Latent[]}
 */
export function describe(z, draws) {
  const size = sizeOf(z);
  const { kind, parameters } = z.distribution ?? {};
  const [first, second] = (parameters ?? []).map((parameter) => elements(parameter, size));
  const ends = (index) => {
    if (kind === "uniform") return [first[index], second[index]];
    if (kind === "normal") return [first[index] - 3 * second[index], first[index] + 3 * second[index]];
    if (isWhole(z)) return [Math.min(...draws), Math.max(...draws)];
    const column = draws.filter((_, i) => i % size === index);
    const mean = column.reduce((sum, value) => sum + value, 0) / column.length;
    const deviation = Math.sqrt(column.reduce((sum, value) => sum + (value - mean) ** 2, 0) / column.length) || 1;
    return [mean - 3.5 * deviation, mean + 3.5 * deviation];
  };
  return Array.from({ length: size }, (_, index) => {
    const [low, high] = ends(index);
    return { index, name: nameOf(z, index), low, high, whole: isWhole(z), activity: 0 };
  });
}

/**
 * Fills in the activities: how much of x changes when one latent alone is drawn anew, (1/2) E |g(z) - g(z')|^2, which
 * is the total Sobol index before it is divided by the variance (Jansen 1999).
 *
 * @param {import("./model.js").Model} model
 * @param {Latent[]} latents
 * @param {number[]} draws Two rows at least.
 * @param {number} label
 * @returns {Promise<boolean>} Whether that was measured. Of very many latents it would take too long.
 */
export async function measure(model, latents, draws, label) {
  const size = latents.length;
  const rows = draws.length / size;
  const bases = Math.min(8, rows, Math.floor(MOST_ROWS / size));
  if (bases < 1 || rows < 2) return false;
  const row = (i) => draws.slice(i * size, (i + 1) * size);
  const origin = await model.decode(draws.slice(0, bases * size), bases, label);
  const width = origin.length / bases;
  const changes = latents.flatMap(({ index }) => Array.from({ length: bases }, (_, base) => ({ index, base })));
  for (let begin = 0; begin < changes.length; begin += ROWS_AT_ONCE) {
    const part = changes.slice(begin, begin + ROWS_AT_ONCE);
    const z = part.flatMap(({ index, base }) => row(base).with(index, row((base + 1) % rows)[index]));
    const x = await model.decode(z, part.length, label);
    part.forEach(({ index, base }, i) => {
      let sum = 0;
      for (let j = 0; j < width; j++) sum += (x[i * width + j] - origin[base * width + j]) ** 2;
      latents[index].activity += sum / (2 * bases);
    });
  }
  return true;
}
