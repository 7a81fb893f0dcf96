// The models of the folder on one lesion, with the decisions of skinmm/predict/predictor.py.
import * as ort from './ort.wasm.bundle.min.mjs';
import { readImage } from './image.js';
import { nameOf, say } from './texts.js';

const EMPTY = new Set(['', '-', '?', 'na', 'n/a', 'nan', 'none', 'null', 'unk', 'unknown', 'not known']);

// The optimiser would quantise the layers that a file keeps in 32 bits.
const SESSION = { executionProviders: ['wasm'], extra: { optimization: { disable_specified_optimizers: 'WeightBiasQuantization' } } };

export async function fetchChecked(name, integrity) {
  const answer = await fetch(name, integrity ? { integrity } : {});
  if (!answer.ok) throw new Error(say('server', { file: name, status: answer.status }));
  return answer;
}

// Load the networks; return {facts: model.json, analyse(bytes of an image or null, record by column)}.
export async function loadModel() {
  const facts = await (await fetchChecked('model.json')).json();
  ort.env.wasm.wasmBinary = await (await fetchChecked('ort-wasm-simd-threaded.wasm', facts.runtime.integrity)).arrayBuffer();
  ort.env.logLevel = 'error';
  const members = [];
  for (const member of facts.members) {
    const network = new Uint8Array(await (await fetchChecked(member.file, member.integrity)).arrayBuffer());
    members.push({ ...member, session: await ort.InferenceSession.create(network, SESSION) });
  }
  return { facts, analyse: (data, record) => analyse(facts, members, data, record) };
}

// Return the result as the service's API gives it, with the size of the image that is too small.
async function analyse(facts, members, data, record) {
  if (!data && facts.needs_image) throw new Error(say('needs_image'));
  const { values, unknown, missing } = readRecord(facts.columns, record);
  const word = facts.columns.find((column) => column.kind === 'number' && unknown.includes(column.name));
  if (word) throw new Error(say('high' in word ? 'not_an_age' : 'not_a_number', { ...word, name: nameOf(word.name), value: record[word.name].slice(0, 50) }));
  const usesImages = members.some((member) => member.image_size);
  if (usesImages && !data) missing.unshift('image');
  if (missing.length === facts.columns.length + usesImages) throw new Error(say('nothing'));
  const images = new Map();
  for (const { image_size: size } of members) if (data && size && !images.has(size)) images.set(size, await readImage(data, size, facts.max_pixels));
  const outputs = [];
  for (const member of members) outputs.push(await runMember(member, images.get(member.image_size), values));
  const sides = [...images].filter(([size, image]) => Math.min(image.width, image.height) < size).map(([size]) => size);
  return {
    ...decide(facts, outputs),
    missing, unknown, notice: facts.notice,
    min_side: Math.max(0, ...sides),
    exact: [...images.values()].every((image) => image.exact),
  };
}

async function runMember(member, image, values) {
  const feeds = {};
  if (member.image_size) feeds.image = new ort.Tensor('uint8', toPlanes(image?.pixels, member.image_size), [1, 3, member.image_size, member.image_size]);
  if (member.record) {
    const vector = encode(member.record, values);
    feeds.record = new ort.Tensor('float32', vector, [1, vector.length]);
  }
  if (member.session.inputNames.includes('shown')) feeds.shown = new ort.Tensor('bool', Uint8Array.of(image ? 1 : 0), [1]);
  const names = ['probabilities', 'ood'].filter((name) => member.session.outputNames.includes(name));
  const output = await member.session.run(feeds, names);
  const probabilities = Array.from(output.probabilities.data);
  // The score was fitted on rows with images.
  const ood = output.ood && (image || !member.image_size) ? output.ood.data[0] : null;
  return { probabilities, ood, set: member.limits && probabilities.map((p, i) => (p >= member.limits[i] ? 1 : 0)) };
}

function toPlanes(pixels, size) {
  const planes = new Uint8Array(3 * size * size);
  if (pixels) for (let i = 0; i < planes.length; i += 1) planes[(i % 3) * size * size + Math.floor(i / 3)] = pixels[i];
  return planes;
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
const meanOf = (rows) => (rows.length ? rows[0].map((_, i) => mean(rows.map((row) => row[i]))) : null);

// Average the members and decide: by the threshold, and refer what is not safe or unlike development.
export function decide(facts, outputs) {
  const { classes, positive, threshold, band } = facts;
  const probabilities = meanOf(outputs.map((output) => output.probabilities));
  const votes = meanOf(outputs.map((output) => output.set).filter(Boolean));
  const scores = outputs.map((output) => output.ood).filter((score) => score !== null);
  const ood = scores.length ? mean(scores) : null;
  const sum = probabilities.reduce((total, p, i) => (positive.includes(classes[i]) ? total + p : total), 0);
  const malignancy = Math.min(1, Math.max(0, sum));
  const inSet = votes && classes.filter((_, i) => votes[i] >= facts.min_votes);
  const called = malignancy >= threshold;
  let isSafe = true;
  if (band) isSafe = called ? malignancy >= band.high : malignancy < band.low;
  else if (inSet) isSafe = inSet.length > 0 && inSet.every((name) => positive.includes(name) === called);
  const refer = threshold === null || !isSafe || (ood !== null && ood > 1);
  return {
    malignancy, threshold, ood,
    decision: refer ? 'refer' : called ? 'malignant' : 'benign',
    probabilities: Object.fromEntries(classes.map((name, i) => [name, probabilities[i]])),
    prediction_set: inSet && !inSet.length ? ['none'] : inSet ?? [],
    called: facts.call ? classes[argmax(classes.map((_, j) => probabilities.reduce((score, p, i) => score + p * facts.call[i][j], 0)))] : '',
  };
}

const argmax = (numbers) => numbers.indexOf(Math.max(...numbers));

// Read the cells of the form; a value that is not understood counts as missing and is named.
export function readRecord(columns, record) {
  const [values, unknown, missing] = [{}, [], []];
  for (const column of columns) {
    const text = String(record[column.name] ?? '').trim();
    const value = EMPTY.has(text.toLowerCase()) ? null : parse(column, text);
    if (value === undefined) unknown.push(column.name);
    if (value === undefined || value === null) missing.push(column.name);
    else values[column.name] = value;
  }
  return { values, unknown, missing };
}

function parse({ kind, choices, low, high }, text) {
  if (kind === 'choice') return choices.includes(text) ? text : undefined;
  // 1,234 may be a thousand or one: not read.
  if (!/^[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?$/i.test(text) || /,\d{3}$/.test(text)) return undefined;
  const number = Number(text.replace(',', '.'));
  return number >= (low ?? -Infinity) && number <= (high ?? Infinity) ? number : undefined;
}

// Encode a record as skinmm/data/record.py does.
export function encode(columns, values) {
  const vector = [];
  for (const column of columns) {
    const value = values[column.name];
    if (column.kind === 'numeric') vector.push(...(value === undefined ? [0, 1] : [(Number(value) - column.mean) / column.scale, 0]));
    else {
      const at = column.values.indexOf(value);
      for (let i = 0; i <= column.values.length; i += 1) vector.push(i === (at < 0 ? column.values.length : at) ? 1 : 0);
    }
  }
  return Float32Array.from(vector);
}
