// Service worker: the files of one version, from the browser's store; nothing is fetched elsewhere.
const VERSION = '{{ version }}';
const FILES = {{ files | tojson }};
const PREFIX = `skinmm ${self.registration.scope} `;
// A page with these headers may use several threads.
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

async function store() {
  const cache = await caches.open(PREFIX + VERSION);
  await cache.addAll(Object.entries(FILES).map(([name, integrity]) => new Request(name, { integrity, cache: 'no-cache' })));
  await self.skipWaiting();
}

async function activate() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== PREFIX + VERSION).map((name) => caches.delete(name)));
  await self.clients.claim();
}

async function answer(request) {
  const cache = await caches.open(PREFIX + VERSION);
  const url = new URL(request.url);
  const name = url.href === self.registration.scope ? 'index.html' : request;
  const stored = (await cache.match(name, { ignoreSearch: true })) ?? (await fetch(request));
  const headers = new Headers(stored.headers);
  for (const [key, value] of Object.entries(HEADERS)) headers.set(key, value);
  return new Response(stored.body, { status: stored.status, statusText: stored.statusText, headers });
}

self.addEventListener('install', (event) => event.waitUntil(store()));
self.addEventListener('activate', (event) => event.waitUntil(activate()));
self.addEventListener('fetch', (event) => {
  if (event.request.method === 'GET' && event.request.url.startsWith(self.registration.scope)) event.respondWith(answer(event.request));
});
