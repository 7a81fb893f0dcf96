// Bytes of an image to the square of pixels that the network reads, as skinmm/images/decode.py makes it.
import { checkSize, decodeJpeg, ImageError } from './jpeg.js';
import { decodePng } from './png.js';
import { say } from './texts.js';

export { ImageError };

// Return {pixels: RGB of size x size, width, height (as displayed), exact: equal to Python's}.
export async function readImage(data, size, maxPixels) {
  const kind = detect(data);
  const raster = kind === 'JPEG' ? decodeJpeg(data, size, maxPixels)
    : kind === 'PNG' ? await decodePng(data, maxPixels)
      : await decodeByBrowser(data, kind, maxPixels);
  const [height, width] = raster.extent;
  const isResized = raster.width !== size || raster.height !== size || width !== size || height !== size;
  const pixels = isResized ? resize(raster, size) : raster.pixels;
  if (pixels.every((value, i) => value === pixels[i % 3])) throw new ImageError(say('single_colour'));
  const turned = raster.orientation >= 5;
  const [shownWidth, shownHeight] = raster.full ?? [raster.width, raster.height];
  return {
    pixels: turnUpright(pixels, size, raster.orientation),
    width: turned ? shownHeight : shownWidth,
    height: turned ? shownWidth : shownHeight,
    exact: kind === 'JPEG' || kind === 'PNG',
  };
}

function detect(data) {
  const text = String.fromCharCode(...data.subarray(0, 132));
  if (text.startsWith('\xff\xd8\xff')) return 'JPEG';
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'PNG';
  if (text.startsWith('RIFF') && text.slice(8, 12) === 'WEBP') return 'WebP';
  if (text.slice(4, 8) === 'ftyp' && /^(hei[cxms]|hev[cx]|mif1|msf1)$/.test(text.slice(8, 12))) return 'HEIC';
  if (text.slice(128, 132) === 'DICM') throw new ImageError(say('dicom'));
  throw new ImageError(say('other_format'));
}

// HEIC and WebP by the browser, where it can; not compared with Python.
async function decodeByBrowser(data, kind, maxPixels) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([data]), { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch { throw new ImageError(say('unreadable', { kind })); }
  const { width, height } = bitmap;
  checkSize(width, height, maxPixels);
  const context = Object.assign(document.createElement('canvas'), { width, height }).getContext('2d', { willReadFrequently: true });
  context.fillStyle = '#123456';
  context.fillRect(0, 0, 1, 1);
  const probe = context.getImageData(0, 0, 1, 1).data;
  if (probe[0] !== 0x12 || probe[1] !== 0x34 || probe[2] !== 0x56) throw new ImageError(say('changed_pixels'));
  context.clearRect(0, 0, 1, 1);
  context.drawImage(bitmap, 0, 0);
  const values = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < values.length; from += 4, to += 3) {
    if (values[from + 3] !== 255) throw new ImageError(say('transparent'));
    pixels[to] = values[from]; pixels[to + 1] = values[from + 1]; pixels[to + 2] = values[from + 2];
  }
  return { pixels, width, height, extent: [height, width], orientation: 1 };
}

// The antialiased bilinear filter of the SIMD resizer, in its integers: down first, then across.
export function resize({ pixels, width, height, extent }, size) {
  const down = weigh(height, extent[0], size);
  const low = new Uint8Array(3 * width * size);
  const sums = new Int32Array(3 * width);
  for (let y = 0; y < size; y += 1) {
    const { start, weights } = down.windows[y];
    sums.fill(down.round);
    weights.forEach((weight, i) => {
      const row = 3 * width * (start + i);
      for (let x = 0; x < sums.length; x += 1) sums[x] += pixels[row + x] * weight;
    });
    for (let x = 0; x < sums.length; x += 1) low[3 * width * y + x] = clamp(sums[x] >> down.bits);
  }
  const across = weigh(width, extent[1], size);
  const result = new Uint8Array(3 * size * size);
  for (let x = 0; x < size; x += 1) {
    const { start, weights } = across.windows[x];
    for (let y = 0; y < size; y += 1) {
      let [r, g, b] = [across.round, across.round, across.round];
      for (let i = 0, from = 3 * (y * width + start); i < weights.length; i += 1, from += 3) {
        r += low[from] * weights[i]; g += low[from + 1] * weights[i]; b += low[from + 2] * weights[i];
      }
      const to = 3 * (y * size + x);
      result[to] = clamp(r >> across.bits); result[to + 1] = clamp(g >> across.bits); result[to + 2] = clamp(b >> across.bits);
    }
  }
  return result;
}

const clamp = (value) => (value < 0 ? 0 : value > 255 ? 255 : value);

// Windows of the triangle filter for `size` outputs over the first `extent` of `length` inputs.
function weigh(length, extent, size) {
  const scale = extent / size;
  const radius = Math.max(1, scale);
  const windows = Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - radius));
    const end = Math.min(length, Math.ceil(centre + radius));
    const weights = Array.from({ length: end - start }, (_, k) => Math.max(0, 1 - Math.abs((start + k - (centre - 0.5)) / radius)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
  const largest = Math.max(...windows.flatMap(({ weights }) => weights));
  let bits = 0;
  while (bits < 21 && Math.round(largest * 2 ** (bits + 1)) < 1 << 15) bits += 1;
  for (const window of windows) window.weights = window.weights.map((weight) => Math.round(weight * 2 ** bits));
  return { windows, bits, round: 1 << (bits - 1) };
}

// Undo the EXIF orientation (CIPA DC-008) of a square of pixels.
export function turnUpright(pixels, size, orientation) {
  if (orientation === 1) return pixels;
  const result = new Uint8Array(pixels.length);
  const [isMirrored, isFlipped] = [[2, 3, 6, 7].includes(orientation), [3, 4, 7, 8].includes(orientation)];
  for (let y = 0; y < size; y += 1) {
    for (let x = 0; x < size; x += 1) {
      const [row, column] = [isFlipped ? size - 1 - y : y, isMirrored ? size - 1 - x : x];
      const from = orientation >= 5 ? 3 * (column * size + row) : 3 * (row * size + column);
      result.set(pixels.subarray(from, from + 3), 3 * (y * size + x));
    }
  }
  return result;
}
