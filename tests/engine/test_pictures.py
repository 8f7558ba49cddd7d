"""The pictures of test results: one an image for any layout of folders, with class names of any script."""

from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from PIL import Image
from torch.utils.data import ConcatDataset

from deit_detr import SceneVisualizationHook, fonts
from deit_detr.images import picture_names
from deit_detr.inference.attention import Attention, draw_attention


@pytest.fixture(autouse=True)
def visualizer(monkeypatch):
    """What mmengine's runner builds."""
    monkeypatch.setattr(Visualizer, 'get_current_instance', DetLocalVisualizer)


class Listed(list):
    """A data set of image files that knows their paths."""

    def get_data_info(self, index: int) -> dict:
        return dict(img_path=self[index])


class Unlisted(list):
    """A data set that does not."""


def draw(root: Path, paths: list[str], dataset, name: str = 'cup') -> list[str]:
    """Test on images, each of one grey value, with the hook; return the pictures, each of which shows its image."""
    work_dir = root / 'work'
    hook = SceneVisualizationHook(draw=True, test_out_dir='pictures')
    dataset.metainfo = dict(classes=(name,), palette='random')
    runner = SimpleNamespace(work_dir=str(work_dir), timestamp='now', test_dataloader=SimpleNamespace(dataset=dataset))
    hook.before_test_epoch(runner)
    samples = []
    for number, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (90, 60), 20 + 25 * number).save(path)
        box = InstanceData(bboxes=torch.tensor([[20.0, 20, 80, 50]]), labels=torch.tensor([0]))
        box.scores = torch.tensor([0.9])
        samples.append(DetDataSample(
            metainfo=dict(img_path=path), gt_instances=InstanceData(bboxes=torch.zeros(0, 4)), pred_instances=box))
    hook.after_test_iter(runner, 0, {}, samples[:1])
    hook.after_test_iter(runner, 1, {}, samples[1:])
    drawn = sorted((work_dir / 'now/pictures').rglob('*.*'))
    greys = {int(np.asarray(Image.open(path).convert('L'))[0, 0]) for path in drawn}
    assert len(drawn) == len(greys) == len(paths), 'each picture is of another image'
    return [str(path.relative_to(work_dir / 'now/pictures')) for path in drawn]


LAYOUTS = {
    'flat': (['a.png', 'b.png'], ['a.png', 'b.png']),
    'days': (['day1/0.png', 'day1/1.png', 'day2/0.png'], ['day1/0.png', 'day1/1.png', 'day2/0.png']),
    'one day': (['day1/0.png', 'day1/1.png'], ['0.png', '1.png']),
    'days by camera': (['a/day1/0.png', 'b/day1/0.png', '0.png'], ['0.png', 'a/day1/0.png', 'b/day1/0.png']),
    'suffixes': (['0.png', '0.jpg'], ['0.jpg', '0.png']),
    'scenes': (['s1/color/0.jpg', 's2/color/0.jpg'], ['s1/0.jpg', 's2/0.jpg']),
    'one scene': (['val/s1/color/0.jpg', 'val/s1/color/1.jpg'], ['s1/0.jpg', 's1/1.jpg']),
    'color and others': (['s1/color/0.jpg', 's1/0.jpg', 's2/color/0.jpg'],
                         ['s1/0.jpg', 's1/color/0.jpg', 's2/color/0.jpg']),
    'up and down': (['val/../a/0.png', 'b/0.png'], ['a/0.png', 'b/0.png']),
}


@pytest.mark.parametrize('paths, expected', LAYOUTS.values(), ids=LAYOUTS)
def test_one_picture_an_image(tmp_path, paths, expected):
    (tmp_path / 'data/val').mkdir(parents=True)
    paths = [str(tmp_path / 'data') + '/' + path for path in paths]
    assert draw(tmp_path, paths, Listed(paths)) == expected
    assert sorted(map(str, picture_names(paths).values())) == expected


def test_one_picture_an_image_of_several_data_sets(tmp_path):
    parts = [[str(tmp_path / name / 'images/0.png')] for name in ('VOC2007', 'VOC2012')]
    names = draw(tmp_path, sum(parts, []), ConcatDataset([Listed(part) for part in parts]))
    assert names == ['VOC2007/images/0.png', 'VOC2012/images/0.png']
    unlisted = draw(tmp_path / 'unlisted', sum(parts, []), Unlisted())
    assert [name.endswith(end) for name, end in zip(unlisted, names, strict=True)] == [True, True]


def test_every_process_draws_its_images(tmp_path, monkeypatch):
    """mmdet's visualizer draws in the first process only."""
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda *_: 1)
    paths = [str(tmp_path / 'a.png'), str(tmp_path / 'b.png')]
    assert draw(tmp_path, paths, Listed(paths)) == ['a.png', 'b.png']


@pytest.fixture
def font(tmp_path, monkeypatch) -> str:
    """The only font of a machine beside Matplotlib's: all it has is a full block for the characters 杯 and 컵."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(['.notdef', 'block'])
    builder.setupCharacterMap({ord('杯'): 'block', ord('컵'): 'block'})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'block': pen.glyph()})
    builder.setupHorizontalMetrics({'.notdef': (1000, 0), 'block': (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable(dict(familyName='Block', styleName='Regular'))
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / 'block.ttf')
    ours = [font for font in fonts.fontManager.ttflist if 'matplotlib' in font.fname]
    monkeypatch.setattr(fonts.fontManager, 'ttflist', ours)
    monkeypatch.setattr(fonts, 'findSystemFonts', lambda: [str(tmp_path / 'block.ttf'), str(Path(__file__))])
    fonts.find_fonts.cache_clear()
    yield 'Block'
    fonts.find_fonts.cache_clear()


def test_a_font_that_is_there_is_used(tmp_path, font, monkeypatch):
    lines = []
    monkeypatch.setattr(fonts, 'print_log', lambda line, *_: lines.append(line))
    assert fonts.find_fonts(frozenset('cup, чашка, φλιτζάνι, كوب\u200d\n')) == [], 'the default font has them'
    assert fonts.find_fonts(frozenset('杯 컵')) == [font] and lines == []
    assert fonts.find_fonts(frozenset('杯子')) == fonts.find_fonts(frozenset('子杯')) == [font]
    (line,) = lines
    assert line.startswith('no installed font has 子 of the class names: ') and 'fonts-noto-cjk' in line
    pictures = []
    for number, name in enumerate(('杯', '컵', '子', 'cup')):
        draw(tmp_path / str(number), paths := [str(tmp_path / 'a.png')], Listed(paths), name)
        pictures.append(np.asarray(Image.open(tmp_path / f'{number}/work/now/pictures/a.png')))
    assert np.array_equal(pictures[0], pictures[1]), 'both are blocks'
    assert not np.array_equal(pictures[0], pictures[2]) and not np.array_equal(pictures[0], pictures[3])


@pytest.mark.parametrize('name', ['$a_{$', '$\\frac$ $', r'\$5', '$x$', '_^{}\\'])
def test_names_are_no_formulas(tmp_path, detector, name):
    draw(tmp_path, [str(tmp_path / 'a.png')], Listed(), name)
    hook = SceneVisualizationHook(draw=True, interval=1)
    hook._visualizer.dataset_meta = dict(classes=(name,), palette='random')
    sample = DetDataSample(metainfo=dict(img_path=str(tmp_path / 'a.png')), pred_instances=InstanceData(
        bboxes=torch.tensor([[20.0, 20, 80, 50]]), labels=torch.tensor([0]), scores=torch.tensor([0.9])))
    hook.after_val_iter(SimpleNamespace(iter=0), 0, {}, [sample])
    grey = np.full((60, 90, 3), 128, np.uint8)
    sample.pred_instances.label_names = [name]
    detector.draw(grey, sample)
    draw_attention(detector, grey, [Attention(title=name, heat=np.ones((60, 90), np.float32))])
    assert matplotlib.rcParams['text.parse_math'], 'elsewhere, formulas remain'


def test_no_pictures_unless_asked_for(tmp_path):
    hook = SceneVisualizationHook()
    hook.before_test_epoch(None)
    hook.after_test_iter(None, 0, {}, [DetDataSample(metainfo=dict(img_path='gone.png'))])
