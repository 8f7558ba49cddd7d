"""Scenes in the layout of the raw ScanNetV2 download, made from frames in the layout of scannet_frames_25k."""

import io
import re
import shutil
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

TABLE = 'scannetv2-labels.combined.tsv'
#: Raw id of each class of NYU40, large enough for 1000 * id to overflow 16 bits; VOID_ID has no class.
RAW_IDS = {nyu40: 1100 + nyu40 for nyu40 in range(1, 41)}
VOID_ID = 1357


def write_table(root: Path, rows: Iterable[tuple] = ()) -> Path:
    rows = [*((raw, f'thing {raw}', nyu40) for nyu40, raw in RAW_IDS.items()), (VOID_ID, 'odd', ''), *rows]
    lines = ['id\traw_category\tcategory\tcount\tnyu40id', *(f'{a}\t{b}\t{b}\t1\t{c}' for a, b, c in rows)]
    path = root / TABLE
    path.write_text('\n'.join(lines) + '\n')
    return path


def write_sens(path: Path, jpegs: dict[int, bytes], num_frames: int, junk: bytes = b'junk', depth: bytes = b'depth'):
    """Write a recording; frames that are not given hold no JPEG."""
    with path.open('wb') as file:
        name = b'StructureSensor'
        file.write(struct.pack('<IQ', 4, len(name)) + name + np.tile(np.eye(4, dtype='<f4'), (4, 1)).tobytes())
        file.write(struct.pack('<2i4IfQ', 2, 1, 1296, 968, 640, 480, 1000.0, num_frames))
        for number in range(num_frames):
            jpeg = jpegs.get(number, junk)
            file.write(np.eye(4, dtype='<f4').tobytes() + struct.pack('<4Q', number, number, len(jpeg), len(depth)))
            file.write(jpeg + depth)
        file.write(struct.pack('<Q', 0))  # no IMU frames


def raw_maps(ids: np.ndarray, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Split an instance map into one of 8 bits and one of raw ids; walls and floors become two instances each."""
    semantic = np.where(ids < 1000, ids, ids // 1000)
    table = np.zeros(41, np.uint16)
    table[list(RAW_IDS)] = list(RAW_IDS.values())
    label = table[semantic]
    instance = (np.searchsorted(values, ids) + 1).astype(np.uint8)
    instance[ids == 0] = 0
    stuff = (ids > 0) & (ids < 1000)
    stuff[:, ids.shape[1] // 2 :] = False
    instance[stuff] += 200
    label[(ids == 0) & (np.arange(ids.shape[1]) % 3 == 0)] = VOID_ID
    return instance, label


def write_raw(
    frames: Path, raw: Path, sens: bool = True, packed: bool = True, kind: str = '-filt', after: int = 30
) -> None:
    """Write the scenes of ``frames`` into ``raw``, and the label table above it.

    A recording has as many frames as the last one needs and ``after`` - 1 more.
    """
    raw.mkdir(parents=True)
    write_table(raw.parent)
    for scene in sorted(path for path in frames.iterdir() if path.is_dir()):
        out = raw / scene.name
        maps = {path.stem: np.asarray(Image.open(path)) for path in sorted((scene / 'instance').iterdir())}
        values = sorted(set().union(*(np.unique(ids).tolist() for ids in maps.values())))
        files = {}
        for name, ids in maps.items():
            for folder, image in zip(('instance', 'label'), raw_maps(ids, values), strict=True):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, 'PNG')
                files[f'{folder}{kind}/{int(name)}.png'] = buffer.getvalue()
        out.mkdir()
        for folder in ('instance', 'label'):
            if packed:
                with zipfile.ZipFile(out / f'{scene.name}_2d-{folder}{kind}.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
                    archive.mkdir(f'{folder}{kind}') if hasattr(archive, 'mkdir') else None
                    for name, content in files.items():
                        if name.startswith(folder):
                            archive.writestr(name, content)
            else:
                (out / f'{folder}{kind}').mkdir()
                for name, content in files.items():
                    if name.startswith(folder):
                        (out / name).write_bytes(content)
        jpegs = {int(re.sub(r'\D', '', path.stem)): path.read_bytes() for path in (scene / 'color').iterdir()}
        if sens:
            write_sens(out / f'{scene.name}.sens', jpegs, max(jpegs) + after)
        else:
            shutil.copytree(scene / 'color', out / 'color')
