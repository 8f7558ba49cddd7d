"""Each way that a checkpoint file can be unusable has a message of its own; none runs code."""

import argparse
import builtins

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from deit_detr.checkpoints.safe_loading import (
    find_state_dict,
    forget_checkpoint,
    load_checkpoint_file,
    save_checkpoint_file,
)
from deit_detr.errors import UserError


class Exploit:
    def __reduce__(self):
        return builtins.exec, ('raise SystemExit("code of the file was run")',)


class ReachForGlobals:
    """`getattr` is let through for the methods that mmengine's checkpoints name, and for nothing else."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def truncated(path, **options) -> bytes:
    torch.save({'state_dict': {'x': torch.rand(1000)}}, path, **options)
    return path.read_bytes()[:-1500]


@pytest.mark.parametrize('content, message', [
    (lambda path: b'', 'empty'),
    (lambda path: b'\n<!DOCTYPE html><html><body>404</body></html>', 'web page'),
    (lambda path: b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS pointer'),
    (truncated, 'truncated'),
    (lambda path: truncated(path, _use_new_zipfile_serialization=False), 'truncated or damaged'),
    (lambda path: b'\x93NUMPY' + bytes(100), 'not a PyTorch checkpoint'),
    (lambda path: torch.save(torch.zeros(2), path), 'holds a Tensor'),
    (lambda path: torch.save({'model': {}, 'args': argparse.Namespace()}, path), 'holds a argparse.Namespace object'),
    (lambda path: torch.save({'state_dict': Exploit()}, path), 'refused, because loading it would run code'),
    (lambda path: torch.save({'state_dict': ReachForGlobals()}, path), 'holds a builtins.getattr object'),
])
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    data = content(path)
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint_file(path)
    assert str(path) in str(caught.value)


def test_content_is_kept_for_one_more_call(tmp_path):
    first, second = tmp_path / 'first.pth', tmp_path / 'second.pth'
    for path in (first, second):
        save_checkpoint_file({'x': 1}, path)
    kept = load_checkpoint_file(first, again=True)
    assert load_checkpoint_file(second) == kept, 'such as the pretrained backbone of a resumed training'
    assert load_checkpoint_file(str(first)) is kept
    assert load_checkpoint_file(first) is not kept
    kept = load_checkpoint_file(first, again=True)
    save_checkpoint_file({'x': 2}, first)
    assert load_checkpoint_file(first) == {'x': 2}, 'the file has changed'
    forget_checkpoint()


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match='no such checkpoint file'):
        load_checkpoint_file(tmp_path / 'none.pth')


def test_damaged_safetensors(tmp_path):
    pytest.importorskip('safetensors')
    (tmp_path / 'x.safetensors').write_bytes(bytes(20))
    with pytest.raises(UserError, match='not a safetensors file'):
        load_checkpoint_file(tmp_path / 'x.safetensors')


def test_mmengine_checkpoints_are_read(tmp_path):
    message_hub = dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])), best=np.float64(0.5))
    torch.save(dict(state_dict={'x': torch.zeros(1)}, message_hub=message_hub), tmp_path / 'x.pth')
    loaded = load_checkpoint_file(tmp_path / 'x.pth')
    assert loaded['message_hub']['log_scalars']['loss'].current() == 1.0


def test_scalars_written_by_numpy_1_are_read(tmp_path):
    torch.save({'best': np.float64(0.5)}, tmp_path / 'new.pth', _use_new_zipfile_serialization=False)
    data = (tmp_path / 'new.pth').read_bytes()
    assert b'numpy._core.multiarray' in data
    (tmp_path / 'old.pth').write_bytes(data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    assert load_checkpoint_file(tmp_path / 'old.pth') == {'best': 0.5}


@pytest.mark.parametrize('layout', [
    lambda tensors: tensors,
    lambda tensors: {'state_dict': tensors},
    lambda tensors: {'model': tensors},
    lambda tensors: {'state_dict': {f'module.{key}': value for key, value in tensors.items()}},
])
def test_state_dict_is_found(layout):
    tensors = {'a.weight': torch.zeros(1), 'b': torch.zeros(2)}
    assert find_state_dict(layout(tensors), 'x').keys() == tensors.keys()


@pytest.mark.parametrize('checkpoint', [{}, {'state_dict': {}}, {'epoch': 3}])
def test_no_state_dict(checkpoint):
    with pytest.raises(UserError, match='tensors'):
        find_state_dict(checkpoint, 'x')


def test_failed_write_leaves_the_old_file(tmp_path):
    save_checkpoint_file({'x': 1}, tmp_path / 'a' / 'x.pth')
    with pytest.raises(AttributeError):
        save_checkpoint_file({'x': lambda: 0}, tmp_path / 'a' / 'x.pth')
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['x.pth']
    assert load_checkpoint_file(tmp_path / 'a' / 'x.pth') == {'x': 1}
