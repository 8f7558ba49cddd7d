"""Pictures of test results in one folder per scene."""

from collections.abc import Sequence
from pathlib import Path

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.runner import Runner


@HOOKS.register_module()
class SceneVisualizationHook(DetVisualizationHook):
    """mmdet's ``DetVisualizationHook`` with one folder per scene.

    The original names a picture after its frame, and ScanNet uses the same frame names in all scenes: the pictures of
    one scene would replace those of another.

    Args:
        *args: As for ``DetVisualizationHook``.
        **kwargs: As for ``DetVisualizationHook``.
    """

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw a test batch into ``test_out_dir/SCENE/``; the scene is the folder above ``color/``."""
        out_dir = self.test_out_dir
        for sample in outputs:
            if out_dir is not None:
                self.test_out_dir = str(Path(out_dir, Path(sample.img_path).parent.parent.name))
            super().after_test_iter(runner, batch_idx, data_batch, [sample])
        self.test_out_dir = out_dir
