/** How one observation looks: an image, a point in the plane among others, or bars. All are painted on a canvas. */

import { sizeOf } from "./model.js";

const SIDE = 320; // pixels of a canvas that is no image

/** @param {string} name A custom property of the style sheet. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The smallest and the largest of many numbers. */
const extent = (numbers) => numbers.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);

class Images {
  kind = "image";

  constructor(value, samples) {
    [this.channels, this.height, this.width] = value.shape.slice(1);
    this.size = sizeOf(value);
    [this.low, this.high] = value.range ?? extent(samples);
    this.remark = value.range ? "" : "The values have no range of their own; black to white is what samples span.";
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {ArrayLike<number>} x Observations, one after the other.
   * @param {number} row Which of them.
   */
  paint(canvas, x, row = 0) {
    const { channels, height, width, low, high } = this;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const image = new ImageData(width, height);
    const area = width * height;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) {
        const value = x[row * this.size + (channels === 3 ? c : 0) * area + i];
        image.data[4 * i + c] = (255 * (value - low)) / (high - low); // rounded and clamped by the array
      }
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** @param {HTMLCanvasElement} canvas */
  describe(canvas, what) {
    canvas.setAttribute("aria-label", what);
  }
}

class Plot {
  /** An empty canvas. */
  clear(canvas) {
    if (canvas.width !== SIDE) Object.assign(canvas, { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    context.fillStyle = colour("--plot");
    context.fillRect(0, 0, SIDE, SIDE);
    return context;
  }
}

class Points extends Plot {
  kind = "point";
  remark = "The observations are points in the plane. Grey: draws from the model.";
  size = 2;

  constructor(samples) {
    super();
    this.cloud = samples;
    const [low, high] = extent(samples);
    this.low = low - 0.05 * (high - low);
    this.high = high + 0.05 * (high - low);
  }

  paint(canvas, x, row = 0) {
    const context = this.clear(canvas);
    const place = (value) => (SIDE * (value - this.low)) / (this.high - this.low);
    context.fillStyle = colour("--cloud");
    for (let i = 0; i < this.cloud.length; i += 2) {
      context.fillRect(place(this.cloud[i]) - 2, SIDE - place(this.cloud[i + 1]) - 2, 4, 4);
    }
    context.fillStyle = colour("--accent");
    context.beginPath();
    context.arc(place(x[2 * row]), SIDE - place(x[2 * row + 1]), 9, 0, 2 * Math.PI);
    context.fill();
  }

  describe(canvas, what, x, row = 0) {
    const [first, second] = [x[2 * row], x[2 * row + 1]].map((value) => value.toFixed(2));
    canvas.setAttribute("aria-label", `${what}: the point ${first}, ${second}`);
  }
}

class Bars extends Plot {
  kind = "bar";
  remark = "The observations are no images; each bar is one of their numbers.";

  constructor(value, samples) {
    super();
    this.size = sizeOf(value);
    const [low, high] = value.range ?? extent(samples);
    [this.low, this.high] = [Math.min(0, low), Math.max(0, high)];
  }

  paint(canvas, x, row = 0) {
    const context = this.clear(canvas);
    const place = (value) => SIDE - (SIDE * (value - this.low)) / (this.high - this.low);
    const width = SIDE / this.size;
    context.fillStyle = colour("--accent");
    for (let i = 0; i < this.size; i++) {
      const [top, zero] = [place(x[row * this.size + i]), place(0)];
      context.fillRect(i * width, Math.min(top, zero), Math.max(1, 0.8 * width), Math.max(1, Math.abs(top - zero)));
    }
  }

  describe(canvas, what) {
    canvas.setAttribute("aria-label", `${what}: ${this.size} numbers as bars`);
  }
}

/**
 * @param {import("./model.js").Value} value
 * @param {ArrayLike<number>} samples Some observations.
 */
export function viewOf(value, samples) {
  const shape = value.shape.slice(1);
  if (shape.length === 3 && [1, 3].includes(shape[0]) && value.layout !== "NHWC") return new Images(value, samples);
  return sizeOf(value) === 2 ? new Points(samples) : new Bars(value, samples);
}
