// JPEG to RGB, bit by bit as libjpeg-turbo decodes it at n eighths of the size (ITU-T T.81).
// A browser's own decoder cannot scale, and its result depends on the browser.

import { say } from './texts.js';

export class ImageError extends Error {}

const MIN_SIDE = 16;

export function checkSize(width, height, maxPixels) {
  if (Math.min(width, height) < MIN_SIDE) refuse('too_small', { width, height, limit: MIN_SIDE });
  if (width * height > maxPixels) refuse('too_many_pixels', { width, height, limit: Math.floor(maxPixels / 1e6) });
}

const refuse = (key, values) => { throw new ImageError(say(key, values)); };
const DAMAGED = 'damaged_jpeg';

// Rows of the inverse DCT of n values from 8 coefficients, in units of 2^-13 (2: 2^-15, 4: 2^-14), as
// libjpeg rounds them; the lower half mirrors the upper one.
const HALVES = {
  2: [[32768,29692,0,-10426,0,6967,0,-5906]],
  3: [[8192,10033,5793,0,0,0,0,0],[8192,0,-11586,0,0,0,0,0]],
  4: [[16384,20995,15137,7373,0,-4926,-6270,-4176],[16384,8697,-15137,-17799,0,11893,6270,-1730]],
  5: [[8192,11019,9372,6810,3580,0,0,0],[8192,6810,-3580,-11018,-9372,0,0,0],[8192,0,-11584,0,11584,0,0,0]],
  6: [[8192,11190,10033,8192,5793,2998,0,0],[8192,8192,0,-8192,-11586,-8192,0,0],[8192,2998,-10033,-8192,5793,11190,0,0]],
  7: [[8192,11295,10438,9058,7223,5027,2578,0],[8192,9058,2578,-5027,-10438,-11295,-7223,0],[8192,5027,-7223,-11295,-2578,9058,10438,0],[8192,0,-11585,0,11585,0,-11585,0]],
  8: [[8192,11363,10703,9633,8192,6437,4433,2260],[8192,9633,4433,-2259,-8192,-11362,-10704,-6436],[8192,6437,-4433,-11362,-8192,2261,10704,9633],[8192,2260,-10703,-6436,8192,9633,-4433,-11363]],
  10: [[8192,11443,11019,10322,9373,8192,6810,5260],[8192,10323,6810,1812,-3580,-8192,-11018,-11442],[8192,8192,0,-8192,-11586,-8192,0,8192],[8192,5260,-6810,-11442,-3580,8192,11018,1812],[8192,1812,-11019,-5260,9373,8192,-6810,-10322]],
  12: [[8192,11487,11190,10703,10033,9192,8192,7053],[8192,10703,8192,4433,0,-4433,-8192,-10703],[8192,9192,2998,-4433,-10033,-11485,-8192,-1512],[8192,7053,-2998,-10703,-10033,-1512,8192,11486],[8192,4433,-8192,-10704,0,10704,8192,-4433],[8192,1513,-11190,-4433,10033,7053,-8192,-9191]],
  14: [[8192,11513,11295,10935,10438,9810,9058,8192],[8192,10935,9058,6164,2578,-1297,-5026,-8192],[8192,9810,5027,-1297,-7223,-10934,-11295,-8192],[8192,8192,0,-8192,-11586,-8192,0,8192],[8192,6164,-5027,-11512,-7223,3826,11295,8192],[8192,3826,-9058,-9809,2578,11512,5026,-8192],[8192,1297,-11295,-3826,10438,6164,-9058,-8192]],
};
const BITS = { 2: 15, 4: 14 };
const ZIGZAG = Uint8Array.from([
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
  35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63]);
const UNSUPPORTED = new Set([0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf, 0xf7]);

// Return {width, height, components, ...} of a file, with the coefficients of all its scans.
function readCoefficients(data, maxPixels) {
  const state = { maxPixels, quantisation: [], huffman: { dc: [], ac: [] }, restart: 0, frame: null, orientation: 1 };
  let at = 2;
  for (;;) {
    if (at + 4 > data.length) refuse(DAMAGED);
    if (data[at] !== 0xff) refuse('stray_segments');
    const marker = data[at + 1];
    if (marker === 0xff) { at += 1; continue; }
    const length = (data[at + 2] << 8) | data[at + 3];
    const segment = data.subarray(at + 4, at + 2 + length);
    at += 2 + length;
    if (marker === 0xda) {
      at = readScan(data, at, segment, state);
      while (data[at] === 0xff && data[at + 1] === 0xff) at += 1;
      if (data[at] === 0xff && data[at + 1] === 0xd9) break;
    } else readSegment(marker, segment, state);
  }
  return complete(state);
}

function complete(state) {
  const { frame } = state;
  // libjpeg smooths what an unfinished progressive file lacks; here it is refused.
  for (const part of frame.components) if (part.missing.some((bits) => bits !== 0)) refuse(DAMAGED);
  const ids = String.fromCharCode(...frame.components.map((part) => part.id));
  const isRgb = state.jfif ? false : state.adobe !== undefined ? state.adobe === 0 : ids === 'RGB';
  return { ...frame, isRgb, orientation: state.orientation };
}

function readSegment(marker, segment, state) {
  const text = String.fromCharCode(...segment.subarray(0, 6));
  if (marker === 0xdb) readQuantisation(segment, state);
  else if (marker === 0xc4) readHuffman(segment, state);
  else if (marker === 0xdd) state.restart = (segment[0] << 8) | segment[1];
  else if (marker >= 0xc0 && marker <= 0xc2) readFrame(marker, segment, state);
  else if (UNSUPPORTED.has(marker)) refuse('jpeg_coding');
  else if (marker === 0xe0 && text.startsWith('JFIF\0') && segment.length >= 14) state.jfif = true;
  else if (marker === 0xee && text.startsWith('Adobe') && segment.length >= 12) state.adobe = segment[11];
  else if (marker === 0xe1 && text === 'Exif\0\0' && !state.exif) {
    state.exif = true;
    state.orientation = readOrientation(segment.subarray(6));
  }
}

// Return the EXIF orientation, 1 to 8; 1 if it is missing or cannot be read.
export function readOrientation(tiff) {
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  try {
    const little = view.getUint16(0) === 0x4949;
    const first = view.getUint32(4, little);
    for (let i = 0; i < view.getUint16(first, little); i += 1) {
      const entry = first + 2 + 12 * i;
      if (view.getUint16(entry, little) === 0x0112) {
        const value = view.getUint16(entry + 2, little) === 4 ? view.getUint32(entry + 8, little) : view.getUint16(entry + 8, little);
        return value >= 1 && value <= 8 ? value : 1;
      }
    }
  } catch (error) { if (!(error instanceof RangeError)) throw error; }
  return 1;
}

function readQuantisation(segment, state) {
  for (let at = 0; at < segment.length;) {
    const [deep, number] = [segment[at] >> 4, segment[at] & 15];
    at += 1;
    const table = new Uint16Array(64);
    for (let i = 0; i < 64; i += 1, at += deep ? 2 : 1) table[ZIGZAG[i]] = deep ? (segment[at] << 8) | segment[at + 1] : segment[at];
    state.quantisation[number] = table;
  }
}

// Tables by the next 16 bits: length << 8 | value.
function readHuffman(segment, state) {
  for (let at = 0; at < segment.length;) {
    const tables = segment[at] >> 4 ? state.huffman.ac : state.huffman.dc;
    const number = segment[at] & 15;
    const counts = segment.subarray(at + 1, at + 17);
    const lookup = new Uint16Array(65536);
    let code = 0;
    at += 17;
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (counts.length < 16 || total > 256 || at + total > segment.length) refuse(DAMAGED);
    for (let length = 1; length <= 16; length += 1) {
      for (let i = 0; i < counts[length - 1]; i += 1, at += 1) {
        const start = code << (16 - length);
        lookup.fill((length << 8) | segment[at], start, start + (1 << (16 - length)));
        code += 1;
        // A code of ones only is not allowed, nor a difference of more than 15 bits.
        if (code >= 1 << length || (tables === state.huffman.dc && segment[at] > 15)) refuse(DAMAGED);
      }
      code <<= 1;
    }
    tables[number] = lookup;
  }
}

function readFrame(marker, segment, state) {
  if (state.frame || segment.length < 6) refuse(DAMAGED);
  const [height, width, count] = [(segment[1] << 8) | segment[2], (segment[3] << 8) | segment[4], segment[5]];
  if (segment[0] !== 8) refuse('jpeg_bits', { bits: segment[0] });
  if (count === 4) refuse('jpeg_cmyk');
  if (!width || !height || ![1, 3].includes(count) || segment.length < 6 + 3 * count) refuse(DAMAGED);
  checkSize(width, height, state.maxPixels);
  const components = Array.from({ length: count }, (_, i) => ({
    id: segment[6 + 3 * i], h: segment[7 + 3 * i] >> 4, v: segment[7 + 3 * i] & 15, table: segment[8 + 3 * i] }));
  const [hMax, vMax] = [Math.max(...components.map((part) => part.h)), Math.max(...components.map((part) => part.v))];
  const across = Math.ceil(width / (8 * hMax));
  const down = Math.ceil(height / (8 * vMax));
  const [luma, blue, red] = components;
  const isUsual = luma.h === hMax && luma.v === vMax && blue?.h === red?.h && blue?.v === red?.v;
  for (const part of components) {
    if (!isUsual || !part.h || !part.v || hMax % part.h || vMax % part.v) refuse('jpeg_sampling');
    part.columns = Math.ceil((width * part.h) / (hMax * 8));
    part.rows = Math.ceil((height * part.v) / (vMax * 8));
    part.stride = across * part.h;
    part.coefficients = new Int16Array(64 * part.stride * down * part.v);
    part.missing = new Array(64).fill(marker === 0xc2 ? 16 : 0);
    if (marker !== 0xc2) part.missing[0] = 16; // until its scan
  }
  state.frame = { width, height, components, hMax, vMax, across, down, isProgressive: marker === 0xc2 };
}

// Decode one scan from the position `at`; return the position of the marker after it.
function readScan(data, at, segment, state) {
  const { frame, huffman } = state;
  const count = segment[0];
  if (!frame || !count || segment.length < 4 + 2 * count) refuse(DAMAGED);
  const [first, last, high, low] = [segment[1 + 2 * count], segment[2 + 2 * count], segment[3 + 2 * count] >> 4, segment[3 + 2 * count] & 15];
  if (last > 63 || first > last || (first && count > 1)) refuse(DAMAGED);
  if (!frame.isProgressive && (first || last !== 63 || high || low)) refuse(DAMAGED);
  const parts = Array.from({ length: count }, (_, i) => {
    const part = frame.components.find((one) => one.id === segment[1 + 2 * i]) ?? refuse(DAMAGED);
    part.dc = huffman.dc[segment[2 + 2 * i] >> 4];
    part.ac = huffman.ac[segment[2 + 2 * i] & 15];
    part.quantisation ??= state.quantisation[part.table] ?? refuse(DAMAGED);
    for (let i2 = first; i2 <= (frame.isProgressive ? last : 0); i2 += 1) part.missing[i2] = low;
    return part;
  });
  const bits = new BitReader(data, at);
  const decodeBlock = chooseDecoder(frame.isProgressive, first, last, high, low, bits);
  const single = count === 1;
  const [across, down] = single ? [parts[0].columns, parts[0].rows] : [frame.across, frame.down];
  const total = across * down;
  for (let unit = 0; unit < total; unit += 1) {
    if (unit % (state.restart || total) === 0) {
      if (unit) bits.restart((unit / state.restart - 1) & 7);
      for (const part of parts) part.predictor = 0;
      decodeBlock.run = 0;
    }
    const [column, row] = [unit % across, Math.floor(unit / across)];
    for (const part of parts) {
      if (single) decodeBlock(part, 64 * (row * part.stride + column));
      else {
        for (let y = 0; y < part.v; y += 1) {
          for (let x = 0; x < part.h; x += 1) decodeBlock(part, 64 * ((row * part.v + y) * part.stride + column * part.h + x));
        }
      }
    }
  }
  return bits.end();
}

class BitReader {
  constructor(data, at) { Object.assign(this, { data, at, buffer: 0, count: 0, padding: 0 }); }

  // Make at least 16 bits available; zeros follow the last bit, and must not be used.
  fill() {
    while (this.count <= 16) {
      let byte = 0;
      if (this.data[this.at] === 0xff && this.data[this.at + 1] !== 0) this.padding += 8;
      else if (this.at >= this.data.length) this.padding += 8;
      else {
        byte = this.data[this.at];
        this.at += byte === 0xff ? 2 : 1;
      }
      this.buffer = ((this.buffer << 8) | byte) & 0x3ffffff;
      this.count += 8;
    }
  }

  decode(table) {
    if (this.count < 16) this.fill();
    const entry = table[(this.buffer >>> (this.count - 16)) & 0xffff];
    if (!entry) refuse(DAMAGED);
    this.skip(entry >> 8);
    return entry & 0xff;
  }

  skip(length) {
    this.count -= length;
    if (this.count < this.padding) refuse(DAMAGED);
  }

  read(length) {
    if (!length) return 0;
    if (this.count < 16) this.fill();
    const value = (this.buffer >>> (this.count - length)) & ((1 << length) - 1);
    this.skip(length);
    return value;
  }

  // A number of `length` bits with a sign (T.81, F.2.2.1).
  readSigned(length) {
    const value = this.read(length);
    return length && value < 1 << (length - 1) ? value - (1 << length) + 1 : value;
  }

  restart(number) {
    this.end();
    if (this.data[this.at] !== 0xff || this.data[this.at + 1] !== 0xd0 + number) refuse(DAMAGED);
    this.at += 2;
  }

  // Forget the rest of the last byte; return the position of the next marker.
  end() {
    if (this.count - this.padding >= 8) refuse('stray_bytes');
    Object.assign(this, { buffer: 0, count: 0, padding: 0 });
    return this.at;
  }
}

function chooseDecoder(isProgressive, first, last, high, low, bits) {
  const decoder = isProgressive
    ? first ? (high ? refineAc : decodeAc) : (high ? refineDc : decodeDc)
    : decodeBaseline;
  const bound = (part, offset) => decoder(part, offset);
  bound.run = 0;

  function decodeDc(part, offset) {
    const size = bits.decode(part.dc ?? refuse(DAMAGED));
    if (size > 15) refuse(DAMAGED);
    part.predictor += bits.readSigned(size);
    part.coefficients[offset] = part.predictor << low;
  }

  function decodeBaseline(part, offset) {
    decodeDc(part, offset);
    const { coefficients, ac } = part;
    if (!ac) refuse(DAMAGED);
    for (let k = 1; k < 64; k += 1) {
      const symbol = bits.decode(ac);
      const size = symbol & 15;
      if (!size) {
        if (symbol !== 0xf0) break;
        k += 15;
        continue;
      }
      k += symbol >> 4;
      if (k > 63) refuse(DAMAGED);
      coefficients[offset + ZIGZAG[k]] = bits.readSigned(size);
    }
  }

  function refineDc(part, offset) {
    if (bits.read(1)) part.coefficients[offset] |= 1 << low;
  }

  function decodeAc(part, offset) {
    if (bound.run) { bound.run -= 1; return; }
    for (let k = first; k <= last; k += 1) {
      const symbol = bits.decode(part.ac ?? refuse(DAMAGED));
      const [run, size] = [symbol >> 4, symbol & 15];
      if (!size) {
        if (run < 15) { bound.run = (1 << run) - 1 + bits.read(run); return; }
        k += 15;
        continue;
      }
      k += run;
      if (k > 63) refuse(DAMAGED);
      part.coefficients[offset + ZIGZAG[k]] = bits.readSigned(size) * (1 << low);
    }
  }

  function refineAc(part, offset) {
    const { coefficients } = part;
    const [plus, minus] = [1 << low, -1 << low];
    const correct = (at) => {
      if (bits.read(1) && !(coefficients[at] & plus)) coefficients[at] += coefficients[at] > 0 ? plus : minus;
    };
    let k = first;
    if (!bound.run) {
      for (; k <= last; k += 1) {
        const symbol = bits.decode(part.ac ?? refuse(DAMAGED));
        let run = symbol >> 4;
        let value = 0;
        if ((symbol & 15) > 1) refuse(DAMAGED);
        if (symbol & 15) value = bits.read(1) ? plus : minus;
        else if (run < 15) { bound.run = (1 << run) + bits.read(run); break; }
        for (; k <= last; k += 1) {
          const at = offset + ZIGZAG[k];
          if (coefficients[at]) correct(at);
          else if (run === 0) { if (value) coefficients[at] = value; break; } else run -= 1;
        }
      }
    }
    if (bound.run) {
      for (; k <= last; k += 1) if (coefficients[offset + ZIGZAG[k]]) correct(offset + ZIGZAG[k]);
      bound.run -= 1;
    }
  }

  return bound;
}

const clamp = (value) => (value < 0 ? 0 : value > 255 ? 255 : value);

// Return the samples of a component, `side` for each block of 8.
function invert(part, side, width, height) {
  const { coefficients, quantisation, stride } = part;
  const samples = new Uint8Array(width * height);
  const half = HALVES[side];
  const rows = half && Array.from({ length: side }, (_, k) => (k < half.length ? half[k] : half[side - 1 - k].map((c, j) => (j % 2 ? -c : c))));
  const matrix = Int32Array.from((rows ?? []).flat());
  const bits = BITS[side] ?? 13;
  const [shift, round] = [bits - 2, 1 << (bits - 3)];
  const [shift2, round2] = [bits + 5, 1 << (bits + 4)];
  const work = new Int32Array(8 * side);
  for (let y = 0; y < height; y += side) {
    for (let x = 0; x < width; x += side) {
      const block = 64 * ((y / side) * stride + x / side);
      const [w, h] = [Math.min(side, width - x), Math.min(side, height - y)];
      let isFlat = true;
      for (let i = 0; i < (side === 1 ? 1 : 64); i += 1) {
        const coefficient = coefficients[block + i];
        if (!coefficient) continue;
        // No image of 8 bits has larger ones.
        if (Math.abs(coefficient * quantisation[i]) > 2048 + quantisation[i]) refuse(DAMAGED);
        if (i) isFlat = false;
      }
      if (isFlat) {
        const level = clamp(((coefficients[block] * quantisation[0] + 4) >> 3) + 128);
        for (let r = 0; r < h; r += 1) samples.fill(level, (y + r) * width + x, (y + r) * width + x + w);
        continue;
      }
      work.fill(0);
      for (let j = 0; j < 8; j += 1) {
        for (let k = 0; k < side; k += 1) {
          let sum = round;
          for (let i = 0; i < 8; i += 1) {
            const c = coefficients[block + 8 * i + j];
            if (c) sum += c * quantisation[8 * i + j] * matrix[8 * k + i];
          }
          work[8 * k + j] = sum >> shift;
        }
      }
      for (let r = 0; r < h; r += 1) {
        for (let k = 0; k < w; k += 1) {
          let sum = round2;
          for (let j = 0; j < 8; j += 1) sum += work[8 * r + j] * matrix[8 * k + j];
          const level = sum >> shift2;
          if (level > 511 || level < -512) refuse(DAMAGED); // where decoders differ
          samples[(y + r) * width + x + k] = clamp(level + 128);
        }
      }
    }
  }
  return samples;
}

// Return a component at the size of the image: the triangle filters of libjpeg for a factor of 2.
function upsample(plane, across, down, width, height, fancy) {
  const { samples, width: w, height: h } = plane;
  if (across === 1 && down === 1) return plane;
  const isSmooth = fancy && (across === 1 ? down === 2 : across === 2 && down <= 2 && w > 2);
  const result = new Uint8Array(width * height);
  const sums = new Int32Array(w);
  for (let y = 0; y < height; y += 1) {
    const row = Math.floor(y / down);
    const near = clampRow(row + (y % 2 ? 1 : -1), h);
    const target = result.subarray(y * width, (y + 1) * width);
    if (!isSmooth) {
      for (let x = 0; x < width; x += 1) target[x] = samples[row * w + Math.floor(x / across)];
      continue;
    }
    for (let x = 0; x < w; x += 1) sums[x] = down === 2 ? 3 * samples[row * w + x] + samples[near * w + x] : samples[row * w + x];
    const scale = down === 2 ? 4 : 1;
    const [shift, even, odd] = across === 1 ? [2, 1, 1] : down === 2 ? [4, 8, 7] : [2, 1, 2];
    for (let x = 0; x < width; x += 1) {
      if (across === 1) { target[x] = (sums[x] + (y % 2 ? 2 : 1)) >> shift; continue; }
      const at = x >> 1;
      const other = at + (x % 2 ? 1 : -1);
      const isEdge = other < 0 || other >= w;
      const bias = x % 2 ? odd : even;
      target[x] = isEdge ? (scale === 1 ? sums[at] : (4 * sums[at] + bias) >> 4) : (3 * sums[at] + sums[other] + bias) >> shift;
    }
  }
  return { samples: result, width, height };
}

const clampRow = (row, height) => Math.max(0, Math.min(height - 1, row));

// Decode at the smallest scale in eighths that covers `size` (a square side as displayed), or at full size
// without one. Return {pixels (RGB), width, height, extent: [height, width] that the image covers, full: [width,
// height] as stored, orientation}.
export function decodeJpeg(data, size = null, maxPixels = 2e8) {
  const frame = readCoefficients(data, maxPixels);
  const { width, height, components, hMax, vMax, orientation } = frame;
  const eighths = size === null ? 8 : Math.min(8, Math.max(...[height, width].map((side) => Math.floor(((size - 1) * 8) / side) + 1)));
  const [w, h] = [Math.ceil((width * eighths) / 8), Math.ceil((height * eighths) / 8)];
  const planes = components.map((part) => {
    let side = eighths;
    while (side < 8 && (hMax * eighths) % (part.h * side * 2) === 0 && (vMax * eighths) % (part.v * side * 2) === 0) side *= 2;
    const [pw, ph] = [Math.ceil((width * part.h * side) / (hMax * 8)), Math.ceil((height * part.v * side) / (vMax * 8))];
    const plane = { samples: invert(part, side, pw, ph), width: pw, height: ph };
    part.coefficients = null;
    return upsample(plane, (hMax * eighths) / (part.h * side), (vMax * eighths) / (part.v * side), w, h, eighths > 1);
  });
  return { pixels: toRgb(planes, w, h, frame.isRgb), width: w, height: h, extent: [(height * eighths) / 8, (width * eighths) / 8], full: [width, height], orientation };
}

function toRgb(planes, width, height, isRgb) {
  const pixels = new Uint8Array(3 * width * height);
  const [first, second, third] = planes;
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, to += 3) {
      const level = first.samples[y * first.width + x];
      let [r, g, b] = [level, level, level];
      if (second) {
        const cb = second.samples[y * second.width + x];
        const cr = third.samples[y * third.width + x];
        if (isRgb) [g, b] = [cb, cr];
        else {
          r = clamp(level + ((91881 * (cr - 128) + 32768) >> 16));
          g = clamp(level + ((-22554 * (cb - 128) - 46802 * (cr - 128) + 32768) >> 16));
          b = clamp(level + ((116130 * (cb - 128) + 32768) >> 16));
        }
      }
      pixels[to] = r; pixels[to + 1] = g; pixels[to + 2] = b;
    }
  }
  return pixels;
}
