"""Published detectors by name: downloaded once, checked, converted, and a clear sentence where there is no network."""

from pathlib import Path

import pytest
import torch

import deit_detr
from deit_detr.checkpoints.safe_loading import load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.migration import published
from deit_detr.migration.conversion import Conversion
from deit_detr.migration.ecdet import RECIPE
from deit_detr.migration.published import PUBLISHED, Published, converted, find_published


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """The file of a published detector 'tiny', on its server; the cache is empty."""
    path = tmp_path / 'server' / 'tiny.pth'
    path.parent.mkdir()
    torch.save({'x': torch.ones(2)}, path)

    def convert(file: Path) -> Conversion:
        return Conversion(file, {'y': load_checkpoint_file(file)['x'] + 1}, meta=dict(recipe=RECIPE))

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setitem(PUBLISHED, 'tiny', Published(path.as_uri(), RECIPE, convert))
    return path


def test_downloaded_and_converted_once(source, tmp_path):
    recipe, checkpoint = find_published('tiny')
    assert recipe.name == RECIPE and recipe.is_file()
    assert load_checkpoint_file(checkpoint)['state_dict']['y'].tolist() == [2, 2]
    folder = tmp_path / 'cache/hub/checkpoints'
    assert {path.name for path in folder.iterdir()} == {'tiny.pth', 'tiny.pth.sha256', checkpoint.parent.name}
    source.unlink()
    assert converted('tiny') == checkpoint
    # a converted file needs no name
    moved = checkpoint.rename(tmp_path / 'moved.pth')
    assert find_published(moved) == (recipe, moved)


def test_without_network(source, tmp_path):
    source.unlink()
    with pytest.raises(UserError) as error:
        deit_detr.load('tiny')
    folder = tmp_path / 'cache/hub/checkpoints'
    assert f'tiny: {source.as_uri()} cannot be downloaded' in str(error.value)
    assert f'put tiny.pth into {folder}' in str(error.value)
    torch.save({'x': torch.zeros(1)}, folder / 'tiny.pth')
    assert load_checkpoint_file(converted('tiny'))['state_dict']['y'].tolist() == [1]


def test_a_changed_file_is_refused(source):
    checkpoint = converted('tiny')
    original = PUBLISHED['tiny'].path
    checkpoint.unlink()
    torch.save({'x': torch.zeros(1)}, original)
    with pytest.raises(UserError, match='tiny.pth: its SHA256 is .* tiny.pth.sha256 beside it says another one'):
        converted('tiny')
    assert not checkpoint.exists()
    original.unlink()
    converted('tiny')


def test_a_broken_download_is_not_remembered(source):
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(UserError, match='tiny.pth: .*damaged'):
        converted('tiny')
    assert not list(PUBLISHED['tiny'].path.parent.glob('*.sha256'))


def test_what_has_no_config_is_said(source, tmp_path):
    (tmp_path / 'config.py').write_text('')
    torch.save({'meta': {'recipe': '../recipe.py'}, 'state_dict': {}}, tmp_path / 'other.pth')
    for wrong in ('ecdet-x', tmp_path / 'config.py', tmp_path / 'other.pth'):
        with pytest.raises(UserError, match=f'{wrong}: neither a published detector .*ecdet-s-coco.* Give a config'):
            deit_detr.load(wrong)


def test_every_recipe_of_the_table_is_there():
    assert all(published.recipe_path(known.recipe).is_file() for known in PUBLISHED.values())
    assert all(known.address.startswith('https://') for known in PUBLISHED.values())
