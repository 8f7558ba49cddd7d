"""DETR on plain DeiT backbones for MMDetection 3.x; importing the package registers its classes.

The data-set tools set ``DEIT_DETR_REGISTER=0`` before they import their parts of it: they need neither torch nor
mmdet, which cost each of their processes 3 seconds and 0.4 GB.
"""

import os

__version__ = '0.1.0'

if os.environ.get('DEIT_DETR_REGISTER', '1') != '0':
    from deit_detr.other_packages import named_packages
    from deit_detr.threads import bound_waiting, fit_threads

    _load = bound_waiting()  # before torch is imported
    with named_packages():
        from deit_detr.vision_transformers import load_vision_transformers

        load_vision_transformers()  # before anything imports mmpretrain.models

        import mmcv_ops

        mmcv_ops.complete()  # a compiled mmcv that was built without CUDA gets operators for GPUs

        from deit_detr.checkpoints.safe_loading import allow_mmengine_checkpoints
        from deit_detr.checkpoints.whole_files import write_whole_files
        from deit_detr.datasets.checked_coco import CheckedCocoDataset as CheckedCocoDataset
        from deit_detr.datasets.object_storage import FsspecBackend as FsspecBackend
        from deit_detr.datasets.scannet import ScanNet18Dataset as ScanNet18Dataset
        from deit_detr.datasets.scannet import ScanNetDataset as ScanNetDataset
        from deit_detr.engine.checkpoint_hook import SafeCheckpointHook as SafeCheckpointHook
        from deit_detr.engine.class_check import ClassCheckHook as ClassCheckHook
        from deit_detr.engine.hints import HintHook as HintHook
        from deit_detr.engine.hooks import PretrainedCheckHook as PretrainedCheckHook
        from deit_detr.engine.hooks import SceneVisualizationHook as SceneVisualizationHook
        from deit_detr.engine.nonfinite import NonFiniteHook as NonFiniteHook
        from deit_detr.engine.optim import GroupedOptimWrapperConstructor as GroupedOptimWrapperConstructor
        from deit_detr.engine.preemption import PreemptionHook as PreemptionHook
        from deit_detr.engine.preflight.run import PreflightHook as PreflightHook
        from deit_detr.engine.run_record import RunRecordHook as RunRecordHook
        from deit_detr.engine.train_loop import ResumableTrainLoop as ResumableTrainLoop
        from deit_detr.evaluation import Pri3DMetric as Pri3DMetric
        from deit_detr.inference import load as load
        from deit_detr.models.fast_detectors import FastConditionalDETR as FastConditionalDETR
        from deit_detr.models.fast_detectors import FastDABDETR as FastDABDETR
        from deit_detr.models.fast_detectors import FastDeformableDETR as FastDeformableDETR
        from deit_detr.models.fast_detectors import FastDINO as FastDINO
        from deit_detr.models.fast_detr import FastDETR as FastDETR
        from deit_detr.models.fast_detr_head import FastDETRHead as FastDETRHead
        from deit_detr.models.lw_detr import LWDETR as LWDETR
        from deit_detr.models.lw_detr_head import LWDETRHead as LWDETRHead
        from deit_detr.models.simple_fpn import SimpleFPN as SimpleFPN
        from deit_detr.models.windowed_vit import WindowedViT as WindowedViT

        allow_mmengine_checkpoints()
        write_whole_files()
        fit_threads(_load)
