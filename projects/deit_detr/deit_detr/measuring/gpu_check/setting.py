"""Recipes, rooms and folders that the checks use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from deit_detr.machine import device
from deit_detr.measuring.variants import load_recipe
from deit_detr.scannet.converter import convert
from deit_detr.scannet.mini_scannet import make_mini_scannet

FAMILIES = ('detr-fast', 'lw-detr', 'ec-detr', 'dino', 'deformable-detr', 'conditional-detr', 'dab-detr')


@dataclass(frozen=True)
class Setting:
    """Settings that all checks share.

    Attributes:
        repo: Folder of this repository.
        folder: Folder for everything that is written.
        families: Some of :data:`FAMILIES`.
    """

    repo: Path
    folder: Path
    families: tuple[str, ...] = FAMILIES

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return device().type == 'cuda'

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of the rooms, in pixels; on a GPU, ScanNet's pipeline enlarges them to its usual sizes."""
        return (640, 480) if self.on_gpu else (320, 240)

    @property
    def rooms(self) -> Path:
        """Data root of the rooms."""
        return self.folder / 'rooms-{}x{}'.format(*self.frame_size)

    def mini_recipe(self, family: str) -> Path:
        """Return the recipe of a family for MiniScanNet."""
        return self._find(f'{family}_deit-tiny_1xb*_mini-scannet.py')

    def recipe(self, family: str) -> Path:
        """Return the recipe of a family: for ScanNet on a GPU, for MiniScanNet on a CPU."""
        return self._find(f'{family}_deit-tiny_8xb*_scannet.py') if self.on_gpu else self.mini_recipe(family)

    def load(self, family: str) -> Config:
        """Read the recipe of a family, without pretrained weights, which would show nothing more."""
        cfg = load_recipe(self.recipe(family))
        cfg.model.backbone.init_cfg = None
        return cfg

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that tell recipes where the rooms are."""
        return dict.fromkeys(('DEIT_DATASETS', 'MINI_SCANNET_ROOT'), f'{self.rooms}/')

    def _find(self, pattern: str) -> Path:
        return sorted((self.repo / 'projects/deit_detr/configs').glob(pattern))[0]


def render_rooms(setting: Setting) -> str:
    """Render a few frames in the layout of scannet_frames_25k and convert them, unless they exist."""
    splits = setting.repo / 'data/splits'
    frames = setting.rooms / 'frames'
    # 24: six batches of the recipe with the largest batch
    made = make_mini_scannet(frames, splits, num_train=24, num_val=8, size=setting.frame_size)
    convert(frames, setting.rooms, splits)
    boxes = sum(sum(of_split.values()) for of_split in made['boxes'].values())
    return f'{"found" if made["reused"] else "rendered"} 24 + 8 frames of {setting.frame_size[0]}x' \
           f'{setting.frame_size[1]} with {boxes} boxes'


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
