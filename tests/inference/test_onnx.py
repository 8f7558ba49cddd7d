"""ONNX files of all families: the results of PyTorch for every size and batch, without PyTorch installed."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmdet.datasets.transforms import Resize
from mmengine.config import Config

import deit_detr
from deit_detr.errors import UserError
from deit_detr.images import picture_names
from deit_detr.inference import export
from deit_detr.inference.export import BOX_TOLERANCE, SCORE_TOLERANCE, OnnxGraph, compare, difference, export_onnx
from deit_detr.inference.onnx_operators import Selection, resize_bicubic
from tests.helpers.paths import REPO
from tests.helpers.pictures import image_of
from tests.helpers.tiny_detector import save_tiny

CONFIGS = REPO / 'projects/deit_detr/configs'
RUN_ONNX = REPO / 'tools/deployment/run_onnx.py'
FAMILIES = sorted(path.stem.split('_')[0] for path in CONFIGS.glob('*_deit-tiny_*_mini-scannet.py'))
#: Windows that divide the map at one size and not at another.
WINDOWS = 'window_size=4, out_indices=[0, 2], global_layers=[0, 2]'
#: Families whose backbone has three layers, as the tiny detector's.
BACKBONES = {
    'lw-detr': WINDOWS, 'ec-detr': WINDOWS,
    'ec-detr on ECViT': "type='ECViT', init_cfg=None, out_indices=[0, 2], _delete_=True"}


def save_family(folder: Path, family: str) -> tuple[Path, Path]:
    """Save a small detector of a family without zero tensors: initially, branches and offsets have no effect."""
    recipe = next(CONFIGS.glob(f'{family.split()[0]}_deit-tiny_*_mini-scannet.py'))
    if family in BACKBONES:
        folder.mkdir(parents=True)
        (folder / 'recipe.py').write_text(
            f"_base_ = '{recipe}'\n"
            f'model = dict(backbone=dict({BACKBONES[family]}), neck=dict(in_channels=[192] * 2))\n')
        recipe = folder / 'recipe.py'
    # few queries: nearly equal scores, whose order depends on the last bit, are rare among the best tokens
    return save_tiny(folder, recipe, 'num_queries=20, test_cfg=dict(max_per_img=20)', zeros=False)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return config, checkpoint and ONNX file of a family; each is made once."""
    made = {}

    def get(family: str) -> tuple[Path, Path, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp('onnx') / family
            files = save_family(folder, family)
            export_onnx(*files, folder / 'model.onnx')
            made[family] = (*files, folder / 'model.onnx')
        return made[family]

    return get


@pytest.mark.parametrize('family', [
    family if family == 'lw-detr' else pytest.param(family, marks=pytest.mark.slow)
    for family in sorted({*FAMILIES, *BACKBONES})])
def test_numbers_of_pytorch(family, exported, run_onnx):
    config, checkpoint, path = exported(family)
    detector = deit_detr.load(config, checkpoint, 'cpu')
    in_onnx = run_onnx.OnnxDetector(path, threads=1)
    # even and odd patches, windows with and without padding, upright and wide, other sizes than in the export
    for size in ((640, 480), (301, 222), (150, 300), (500, 260)):
        image = image_of(*size, seed=size[0])
        found = in_onnx(image)
        boxes, scores = compare(detector, image, *found, score_thr=0.2)
        assert boxes <= BOX_TOLERANCE / 10 and scores <= SCORE_TOLERANCE / 10, (size, boxes, scores)
        # the detections differ from one another, which those of a constant graph would not
        assert found[1][0] > found[1][-1] and np.ptp(found[0], axis=0).min() > 1

    batch = np.stack([in_onnx.resize(image_of(200, 150, seed)) for seed in range(3)])
    together = in_onnx.session.run(None, {'images': batch})
    for index in range(3):
        alone = in_onnx.session.run(None, {'images': batch[index : index + 1]})
        for a, b in zip(alone[:2], together[:2], strict=True):
            np.testing.assert_allclose(a[0], b[index], rtol=0, atol=1e-2 if a.ndim == 3 else 1e-4)


@pytest.mark.slow
def test_attention_is_one_operator_or_plain(exported, run_onnx, tmp_path):
    config, checkpoint, path = exported('lw-detr')
    export_onnx(config, checkpoint, tmp_path / 'plain.onnx', attention='plain')
    fused, plain = ([node.op_type for node in onnx.load(file).graph.node] for file in (path, tmp_path / 'plain.onnx'))
    # three layers of the backbone and two of the decoder; Softmax of deformable attention
    assert fused.count('MultiHeadAttention') == 5 and fused.count('Softmax') == 2
    assert 'MultiHeadAttention' not in plain and plain.count('Softmax') == 7
    assert not {'IsNaN', 'Resize'} & {*fused, *plain}
    image = image_of(301, 222)
    results = [run_onnx.OnnxDetector(file, 1)(image) for file in (path, tmp_path / 'plain.onnx')]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2)


@pytest.mark.parametrize('old, new', [((14, 14), (50, 67)), ((14, 14), (5, 3)), ((4, 4), (1, 13)), ((3, 2), (9, 2))])
def test_two_matrix_products_resize_as_pytorch_does(old, new):
    x = torch.randn(2, 8, *old, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x, size=new, mode='bicubic')
    torch.testing.assert_close(resize_bicubic(x, new), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_real_photographs(indoor_photos, exported, run_onnx):
    """From the file to boxes in pixels of the photograph: decoding, resizing, the graph."""
    for family in ('lw-detr', 'dino'):
        config, checkpoint, path = exported(family)
        detector = deit_detr.load(config, checkpoint, 'cpu')
        in_onnx = run_onnx.OnnxDetector(path, 1)
        for photo in sorted(indoor_photos.glob('*/color/*.jpg'))[::13]:
            boxes, scores = compare(detector, detector.read(photo), *in_onnx(run_onnx.read_image(photo)))
            assert boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE, (family, photo.name, boxes, scores)


@pytest.mark.slow
def test_the_file_says_what_it_is(exported):
    config, checkpoint, path = exported('dino')
    session = onnxruntime.InferenceSession(path)
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ('images', 'tensor(uint8)', ['batch', 'height', 'width', 3])
    assert [output.name for output in session.get_outputs()] == ['boxes', 'scores', 'labels']
    metadata = session.get_modelmeta().custom_metadata_map
    detector = deit_detr.load(config, checkpoint, 'cpu')
    assert json.loads(metadata['classes']) == list(detector.classes)
    assert json.loads(metadata['palette'])[7] == [214, 39, 40]  # door
    assert json.loads(metadata['resize_scale']) == [320, 240]
    assert metadata['precision'] == 'float32' and metadata['checkpoint'] == 'epoch_1.pth'
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.slow
def test_resizing_is_that_of_the_test_pipeline(exported, run_onnx):
    config, checkpoint, path = exported('dino')
    detector = deit_detr.load(config, checkpoint, 'cpu')
    in_onnx = run_onnx.OnnxDetector(path, 1)
    for size in ((1296, 968), (640, 480), (97, 301), (33, 500)):
        image = image_of(*size)
        assert np.array_equal(in_onnx.resize(image), export._pixels(detector, image)), size


def test_resizing_to_a_fixed_size(run_onnx):
    in_onnx = run_onnx.OnnxDetector.__new__(run_onnx.OnnxDetector)
    in_onnx.resize_scale, in_onnx.keep_ratio = [160, 128], False
    for size in ((97, 301), (640, 480)):
        expected = Resize(scale=(160, 128), keep_ratio=False)(dict(img=image_of(*size)))['img']
        assert np.array_equal(in_onnx.resize(image_of(*size)), expected)


@pytest.mark.slow
def test_runs_without_pytorch(exported, mini_scannet, run, tmp_path):
    config, checkpoint, path = exported('lw-detr')
    blocked = tmp_path / 'blocked'
    blocked.mkdir()
    (blocked / 'sitecustomize.py').write_text(
        'import sys\n'
        "for name in ('torch', 'torchvision', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'deit_detr', 'onnx', 'PIL',\n"
        "             'pycocotools'):\n"
        '    sys.modules[name] = None\n')
    output = run(sys.executable, '-c', 'import torch', status=1, PYTHONPATH=blocked)
    assert 'import of torch halted' in output

    ann_file, results = mini_scannet / 'scannet_objdet_val.json', tmp_path / 'found.bbox.json'
    run(sys.executable, RUN_ONNX, path, mini_scannet / 'val', '--ann-file', ann_file, '--coco-json', results,
        PYTHONPATH=blocked)
    results = json.loads(results.read_text())
    images = json.loads(ann_file.read_text())['images']
    assert len(results) == 20 * len(images)
    detector = deit_detr.load(config, checkpoint, 'cpu')
    ids = {category['id']: detector.classes.index(category['name'])
           for category in json.loads(ann_file.read_text())['categories']}
    for image in images[:3]:
        mine = [result for result in results if result['image_id'] == image['id']]
        boxes = np.array([result['bbox'] for result in mine])
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([ids[result['category_id']] for result in mine])
        scores = np.array([result['score'] for result in mine])
        difference = compare(detector, mini_scannet / 'val' / image['file_name'], boxes, scores, labels)
        assert difference[0] <= BOX_TOLERANCE and difference[1] <= SCORE_TOLERANCE

    output = run(sys.executable, RUN_ONNX, path, 'none.jpg', status=2, PYTHONPATH=blocked)
    assert output == 'error: none.jpg: no such image file\n'
    frame = mini_scannet / 'val' / images[0]['file_name']
    output = run(sys.executable, RUN_ONNX, path, frame, '--out-dir', tmp_path / 'drawn', '--score-thr', 0,
                 PYTHONPATH=blocked)
    assert f'{frame}: 20 objects' in output
    drawn = cv2.imread(str(tmp_path / 'drawn' / picture_names([frame])[frame]))
    assert drawn.shape == (120, 160, 3) and np.abs(drawn.astype(int) - cv2.imread(str(frame))).mean() > 5


@pytest.mark.slow
def test_int8_from_the_command_line(exported, run, run_onnx, tmp_path):
    """LW-DETR has weights of three dimensions, which ONNX Runtime can quantize but not run."""
    config, checkpoint, path = exported('lw-detr')
    output = run(sys.executable, REPO / 'tools/deployment/export_onnx.py', config, checkpoint, '--int8',
                 '--out', tmp_path / 'small.onnx')
    assert 'int8; batch, height and width are dynamic' in output and '\nin float32, ONNX Runtime and' in output
    assert (tmp_path / 'small.onnx').stat().st_size < 0.6 * path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ['small.onnx']
    small = run_onnx.OnnxDetector(tmp_path / 'small.onnx', 1)
    assert small.session.get_modelmeta().custom_metadata_map['precision'] == 'int8'
    image = image_of(320, 240)
    boxes, scores, _ = small(image)
    exact = run_onnx.OnnxDetector(path, 1)(image)
    assert 0 < np.abs(scores - exact[1]).max() < 0.2 and np.isfinite(boxes).all()


@pytest.mark.slow
@pytest.mark.parametrize('family', ['detr-fast', 'lw-detr', 'ec-detr', 'dino'])
def test_float16(family, exported, run_onnx, tmp_path):
    """Results differ as numbers of 11 bits do, unless seeded scores of tokens change places."""
    config, checkpoint, path = exported(family)
    export_onnx(config, checkpoint, tmp_path / 'half.onnx', float16=True)
    assert (tmp_path / 'half.onnx').stat().st_size < 0.7 * path.stat().st_size
    exact, half = (run_onnx.OnnxDetector(file, 1) for file in (path, tmp_path / 'half.onnx'))
    assert half.session.get_modelmeta().custom_metadata_map['precision'] == 'float16'
    for size in ((320, 240), (301, 222)):
        a, b = exact(image_of(*size)), half(image_of(*size))
        assert 1e-6 < np.median(np.abs(a[1] - b[1])) < 0.03, size
        if family == 'detr-fast':
            boxes, scores = difference(a, b)
            assert boxes < 1 and scores < 0.01, size


@pytest.mark.slow
def test_too_large_for_float16(exported, tmp_path):
    config, checkpoint, _ = exported('detr-fast')
    weights = torch.load(checkpoint, weights_only=True)
    norm = weights['state_dict']['backbone.layers.2.ln2.weight']
    norm *= 1e5
    weights['state_dict']['backbone.layers.2.ffn.layers.0.0.weight'] *= 1e-5
    torch.save(weights, tmp_path / 'large.pth')
    with pytest.raises(UserError, match='half.onnx: not written: in PyTorch its boxes or scores are not finite'):
        export_onnx(config, tmp_path / 'large.pth', tmp_path / 'half.onnx', float16=True)
    assert [file.name for file in tmp_path.iterdir()] == ['large.pth']
    with pytest.raises(UserError, match='a file is int8 or float16'):
        export_onnx(config, checkpoint, tmp_path / 'half.onnx', int8=True, float16=True)


@pytest.mark.slow
def test_a_graph_that_disagrees_is_not_left(exported, tmp_path, monkeypatch):
    config, checkpoint, _ = exported('detr-fast')
    compiled = tmp_path / 'compiled.py'  # the same graph as without compilation
    compiled.write_text(f"_base_ = '{config}'\nmodel = dict(compile=dict(backend='eager'))\n")
    out = tmp_path / 'model.onnx'
    out.write_text('the one before')
    right = OnnxGraph.forward

    def shifted(self, images):
        boxes, *others = right(self, images)
        return boxes + 2, *others

    monkeypatch.setattr(OnnxGraph, 'forward', shifted)
    with pytest.raises(UserError, match='not written: ONNX Runtime and PyTorch disagree on a seeded image'):
        export_onnx(compiled, checkpoint, out)
    assert out.read_text() == 'the one before' and sorted(tmp_path.iterdir()) == [compiled, out]


def test_order_of_equal_scores_is_taken_over_and_nothing_else():
    scores = torch.tensor([[3.0, 2.0, 2.0001, 1.0]])
    for replay, expected in (([0, 1, 2], [0, 1, 2]), ([0, 2, 1], [0, 2, 1]), ([3, 2, 1], [0, 2, 1])):
        with Selection(torch.tensor([replay])):
            values, indices = torch.topk(scores, 3, dim=1)
            assert indices.tolist() == [expected] and torch.equal(values, scores[:, expected])
            assert scores.topk(2).indices.tolist() == [[0, 2]], 'the choice of the best detections is not touched'


@pytest.mark.slow
def test_nan_is_a_disagreement(exported):
    config, checkpoint, _ = exported('detr-fast')
    detector = deit_detr.load(config, checkpoint, 'cpu')
    image = image_of(160, 120)
    found = detector(image, score_thr=0).pred_instances
    boxes, scores, labels = found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()
    assert compare(detector, image, boxes, scores, labels) == (0, 0)
    assert compare(detector, image, boxes + 1, scores, labels)[0] == pytest.approx(1, abs=1e-4)
    assert not compare(detector, image, np.full_like(boxes, np.nan), scores, labels)[0] <= BOX_TOLERANCE
    assert not compare(detector, image, boxes, np.full_like(scores, np.nan), labels)[1] <= SCORE_TOLERANCE
    assert compare(detector, image, boxes, scores, labels + 20) == (np.inf, np.inf)


def test_pipelines_of_all_recipes_are_known():
    for path in sorted(CONFIGS.rglob('*.py')):
        expected = (192, 144) if 'mini-scannet' in path.name else (1333, 800)
        if path.stem.startswith(('lw-detr_vit', 'ec-detr')) and path.stem.endswith('_coco'):
            expected = 640, 640
        assert export._resize(Config.fromfile(path)) == (expected, expected != (640, 640)), path.name


@pytest.mark.parametrize('changes, message', [
    ("test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', "
     "scale=(320, 240)), dict(type='PackDetInputs')]))", 'the pipeline of test_dataloader.dataset is LoadImageFrom'),
    ('model = dict(data_preprocessor=dict(pad_size_divisor=32))', 'pad_size_divisor=1'),
])
def test_what_the_graph_does_not_cover_is_refused(exported, tmp_path, changes, message):
    config, checkpoint, _ = exported('detr-fast')
    (tmp_path / 'changed.py').write_text(f"_base_ = '{config}'\n{changes}\n")
    with pytest.raises(UserError, match=f'changed.py: .*{message}'):
        export_onnx(tmp_path / 'changed.py', checkpoint, tmp_path / 'model.onnx')
    assert not (tmp_path / 'model.onnx').exists()


def test_bad_input_in_a_sentence(exported, run_onnx, mini_scannet, tmp_path):
    config, checkpoint, path = exported('lw-detr')
    with pytest.raises(UserError, match=r'model\.pt: the name has to end in \.onnx'):
        export_onnx(config, checkpoint, tmp_path / 'model.pt')
    with pytest.raises(UserError, match=r'missing\.py: no such config file'):
        export_onnx(tmp_path / 'missing.py', checkpoint, tmp_path / 'model.onnx')
    (tmp_path / 'text.onnx').write_text('text')
    for bad, message in ((tmp_path / 'none.onnx', 'no such model file'), (tmp_path / 'text.onnx', 'cannot be loaded')):
        with pytest.raises(run_onnx.InputError, match=message):
            run_onnx.OnnxDetector(bad)
    plain = onnx.load(path)
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / 'plain.onnx')
    with pytest.raises(run_onnx.InputError, match="has no 'classes' in its metadata"):
        run_onnx.OnnxDetector(tmp_path / 'plain.onnx')

    detector = run_onnx.OnnxDetector(path, 1)
    detector.resize_scale = [160, 120]  # ten patches of the narrow image, for twenty queries
    (tmp_path / 'text.jpg').write_text('text')
    (tmp_path / 'empty.jpg').touch()
    cv2.imwrite(str(tmp_path / 'narrow.png'), image_of(400, 20))
    cv2.imwrite(str(tmp_path / 'line.png'), image_of(4000, 8))
    for name, message in (('none.jpg', 'no such image file'), ('text.jpg', 'cannot be read as an image'),
                          ('empty.jpg', 'cannot be read as an image'), ('.', 'is not an image file'),
                          ('line.png', '4000x8 pixels: one side is more than 20 times the other'),
                          ('narrow.png', '400x20 pixels become 160x8: fewer patches than the model has queries')):
        with pytest.raises(run_onnx.InputError, match=message):
            run_onnx.detect(detector, tmp_path / name)
    with pytest.raises(run_onnx.InputError, match='threads must be 0 or more, not -1'):
        run_onnx.OnnxDetector(path, threads=-1)
    (tmp_path / 'other.json').write_text('{"images": [], "categories": [{"id": 1, "name": "wall"}]}')
    with pytest.raises(run_onnx.InputError, match="no categories for the classes .'floor'"):
        run_onnx.write_coco_results(detector, mini_scannet, tmp_path / 'other.json', tmp_path / 'out.json')
