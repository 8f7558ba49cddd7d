"""One picture of the test results an image, for any layout of folders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.runner import Runner

from deit_detr.datasets.wrappers import unwrap
from deit_detr.fonts import class_names_drawn
from deit_detr.images import picture_names


@HOOKS.register_module()
class SceneVisualizationHook(DetVisualizationHook):
    """mmdet's ``DetVisualizationHook`` with the folders of the images, for ScanNet one per scene.

    The original names a picture after the file of its image alone: of images with the same file name in different
    folders, as the frames of ScanNet's scenes have, only the last picture would remain. Here, each of several processes
    draws its images (mmdet draws those of the first), and class names are drawn as they are, in any script.

    Args:
        *args: As for ``DetVisualizationHook``.
        **kwargs: As for ``DetVisualizationHook``.
    """

    def before_test_epoch(self, runner: Runner) -> None:
        """Name the picture of each image of the test data."""
        self._names = {}
        if self.draw and self.test_out_dir is not None:
            leaves = [leaf for _, leaf in unwrap(runner.test_dataloader.dataset) if hasattr(leaf, 'get_data_info')]
            paths = [leaf.get_data_info(index).get('img_path') for leaf in leaves for index in range(len(leaf))]
            self._names = picture_names(filter(None, paths))  # videos have none

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the first image of a validation batch, as mmdet does."""
        if self.draw:
            with self._any_script():
                super().after_val_iter(runner, batch_idx, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw a test batch into ``test_out_dir``; see :func:`~deit_detr.images.picture_names`."""
        if not self.draw:
            return
        out_dir = self.test_out_dir
        to_files = out_dir is not None and not self.show
        with patch('mmengine.dist.utils.is_main_process', return_value=True) if to_files else nullcontext():
            if to_files and hasattr(runner.test_dataloader.dataset, 'metainfo'):
                self._visualizer.dataset_meta = runner.test_dataloader.dataset.metainfo
            for sample in outputs:
                if out_dir is not None:
                    path = sample.img_path
                    name = self._names.get(path) or picture_names([path], '/')[path]  # its data set lists no paths
                    self.test_out_dir = str(Path(out_dir, name.parent))
                with self._any_script():
                    super().after_test_iter(runner, batch_idx, data_batch, [sample])
        self.test_out_dir = out_dir

    @contextmanager
    def _any_script(self) -> Iterator[None]:
        with class_names_drawn((self._visualizer.dataset_meta or {}).get('classes')) as families:
            draw_texts = self._visualizer.draw_texts
            with patch.object(self._visualizer, 'draw_texts', partial(draw_texts, font_families=[families])):
                yield
