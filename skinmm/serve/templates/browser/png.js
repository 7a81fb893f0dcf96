// PNG to RGB as Pillow reads it (W3C PNG, 3rd edition): 8 bits a value, without transparency and profile.
import { checkSize, ImageError, readOrientation } from './jpeg.js';
import { say } from './texts.js';

const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const refuse = (key) => { throw new ImageError(say(key)); };
const DAMAGED = 'damaged_png';

// Return {pixels (RGB), width, height, extent: [height, width], orientation}.
export async function decodePng(data, maxPixels) {
  const { header, palette, orientation, parts } = readChunks(data);
  const [width, height] = [header.getUint32(0), header.getUint32(4)];
  const [depth, type] = [header.getUint8(8), header.getUint8(9)];
  const channels = CHANNELS[type];
  if (!width || !height || !channels || (type === 3 && !palette)) refuse(DAMAGED);
  checkSize(width, height, maxPixels);
  if (header.getUint8(12)) refuse('interlaced_png');
  const stride = Math.ceil((width * channels * depth) / 8);
  const rows = await inflate(parts, height * (stride + 1));
  unfilter(rows, stride, height, Math.max(1, (channels * depth) >> 3));
  const pixels = new Uint8Array(3 * width * height);
  const scale = type === 3 || depth > 8 ? 1 : 255 / ((1 << depth) - 1);
  const step = depth > 8 ? 2 : 1; // the upper byte of 16 bits
  for (let y = 0, to = 0; y < height; y += 1) {
    const row = rows.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    for (let x = 0; x < width; x += 1, to += 3) {
      const at = x * channels * step;
      const value = depth >= 8 ? row[at] : ((row[(x * depth) >> 3] >> (8 - depth - ((x * depth) & 7))) & ((1 << depth) - 1)) * scale;
      if (type === 3) pixels.set(palette.subarray(3 * value, 3 * value + 3), to);
      else if (channels < 3) pixels.fill(value, to, to + 3);
      else { pixels[to] = row[at]; pixels[to + 1] = row[at + step]; pixels[to + 2] = row[at + 2 * step]; }
    }
  }
  if (depth > 8) requireUpperBits(pixels);
  return { pixels, width, height, extent: [height, width], orientation };
}

const REMAINDERS = Int32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

// CRC-32 of bytes (annex D of the standard).
function checksum(bytes) {
  let rest = -1;
  for (let i = 0; i < bytes.length; i += 1) rest = REMAINDERS[(rest ^ bytes[i]) & 255] ^ (rest >>> 8);
  return ~rest >>> 0;
}

function readChunks(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const result = { header: null, palette: null, orientation: 1, parts: [] };
  for (let at = 8; ;) {
    if (at + 12 > data.length || at + 12 + view.getUint32(at) > data.length) refuse(DAMAGED);
    const end = at + 8 + view.getUint32(at);
    const name = String.fromCharCode(...data.subarray(at + 4, at + 8));
    const content = data.subarray(at + 8, end);
    // As in Pillow; the compressed pixels have a checksum of their own.
    const isChecked = !result.parts.length && name !== 'IDAT';
    if (isChecked && view.getUint32(end) !== checksum(data.subarray(at + 4, end))) refuse(DAMAGED);
    if (name === 'IHDR' && content.length === 13) result.header = new DataView(content.buffer, content.byteOffset, 13);
    if (name === 'PLTE') { result.palette = new Uint8Array(768); result.palette.set(content); }
    if (name === 'IDAT') result.parts.push(content);
    if (name === 'eXIf') result.orientation = readOrientation(content);
    if (name === 'IEND') break;
    at = end + 4;
  }
  if (!result.header) refuse(DAMAGED);
  return result;
}

async function inflate(parts, length) {
  const rows = new Uint8Array(length);
  let at = 0;
  try {
    const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream('deflate')).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      rows.set(part.value.subarray(0, length - at), at);
      at = Math.min(length, at + part.value.length);
    }
  } catch { refuse(DAMAGED); }
  if (at < length) refuse(DAMAGED);
  return rows;
}

// Undo the filters of the rows, whose first byte names the filter (section 9).
function unfilter(rows, stride, height, back) {
  for (let y = 0; y < height; y += 1) {
    const start = y * (stride + 1) + 1;
    const filter = rows[start - 1];
    if (filter > 4) refuse(DAMAGED);
    for (let i = 0; i < stride && filter; i += 1) {
      const a = i >= back ? rows[start + i - back] : 0;
      const b = y ? rows[start + i - stride - 1] : 0;
      const c = y && i >= back ? rows[start + i - stride - 1 - back] : 0;
      rows[start + i] += filter === 1 ? a : filter === 2 ? b : filter === 3 ? (a + b) >> 1 : paeth(a, b, c);
    }
  }
}

function paeth(a, b, c) {
  const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

function requireUpperBits(pixels) {
  const highest = pixels.reduce((most, value) => Math.max(most, value), 0);
  if (highest && highest < 16) refuse('dark_png');
}
