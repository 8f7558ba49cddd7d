// Give the page of this folder the two headers that threads need, as static servers do not send them. Only requests
// of index.html?threads and of its workers are touched: other pages of the same server stay as they are.
addEventListener('install', () => skipWaiting());
addEventListener('activate', event => event.waitUntil(clients.claim()));
addEventListener('fetch', event => {
  const url = new URL(event.request.url);
  const page = event.request.mode === 'navigate' && url.searchParams.has('threads');
  if (url.origin !== location.origin || !(page || event.request.destination === 'worker')) return;
  event.respondWith(fetch(event.request).then(response => {
    if (response.type === 'opaqueredirect' || !response.ok) return response;
    const headers = new Headers(response.headers);
    headers.set('Cross-Origin-Opener-Policy', 'same-origin');
    headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
    return new Response(response.body, {status: response.status, headers});
  }));
});
