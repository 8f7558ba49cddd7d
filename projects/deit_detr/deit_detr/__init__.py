"""DETR on plain DeiT backbones for MMDetection 3.x.

``import deit_detr`` changes what follows in the same process:

- mmengine's and mmdet's registries get this project's data sets, detectors, hooks, loops and metrics; ``CocoMetric``
  becomes mmdet's with the AP of the images that were evaluated (:mod:`~deit_detr.evaluation.coco_metric`);
- ``mmpretrain.models`` can be imported beside every version of transformers
  (:func:`~deit_detr.models.vision_transformers.load_vision_transformers`);
- a compiled mmcv without CUDA gets operators for GPUs (``mmcv_ops.complete``);
- ``torch.load(weights_only=True)`` reads mmengine's checkpoints, but refuses ``bytearray`` and every encoding except
  latin1 in any file; mmengine reads local checkpoints only that way
  (:func:`~deit_detr.checkpoints.safe_loading.install_safe_loading`);
- mmengine writes its local files whole or not at all
  (:func:`~deit_detr.checkpoints.file_backend.install_whole_file_backend`);
- ``s3://``, ``gs://`` and ``az://`` paths go through fsspec (:mod:`~deit_detr.datasets.object_storage`);
- OpenMP's threads sleep soon when they wait, and PyTorch computes with no more threads than there are free cores
  (:mod:`~deit_detr.threads`), unless the environment sets either;
- a package that cannot be imported is named in a sentence (:mod:`~deit_detr.import_errors`);
- variables that the recipes read, set to nothing as docker-compose does, count as unset; the old name of
  ``DEIT_DATASETS`` is answered with the new one.
"""

import os
from multiprocessing import parent_process

from deit_detr.errors import print_last
from deit_detr.import_errors import named_packages
from deit_detr.threads import bound_waiting, fit_threads
from deit_detr.versions import VERSION as __version__  # noqa: F401

#: The variables that the recipes and converted configs read. mmengine stops at an empty one.
RECIPE_VARIABLES = (
    'DEIT_CHECKPOINT', 'DEIT_DATASETS', 'MMDET_DATASETS', 'MINI_SCANNET_ROOT', 'SCANNET18_ROOT', 'COCO_ROOT')
for _name in RECIPE_VARIABLES:
    if os.environ.get(_name) == '':
        del os.environ[_name]
if (
    'MMDET_DATASETS' in os.environ and 'DEIT_DATASETS' not in os.environ and parent_process() is None
    and all(os.environ.get(_name, '0') == '0' for _name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
):
    print_last(
        "MMDET_DATASETS is now called DEIT_DATASETS: mmdet's confusion_matrix.py and analyze_results.py stop when "
        'MMDET_DATASETS is set. The old name still works; rename it where you set it, and in your own configs.')

_load = bound_waiting()  # before torch is imported
with named_packages():
    from deit_detr.models.vision_transformers import load_vision_transformers

    load_vision_transformers()  # before anything imports mmpretrain.models

    import mmcv_ops

    mmcv_ops.complete()

    from deit_detr.checkpoints.file_backend import install_whole_file_backend
    from deit_detr.checkpoints.safe_loading import install_safe_loading
    from deit_detr.datasets.checked_coco import CheckedCocoDataset as CheckedCocoDataset
    from deit_detr.datasets.object_storage import FsspecBackend as FsspecBackend
    from deit_detr.datasets.scannet import ScanNet18Dataset as ScanNet18Dataset
    from deit_detr.datasets.scannet import ScanNetDataset as ScanNetDataset
    from deit_detr.engine.optim import GroupedOptimWrapperConstructor as GroupedOptimWrapperConstructor
    from deit_detr.engine.resume.checkpoint_hook import SafeCheckpointHook as SafeCheckpointHook
    from deit_detr.engine.resume.early_stopping import ResumableEarlyStoppingHook as ResumableEarlyStoppingHook
    from deit_detr.engine.resume.preemption import PreemptionHook as PreemptionHook
    from deit_detr.engine.resume.train_loop import ResumableTrainLoop as ResumableTrainLoop
    from deit_detr.engine.start.class_check import ClassCheckHook as ClassCheckHook
    from deit_detr.engine.start.preflight import PreflightHook as PreflightHook
    from deit_detr.engine.start.pretrained_check import PretrainedCheckHook as PretrainedCheckHook
    from deit_detr.engine.watch.hints import HintHook as HintHook
    from deit_detr.engine.watch.nonfinite import NonFiniteHook as NonFiniteHook
    from deit_detr.engine.watch.pictures import SceneVisualizationHook as SceneVisualizationHook
    from deit_detr.engine.watch.run_record import RunRecordHook as RunRecordHook
    from deit_detr.evaluation.pri3d import Pri3DMetric as Pri3DMetric
    from deit_detr.inference.detector import load as load
    from deit_detr.models.ec_detr import ECDETR as ECDETR
    from deit_detr.models.ec_detr_head import ECDETRHead as ECDETRHead
    from deit_detr.models.ec_vit import ECViT as ECViT
    from deit_detr.models.fast_detectors import FastConditionalDETR as FastConditionalDETR
    from deit_detr.models.fast_detectors import FastDABDETR as FastDABDETR
    from deit_detr.models.fast_detectors import FastDeformableDETR as FastDeformableDETR
    from deit_detr.models.fast_detectors import FastDINO as FastDINO
    from deit_detr.models.fast_detr import FastDETR as FastDETR
    from deit_detr.models.fast_detr_head import FastDETRHead as FastDETRHead
    from deit_detr.models.fast_heads import FastConditionalDETRHead as FastConditionalDETRHead
    from deit_detr.models.fast_heads import FastDABDETRHead as FastDABDETRHead
    from deit_detr.models.fast_heads import FastDeformableDETRHead as FastDeformableDETRHead
    from deit_detr.models.fast_heads import FastDINOHead as FastDINOHead
    from deit_detr.models.hybrid_encoder import HybridEncoder as HybridEncoder
    from deit_detr.models.lw_detr import LWDETR as LWDETR
    from deit_detr.models.lw_detr_head import LWDETRHead as LWDETRHead
    from deit_detr.models.preprocessor import FastDataPreprocessor as FastDataPreprocessor
    from deit_detr.models.simple_fpn import SimpleFPN as SimpleFPN
    from deit_detr.models.windowed_vit import WindowedViT as WindowedViT

    install_safe_loading()
    install_whole_file_backend()
    fit_threads(_load)
