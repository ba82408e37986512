// Runs graphs for javascript.py, in Node or in a browser: fetches one request after another and posts what comes of it.
// A message is the length of its header (uint32, little-endian), the header in JSON, and the arrays that it describes.

const sessions = [];
let ort;
let settings;

const ARRAYS = {
  float64: Float64Array, float32: Float32Array, float16: Uint16Array,
  int64: BigInt64Array, int32: Int32Array, int16: Int16Array, int8: Int8Array,
  uint64: BigUint64Array, uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array, bool: Uint8Array,
};

const tasks = {
  async open({ library, provider, extra }) {
    const adapter = provider === "webgpu" ? await navigator.gpu?.requestAdapter() : undefined;
    if (provider === "webgpu" && !adapter) throw new Error("it has no WebGPU adapter");
    const module = await import(library);
    ort = module.default ?? module; // CommonJS
    ort.env.logLevel = "fatal"; // what fails is thrown as well
    ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins
    settings = { executionProviders: [provider], logSeverityLevel: 4, extra };
    return { adapter: adapter && `${adapter.info.vendor} ${adapter.info.architecture}` };
  },

  async load({ graph, weights }) {
    const native = settings.executionProviders[0] === "cpu"; // it looks beside the graph by itself
    const externalData = native ? [] : weights.map(([path, data]) => ({ path, data }));
    const session = await ort.InferenceSession.create(graph, { ...settings, externalData });
    return { session: sessions.push(session) - 1 };
  },

  async run({ session, arrays }, content) {
    const feeds = {};
    let start = 0;
    for (const { name, dtype, shape, size } of arrays) {
      const data = new ARRAYS[dtype](content.slice(start, start + size));
      feeds[name] = new ort.Tensor(dtype, data, shape);
      start += size;
    }
    const found = await sessions[session].run(feeds);
    const outputs = [];
    const bytes = [];
    for (const name of sessions[session].outputNames) {
      const data = await found[name].getData(true); // it may lie in a GPU
      bytes.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      outputs.push({ name, dtype: found[name].type, shape: found[name].dims, size: data.byteLength });
    }
    return { arrays: outputs, bytes };
  },
};

function packed({ bytes = [], ...header }) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  return new Blob([Uint32Array.of(text.length), text, ...bytes]);
}

async function answer(message) {
  const length = new DataView(message).getUint32(0, true);
  const { task, ...request } = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length)));
  try {
    return packed(await tasks[task](request, message.slice(4 + length)));
  } catch (error) {
    return packed({ problem: String(error?.message ?? error) });
  }
}

async function serve(server) {
  for (let said = new Blob(); ; ) {
    const response = await fetch(server, { method: "POST", body: said });
    said = response.status === 204 ? new Blob() : await answer(await response.arrayBuffer());
  }
}

if (typeof process === "undefined") {
  fetch("alive").then((response) => response.text()); // it ends with this page, which its browser may survive
  serve(location.href);
} else {
  const { isMainThread, Worker, workerData } = await import("node:worker_threads");
  if (isMainThread) {
    // While the other thread computes, this one can notice that whoever asks is gone.
    process.stdin.on("end", () => process.kill(process.pid, "SIGKILL")).resume();
    new Worker(new URL(import.meta.url), { workerData: process.argv[2] });
  } else {
    serve(workerData);
  }
}
