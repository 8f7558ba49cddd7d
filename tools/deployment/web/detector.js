'use strict';
// The detector of run_onnx.py as a worker: the same pixels go into the model, the same boxes come out.

const MAX_ASPECT = 20;
const BOX_TOLERANCE = 1, SCORE_TOLERANCE = 0.01; // between GPU and CPU, in pixels and in 0..1
let inside; // files that build_web.py has put into the page, compressed, as base64
let bytes, metadata, ort, session, runtime, unchecked; // the open model, and whether a GPU is still to be compared

/** Return the metadata that export_onnx.py wrote: ONNX Runtime does not show it in a browser. */
function readMetadata(model) {
  function* fields(at, end) { // number, start and end of each field of a protobuf message
    const varint = () => {
      for (let value = 0, factor = 1; ; factor *= 128) {
        value += (model[at] & 127) * factor;
        if (!(model[at++] & 128)) return value;
      }
    };
    while (at < end) {
      const tag = varint(), kind = tag & 7;
      const length = kind === 2 ? varint() : kind === 0 ? (varint(), 0) : kind === 1 ? 8 : 4;
      yield [tag >> 3, at, at += length];
    }
  }
  const found = {classes: 'null', palette: 'null', resize_scale: 'null', keep_ratio: 'true'};
  for (const [number, start, end] of fields(0, model.length)) {
    if (number !== 14) continue; // ModelProto.metadata_props: key and value
    const [key, value] = [...fields(start, end)].map(([, a, b]) => new TextDecoder().decode(model.subarray(a, b)));
    found[key] = value;
  }
  for (const key of ['classes', 'palette', 'resize_scale', 'keep_ratio']) found[key] = JSON.parse(found[key]);
  if (!found.classes || !found.resize_scale) throw Error('model.onnx was not written by export_onnx.py');
  return found;
}

/** Return the size [width, height] that the test pipeline resizes an image to. */
function resizedSize(width, height, scale, keepRatio) {
  const factor = Math.min(
    Math.max(...scale) / Math.max(width, height), Math.min(...scale) / Math.min(width, height));
  return keepRatio ? [width, height].map(side => Math.floor(side * factor + 0.5)) : scale;
}

/**
 * Resize an RGBA image as OpenCV does with INTER_LINEAR: weights are whole numbers out of 2048, sums are cut.
 * @param {ImageData} image
 * @returns {Uint8Array} BGR, as the model takes it.
 */
function resize(image, width, height) {
  const halfToEven = value => value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
  const weights = (target, source, clamped) => Array.from({length: target}, (_, index) => {
    const place = Math.fround((index + 0.5) * (1 / (target / source)) - 0.5), first = Math.floor(place);
    const fraction = clamped && (first < 0 || first >= source - 1) ? 0 : Math.fround(place - first);
    const inside = position => Math.min(Math.max(position, 0), source - 1);
    const weight = share => halfToEven(Math.fround(share) * 2048);
    return [inside(first), inside(first + 1), weight(1 - fraction), weight(fraction)];
  });
  const columns = Int32Array.from(weights(width, image.width, true).flat()), pixels = image.data, made = new Map();
  const row = y => { // resized in x only; the last two are kept
    if (made.has(y)) return made.get(y);
    const line = new Int32Array(3 * width), start = 4 * y * image.width;
    for (let x = 0, out = 0; x < columns.length; x += 4) {
      const a = start + 4 * columns[x], b = start + 4 * columns[x + 1], s = columns[x + 2], t = columns[x + 3];
      for (let colour = 2; colour >= 0; colour--) line[out++] = pixels[a + colour] * s + pixels[b + colour] * t >> 4;
    }
    if (made.size > 1) made.delete(made.keys().next().value);
    made.set(y, line);
    return line;
  };
  const result = new Uint8Array(3 * width * height);
  weights(height, image.height, false).forEach(([above, below, s, t], y) => {
    const a = row(above), b = row(below), start = y * a.length;
    for (let x = 0; x < a.length; x++) result[start + x] = (s * a[x] >> 16) + (t * b[x] >> 16) + 2 >> 2;
  });
  return result;
}

/** Return the bytes of a file of this folder, or from inside the page. */
async function read(name) {
  const packed = inside[name] && Uint8Array.from(atob(inside[name]), letter => letter.charCodeAt(0));
  const response = packed ? new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))) :
    await fetch(name, {cache: 'no-cache'}); // asks whether it has changed
  if (!response.ok) throw Error(`${name}: ${response.status} ${response.statusText}. build_web.py makes all files`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Return why WebGPU is not used, or an empty string. */
async function whyNotGPU(wanted) {
  if (wanted) return wanted === 'webgpu' ? '' : 'chosen in the address';
  if (metadata.precision?.startsWith('int8')) return 'int8 is for the CPU';
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return 'this browser has no WebGPU';
  return adapter.info?.isFallbackAdapter ? 'WebGPU is only emulated here' : '';
}

/** Open model.onnx in the runtime `wanted`, 'wasm' or 'webgpu', or in the better one. */
async function open(wanted) {
  bytes = await read('model.onnx');
  metadata = readMetadata(bytes);
  const reason = await whyNotGPU(wanted);
  if (reason) return openOnCPU(reason);
  await load('webgpu').catch(error => openOnCPU(`WebGPU failed: ${error.message ?? error}`));
}

async function openOnCPU(reason) {
  await load('wasm');
  const threads = ort.env.wasm.numThreads;
  runtime = `Runs on the CPU (WebAssembly with SIMD, ${threads} thread${threads > 1 ? 's' : ''}): ${reason}`;
}

/** Load ONNX Runtime and the model for a provider. */
async function load(provider) {
  const script = `runtime/ort.${provider}.bundle.min.mjs`;
  const wasm = `runtime/ort-wasm-simd-threaded${provider === 'webgpu' ? '.asyncify' : ''}.wasm`;
  const address = inside[script] && URL.createObjectURL(new Blob([await read(script)], {type: 'text/javascript'}));
  ort = await import(address ?? `./${script}`);
  Object.assign(ort.env.wasm, {wasmBinary: await read(wasm), wasmPaths: {wasm}, // the path is never opened
    numThreads: crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1});
  session = await start(provider);
  [runtime, unchecked] = ['Runs on the GPU (WebGPU)', provider === 'webgpu'];
}

const start = provider => ort.InferenceSession.create(bytes, {executionProviders: [provider], logSeverityLevel: 3});

/** Whether each confident detection of `a` is among those of `b`. */
const contains = (a, b) => a.filter(({score}, rank) => score >= 0.3 || rank < 10).every(one => b.some(other =>
  one.label === other.label && Math.abs(one.score - other.score) <= SCORE_TOLERANCE &&
  one.box.every((value, side) => Math.abs(value - other.box[side]) <= BOX_TOLERANCE)));

/** Detect objects as `run` does. Once, a GPU is compared with the CPU, which takes over if they differ. */
async function detect(image) {
  const result = await run(session, image);
  if (!unchecked) return result;
  const onCPU = await start('wasm'), expected = await run(onCPU, image);
  await onCPU.release();
  unchecked = false;
  if (contains(expected.found, result.found) && contains(result.found, expected.found)) return result;
  await openOnCPU('WebGPU found other boxes');
  return run(session, image);
}

/**
 * Detect objects in an image.
 * @param {ImageData} image
 * @returns {{found: {box: number[], score: number, label: number}[], resizing: number, running: number}} Boxes
 *   (x1, y1, x2, y2) in pixels of the image, highest score first, and milliseconds.
 */
async function run(session, image) {
  const began = performance.now(), size = `${image.width}x${image.height}`;
  if (Math.max(image.width, image.height) > MAX_ASPECT * Math.min(image.width, image.height)) {
    throw Error(`${size} pixels: one side is more than ${MAX_ASPECT} times the other. Cut the image into pieces`);
  }
  const [width, height] = resizedSize(image.width, image.height, metadata.resize_scale, metadata.keep_ratio);
  const pixels = resize(image, width, height), resized = performance.now();
  const batch = Number(session.inputMetadata[0].shape[0]) || 1; // a model of a fixed batch gets the image that often
  const images = new Uint8Array(batch * pixels.length);
  for (let index = 0; index < batch; index++) images.set(pixels, index * pixels.length);
  const input = new ort.Tensor('uint8', images, [batch, height, width, 3]);
  const shapes = `${size} pixels become ${width}x${height}`;
  const {boxes, scores, labels} = await session.run({images: input}).catch(error => {
    throw Error(`${shapes}, on which the model does not run: ${error.message ?? error}`);
  });
  if (scores.data.some(Number.isNaN)) {
    throw Error(`${shapes}: fewer patches than the model has queries. Cut the image into pieces`);
  }
  const factors = [width / image.width, height / image.height];
  const found = Array.from({length: scores.dims[1]}, (_, index) => ({
    box: [0, 1, 2, 3].map(side => boxes.data[4 * index + side] / factors[side % 2]),
    score: scores.data[index], label: Number(labels.data[index])}));
  return {found, resizing: resized - began, running: performance.now() - resized};
}

/** Take {inside, wanted}, which opens the model, or an ImageData; answer with what is found, or with an error. */
onmessage = async ({data}) => {
  try {
    if (data.inside) inside = data.inside;
    const result = data.inside ? await open(data.wanted) : await detect(data);
    postMessage({...result, metadata, runtime, megabytes: bytes.length / 1e6});
  } catch (error) {
    postMessage({error: error.message ?? String(error)});
  }
};
