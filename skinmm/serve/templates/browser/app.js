// The page: form, result, offline store. The words of a result are templates of index.html.
import { loadModel } from './model.js';
import { nameOf, say } from './texts.js';

const MAX_BYTES = 50e6;
const one = (selector) => document.querySelector(selector);
const status = (text) => { one('#status').textContent = text; };
const waiting = one('#result').innerHTML;
let chosen = null;
let inputs = 0; // counts changes of the image and the record

function percent(share) {
  const value = 100 * share;
  const text = value < 0.01 ? '<0.01' : value < 9.95 ? String(Number(value.toPrecision(2))) : value.toFixed(0);
  return `${text}\u00a0%`;
}

// Copy a template; `values` fill its placeholders.
function copy(id, values = {}) {
  const part = one(`#${id}`).content.cloneNode(true);
  for (const slot of part.querySelectorAll('data')) slot.replaceWith(String(values[slot.value]));
  return part;
}

function buildScale({ malignancy, threshold }) {
  const scale = Object.assign(document.createElement('div'), { className: 'scale', role: 'img' });
  const values = { malignancy: percent(malignancy), threshold: threshold !== null && percent(threshold) };
  scale.setAttribute('aria-label', say(threshold === null ? 'scale' : 'scale_threshold', values));
  scale.append(document.createElement('i'));
  scale.firstChild.style.width = `${100 * malignancy}%`;
  if (threshold !== null) {
    scale.append(document.createElement('b'));
    scale.lastChild.style.left = `${100 * threshold}%`;
  }
  return scale;
}

function listNotes(result, facts) {
  const missing = result.missing.filter((name) => !result.unknown.includes(name));
  return [
    ...result.unknown.map((name) => copy('unknown-note', { name: nameOf(name) })),
    missing.length && copy('missing-note', { names: missing.map(nameOf).join(', ') }),
    result.ood > 1 && copy('unlike-note'),
    !facts.is_calibrated && copy('uncalibrated-note'),
    result.min_side && copy('small-note', { side: result.min_side }),
    !result.exact && copy('inexact-note'),
  ].filter(Boolean);
}

const nameSet = (set) => (set.length === 1 && set[0] === 'none' ? say('no_class') : set.join(say('alternative')));

function listReliability(result, facts) {
  const notes = [copy('test-notes')];
  if (facts.coverage && result.prediction_set.length) notes.push(copy('set-note', { names: nameSet(result.prediction_set) }));
  if (result.ood !== null) notes.push(copy(`similarity-${result.ood > 1 ? 'failed' : 'passed'}`, { score: result.ood.toFixed(2) }));
  return notes;
}

function showResult(result, facts) {
  const article = Object.assign(document.createElement('article'), { className: 'result' });
  article.setAttribute('aria-label', say('label'));
  article.append(copy(facts.threshold === null ? 'head-uncalibrated' : `head-${result.decision}`));
  if (result.decision === 'benign') article.append(copy('benign-note'));
  article.append(copy('chance', { malignancy: percent(result.malignancy) }), buildScale(result));
  if (result.threshold !== null) article.append(copy('threshold-note', { threshold: percent(result.threshold) }));
  if (result.called) article.append(copy('called-note', { name: result.called, share: percent(result.probabilities[result.called]) }));
  if (facts.has_calibration) {
    const sentence = document.createElement('p');
    const { malignancy } = result;
    const found = facts.groups.findIndex(({ last }) => last >= malignancy);
    const group = found < 0 ? Math.max(0, facts.groups.length - 1) : found;
    sentence.append(copy('expected', { hundred: Math.round(100 * result.malignancy) }), ' ');
    sentence.append(copy(`similar-${group}`));
    const { low = 0, high = 1 } = facts.groups[group] ?? {};
    if (malignancy < low || malignancy > high) sentence.append(' ', copy('outside-note'));
    article.append(sentence);
  }
  const notes = listNotes(result, facts);
  if (notes.length) {
    const box = copy('warnings');
    box.querySelector('ul').append(...notes);
    article.append(box);
  }
  if (facts.is_calibrated) {
    const box = copy('reliability');
    box.querySelector('ul').append(...listReliability(result, facts));
    article.append(box);
  }
  article.append(copy('notice'));
  one('#result').replaceChildren(article);
}

function showRefusal(reason) {
  const text = Object.assign(document.createElement('p'), { className: 'refusal', textContent: reason });
  text.setAttribute('role', 'alert');
  one('#result').replaceChildren(text);
}

// A result belongs to the image and the record that it was computed from.
function clearResult() {
  inputs += 1;
  one('#result').innerHTML = waiting;
  status('');
}

function choose(event) {
  const [file] = event.target.files;
  if (!file) return;
  event.target.value = '';
  chosen = file;
  clearResult();
  one('#name').textContent = file.name;
  const preview = one('#preview');
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  one('#remove').hidden = false;
}

function remove() {
  chosen = null;
  clearResult();
  one('#name').textContent = '';
  one('#preview').hidden = true;
  one('#remove').hidden = true;
}

async function submit(event, model) {
  event.preventDefault();
  const button = one('#analyse');
  button.disabled = true;
  clearResult();
  const analysed = inputs;
  status(say('analysing'));
  await new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); }); // paint first
  try {
    if (chosen && chosen.size > MAX_BYTES) throw new Error(say('too_large', { bytes: chosen.size, limit: MAX_BYTES }));
    const data = chosen && new Uint8Array(await chosen.arrayBuffer());
    const record = Object.fromEntries(new FormData(event.target));
    const started = performance.now();
    const result = await model.analyse(data, record);
    if (analysed !== inputs) {
      status(say('changed'));
      return;
    }
    showResult(result, model.facts);
    const answer = one('#result');
    if (answer.getBoundingClientRect().top > 0.6 * innerHeight) answer.scrollIntoView();
    status(say('done', { milliseconds: Math.round(performance.now() - started) }));
  } catch (error) {
    if (analysed === inputs) {
      showRefusal(error.message);
      status('');
    }
  } finally { button.disabled = false; }
}

// Store the page in the browser; return whether it will start without a network.
async function storeOffline() {
  if (!('serviceWorker' in navigator)) return false;
  try {
    const registration = await navigator.serviceWorker.register('sw.js');
    const worker = registration.installing;
    if (worker) {
      await new Promise((resolve) => {
        worker.addEventListener('statechange', () => { if (['activated', 'redundant'].includes(worker.state)) resolve(); });
      });
    }
    return registration.active !== null;
  } catch { return false; }
}

async function start() {
  for (const input of document.querySelectorAll('input[type=file]')) input.addEventListener('change', choose);
  one('#remove').addEventListener('click', remove);
  one('#form').addEventListener('input', (event) => { if (event.target.type !== 'file') clearResult(); });
  const isStored = await storeOffline();
  const model = await loadModel();
  one('#form').addEventListener('submit', (event) => submit(event, model));
  one('#analyse').disabled = false;
  status(say(isStored ? 'ready' : 'ready_online'));
  document.documentElement.dataset.ready = isStored ? 'offline' : 'online';
  window.skinmm = model; // for scripts and tests
}

start().catch((error) => showRefusal(say('not_loaded', { reason: error.message })));
