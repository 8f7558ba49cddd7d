"""mmdet's own recipes train and predict with the operators that they take on a GPU."""

import copy
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
CHANNELS = 16
NARROW = dict(
    backbone=dict(base_channels=4, init_cfg=None), neck=dict(in_channels=[16, 32, 64, 128], out_channels=CHANNELS))
ONE_STAGE = NARROW | dict(
    bbox_head=dict(in_channels=CHANNELS, feat_channels=CHANNELS, stacked_convs=1),
    test_cfg=dict(score_thr=0.0, nms_pre=20))  # of 10000 boxes or more in mixed types, mmcv 2.1's batched_nms fails
TWO_STAGE = NARROW | dict(
    rpn_head=dict(in_channels=CHANNELS, feat_channels=CHANNELS),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=CHANNELS),
        bbox_head=dict(in_channels=CHANNELS, fc_out_channels=32)),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0)))
MAX_POOLING = dict(roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(pool_mode='max'))))
ROI_POOL = dict(roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(
    _delete_=True, type='RoIPool', output_size=7))))
SOFT_NMS = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', min_score=1e-4), max_per_img=20)))

ALIGN = {'roi_align_forward', 'roi_align_backward', 'nms'}
FOCAL = {'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'}
DEFORM = {'deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'}
RECIPES = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': ([TWO_STAGE], ALIGN),
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py max': ([TWO_STAGE, MAX_POOLING], ALIGN),
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py pool soft': (
        [TWO_STAGE, ROI_POOL, SOFT_NMS], {'roi_pool_forward', 'roi_pool_backward', 'softnms', 'nms'}),
    'retinanet/retinanet_r50_fpn_1x_coco.py': ([ONE_STAGE], FOCAL | {'nms'}),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': ([dict(
        backbone=NARROW['backbone'], neck=dict(in_channels=[32, 64, 128]), encoder=dict(num_layers=1),
        decoder=dict(num_layers=1))], FOCAL | {'ms_deform_attn_forward', 'ms_deform_attn_backward'}),
    'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py': ([TWO_STAGE], ALIGN | DEFORM),
    'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py': (
        [TWO_STAGE], ALIGN | {'modulated_deform_conv_forward', 'modulated_deform_conv_backward'}),
    'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py': (
        [ONE_STAGE], FOCAL | DEFORM | {'nms', 'masked_im2col_forward', 'masked_col2im_forward'}),
    'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py': ([TWO_STAGE], ALIGN | {'carafe_forward', 'carafe_backward'}),
}


def build(path: str, changes: list[dict]) -> torch.nn.Module:
    cfg = Config.fromfile(CONFIGS / path)
    for change in changes:
        cfg.merge_from_dict(dict(model=copy.deepcopy(change)))  # which takes `_delete_` out
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    return detector


@pytest.mark.parametrize('autocast', [
    pytest.param(False, id='float32'), pytest.param(True, id='bfloat16', marks=pytest.mark.slow)])
@pytest.mark.parametrize('recipe', RECIPES)
def test_it_trains_and_predicts(recipe, autocast, device, operators_as_on_gpu):
    changes, expected = RECIPES[recipe]
    detector = build(recipe.split()[0], changes).to(device)
    images = demo_mm_inputs(1, [[3, 128, 160]], num_items=[6], num_classes=80)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        losses = detector(**detector.data_preprocessor(images, training=True), mode='loss')
        loss, _ = detector.parse_losses(losses)
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and all(x.isfinite().all() for x in detector.parameters())
    assert all(x.grad is not None for x in detector.parameters() if x.requires_grad)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        found, = detector.eval()(**detector.data_preprocessor(images, training=False), mode='predict')
    assert found.pred_instances.bboxes.shape[1] == 4 and found.pred_instances.scores.isfinite().all()
    assert {name for name, count in operators_as_on_gpu.items() if count} == expected
