/** Seeded noise. The same seed gives the same noise in every browser; numpy gives other noise for it. */

/**
 * Uniform numbers in (0, 1) by sfc32 (Chris Doty-Humphrey, PractRand).
 *
 * @param {number} seed A whole number from 0 to 2^32 - 1.
 * @returns {() => number}
 */
export function uniforms(seed) {
  let [a, b, c, counter] = [0x9e3779b9, seed | 0, 0x243f6a88, 1];
  const next = () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum | 0;
    return ((sum >>> 0) + 0.5) / 2 ** 32;
  };
  for (let i = 0; i < 16; i++) next(); // so that neighbouring seeds have nothing in common
  return next;
}

const standard = {
  normal: (uniform) => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  laplace: (uniform) => {
    const u = uniform() - 0.5;
    return -Math.sign(u) * Math.log1p(-2 * Math.abs(u));
  },
  gumbel: (uniform) => -Math.log(-Math.log(uniform())),
};

/**
 * One row of a distribution of the manifest: the names and parameters are those of `numpy.random.Generator`.
 *
 * @param {{kind: string, parameters: any[]}} distribution
 * @param {number} size Numbers in the row.
 * @param {() => number} uniform
 * @returns {number[]}
 */
export function draw({ kind, parameters }, size, uniform) {
  const [first, second] = parameters.map((parameter) => elements(parameter, size));
  return Array.from({ length: size }, (_, i) => {
    if (kind === "uniform") return first[i] + (second[i] - first[i]) * uniform();
    if (kind === "integers") return Math.floor(first[i] + (second[i] - first[i]) * uniform());
    return first[i] + second[i] * standard[kind](uniform);
  });
}

/**
 * A parameter for each number of a row: it is one number for all, or nested lists of their shape.
 *
 * @param {number | any[]} parameter
 * @param {number} size
 * @returns {number[]}
 */
export function elements(parameter, size) {
  return Array.isArray(parameter) ? parameter.flat(Infinity) : Array(size).fill(parameter);
}
