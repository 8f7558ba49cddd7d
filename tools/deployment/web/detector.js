'use strict';
// The detector of run_onnx.py as a worker: the same pixels go into the model, the same boxes come out.

const MAX_ASPECT = 20;
const BOX_TOLERANCE = 1, SCORE_TOLERANCE = 0.01; // between GPU and CPU, in pixels and in 0..1
let inside, detector; // inside: files that build_web.py has put into the page, compressed, as base64

/** Yield number, start and end of each field of a protobuf message. */
function* fields(bytes, at, end) {
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (!(byte & 128)) return value;
    }
  };
  while (at < end) {
    const tag = varint(), kind = tag & 7;
    const length = kind === 2 ? varint() : kind === 0 ? (varint(), 0) : kind === 1 ? 8 : 4;
    if (at + length > end) throw Error('the model is not an ONNX file');
    yield [tag >> 3, at, at + length];
    at += length;
  }
}

/** Return the metadata that export_onnx.py wrote, which ONNX Runtime does not show in a browser. */
function readMetadata(bytes) {
  const metadata = {};
  for (const [number, start, end] of fields(bytes, 0, bytes.length)) {
    if (number !== 14) continue; // ModelProto.metadata_props: key 1, value 2
    const [key, value] = [...fields(bytes, start, end)].map(([, a, b]) => new TextDecoder().decode(bytes.subarray(a, b)));
    metadata[key] = value;
  }
  for (const key of ['classes', 'palette', 'resize_scale', 'keep_ratio']) {
    metadata[key] = JSON.parse(metadata[key] ?? (key === 'keep_ratio' ? 'true' : 'null'));
  }
  if (!metadata.classes || !metadata.resize_scale) throw Error('the model was not written by export_onnx.py');
  return metadata;
}

/** Return the size that the test pipeline resizes an image to, [width, height]. */
function resizedSize(width, height, scale, keepRatio) {
  if (!keepRatio) return scale;
  const factor = Math.min(
    Math.max(...scale) / Math.max(width, height), Math.min(...scale) / Math.min(width, height));
  return [Math.floor(width * factor + 0.5), Math.floor(height * factor + 0.5)];
}

/**
 * Resize as OpenCV does with INTER_LINEAR: weights are whole numbers out of 2048, and sums lose bits before they end.
 * @param {ImageData} image RGBA.
 * @returns {Uint8Array} BGR, the order of the model's input.
 */
function resize(image, width, height) {
  const halfToEven = value => value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
  const weights = (target, source, clamped) => Array.from({length: target}, (_, index) => {
    const place = Math.fround((index + 0.5) * (1 / (target / source)) - 0.5);
    const first = Math.floor(place);
    const outside = clamped && (first < 0 || first >= source - 1);
    const fraction = outside ? 0 : Math.fround(place - first);
    const inside = position => Math.min(Math.max(position, 0), source - 1);
    return [inside(first), inside(first + 1), halfToEven(Math.fround(1 - fraction) * 2048), halfToEven(fraction * 2048)];
  });
  const columns = Int32Array.from(weights(width, image.width, true).flat());
  const pixels = image.data, made = new Map();
  const row = y => { // resized in x only
    if (made.has(y)) return made.get(y);
    const line = new Int32Array(3 * width), start = 4 * y * image.width;
    for (let x = 0, out = 0; x < columns.length; x += 4) {
      const a = start + 4 * columns[x], b = start + 4 * columns[x + 1], s = columns[x + 2], t = columns[x + 3];
      line[out++] = pixels[a + 2] * s + pixels[b + 2] * t >> 4;
      line[out++] = pixels[a + 1] * s + pixels[b + 1] * t >> 4;
      line[out++] = pixels[a] * s + pixels[b] * t >> 4;
    }
    if (made.size > 1) made.delete(made.keys().next().value); // the oldest
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
  if (inside[name]) {
    const packed = Uint8Array.from(atob(inside[name]), letter => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  const response = await fetch(name);
  if (!response.ok) throw Error(`${name}: ${response.status} ${response.statusText}. build_web.py makes all files`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Return why WebGPU is not used, or an empty string. */
async function whyNotGPU(wanted, precision) {
  if (wanted) return wanted === 'webgpu' ? '' : 'chosen in the address';
  if (precision === 'int8') return 'int8 is for the CPU';
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return 'this browser has no WebGPU';
  return adapter.info?.isFallbackAdapter ? 'WebGPU is only emulated here' : '';
}

/** Whether each confident detection of `a` is among those of `b`. */
const contains = (a, b) => a.filter(({score}, rank) => score >= 0.3 || rank < 10).every(one => b.some(other =>
  one.label === other.label && Math.abs(one.score - other.score) <= SCORE_TOLERANCE &&
  one.box.every((value, side) => Math.abs(value - other.box[side]) <= BOX_TOLERANCE)));

/** A detector from model.onnx. */
class Detector {
  /** Open the model in a runtime: 'wasm', 'webgpu', or the better one. */
  async open(wanted) {
    this.bytes = await read('model.onnx');
    this.metadata = readMetadata(this.bytes);
    const reason = await whyNotGPU(wanted, this.metadata.precision);
    if (reason) return this.openOnCPU(reason);
    await this.load('webgpu').catch(error => this.openOnCPU(`WebGPU failed: ${error.message ?? error}`));
  }

  async openOnCPU(reason) {
    await this.load('wasm');
    const threads = this.ort.env.wasm.numThreads;
    this.runtime = `Runs on the CPU (WebAssembly with SIMD, ${threads} thread${threads > 1 ? 's' : ''}): ${reason}`;
  }

  /** Load ONNX Runtime and the model for a provider. */
  async load(provider) {
    const script = `runtime/ort.${provider}.bundle.min.mjs`;
    const wasm = `runtime/ort-wasm-simd-threaded${provider === 'webgpu' ? '.asyncify' : ''}.wasm`;
    const address = inside[script] && URL.createObjectURL(new Blob([await read(script)], {type: 'text/javascript'}));
    this.ort = await import(address ?? `./${script}`);
    Object.assign(this.ort.env.wasm, {wasmBinary: await read(wasm), wasmPaths: {wasm}, // not looked for elsewhere
      numThreads: crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1});
    this.session = await this.start(provider);
    [this.runtime, this.unchecked] = ['Runs on the GPU (WebGPU)', provider === 'webgpu'];
  }

  start(provider) {
    return this.ort.InferenceSession.create(this.bytes, {executionProviders: [provider], logSeverityLevel: 3});
  }

  /**
   * Detect objects in an image. Once a GPU is compared with the CPU, which takes over if they differ.
   * @param {ImageData} image
   * @returns {{found: {box: number[], score: number, label: number}[], resizing: number, running: number}} Boxes
   *   (x1, y1, x2, y2) in pixels of the image, highest score first, and milliseconds.
   */
  async detect(image) {
    const result = await this.run(this.session, image);
    if (this.unchecked) {
      const onCPU = await this.start('wasm'), expected = (await this.run(onCPU, image)).found;
      await onCPU.release();
      this.unchecked = false;
      if (!contains(expected, result.found) || !contains(result.found, expected)) {
        await this.openOnCPU('WebGPU found other boxes');
        return this.detect(image);
      }
    }
    return result;
  }

  async run(session, image) {
    const start = performance.now(), size = `${image.width}x${image.height}`;
    if (Math.max(image.width, image.height) > MAX_ASPECT * Math.min(image.width, image.height)) {
      throw Error(`${size} pixels: one side is more than ${MAX_ASPECT} times the other. Cut the image into pieces`);
    }
    const [width, height] = resizedSize(
      image.width, image.height, this.metadata.resize_scale, this.metadata.keep_ratio);
    const fixed = session.inputMetadata[0].shape.map(side => side > 0 ? side : null); // names are those of any size
    if ((fixed[1] ?? height) !== height || (fixed[2] ?? width) !== width) {
      throw Error(`${size} pixels become ${width}x${height}, but the model takes only ${fixed[2]}x${fixed[1]}`);
    }
    const pixels = resize(image, width, height), batch = fixed[0] ?? 1;
    const images = new Uint8Array(batch * pixels.length); // a model of a fixed batch gets the image that often
    for (let index = 0; index < batch; index++) images.set(pixels, index * pixels.length);
    const resized = performance.now();
    const input = new this.ort.Tensor('uint8', images, [batch, height, width, 3]);
    const {boxes, scores, labels} = await session.run({images: input}).catch(error => {
      throw Error(`${size} pixels become ${width}x${height}, on which the model does not run: ${error.message ?? error}`);
    });
    const factors = [width / image.width, height / image.height];
    const found = Array.from({length: scores.dims[1]}, (_, index) => ({
      box: [0, 1, 2, 3].map(side => boxes.data[4 * index + side] / factors[side % 2]),
      score: scores.data[index], label: Number(labels.data[index])}));
    return {found, resizing: resized - start, running: performance.now() - resized};
  }
}

/** Open the model for {inside, wanted}, detect objects in an ImageData; answer with the result or {error}. */
onmessage = async ({data}) => {
  try {
    let result = {};
    if (data instanceof ImageData) result = await detector.detect(data);
    else {
      [inside, detector] = [data.inside, new Detector()];
      await detector.open(data.wanted);
    }
    const {metadata, runtime, bytes} = detector;
    postMessage({...result, metadata, runtime, megabytes: bytes.length / 1e6});
  } catch (error) {
    postMessage({error: error.message ?? String(error)});
  }
};
