/** The bundle as functions: latents are drawn, decoded and encoded. Nothing here touches the document. */

import { draw, elements, uniforms } from "./random.js";

/**
 * @typedef {{name: string, dtype: string, shape: (string | number)[], range: [number, number] | null,
 *   layout: string | null, distribution: {kind: string, parameters: any[]} | null}} Value
 * @typedef {{name: string, file: string, data: string | null, inputs: Value[], outputs: Value[],
 *   batches: number[]}} Graph
 * @typedef {Record<string, ArrayLike<number>>} Arrays By name, all rows of one after the other.
 */

const ARRAYS = { float32: Float32Array, float64: Float64Array, int32: Int32Array, int64: BigInt64Array };

/** @param {Value} value Numbers in one row. */
export const sizeOf = (value) => value.shape.slice(1).reduce((product, size) => product * size, 1);

/** @param {Value} value Whether its numbers are whole: codes, labels. */
export const isWhole = (value) => !value.dtype.startsWith("float");

/**
 * @param {URL} url
 * @returns {Promise<ArrayBuffer>}
 */
async function fetched(url) {
  const name = decodeURIComponent(url.pathname.split("/").pop());
  const response = await fetch(url).catch(() => {
    throw new Error(`${name} cannot be loaded: there is no connection to ${url.host}.`);
  });
  if (!response.ok) throw new Error(`${name} cannot be loaded: ${url.pathname} answers HTTP ${response.status}.`);
  return response.arrayBuffer();
}

/** onnxruntime-web, on one thread: more need a page that is isolated by headers, which not every host can send. */
async function openRuntime() {
  const here = new URL("./ort/", import.meta.url);
  const ort = await import("./ort/ort.wasm.min.js").catch((error) => {
    throw new Error(`onnxruntime-web cannot be loaded: ${error.message}`);
  });
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: new URL("ort-wasm-simd-threaded.js", here).href };
  ort.env.wasm.wasmBinary = await fetched(new URL("ort-wasm-simd-threaded.wasm", here));
  return ort;
}

export class Model {
  #ort;
  #root;
  /** @type {Map<string, any>} */
  #sessions = new Map();
  #last = Promise.resolve();

  constructor(ort, root, manifest) {
    this.#ort = ort;
    this.#root = root;
    this.manifest = manifest;
    /** @type {Record<string, Graph>} */
    this.graphs = Object.fromEntries(manifest.graphs.map((graph) => [graph.name, graph]));
    if (!this.graphs.decoder) throw new Error(`The bundle has no decoder: ${this.absence("decoder")}.`);
    const { inputs, outputs } = this.graphs.decoder;
    /** @type {Value} */
    this.z = inputs.find((value) => value.name === "z") ?? inputs[0];
    /** @type {Value} */
    this.x = outputs[0];
    const others = inputs.filter((value) => value !== this.z && value.name !== "condition").map(({ name }) => name);
    if (others.length) throw new Error(`The decoder takes ${others.join(", ")} beside ${this.z.name}, which this page cannot give it.`);
    /** How many labels there are; 0 where the model takes none. */
    this.classes = Math.max(
      0,
      ...manifest.graphs.flatMap((graph) => graph.inputs).filter((value) => value.name === "condition")
        .map((value) => value.distribution?.parameters[1] ?? 0),
    );
    /** Why graphs that could be left out do not work, by name. */
    this.broken = {};
  }

  /**
   * Opens the bundle in the folder `root`. Without a decoder there is nothing; another graph that fails is in `broken`.
   *
   * @param {URL} root
   */
  static async open(root) {
    const content = await fetched(new URL("manifest.json", root));
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder().decode(content));
    } catch (error) {
      throw new Error(`manifest.json is damaged (${error.message}). Export the bundle again.`);
    }
    const model = new Model(await openRuntime(), root, manifest);
    await model.#load("decoder");
    for (const name of ["prior", "encoder", "posterior"].filter((name) => name in model.graphs)) {
      await model.#load(name).catch((error) => (model.broken[name] = error.message));
    }
    return model;
  }

  get name() {
    return this.manifest.recipe?.name ?? "A generative model";
  }

  get version() {
    return this.#ort.env.versions.web;
  }

  /** @param {string} name The manifest's reason why there is no such graph. */
  absence(name) {
    return this.manifest.absent.find((absent) => absent.name === name)?.reason ?? "the manifest does not say why";
  }

  /** Why no latents can be drawn here; empty where they can. */
  get noSampling() {
    if (this.broken.prior) return this.broken.prior;
    const given = this.graphs.prior?.outputs.map((value) => value.name) ?? [];
    const missing = [...(this.graphs.prior?.inputs ?? []), ...this.graphs.decoder.inputs].find(
      (value) => !value.distribution && !given.includes(value.name),
    );
    return missing ? `${missing.name} cannot be drawn here: ${this.absence("prior")}` : "";
  }

  /** Why there is nothing to reconstruct with; empty where there is. */
  get noEncoding() {
    if (!this.graphs.encoder) return `There is no encoder: ${this.absence("encoder")}.`;
    const problem = this.broken.encoder ?? this.broken.posterior;
    if (problem) return problem;
    if (this.graphs.posterior || this.#pointOf(this.graphs.encoder)) return "";
    const names = this.graphs.encoder.outputs.map((value) => value.name).join(", ");
    return `The encoder gives ${names}, which is only a part of what the decoder takes.`;
  }

  /**
   * @param {ArrayLike<number>} z All rows.
   * @param {number} rows
   * @param {number} label
   * @returns {Promise<Float32Array>} The likelihood's mean.
   */
  async decode(z, rows, label) {
    return (await this.#run("decoder", { [this.z.name]: z, ...labels(label, rows) }, rows))[this.x.name];
  }

  /**
   * Latents of the prior, each of a seed of its own.
   *
   * @param {number[]} seeds
   * @param {number} label
   * @returns {Promise<number[]>}
   */
  async sample(seeds, label) {
    const first = this.graphs.prior ?? this.graphs.decoder;
    const drawn = first.inputs.filter((value) => value.name !== "condition");
    const known = Object.fromEntries(drawn.map((value) => [value.name, []]));
    for (const seed of seeds) {
      const uniform = uniforms(seed);
      for (const value of drawn) known[value.name].push(...draw(value.distribution, sizeOf(value), uniform));
    }
    if (!this.graphs.prior) return known[this.z.name];
    const outputs = await this.#run("prior", { ...known, ...labels(label, seeds.length) }, seeds.length);
    return Array.from(outputs[this.z.name]);
  }

  /**
   * @param {ArrayLike<number>} x One observation in [0, 1].
   * @param {number} label
   * @returns {Promise<number[]>} The posterior's mean; where it is made from noise, what the middle of the noise gives.
   */
  async encode(x, label) {
    const [input] = this.graphs.encoder.inputs;
    const found = await this.#run("encoder", { [input.name]: x, ...labels(label, 1) }, 1);
    if (!this.graphs.posterior) return Array.from(found[this.#pointOf(this.graphs.encoder).name]);
    const noise = this.graphs.posterior.inputs.filter((value) => !(value.name in found));
    const middle = noise.map((value) => [value.name, middleOf(value)]);
    const { z } = await this.#run("posterior", { ...Object.fromEntries(middle), ...found, ...labels(label, 1) }, 1);
    return Array.from(z);
  }

  /**
   * The decoder's largest set of golden latents: what to begin with where none can be drawn.
   *
   * @returns {Promise<number[]>}
   */
  async goldenLatents() {
    const { inputs, batches } = this.graphs.decoder;
    const rows = Math.max(...batches);
    const folder = `test_data/decoder/test_data_set_${batches.indexOf(rows)}`;
    const file = await fetched(new URL(`${folder}/input_${inputs.indexOf(this.z)}.pb`, this.#root));
    const Kind = ARRAYS[this.z.dtype];
    // raw_data is the last field of a TensorProto, so the file ends with the array
    const numbers = new Kind(file.slice(-rows * sizeOf(this.z) * Kind.BYTES_PER_ELEMENT));
    return Array.from(numbers, Number);
  }

  /** @param {Graph} graph The output that can take the place of z. */
  #pointOf(graph) {
    return graph.outputs.find(({ dtype, shape }) => dtype === this.z.dtype && `${shape}` === `${this.z.shape}`);
  }

  /** @param {string} name */
  async #load(name) {
    const { file, data } = this.graphs[name];
    const content = await this.#exported(file);
    const externalData = data ? [{ path: data, data: await this.#exported(data) }] : [];
    try {
      const options = { executionProviders: ["wasm"], externalData };
      this.#sessions.set(name, await this.#ort.InferenceSession.create(content, options));
    } catch (error) {
      throw new Error(`${file} cannot be opened by onnxruntime-web ${this.version}: ${error.message}`);
    }
  }

  /**
   * A file of the bundle, which has to be the one that was exported.
   *
   * @param {string} file
   */
  async #exported(file) {
    const content = await fetched(new URL(file, this.#root));
    if (crypto.subtle) { // not on a host without https
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
      if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== this.manifest.files[file]) {
        throw new Error(`${file} is damaged: it is not the file that was exported. Copy the bundle again, or export it again.`);
      }
    }
    return new Uint8Array(content);
  }

  /**
   * Runs one graph after whatever runs already: a session does one thing at a time.
   *
   * @param {string} name
   * @param {Arrays} known
   * @param {number} rows
   * @returns {Promise<Record<string, Float32Array>>}
   */
  #run(name, known, rows) {
    const run = async () => {
      const { inputs } = this.graphs[name];
      const feeds = Object.fromEntries(inputs.map((value) => [value.name, this.#tensor(value, known[value.name], rows)]));
      const results = await this.#sessions.get(name).run(feeds);
      return Object.fromEntries(
        Object.entries(results).map(([key, { type, data }]) => [key, type === "int64" ? Array.from(data, Number) : data]),
      );
    };
    const outcome = this.#last.then(run);
    this.#last = outcome.catch(() => {});
    return outcome;
  }

  /**
   * @param {Value} value
   * @param {ArrayLike<number>} numbers
   * @param {number} rows
   */
  #tensor(value, numbers, rows) {
    const data = value.dtype === "int64" ? BigInt64Array.from(numbers, BigInt) : ARRAYS[value.dtype].from(numbers);
    return new this.#ort.Tensor(value.dtype, data, [rows, ...value.shape.slice(1)]);
  }
}

/** The same label for all rows. */
const labels = (label, rows) => ({ condition: Array(rows).fill(label) });

/** @param {Value} value */
function middleOf(value) {
  const [first, second] = value.distribution.parameters.map((parameter) => elements(parameter, sizeOf(value)));
  return value.distribution.kind === "uniform" ? first.map((low, i) => (low + second[i]) / 2) : first;
}
