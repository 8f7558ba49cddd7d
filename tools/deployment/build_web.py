#!/usr/bin/env python
"""Make a web page that runs an exported model in the browser: a folder for any static server, or one HTML file.

The page computes everything itself and contacts no other server. ONNX Runtime's web build comes from npm, is checked
against the checksums in this file, and becomes part of the page. This tool needs only Python's standard library.

Examples:
    python tools/deployment/build_web.py model.onnx --out-dir page
    python -m http.server --directory page --bind 127.0.0.1    # then open http://127.0.0.1:8000
    # one file that also works from a disk, without a server: page/index.html
    python tools/deployment/build_web.py model.onnx --out-dir page --one-file
    # without npm: an unpacked onnxruntime-web package
    python tools/deployment/build_web.py model.onnx --out-dir page --runtime node_modules/onnxruntime-web
"""

import argparse
import base64
import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = 'onnxruntime-web@1.30.0'
#: SHA-256 of the files that the page needs: ONNX Runtime for the CPU, and for WebGPU.
RUNTIME = {
    'ort.wasm.bundle.min.mjs': '11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90',
    'ort-wasm-simd-threaded.wasm': '3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2',
    'ort.webgpu.bundle.min.mjs': '0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2',
    'ort-wasm-simd-threaded.asyncify.wasm': '39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da',
}
WEB = Path(__file__).with_name('web')


class InputError(ValueError):
    """Bad input; the message names the file and what is wrong with it."""


def read_runtime(folder: Path | None) -> dict[str, bytes]:
    """Return the checked files of ONNX Runtime's package, from a folder or from npm.

    Raises:
        InputError: If npm or a file is missing, or a file is not that of :data:`PACKAGE`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            try:
                subprocess.run(['npm', 'pack', PACKAGE, '--prefer-offline'], cwd=temporary, check=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            except FileNotFoundError:
                raise InputError(f'npm is not installed: install it, or give {PACKAGE} with --runtime') from None
            except subprocess.CalledProcessError as error:
                raise InputError(f'npm cannot get {PACKAGE}: {error.stderr.strip()[:500]}') from error
            (archive,) = Path(temporary).glob('*.tgz')
            folder = Path(temporary)
            (folder / 'dist').mkdir()
            with tarfile.open(archive) as package:
                for name in RUNTIME:
                    (folder / 'dist' / name).write_bytes(package.extractfile(f'package/dist/{name}').read())
        files = {}
        for name, checksum in RUNTIME.items():
            path = folder / 'dist' / name
            try:
                files[name] = path.read_bytes()
            except OSError as error:
                raise InputError(f'{path}: cannot be read ({error.strerror}). --runtime is the folder of '
                                 f'{PACKAGE}, with dist in it') from error
            if hashlib.sha256(files[name]).hexdigest() != checksum:
                raise InputError(f'{path}: is not the file of {PACKAGE}')
        return files


def write_folder(files: dict[str, bytes], out_dir: Path) -> None:
    """Write the page as files for a static server."""
    shutil.copytree(WEB, out_dir, dirs_exist_ok=True)
    for name, data in files.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        (out_dir / name).write_bytes(data)


def write_one_file(files: dict[str, bytes], out_dir: Path) -> None:
    """Write the page as one file; its policy permits no request at all."""
    page, script = ((WEB / name).read_text(encoding='utf-8') for name in ('index.html', 'page.js'))
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = [f'<script type="text/plain" id="detector.js">{(WEB / "detector.js").read_text(encoding="utf-8")}</script>']
    parts += [f'<script type="application/gzip" id="{name}">'
              f'{base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()}</script>' for name, data in files.items()]
    changes = {
        '<script src="page.js"></script>': '\n'.join([*parts, f'<script>{script}</script>']),
        "script-src 'self'": f"script-src 'sha256-{checksum}' blob:", "worker-src 'self'": 'worker-src blob:',
        "connect-src 'self'; ": ''}
    for old, new in changes.items():
        page = page.replace(old, new)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / 'index.html').write_text(page, encoding='utf-8', newline='\n')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='file written by export_onnx.py')
    parser.add_argument('--out-dir', type=Path, required=True, help='folder to write')
    parser.add_argument('--one-file', action='store_true', help='write one index.html with model and runtime inside')
    parser.add_argument('--runtime', type=Path, help=f'folder of the package {PACKAGE} (default: get it with npm)')
    return parser.parse_args()


def main() -> None:
    """Build the page."""
    args = parse_args()
    try:
        model = args.model.read_bytes()
    except OSError as error:
        raise InputError(f'{args.model}: cannot be read ({error.strerror})') from error
    if b'resize_scale' not in model[-1_000_000:]:  # metadata is at the end
        raise InputError(f'{args.model}: was not written by export_onnx.py, or was cut off')
    files = {'model.onnx': model, **{f'runtime/{name}': data for name, data in read_runtime(args.runtime).items()}}
    try:
        (write_one_file if args.one_file else write_folder)(files, args.out_dir)
    except OSError as error:
        raise InputError(f'{args.out_dir}: cannot be written ({error.strerror})') from error
    page = args.out_dir / 'index.html'
    size = (page.stat().st_size if args.one_file else sum(map(len, files.values()))) / 1e6
    print(f'{page}: {"" if args.one_file else "with the files beside it "}{size:.0f} MB')


if __name__ == '__main__':
    try:
        main()
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
