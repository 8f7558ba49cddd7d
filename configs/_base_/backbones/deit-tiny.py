"""Pixels to features: DeiT-tiny (arXiv 2012.12877), pretrained on ImageNet-1k, one map of stride 16."""
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1),
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch='deit-tiny',
        # The checkpoint's size. Any other size would resize the position embedding while loading, which mmpretrain
        # cannot do without a class token. The forward pass interpolates it to any input size.
        img_size=224,
        patch_size=16,
        out_indices=-1,
        with_cls_token=False,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            # DEIT_CHECKPOINT: a local file, for machines without network
            checkpoint='{{$DEIT_CHECKPOINT:https://download.openmmlab.com/mmclassification/v0/deit/deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth}}',
            prefix='backbone.')))
