"""Additions of the recipes for many images a step: compiled layers, and batches of a few sizes."""

import copy
import random

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch._dynamo.utils import counters

from tests.helpers.paths import REPO
from tests.helpers.small_models import BATCHES, assert_equal_training, build_small, losses_and_gradients, noise

FAST = 'detr-fast_deit-tiny_8xb1-150e_scannet'
ONE_GPU = [
    'detr-fast_deit-tiny_1xb16-150e_scannet', 'lw-detr_deit-tiny_1xb32-12e_scannet',
    'dino_deit-tiny_1xb16-12e_scannet']
SHALLOW = {'model.encoder.num_layers': 1, 'model.decoder.num_layers': 1}


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def build_compiled(backend: str) -> torch.nn.Module:
    """Build a model that raises an error if a layer is not one graph."""
    return build_small(FAST, SHALLOW | {'model.compile': dict(backend=backend, dynamic=False, fullgraph=True)})


# The first does all that torch.compile does but generate code, which needs a minute. It rounds bfloat16 elsewhere.
@pytest.mark.slow
@pytest.mark.parametrize(
    'backend, name, bfloat16', [('aot_eager_decomp_partition', 'padded', False), ('aot_eager', 'unpadded', True)])
def test_compiled_model_computes_the_same(backend, name, bfloat16):
    fast, compiled = build_small(FAST, SHALLOW), build_compiled(backend)
    assert list(compiled.state_dict()) == list(fast.state_dict())
    with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
        assert_equal_training(fast, compiled, BATCHES[name])
    assert counters['stats']['unique_graphs'] == 3


#: Graphs of a step: layers of backbone, encoder and decoder; the first layer of a decoder may have other inputs.
GRAPHS = {
    'detr-fast': 4, 'conditional-detr': 4, 'dab-detr': 4, 'deformable-detr': 4, 'dino': 3, 'lw-detr': 3,
    'ec-detr': 3}


@pytest.mark.slow
@pytest.mark.parametrize('family', GRAPHS)
def test_layers_of_every_family_are_graphs_and_share_them(family):
    """Bit for bit the same, since the backend runs the operators as they were traced, and no graph breaks."""
    (recipe,) = (REPO / 'projects/deit_detr/configs').glob(f'{family}_deit-tiny_*_mini-scannet.py')
    options = {'model.decoder.num_layers': 3}
    if family in ('lw-detr', 'ec-detr'):
        options |= {
            'model.backbone.window_size': 3, 'model.backbone.global_layers': [1], 'model.backbone.out_indices': [0, 1],
            'model.neck.in_channels': [192, 192]}
    if family == 'lw-detr':
        options |= {'model.num_groups': 3}
    plain = build_small(recipe.stem, options)
    compiled = build_small(
        recipe.stem, options | {'model.compile': dict(backend='eager', dynamic=False, fullgraph=True)})
    (losses_a, gradients_a), (losses_b, gradients_b) = (
        losses_and_gradients(model, BATCHES['padded']) for model in (plain, compiled))
    assert all(torch.equal(losses_b[name], loss) for name, loss in losses_a.items())
    assert all(torch.equal(gradients_b[name], gradient) for name, gradient in gradients_a.items())
    assert counters['stats']['unique_graphs'] == GRAPHS[family]
    assert not counters['graph_break']


@pytest.mark.slow
def test_one_graph_for_each_kind_of_layer_and_size():
    model = build_compiled('eager')
    sizes = [(64, 96), (64, 80), (80, 96)]
    for height, width in sizes + sizes:
        losses_and_gradients(model, noise((height, width, 3), (height, width, 0)))
    assert counters['stats']['unique_graphs'] == 3 * len(sizes)


def preprocessor(scales: list[float]) -> torch.nn.Module:
    init_default_scope('mmdet')
    return MODELS.build(dict(
        type='DetDataPreprocessor', mean=[0.0], std=[1.0],
        batch_augments=[dict(type='BatchRandomResize', scales=scales)]))


def drawn_batch(*sizes: tuple[int, int]) -> dict:
    """Return images of these heights and widths, black with one white box each."""
    items = []
    for (height, width), box in zip(sizes, ([96, 32, 160, 128], [8, 16, 72, 64], [32, 80, 88, 176]), strict=True):
        left, top, right, bottom = box
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[:, top:bottom, left:right] = 255
        items.append(dict(inputs=image, data_samples=DetDataSample(
            metainfo=dict(img_shape=(height, width)),
            gt_instances=InstanceData(bboxes=torch.tensor([box], dtype=torch.float32), labels=torch.tensor([3])))))
    return pseudo_collate(items)


EQUAL = (192, 256), (192, 256), (192, 256)
PADDED = (192, 208), (160, 256), (180, 200)  # to 192 x 256


def extent(image: torch.Tensor) -> torch.Tensor:
    """Return the box around pixels brighter than half."""
    bright = image[0] > 127.5
    rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


@pytest.mark.parametrize('scale', [0.5, 0.6, 1.0, 1.3])
@pytest.mark.parametrize('sizes', [EQUAL, PADDED], ids=['equal', 'padded'])
def test_boxes_stay_on_what_they_are_drawn_around(sizes, scale):
    data = drawn_batch(*sizes)
    before = copy.deepcopy(data['data_samples'])
    out = preprocessor([scale])(data, training=True)

    size = tuple(out['inputs'].shape[-2:])
    assert all(side % 16 == 0 for side in size) and size == pytest.approx((192 * scale, 256 * scale), abs=8)
    for image, sample, old in zip(out['inputs'], out['data_samples'], sizes, strict=True):
        assert (sample.gt_instances.bboxes[0] - extent(image)).abs().max() <= 1
        assert sample.batch_input_shape == size
        assert sample.img_shape == pytest.approx((old[0] * size[0] / 192, old[1] * size[1] / 256), abs=0.5)
    for sample, old in zip(data['data_samples'], before, strict=True):
        assert torch.equal(sample.gt_instances.bboxes, old.gt_instances.bboxes), "the data loader's have changed"


def test_batch_without_boxes_and_in_validation():
    data = drawn_batch(*EQUAL)
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    module = preprocessor([0.5])
    assert module(data, training=True)['inputs'].shape[-2:] == (96, 128)
    assert module(data, training=False)['inputs'].shape[-2:] == (192, 256)


def test_every_process_draws_the_same_sizes():
    shapes = []
    for _ in range(2):
        random.seed(0)  # as ResumableTrainLoop does for each step, alike in all processes
        module = preprocessor([0.5, 0.75, 1.0])
        shapes.append([module(drawn_batch(*EQUAL), training=True)['inputs'].shape for _ in range(20)])
    assert shapes[0] == shapes[1] and len(set(shapes[0])) == 3


@pytest.mark.parametrize('name', ONE_GPU)
def test_recipe_pads_nothing_and_has_five_sizes(name, data_roots):
    cfg = Config.fromfile(REPO / f'projects/deit_detr/configs/{name}.py')
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
    module = MODELS.build(copy.deepcopy(cfg.model.data_preprocessor))
    sizes = set()
    random.seed(0)
    for index in range(24):
        sample, = module(pseudo_collate([dataset[index % len(dataset)]]), training=True)['data_samples']
        assert sample.img_shape == sample.batch_input_shape  # so that DETR makes no mask
        sizes.add(sample.img_shape)
    assert sizes == {(480, 640), (560, 752), (640, 864), (720, 960), (800, 1072)}
