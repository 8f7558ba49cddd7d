"""What the tests of ScanNet's frames share."""

from pathlib import Path

import pytest

from tests.helpers.scannet_frames import instance_map, write_frame


@pytest.fixture
def root(tmp_path) -> Path:
    """A scene with one good frame: a chair."""
    root = tmp_path / 'frames'
    write_frame(root, instance_map(v5001=(2, 3, 4, 5)))
    return root
