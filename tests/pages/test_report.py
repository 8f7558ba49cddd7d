"""The report: of a real training, in a real browser, and of runs with missing parts."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.visualization import Visualizer

from deit_detr.checkpoints import safe_loading
from deit_detr.errors import UserError
from deit_detr.evaluation.detections import evaluate, read_data
from deit_detr.evaluation.error_breakdown import CORRECT, KINDS, count_errors
from deit_detr.pages import report
from deit_detr.pages.evaluated_run import add_attention
from deit_detr.pages.html import percent
from deit_detr.pages.report import make_report
from deit_detr.pages.report_gallery import image_f1
from deit_detr.pages.work_dir import read_run
from tests.helpers.browser import browser  # noqa: F401 - a fixture
from tests.helpers.checkpoint_reads import count_reads
from tests.helpers.fork_server import start
from tests.helpers.paths import REPO, TINY_RUN
from tests.helpers.tiny_detector import save_tiny

REPORT = [sys.executable, '-W', 'ignore', REPO / 'tools/analysis_tools/report.py']
CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
HOSTILE = '<img src=x onerror=alert(1)>"\'&</script><script>document.title="taken"</script>'


@pytest.fixture(scope='module')
def trained(mini_scannet, tmp_path_factory) -> Path:
    """The work folder of one epoch of train.py on 16 rendered frames."""
    work_dir = tmp_path_factory.mktemp('runs') / 'tiny'
    result = start(
        sys.executable, '-W', 'ignore', REPO / 'tools/train.py', CONFIG, '--work-dir', work_dir, *TINY_RUN,
        'train_cfg.max_epochs=1', cwd=work_dir.parent, env=dict(MINI_SCANNET_ROOT=f'{mini_scannet}/'))
    assert result.returncode == 0, result.stdout[-3000:]
    return work_dir


@pytest.fixture(scope='module')
def annotations(mini_scannet) -> dict:
    return json.loads((mini_scannet / 'scannet_objdet_val.json').read_text())


def make_predictions(annotations: dict, seed: int) -> list[dict]:
    """Make detections like those of a trained model: most boxes, some of a wrong class, twice, moved or invented."""
    generator = np.random.default_rng(seed)
    rows = []
    for box in annotations['annotations']:
        for _ in range(generator.integers(0, 3)):
            moved = np.array(box['bbox']) * (1 + 0.1 * generator.normal(size=4))
            category = box['category_id'] if generator.random() < 0.8 else 5
            rows.append((box['image_id'], category, moved))
    rows += [(image['id'], 7, np.array([5.0, 5, 30, 30])) for image in annotations['images'][::3]]
    return [dict(image_id=image, category_id=category, bbox=np.abs(box).round(2).tolist(), score=generator.random())
            for image, category, box in rows]


@pytest.fixture(scope='module')
def predictions(annotations, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp('predictions')
    paths = [folder / f'{seed}.bbox.json' for seed in range(2)]
    for seed, path in enumerate(paths):
        path.write_text(json.dumps(make_predictions(annotations, seed)))
    return paths


@pytest.fixture
def work_dir(trained, tmp_path) -> Path:
    """A copy of the work folder, which a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / 'copy'))


@pytest.mark.slow
def test_one_command_makes_the_whole_page(trained, mini_scannet, run, tmp_path):
    out = tmp_path / 'page/report.html'
    output = run(*REPORT, trained, '--out', out)
    assert 'missing' not in output and 'MB' in output
    page = out.read_text()
    for section in ('run', 'curves', 'classes', 'precision', 'errors', 'confusion', 'pictures'):
        assert f'<section id="{section}">' in page
    assert '16 images' in page and '8 images' in page, 'data sets'
    assert 'iteration 4 of 4, epoch 1' in page or 'iteration 2 of 2, epoch 1' in page
    record = read_run(trained).record
    assert f'<td>{record["seed"]}</td>' in page
    assert record['data']['train']['sha256'][:16] in page and str(record['code']['commit'] or 'unknown') in page
    assert str(REPO) not in page and sys.prefix not in page
    assert sorted(path.name for path in out.parent.iterdir()) == ['report.bbox.json', 'report.html']
    assert {path.name for path in trained.iterdir() if path.is_dir()} == {read_run(trained).starts[0].name}

    checkpoint = next(trained.glob('best_*.pth'))
    run(sys.executable, '-W', 'ignore', REPO / 'tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'test',
        *TINY_RUN, f'test_evaluator.outfile_prefix={tmp_path}/expected', MINI_SCANNET_ROOT=f'{mini_scannet}/')
    found, expected = (json.loads(path.read_text()) for path in
                       (out.parent / 'report.bbox.json', tmp_path / 'expected.bbox.json'))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours['image_id'], ours['category_id']) == (theirs['image_id'], theirs['category_id'])
        assert ours['score'] == pytest.approx(theirs['score'], abs=1e-5)


@pytest.mark.slow
def test_page_in_a_browser(trained, predictions, browser, tmp_path):  # noqa: F811
    out = tmp_path / 'report.html'
    assert make_report([trained], out, predictions=predictions[:1]) == []
    data = read_data(read_run(trained).config, 'val')
    evaluation = evaluate(data, predictions[0])

    for width, dark in ((375, True), (1280, False)):
        browser.open(out, width, dark=dark)
        assert browser.problems == []
        assert browser.run('document.documentElement.scrollWidth') <= width, 'the page scrolls sideways'
        background = browser.run('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)')
        assert max(background) < 50 if dark else min(background) > 200
    assert browser.run('document.querySelectorAll("#cards img").length') == 2 * 8
    assert browser.run('[...document.querySelectorAll("#cards img")].every('
                       'image => image.complete && image.naturalWidth === 160)')

    def visible() -> int:
        return browser.run('document.querySelectorAll(".card:not([hidden])").length')

    def choose(name: str, value: object) -> None:
        browser.run(f'controls.elements["{name}"].value = "{value}"; '
                    'controls.dispatchEvent(new Event("input", {bubbles: true})); 0')

    def counted() -> list[int]:
        return browser.run(
            '[...document.querySelectorAll(".card:not([hidden]) figcaption")].map(node => node.textContent.match('
            '/(\\d+) found, (\\d+) not found, (\\d+) wrong/).slice(1).map(Number))'
            '.reduce((sum, row) => sum.map((value, index) => value + row[index]), [0, 0, 0])')

    def expected(score: float, label: int | None = None) -> list[int]:
        counts = count_errors(evaluation.matches, score)
        gt_label = evaluation.matches.gt_label
        asked = np.bincount(gt_label, minlength=len(evaluation.classes))
        counts, asked = (counts.sum(0), asked.sum()) if label is None else (counts[label], asked[label])
        return [counts[0], asked - counts[0], counts[1:len(KINDS)].sum()]

    for score in (0.1, 0.5, 0.9):
        choose('score-0', score)
        assert counted() == expected(score)
    choose('score-0', 0.3)
    label = evaluation.classes.index('chair')
    choose('class', label)
    assert 0 < visible() < 8
    assert counted() == expected(0.3, label)
    names = browser.run('[...document.querySelectorAll(".card:not([hidden]) .box b")].map(node => node.textContent)')
    assert names and all(name.startswith('chair') for name in names)
    choose('class', -1)

    choose('kind', KINDS.index('background'))
    images = {int(image) for image in evaluation.matches.det_image[
        (evaluation.matches.det_kind == KINDS.index('background')) & (evaluation.matches.det_score >= 0.3)]}
    assert visible() == len(images) > 0
    choose('kind', -1)
    choose('sort', 'best')
    f1 = browser.run('[...document.querySelectorAll(".card figcaption")].map('
                     'node => Number(node.textContent.match(/F1 ([\\d.]+)/)[1]))')
    assert f1 == sorted(f1, reverse=True) and f1[0] > f1[-1]
    assert f1 == pytest.approx(sorted(image_f1(evaluation.matches, 8, 0.3), reverse=True), abs=0.0051)

    browser.run('document.querySelector(`a[data-class="1"]`).click(); 0')
    assert browser.run('controls.elements["class"].value') == '1'
    choose('class', -1)
    browser.run('document.querySelector(".card").click(); 0')
    first = browser.run('enlarged.open && enlarged.querySelector("strong").textContent')
    browser.run('enlarged.querySelector("[name=next]").click(); 0')
    assert first and first != browser.run('enlarged.querySelector("strong").textContent')
    assert browser.problems == []


@pytest.mark.slow
def test_two_runs_side_by_side(trained, work_dir, predictions, browser, tmp_path):  # noqa: F811
    out = tmp_path / 'report.html'
    assert make_report([trained, work_dir], out, predictions=predictions) == []
    page = out.read_text()
    assert page.count('class="line line-1"') > 20, 'a second line in every chart'
    browser.open(out, 375)
    assert browser.problems == [] and browser.run('document.documentElement.scrollWidth') <= 375
    assert browser.run('document.querySelectorAll("#cards img").length') == 3 * 8
    titles = browser.run('[...document.querySelectorAll(".card:first-child .pane em")].map(node => node.textContent)')
    assert titles == ['ground truth', 'tiny', 'copy']
    summaries = [evaluate(read_data(read_run(trained).config, 'val'), path).summary() for path in predictions]
    tile = browser.run('[...document.querySelectorAll(".tiles div:first-child b")].map(node => node.textContent)')
    assert tile == [percent(summary['AP']) for summary in summaries]
    browser.run('controls.elements["sort"].value = "gain"; '
                'controls.dispatchEvent(new Event("input", {bubbles: true})); 0')
    gains = browser.run('[...document.querySelectorAll(".card figcaption")].map(node => '
                        '[...node.textContent.matchAll(/F1 ([\\d.]+)/g)].map(match => Number(match[1])))'
                        '.map(([first, second]) => second - first)')
    assert all(before >= after - 0.011 for before, after in zip(gains, gains[1:], strict=False))
    assert browser.problems == []


@pytest.mark.slow
def test_hostile_names_stay_text(work_dir, annotations, mini_scannet, predictions, browser, tmp_path):  # noqa: F811
    """Names of classes and files come from data, and pages are passed on to others."""
    root = tmp_path / 'data'
    content = json.loads(json.dumps(annotations))
    content['categories'][4]['name'] = HOSTILE
    (root / HOSTILE).parent.mkdir(parents=True)
    source = mini_scannet / 'val' / content['images'][0]['file_name']
    content['images'][0]['file_name'] = f'{HOSTILE}.jpg'
    for image in content['images']:
        target = root / image['file_name']
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    (root / 'val.json').write_text(json.dumps(content))
    classes = [category['name'] for category in content['categories']]
    dataset = 'val_dataloader.dataset'
    out = tmp_path / 'report.html'
    missing = make_report(
        [work_dir], out, predictions=predictions[:1], cfg_options={
            f'{dataset}.type': 'CheckedCocoDataset', f'{dataset}.data_root': f'{root}/', f'{dataset}.metainfo.classes':
            classes, f'{dataset}.ann_file': 'val.json', f'{dataset}.data_prefix.img': '',
            'val_evaluator.ann_file': str(root / 'val.json')})
    assert missing == []
    browser.open(out)
    assert browser.problems == []
    assert browser.run('document.querySelectorAll("[onerror]").length') == 0
    assert browser.run('document.title') == 'copy: report'
    assert browser.run('controls.elements["class"].options[5].textContent') == HOSTILE
    browser.run('controls.elements["class"].value = "4"; '
                'controls.dispatchEvent(new Event("input", {bubbles: true})); 0')
    assert browser.run('document.querySelector(".card:not([hidden]) .box b").textContent').startswith(HOSTILE)
    captions = browser.run('[...document.querySelectorAll(".card strong")].map(node => node.textContent)')
    assert f'{HOSTILE}.jpg' in captions


def test_page_shows_where_the_detector_looks(annotations, mini_scannet, browser, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv('MINI_SCANNET_ROOT', f'{mini_scannet}/')
    config, _ = save_tiny(tmp_path / 'run')
    Config.fromfile(config).dump(config)  # only values, as a run writes it
    predictions = tmp_path / 'true.bbox.json'
    predictions.write_text(json.dumps([
        dict(image_id=box['image_id'], category_id=box['category_id'], bbox=box['bbox'], score=0.4)
        for box in annotations['annotations']]))
    out = tmp_path / 'report.html'
    missing = make_report([config.parent], out, predictions=[predictions], max_attention=2)
    assert not any('Attention' in text for text in missing)
    for width in (375, 1280):
        browser.open(out, width)
        assert browser.problems == []
        assert browser.run('document.documentElement.scrollWidth') <= width, 'the page scrolls sideways'
    assert browser.run('[...document.querySelectorAll("#attention img")].map(image => image.naturalWidth > 900)') == [
        True, True]
    assert browser.run('document.querySelector("#attention img").alt').startswith('where the detector looks: ')

    make_report([config.parent], out, predictions=[predictions], max_attention=0)
    assert 'id="attention"' not in out.read_text()


def scalars(folder: Path, first: int, last: int, val_after: tuple[int, ...] = (), **more) -> None:
    """Write a start as mmengine logs it: all iterations and evaluations."""
    vis_data = folder / 'vis_data'
    vis_data.mkdir(parents=True)
    rows = []
    for step in range(first, last + 1):
        rows.append(dict(lr=1e-4, loss=100 - step, time=0.5, epoch=(step + 3) // 4, iter=step, step=step) | more)
        if step in val_after:
            rows.append({'coco/bbox_mAP': step / 100, 'step': step // 4})
    (vis_data / 'scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_starts_are_joined(tmp_path):
    """A resumed start replaces the iterations that it repeats; a fresh start replaces all."""
    scalars(tmp_path / '20260101_000000', 1, 10, (4, 8))
    scalars(tmp_path / '20260101_010000', 5, 12, (8, 12))
    (tmp_path / '20260101_005000').mkdir()  # crashed at once
    (tmp_path / '20260101_020000').mkdir()  # a test, not a training
    (tmp_path / '20260101_020000/20260101_020000.json').write_text('{}')
    run = read_run(tmp_path)
    assert [row['iter'] for row in run.train] == list(range(1, 13))
    assert [row['iter'] for row in run.val] == [4, 8, 12]
    assert [(start.first, start.last) for start in run.starts] == [(1, 10), (5, 12)]
    assert sum('20260101_005000' in text for text in run.missing) == 1
    assert not any('20260101_020000' in text for text in run.missing)
    scalars(tmp_path / '20260102_000000', 1, 2)
    assert [row['iter'] for row in read_run(tmp_path).train] == [1, 2]


def test_crashed_run_says_what_is_missing(tmp_path, browser):  # noqa: F811
    start = tmp_path / 'run/20260101_000000'
    scalars(start, 1, 6, loss_cls=math.nan)
    with (start / 'vis_data/scalars.json').open('a') as file:
        file.write('{"lr": 0.0001, "lo')
    missing = make_report([tmp_path / 'run'], tmp_path / 'report.html')
    for text in ('1 damaged', 'no log file', 'No evaluation was logged', 'No readable config'):
        assert sum(text in line for line in missing) == 1, text
    browser.open(tmp_path / 'report.html')
    assert browser.problems == []
    assert browser.run('document.querySelectorAll("#missing li").length') == len(missing)
    assert 'id="curves"' in (tmp_path / 'report.html').read_text()
    assert 'id="classes"' not in (tmp_path / 'report.html').read_text()


@pytest.mark.slow
def test_data_or_checkpoint_gone(work_dir, predictions, tmp_path):
    out = tmp_path / 'report.html'
    gone = {f'{split}_dataloader.dataset.data_root': 'moved/' for split in ('train', 'val')}
    missing = make_report([work_dir], out, predictions=predictions[:1], cfg_options=gone)
    assert sum('no such annotation file' in text for text in missing) == 2
    assert any('Nothing is evaluated' in text for text in missing)
    for path in work_dir.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:1000])
    missing = make_report([work_dir], out)
    assert any('truncated' in text for text in missing) and any('Nothing is evaluated' in text for text in missing)
    for path in work_dir.glob('*.pth'):
        path.unlink()
    assert any('No checkpoint' in text for text in make_report([work_dir], out))
    missing = make_report([work_dir], out, predictions=predictions[:1])
    assert missing == ['No checkpoint in the work folder.'], 'predictions are enough'


@pytest.mark.slow
def test_checkpoint_is_read_once(work_dir, tmp_path, monkeypatch):
    """For its numbers, its detections and its attention."""
    def draw(run, most):
        run.evaluation.matches.det_kind[:], run.score = CORRECT, 0.01  # an untrained one finds nothing
        add_attention(run, most)

    monkeypatch.setattr(report, 'add_attention', draw)
    before = dict(Visualizer._instance_dict)
    reads = count_reads(monkeypatch)
    assert make_report([work_dir], tmp_path / 'report.html') == []
    assert 'id="attention"' in (tmp_path / 'report.html').read_text()
    assert (reads['whole'], reads['checksum'], reads['header']) == (1, 1, 0)
    assert Visualizer._instance_dict == before  # later runs in this process do not write where the report did
    assert safe_loading._kept is None


def test_unfinished_run_is_named(work_dir):
    log = next(work_dir.glob('2*/2*.log'))
    config = next(work_dir.glob('2*/vis_data/config.py'))
    config.write_text(config.read_text().replace('max_epochs=1', 'max_epochs=50'))
    run = read_run(work_dir)
    assert run.epoch_length == run.planned_iters / 50 and f'/{run.epoch_length}]' in log.read_text()
    assert any(text.startswith('Not finished') for text in run.missing)


@pytest.mark.parametrize(
    'rows, message',
    [
        (None, 'no such file; write one'),
        ('{', 'not a COCO results file'),
        ('{}', 'not a list of detections'),
        ([dict(image_id=1, category_id=1, bbox=[1, 2, 3], score=1)], 'entry 0 needs "bbox"'),
        ([dict(image_id=1, category_id=1, bbox=[1, 2, 3, math.nan], score=1)], 'entry 0 needs "bbox"'),
        ([dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4])], 'entry 0 needs .* and "score"'),
        ([dict(image_id=10**6, category_id=1, bbox=[1, 2, 3, 4], score=1)], 'entry 0 has image_id 1000000'),
        ([dict(image_id=1, category_id=99, bbox=[1, 2, 3, 4], score=1)], 'entry 0 has category_id 99'),
        ([[1]], 'entry 0 needs "bbox"'),
    ])
def test_bad_predictions_are_refused(rows, message, trained, tmp_path):
    path = tmp_path / 'predictions.json'
    if rows is not None:
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    with pytest.raises(UserError, match=message) as error:
        make_report([trained], tmp_path / 'report.html', predictions=[path])
    assert str(path) in str(error.value)
    assert not (tmp_path / 'report.html').exists()


def test_no_detection_at_all(trained, tmp_path):
    path = tmp_path / 'none.json'
    path.write_text('[]')
    assert make_report([trained], tmp_path / 'report.html', predictions=[path]) == []
    assert '<b class="run-">0.0</b>' in (tmp_path / 'report.html').read_text()


def test_bad_input_ends_in_one_line(trained, run, tmp_path):
    output = run(*REPORT, 'gone', status=2)
    assert output.startswith('error: gone: no such work folder') and output.count('\n') == 1
    out = tmp_path / 'report.html'
    with pytest.raises(UserError, match='no config, no log and no checkpoint'):
        make_report([tmp_path], out)
    with pytest.raises(UserError, match='2 files for 1 work folders'):
        make_report([trained], out, predictions=[out, out])
    with pytest.raises(UserError, match='gone.pth: no such checkpoint file'):
        make_report([trained], out, checkpoint=tmp_path / 'gone.pth')
    assert not list(tmp_path.iterdir())


def test_page_that_cannot_be_written_leaves_nothing(trained, predictions, tmp_path):
    (tmp_path / 'report.html').mkdir()
    with pytest.raises(UserError, match='cannot be written'):
        make_report([trained], tmp_path / 'report.html', predictions=predictions[:1])
    assert [path.name for path in tmp_path.iterdir()] == ['report.html']
