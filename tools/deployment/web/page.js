'use strict';
// The page around the worker of detector.js: it takes pictures and draws boxes.

const element = id => document.getElementById(id);
const controls = element('controls').elements;
const canvas = document.querySelector('canvas');
let worker, metadata, image, result, camera; // result belongs to image
let last = Promise.resolve(); // the work in progress: one picture at a time

const show = (id, text) => { element(id).textContent = text; element(id).hidden = !text; };
const describe = error => show('error', error.message ?? String(error));

/** Send the worker a message and return its answer; show where the model runs. */
function ask(message, transferred = []) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({data}) => data.error ? reject(Error(data.error)) : resolve(data);
    worker.onerror = event => reject(Error(event.message ?? 'detector.js cannot be loaded'));
    worker.postMessage(message, transferred);
  }).then(answer => {
    show('runtime', answer.runtime);
    return answer;
  });
}

async function open() {
  const script = element('detector.js'); // in a page of one file
  worker = new Worker(script ? URL.createObjectURL(new Blob([script.textContent])) : 'detector.js');
  const inside = Object.fromEntries([...document.querySelectorAll('script[type="application/gzip"]')].map(file => {
    file.remove();
    return [file.id, file.textContent];
  }));
  const answer = await ask({inside, wanted: new URLSearchParams(location.search).get('runtime')});
  metadata = answer.metadata;
  const about = [metadata.config?.replace(/\.py$/, ''), metadata.checkpoint, `${metadata.classes.length} classes`,
    metadata.precision, `${answer.megabytes.toFixed(1)} MB`];
  show('model', about.filter(Boolean).join(' · '));
  controls.choose.disabled = controls.camera.disabled = false;
}

/** Return the CSS colour of a class. */
const colour = label => metadata.palette ? `rgb(${metadata.palette[label]})` : `hsl(${label * 137.5 % 360}, 70%, 60%)`;

/** Detect objects in a picture or a frame of the camera, after the work in progress. */
function detect(source, width, height, reading) {
  return last = last.catch(() => 0).then(async () => {
    const pixels = document.createElement('canvas');
    Object.assign(pixels, {width, height});
    const start = performance.now(), context = pixels.getContext('2d', {willReadFrequently: true});
    context.drawImage(source, 0, 0);
    const data = context.getImageData(0, 0, width, height);
    const read = reading + performance.now() - start;
    if (!camera) show('count', 'Detecting …');
    const detected = await ask(data, [data.data.buffer]);
    [image, result] = [pixels, {...detected, reading: read}];
    show('error', '');
    draw();
  }).catch(error => { show('count', ''); describe(error); });
}

async function detectFile(file) {
  if (!file || !metadata) return;
  stopCamera();
  const start = performance.now();
  try { // as OpenCV reads: turned by the EXIF orientation, colours as stored
    const bitmap = await createImageBitmap(file, {colorSpaceConversion: 'none'});
    await detect(bitmap, bitmap.width, bitmap.height, performance.now() - start);
    bitmap.close();
  } catch {
    describe(`${file.name}: cannot be read as an image`);
  }
}

function draw() {
  if (!image) return;
  const start = performance.now(), threshold = Number(controls.threshold.value);
  const found = result.found.filter(({score}) => score >= threshold);
  const side = Math.max(image.width, image.height), size = Math.max(11, side / 60);
  Object.assign(canvas, {width: image.width, height: image.height});
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  Object.assign(context, {font: `600 ${size}px system-ui, sans-serif`, textBaseline: 'top', lineWidth: Math.max(1.5, side / 400)});
  for (const {box: [left, top, right, bottom], score, label} of [...found].reverse()) { // the highest score on top
    const text = `${metadata.classes[label]} ${score.toFixed(2)}`, width = context.measureText(text).width + size / 2;
    context.strokeStyle = context.fillStyle = colour(label);
    context.strokeRect(left, top, right - left, bottom - top);
    const x = Math.max(0, Math.min(left, image.width - width)), y = Math.max(0, top - 1.3 * size);
    context.fillRect(x, y, width, 1.3 * size);
    context.fillStyle = isDark(context.fillStyle) ? '#fff' : '#000';
    context.fillText(text, x + size / 4, y + size / 6);
  }
  element('found').replaceChildren(...found.map(({score, label}) => {
    const row = document.createElement('tr'), swatch = document.createElement('i');
    swatch.style.background = colour(label);
    row.insertCell().append(swatch, metadata.classes[label]);
    row.insertCell().append(score.toFixed(2));
    return row;
  }));
  show('count', `${found.length} object${found.length === 1 ? '' : 's'}`);
  canvas.hidden = element('side').hidden = false;
  element('hint').hidden = true;
  element('drop').classList.add('filled');
  const times = {read: result.reading, resize: result.resizing, model: result.running, draw: performance.now() - start};
  element('times').replaceChildren(...Object.entries(times).map(([name, time]) => {
    const row = document.createElement('tr');
    row.insertCell().append(name);
    row.insertCell().append(`${time.toFixed(time < 10 ? 1 : 0)} ms`);
    return row;
  }));
}

/** Whether white text is readable on a colour, '#rrggbb'. */
const isDark = colour => [1, 3, 5].reduce((sum, at) => sum + parseInt(colour.slice(at, at + 2), 16), 0) < 384;

function stopCamera() {
  camera?.getTracks().forEach(track => track.stop());
  camera = null;
  controls.camera.textContent = 'Use the camera';
}

async function startCamera() {
  try {
    camera = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
  } catch (error) {
    return describe(`the camera cannot be used: ${error.message}`);
  }
  const mine = camera, video = Object.assign(document.createElement('video'), {srcObject: camera, muted: true, playsInline: true});
  controls.camera.textContent = 'Stop the camera';
  await video.play();
  while (camera === mine) {
    await detect(video, video.videoWidth, video.videoHeight, 0);
    await new Promise(requestAnimationFrame);
  }
}

controls.choose.onclick = () => controls.file.click();
controls.file.onchange = () => { detectFile(controls.file.files[0]); controls.file.value = ''; };
controls.camera.onclick = () => camera ? stopCamera() : startCamera();
controls.threshold.oninput = () => {
  controls.value.value = Number(controls.threshold.value).toFixed(2);
  draw();
};
addEventListener('paste', event => detectFile(event.clipboardData.files[0]));
for (const [name, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  addEventListener(name, event => {
    event.preventDefault();
    element('drop').classList.toggle('over', over);
    if (name === 'drop') detectFile(event.dataTransfer.files[0]);
  });
}

/** Open the page a second time, isolated from others, which threads need: threads.js adds the headers. */
async function isolate() {
  const address = new URL(location.href);
  if (crossOriginIsolated || !navigator.serviceWorker || !address.protocol.startsWith('http') || address.searchParams.has('threads')) return false;
  await navigator.serviceWorker.register('threads.js');
  await navigator.serviceWorker.ready;
  address.searchParams.set('threads', '');
  location.replace(address);
  return true;
}

isolate().catch(() => false).then(leaving => leaving || open()).catch(error => { show('model', ''); describe(error); });
