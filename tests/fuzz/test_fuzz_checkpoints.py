"""Checkpoint files from anybody: they are read or refused with a message, and no code in them runs."""

import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.migration.checkpoint_2x import convert_checkpoint_2x
from deit_detr.migration.deit import convert_deit
from tests.helpers.fuzzing import cases, contained, damaged, peak_memory

TENSORS = {'backbone.cls_token': torch.ones(1, 1, 4), 'backbone.pos_embed': torch.arange(20.0).reshape(1, 5, 4)}
CHECKPOINT = dict(
    state_dict=TENSORS, meta=dict(CLASSES=('cup', 'fork'), epoch=3),
    message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1])), best=np.float64(0.5)))


def saved(content: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def archived(data: bytes, **records: bytes) -> bytes:
    """Return a file as torch.save writes it, around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, record in {'data.pkl': data, 'byteorder': b'little', 'version': b'3\n', **records}.items():
            archive.writestr(f'archive/{name}', record)
    return file.getvalue()


def legacy(data: bytes) -> bytes:
    """Return a file in the format of torch before 1.6, around any pickle."""
    head = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2) + pickle.dumps(
        dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4)), 2)
    return head + data + pickle.dumps([], 2)


class Call:
    """Pickle as a call, and then as state for its result."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


def dtype(kind: str, **fields: tuple) -> Call:
    """Return a NumPy type whose state claims fields at any offset."""
    state = (3, '<', None, tuple(fields) or None, fields or None, 8 if fields else -1, 8 if fields else -1, 0)
    return Call(np.dtype, kind, False, True, state=state)


def array(kind: Call, data: bytes) -> Call:
    state = (1, (len(data) // 8,), kind, False, data)
    return Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b'b', state=state)


def buffer(**state: object) -> bytes:
    """Return a HistoryBuffer with another state."""
    class Other(HistoryBuffer):
        def __getstate__(self) -> dict:
            return state
    Other.__module__, Other.__qualname__, Other.__name__ = HistoryBuffer.__module__, 'HistoryBuffer', 'HistoryBuffer'
    # pickle checks that the name leads to this class
    original = HistoryBuffer
    module = __import__(HistoryBuffer.__module__, fromlist=['HistoryBuffer'])
    try:
        module.HistoryBuffer = Other
        return pickle.dumps(Other(), 2)
    finally:
        module.HistoryBuffer = original


def opcodes(*lines: object) -> bytes:
    """Return a pickle of hand-written instructions; text becomes a global."""
    return b'\x80\x02' + b''.join(
        f'c{line.rpartition(".")[0]}\n{line.rpartition(".")[2]}\n'.encode() if isinstance(line, str) else line
        for line in lines) + b'.'


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


MADE = 'made_by_the_checkpoint'
MALICIOUS = {
    'os.system': lambda: pickle.dumps(Call(os.system, f'mkdir {MADE}'), 2),
    'os.mkdir': lambda: pickle.dumps({'state_dict': {'x': Call(os.mkdir, MADE)}}, 2),
    'exec': lambda: pickle.dumps(Call(exec, f'import os; os.mkdir({MADE!r})'), 2),
    'eval nested': lambda: pickle.dumps({'meta': [dict(a=(1, [Call(eval, f'__import__("os").mkdir({MADE!r})')]))]}, 2),
    'subprocess': lambda: pickle.dumps(Call(subprocess.Popen, ['mkdir', MADE]), 2),
    'newer protocol': lambda: pickle.dumps(Call(os.mkdir, MADE), 4),
    'text protocol': lambda: f'cos\nmkdir\n(V{MADE}\ntR.'.encode(),
    'pickle in a pickle': lambda: pickle.dumps(Call(pickle.loads, pickle.dumps(Call(os.mkdir, MADE))), 2),
    'torch.load in a pickle': lambda: pickle.dumps(Call(torch.load, 'other.pth'), 2),
    'getattr of a module': lambda: opcodes('builtins.getattr', 'os', text('mkdir'), b'\x86R', text(MADE), b'\x85R'),
    'getattr of torch': lambda: opcodes('builtins.getattr', 'torch.Tensor', text('__reduce__'), b'\x86R'),
    'getattr of the buffer': lambda: pickle.dumps(Call(getattr, HistoryBuffer, '__init__'), 2),
    'getattr of an array': lambda: pickle.dumps(Call(getattr, np.ndarray, 'tofile'), 2),
    'a global of numpy': lambda: opcodes('numpy.fromfile', text('data.bin'), b'\x85R'),
    'state of a module': lambda: opcodes('torch', text('x'), b'\x85b'),
    'extension code': lambda: b'\x80\x02\x82\x01.',
    'another storage': lambda: opcodes(b'(' + text('module') + b'tQ'),
    'instance': lambda: f'(ios\nmkdir\nV{MADE}\n.'.encode(),
    'object': lambda: opcodes(b'(cos\nmkdir\n' + text(MADE) + b'o'),
    # NumPy follows the addresses in these when they are read
    'field beyond the array': lambda: pickle.dumps(array(dtype('f8', a=(dtype('f8'), 1 << 40)), bytes(8)), 2),
    'forged object': lambda: pickle.dumps(array(dtype('f8', a=(dtype('O'), 0)), b'AAAAAAAA'), 2),
    'object type': lambda: pickle.dumps(array(dtype('O'), b'AAAAAAAA'), 2),
    'record': lambda: pickle.dumps(dtype('V8', a=(dtype('O'), 0)), 2),
    'object scalar': lambda: pickle.dumps(Call(np._core.multiarray.scalar, dtype('O'), b'AAAAAAAA'), 2),
    'array without a type': lambda: pickle.dumps(Call(
        np._core.multiarray._reconstruct, np.ndarray, (0,), b'b', state=(1, (1,), 'O', False, [1])), 2),
    'buffer without numbers': lambda: buffer(_log_history=[1], _count_history=[1], max_length=5),
    'buffer of a function': lambda: buffer(statistics_methods=dict(mean=os.system), max_length=5),
    'type rebuilt': lambda: pickle.dumps(Call(
        torch._tensor._rebuild_from_type_v2, np.ndarray, np.ndarray, (4,), dict(dtype='O')), 2),
}
#: Small files that would need much memory.
GREEDY = {
    'bytearray': lambda: archived(
        opcodes('builtins.bytearray', b'\x8a\x06' + (1 << 32).to_bytes(6, 'little'), b'\x85R')),
    'bytes encoded again and again': lambda: archived(opcodes(
        *['_codecs.encode'] * 25, '_codecs.encode', text('a' * 32), text('latin1'), b'\x86R',
        *[text('hex') + b'\x86R'] * 25)),
    'empty array': lambda: archived(
        pickle.dumps(Call(np._core.multiarray._reconstruct, np.ndarray, (1 << 34,), b'b'), 2)),
    'storage larger than its record': lambda: archived(
        archived_pickle().replace(b'K\x02tq', b'J\0\0\0\x40tq').replace(b'K\x02\x85', b'J\0\0\0\x40\x85'),
        **{'data/0': bytes(8)}),
    'legacy storage without its bytes': lambda: saved(
        {'x': torch.zeros(2)}, _use_new_zipfile_serialization=False).replace(b'K\x02Ntq', b'J\0\0\0\x40Ntq'),
    'compressed': lambda: compressed(saved({'x': torch.zeros(1 << 26)})),
    'one value, repeated': lambda: saved({'x': torch.zeros(1).expand(1 << 36)}),
    'sparse': lambda: saved({'x': torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), [1.0], (1 << 36,))}),
    'meta': lambda: saved({'x': torch.empty(1 << 36, device='meta')}),
}


def archived_pickle() -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({'x': torch.zeros(2)}))) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith('data.pkl')))


def compressed(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


@pytest.fixture(autouse=True)
def the_current_folder_is_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(folder: Path, data: bytes, name: str = 'file.pth') -> list[UserError]:
    """Read a checkpoint in every way that the package does; return the errors."""
    path = folder / name
    path.write_bytes(data)
    methods = dict(HistoryBuffer._statistics_methods)
    with contained(folder) as refused:
        find_state_dict(load_checkpoint_file(path), path)
    for convert in (convert_checkpoint_2x, convert_deit):
        with contained(folder):
            convert(str(path))
    assert HistoryBuffer._statistics_methods == methods
    assert sorted(os.listdir(folder)) == [name]
    return refused


@pytest.mark.parametrize('wrap', [archived, legacy, bytes])
@pytest.mark.parametrize('kind', MALICIOUS)
def test_malicious_pickles(tmp_path, kind, wrap):
    assert read(tmp_path, wrap(MALICIOUS[kind]()))


def test_other_formats_of_torch(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save('module.pth')
    assert read(tmp_path, Path('module.pth').read_bytes(), 'module.pth')
    Path('module.pth').unlink()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors', '../../outside'):
            info = tarfile.TarInfo(name)
            info.size = len(data := MALICIOUS['os.mkdir']())
            archive.addfile(info, io.BytesIO(data))
    assert read(tmp_path, file.getvalue())


@pytest.mark.parametrize('kind', GREEDY)
def test_small_files_stay_small(tmp_path, kind):
    data = GREEDY[kind]()
    assert len(data) < 1_000_000
    refused = []
    assert peak_memory(lambda: refused.extend(read(tmp_path, data))) < 300
    assert refused


def test_statistics_of_buffers_are_those_of_mmengine(tmp_path):
    (tmp_path / 'file.pth').write_bytes(saved(CHECKPOINT))
    loss = load_checkpoint_file(tmp_path / 'file.pth')['message_hub']['log_scalars']['loss']
    assert type(loss) is HistoryBuffer and type(loss._log_history) is np.ndarray
    assert loss.statistics('mean') == 1.5 and loss._count_history.dtype == np.int64


@cases(150)
@given(st.data(), st.booleans())
def test_damaged_files(tmp_path, data, new):
    """Every byte of the new format is covered by a checksum."""
    whole = saved(CHECKPOINT, _use_new_zipfile_serialization=new)
    content = data.draw(damaged(whole))
    (tmp_path / 'file.pth').write_bytes(content)
    with contained(tmp_path) as refused:
        tensors = find_state_dict(load_checkpoint_file(tmp_path / 'file.pth'), 'file.pth')
    if new and not refused:
        assert all(torch.equal(tensor, TENSORS[key]) for key, tensor in tensors.items())


def test_mmengine_reads_the_same_way(tmp_path):
    data = bytearray(saved({'x': torch.arange(100.0)}))
    place = data.index(struct.pack('<f', 50.0))
    (tmp_path / 'file.pth').write_bytes(data)
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'file.pth'), map_location='cpu')['x'][50] == 50
    data[place] ^= 1
    (tmp_path / 'file.pth').write_bytes(data)
    with pytest.raises(UserError, match='truncated or damaged'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'file.pth'), map_location='cpu')


#: Names that torch or this package allow, for random programs.
GLOBALS = (
    'builtins.getattr', 'builtins.set', 'builtins.bytearray', 'builtins.complex', 'numpy.ndarray', 'numpy.dtype',
    'numpy._core.multiarray._reconstruct', 'numpy._core.multiarray.scalar', 'collections.OrderedDict',
    'collections.Counter', 'mmengine.logging.history_buffer.HistoryBuffer', 'torch.Size', 'torch.FloatStorage',
    '_codecs.encode', 'torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_parameter', 'torch.device',
    'torch._tensor._rebuild_from_type_v2', 'torch.nn.parameter.Parameter', 'torch.Tensor', 'torch.float32')
ATOMS = st.one_of(
    st.sampled_from(GLOBALS).map(lambda name: f'c{name.rpartition(".")[0]}\n{name.rpartition(".")[2]}\n'.encode()),
    st.sampled_from(['f8', 'O', 'V8', 'latin1', 'hex', 'mean', 'storage', '0', 'cpu', '<', 'x', '__init__']).map(text),
    st.integers(0, 255).map(lambda number: b'K' + bytes([number])),
    st.sampled_from([b'N', b'\x88', b')', b']', b'}', b'(']))
STEPS = st.sampled_from([
    b'R', b'R', b'b', b'\x81', b'\x85', b'\x86', b'\x87', b't', b's', b'u', b'a', b'e', b'Q', b'q\0', b'h\0', b'0'])


@cases(800)
@given(st.lists(ATOMS | STEPS, max_size=25).map(b''.join))
@example(b'cnumpy\nndarray\n(K\x04tR')
def test_random_programs(tmp_path, program):
    """Pickle instructions in any order, with the names that are allowed."""
    (tmp_path / 'file.pth').write_bytes(archived(b'\x80\x02' + program + b'.'))
    with contained(tmp_path):
        load_checkpoint_file(tmp_path / 'file.pth')


KEYS = st.sampled_from([
    'backbone.cls_token', 'backbone.pos_embed', 'pos_embed', 'dist_token', 'cls_token', 'head_dist.weight',
    'patch_embed.proj.weight', 'blocks.0.norm1.weight', 'bbox_head.input_proj.weight', 'bbox_head.fc_cls.weight',
    'bbox_head.query_embedding.weight', 'bbox_head.transformer.encoder.layers.0.attentions.0.x',
    'bbox_head.transformer.encoder.layers.0.self_attn.x', 'bbox_head.loss_cls.class_weight', 'ema_backbone_pos_embed',
    'module.x', 'encoder.x', '\n', '']) | st.integers()
VALUES = st.sampled_from([
    torch.zeros(()), torch.zeros(0), torch.zeros(1, 5, 4), torch.zeros(1, 1, 4), torch.zeros(3, 4),
    torch.ones(1).expand(9), None, 1, 'text', {}, [torch.zeros(1)]])


@cases(250)
@given(st.dictionaries(KEYS, VALUES, max_size=8), st.sampled_from(['state_dict', 'model', None]), st.sampled_from(
    [None, {}, dict(CLASSES=5), dict(CLASSES=('a',)), dict(CLASSES=[1]), [1], 'x', dict(config=5), {1: 2}]))
@example({'backbone.cls_token': torch.zeros(1), 'backbone.pos_embed': torch.zeros(())}, None, None)
@example({'dist_token': torch.zeros(1)}, None, None)
@example({1: torch.zeros(1)}, 'state_dict', None)
def test_state_dicts_of_any_content(tmp_path, tensors, place, meta):
    content = ({place: tensors} if place else dict(tensors)) | ({} if meta is None else dict(meta=meta))
    (tmp_path / 'file.pth').write_bytes(saved(content))
    with contained(tmp_path):
        assert len(convert_checkpoint_2x(str(tmp_path / 'file.pth')).state_dict) > 2
    with contained(tmp_path):
        convert_deit(str(tmp_path / 'file.pth'))
    (tmp_path / 'file.pth').unlink()


@cases(150)
@given(st.data())
@example(None)
def test_safetensors(tmp_path, data):
    save = pytest.importorskip('safetensors.torch').save
    whole = save({'x': torch.arange(6.0)})
    content = data.draw(damaged(whole)) if data else struct.pack('<Q', 1 << 60) + b'{}'
    (tmp_path / 'x.safetensors').write_bytes(content)
    with contained(tmp_path):
        load_checkpoint_file(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('header', [
    {'x': dict(dtype='F32', shape=[1 << 40], data_offsets=[0, 1 << 42])},
    {'x': dict(dtype='F32', shape=[2], data_offsets=[-8, 0])},
    {'x': dict(dtype='F32', shape=[2], data_offsets=[8, 0])},
    {'x': dict(dtype='F4', shape=[2], data_offsets=[0, 1])},
    {'x': dict(dtype='__import__', shape=[2], data_offsets=[0, 8])},
    {'x': dict(dtype='F32', shape=[-2], data_offsets=[0, 8])},
    {'../x': []}, [], 'x'])
def test_safetensors_with_other_headers(tmp_path, header):
    pytest.importorskip('safetensors')
    header = json.dumps(header).encode()
    assert read(tmp_path, struct.pack('<Q', len(header)) + header + bytes(8), 'x.safetensors')
