'use strict';
// The page around the worker of detector.js: it takes pictures and draws boxes.

const element = id => document.getElementById(id);
const controls = element('controls').elements, canvas = document.querySelector('canvas');
let worker, metadata, image, result, camera; // result belongs to image
let last = Promise.resolve(); // the work in progress: one picture at a time

function show(id, text) {
  element(id).textContent = text;
  element(id).hidden = !text;
}

/** Send the worker a message and return its answer; show where the model runs. */
async function ask(message, transferred = []) {
  const answer = await new Promise((resolve, reject) => {
    worker.onmessage = ({data}) => data.error ? reject(Error(data.error)) : resolve(data);
    worker.onerror = event => reject(Error(event.message ?? 'detector.js cannot be loaded'));
    worker.postMessage(message, transferred);
  });
  show('runtime', answer.runtime);
  return answer;
}

/** Open the page a second time where threads are possible; the service worker threads.js adds the headers for it. */
async function isolate() {
  const address = new URL(location.href);
  if (crossOriginIsolated || !navigator.serviceWorker || address.searchParams.has('threads')) return false;
  await navigator.serviceWorker.register('threads.js');
  await Promise.race([navigator.serviceWorker.ready, new Promise((_, reject) => setTimeout(reject, 5000))]);
  address.searchParams.set('threads', '');
  location.replace(address);
  return true;
}

async function open() {
  const script = element('detector.js'); // only in a page of one file
  if (!script && await isolate().catch(() => false)) return;
  worker = new Worker(script ? URL.createObjectURL(new Blob([script.textContent])) : 'detector.js');
  const inside = Object.fromEntries([...document.querySelectorAll('script[type="application/gzip"]')].map(file => {
    file.remove();
    return [file.id, file.textContent];
  }));
  const answer = await ask({inside, wanted: new URLSearchParams(location.search).get('runtime')});
  metadata = answer.metadata;
  show('model', [metadata.config?.replace(/\.py$/, ''), metadata.checkpoint, `${metadata.classes.length} classes`,
    metadata.precision, `${answer.megabytes.toFixed(1)} MB`].filter(Boolean).join(' · '));
  controls.choose.disabled = controls.camera.disabled = false;
  controls.camera.hidden = !navigator.mediaDevices; // there is one on https and on this machine only
}

/** Detect objects in a picture or a frame of the camera, after the work in progress. */
function detect(source, width, height, reading) {
  return last = last.then(async () => {
    const start = performance.now(), pixels = Object.assign(document.createElement('canvas'), {width, height});
    const context = pixels.getContext('2d', {willReadFrequently: true});
    context.drawImage(source, 0, 0);
    const data = context.getImageData(0, 0, width, height);
    const read = reading + performance.now() - start;
    if (!camera) show(image ? 'count' : 'hint', 'Detecting …');
    result = {...await ask(data, [data.data.buffer]), read};
    image = pixels;
    show('error', '');
    draw();
  }).catch(error => {
    show('error', error.message);
    draw();
  });
}

async function detectFile(file) {
  if (!file || !metadata) return;
  stopCamera();
  const start = performance.now();
  // as OpenCV reads: turned by the EXIF orientation, colours as stored
  const bitmap = await createImageBitmap(file, {colorSpaceConversion: 'none'}).catch(() => null);
  if (!bitmap) return show('error', `${file.name}: cannot be read as an image`);
  await detect(bitmap, bitmap.width, bitmap.height, performance.now() - start);
  bitmap.close();
}

const colour = label => metadata.palette ? `rgb(${metadata.palette[label]})` : `hsl(${label * 137.5 % 360}, 70%, 60%)`;

/** Fill a table with rows of cells. */
function fill(id, rows) {
  element(id).replaceChildren(...rows.map(cells => {
    const row = document.createElement('tr');
    for (const cell of cells) row.insertCell().append(...[cell].flat());
    return row;
  }));
}

function draw() {
  show('hint', image ? '' : 'Drop a picture here');
  if (!image) return;
  canvas.hidden = element('side').hidden = false;
  element('drop').classList.add('filled');
  const start = performance.now(), found = result.found.filter(({score}) => score >= controls.threshold.value);
  // as large as fits, in the pixels of the screen; the context counts in pixels of the image
  const shown = Math.min(element('drop').clientWidth / image.width, 0.72 * innerHeight / image.height);
  const scale = shown * devicePixelRatio, size = 12 / shown, context = canvas.getContext('2d');
  Object.assign(canvas, {width: Math.round(image.width * scale), height: Math.round(image.height * scale)});
  canvas.style.width = `${image.width * shown}px`;
  context.scale(scale, scale);
  context.drawImage(image, 0, 0);
  Object.assign(context, {font: `600 ${size}px system-ui, sans-serif`, textBaseline: 'middle', lineWidth: 2 / shown});
  for (const {box: [left, top, right, bottom], score, label} of found.toReversed()) { // the highest score on top
    const text = `${metadata.classes[label]} ${score.toFixed(2)}`, width = context.measureText(text).width + size / 2;
    context.strokeStyle = context.fillStyle = colour(label);
    context.strokeRect(left, top, right - left, bottom - top);
    const x = Math.max(0, Math.min(left, image.width - width)), y = Math.max(0, top - 1.3 * size);
    context.fillRect(x, y, width, 1.3 * size);
    const [red, green, blue] = [1, 3, 5].map(at => parseInt(context.fillStyle.slice(at, at + 2), 16)); // of '#rrggbb'
    context.fillStyle = red + green + blue < 384 ? '#fff' : '#000';
    context.fillText(text, x + size / 4, y + 0.7 * size);
  }
  fill('found', found.map(({score, label}) => {
    const swatch = document.createElement('i');
    swatch.style.background = colour(label);
    return [[swatch, metadata.classes[label]], score.toFixed(2)];
  }));
  show('count', `${found.length} object${found.length === 1 ? '' : 's'}`);
  const times = {read: result.read, resize: result.resizing, model: result.running, draw: performance.now() - start};
  fill('times', Object.entries(times).map(([name, time]) => [name, `${time.toFixed(time < 10 ? 1 : 0)} ms`]));
}

function stopCamera() {
  camera?.getTracks().forEach(track => track.stop());
  camera = null;
  controls.camera.textContent = 'Use the camera';
}

async function startCamera() {
  const mine = camera = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
  const video = Object.assign(document.createElement('video'), {srcObject: mine, muted: true, playsInline: true});
  controls.camera.textContent = 'Stop the camera';
  await video.play();
  while (camera === mine && mine.active) {
    await detect(video, video.videoWidth, video.videoHeight, 0);
    await new Promise(requestAnimationFrame);
  }
  if (camera === mine) stopCamera(); // it was unplugged
}

controls.choose.onclick = () => controls.file.click();
controls.file.onchange = () => detectFile(controls.file.files[0]).finally(() => controls.file.value = '');
controls.camera.onclick = () => camera ? stopCamera() :
  startCamera().catch(error => show('error', `the camera cannot be used: ${error.message}`));
controls.threshold.oninput = () => {
  controls.value.value = Number(controls.threshold.value).toFixed(2);
  draw();
};
addEventListener('resize', draw);
addEventListener('paste', event => detectFile(event.clipboardData.files[0]));
for (const name of ['dragover', 'dragleave', 'drop']) {
  addEventListener(name, event => {
    event.preventDefault();
    element('drop').classList.toggle('over', name === 'dragover');
    if (name === 'drop') detectFile(event.dataTransfer.files[0]);
  });
}
open().catch(error => {
  show('model', '');
  show('error', error.message);
});
