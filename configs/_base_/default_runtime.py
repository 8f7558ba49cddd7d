"""What every recipe shares: registration, hooks, logging, environment."""
default_scope = 'mmdet'
custom_imports = dict(imports=['deit_detr'], allow_failed_imports=False)  # it imports mmpretrain.models

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='SafeCheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater'),
    preemption=dict(type='PreemptionHook'),
    record=dict(type='RunRecordHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SceneVisualizationHook'))
custom_hooks = [
    dict(type='PreflightHook'),
    dict(type='PretrainedCheckHook'),
    dict(type='ClassCheckHook'),
    dict(type='NonFiniteHook', max_skips=0),
    dict(type='HintHook'),
]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600))  # seconds a process waits for the others; docs/scale.md

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
