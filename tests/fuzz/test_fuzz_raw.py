"""The converter on damaged files of a raw download: it converts, or says what is wrong, and writes nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_detr.scannet.converter import convert
from tests.helpers.fuzzing import cases, contained, damaged
from tests.helpers.raw_scannet import TABLE, write_raw
from tests.helpers.scannet_frames import SCENE, instance_map, write_frame

OTHER = 'scene0000_01'  # stays whole
FILES = [f'scans/{SCENE}/{SCENE}.sens', f'scans/{SCENE}/{SCENE}_2d-label-filt.zip',
         f'scans/{SCENE}/{SCENE}_2d-instance-filt.zip', TABLE]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder with a download of two scenes of two frames each."""
    folder = tmp_path_factory.mktemp('raw')
    for scene in (SCENE, OTHER):
        for name in ('000000', '000002'):
            write_frame(folder / 'frames', instance_map(v1=(0, 0, 24, 3), v5001=(2, 4, 4, 5)), scene, name)
    write_raw(folder / 'frames', folder / 'download/scans', after=1)
    (folder / 'lists').mkdir()
    for split in ('train', 'val', 'test'):
        (folder / f'lists/scannetv2_{split}.txt').write_text(f'{SCENE} {OTHER}' if split == 'train' else '')
    return folder


@cases(60)
@given(st.data(), st.sampled_from(FILES))
def test_damaged_files(folder, data, name):
    path, out = folder / 'download' / name, folder / 'out'
    content = path.read_bytes()
    changed = data.draw(damaged(content))
    out.mkdir()
    try:
        path.write_bytes(changed)
        with contained(out) as refused:
            try:
                convert(folder / 'download', out, folder / 'lists', ('train',), workers=1, every=2)
            finally:
                (out / 'scannet_objdet_train_problems.txt').unlink(missing_ok=True)
        assert not refused or name == TABLE
        if not refused:
            coco = json.loads((out / 'scannet_objdet_train.json').read_text())
            names = [image['file_name'] for image in coco['images']]
            assert sum(name.startswith(OTHER) for name in names) == 2, 'the scene beside it is kept'
            for name in names:
                assert (out / 'train' / name).read_bytes().startswith(b'\xff\xd8')
    finally:
        shutil.rmtree(out)
        path.write_bytes(content)
