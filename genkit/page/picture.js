/** A person's picture as the encoder takes it. */

/** How much of the light that a person sees is red, green and blue (ITU-R BT.601). */
const LUMA = [0.299, 0.587, 0.114];

/**
 * The middle of a picture, in the shape of an observation, with values in [0, 1]. What is transparent is white.
 *
 * @param {File} file
 * @param {{shape: number[], invert: boolean}} options `shape`: channels, height, width.
 * @returns {Promise<Float32Array>}
 */
export async function pixelsOf(file, { shape: [channels, height, width], invert }) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is no picture that this browser can read. PNG and JPEG are.`);
  });
  const scale = Math.min(picture.width / width, picture.height / height);
  const [cropWidth, cropHeight] = [scale * width, scale * height];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  const [left, top] = [(picture.width - cropWidth) / 2, (picture.height - cropHeight) / 2];
  context.drawImage(picture, left, top, cropWidth, cropHeight, 0, 0, width, height);
  picture.close();
  const { data } = context.getImageData(0, 0, width, height);
  const area = width * height;
  return Float32Array.from({ length: channels * area }, (_, i) => {
    const [channel, at] = [Math.floor(i / area), 4 * (i % area)];
    const grey = () => LUMA.reduce((sum, weight, c) => sum + weight * data[at + c], 0);
    const value = (channels === 3 ? data[at + channel] : grey()) / 255;
    return invert ? 1 - value : value;
  });
}
