"""The web demo in a real browser: upload, boxes, threshold, time, and no request that leaves this machine."""

import socket
import time

import numpy as np
import pytest
from PIL import Image

from deit_detr.errors import UserError
from deit_detr.inference.web import launch
from tests.helpers.browser import browser as browser

pytestmark = pytest.mark.slow  # the import of Gradio alone takes seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='module')
def app(detector):
    pytest.importorskip('gradio', reason='the web demo needs Gradio (requirements/optional.txt)')
    app = launch(detector, 'A tiny detector', free_port())
    yield app
    app.close()


def wait_for(browser, expression: str, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not (value := browser.run(expression)):
        assert time.monotonic() < deadline, f'{expression}: {browser.run(TEXT)}'
        time.sleep(0.3)
    return value


TEXT = 'document.body.innerText.replace(/\\s+/g, " ")'
PICTURES = '[...document.images].filter(image => image.naturalWidth == 960).length'


def test_upload_boxes_threshold(app, detector, browser, mini_scannet):
    path = sorted(mini_scannet.glob('val/*/color/*.jpg'))[0]
    found = detector(path).pred_instances
    browser.problems.clear()
    browser.call('Emulation.setDeviceMetricsOverride', width=1200, height=1000, deviceScaleFactor=1, mobile=False)
    browser.call('Page.navigate', url=app.local_url)
    wait_for(browser, 'document.querySelector("input[type=file]") !== null')
    assert 'A tiny detector' in browser.run('document.body.innerText')
    upload = browser.call('Runtime.evaluate', expression='document.querySelector("input[type=file]")')
    browser.call('DOM.setFileInputFiles', files=[str(path)], objectId=upload['result']['objectId'])

    timing = wait_for(
        browser, '[...document.querySelectorAll("textarea, input")].map(x => x.value).find(x => / ms$/.test(x))')
    assert timing.startswith('160x120 pixels, ')
    wait_for(browser, f'{PICTURES} == 1')
    best, last = (f'{found.label_names[i]} {found.scores[i]:.3f}'.rstrip('0') for i in (0, -1))
    wait_for(browser, f'{TEXT}.includes("{best}") && {TEXT}.includes("{last}")')

    threshold = round(float(found.scores[0]) - 0.005, 2)
    assert 0 < (found.scores >= threshold).sum() < len(found)
    browser.run(f'''(() => {{
        const number = document.querySelector('input[type=number]');
        number.value = {threshold};
        for (const name of ['input', 'change', 'blur']) number.dispatchEvent(new Event(name, {{bubbles: true}}));
    }})()''')
    wait_for(browser, f'{TEXT}.includes("{best}") && !{TEXT}.includes("{last}")')
    leaving = [problem for problem in browser.problems
               if not problem.startswith((f'request of {app.local_url}', 'request of blob:'))
               and 'Method not implemented' not in problem]  # a warning of Gradio itself
    assert not leaving


def test_rotated_photographs_and_deep_pictures(app, detector, mini_scannet, tmp_path):
    gradio_client = pytest.importorskip('gradio_client')
    client = gradio_client.Client(app.local_url, verbose=False)
    upright = Image.open(next(mini_scannet.glob('val/*/color/*.jpg')))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'rotated.png', exif=exif)
    _, table, timing = client.predict(gradio_client.handle_file(tmp_path / 'rotated.png'), 0.3, api_name='/detect')
    found = detector(upright).pred_instances
    assert [row[0] for row in table['data']] == found.label_names and timing.startswith('160x120 ')
    assert [row[2:] for row in table['data']] == pytest.approx(found.bboxes.numpy(), abs=0.06)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / 'depth.png')
    with pytest.raises(gradio_client.exceptions.AppError, match='convert it to 8 bits'):
        client.predict(gradio_client.handle_file(tmp_path / 'depth.png'), 0.3, api_name='/detect')


def test_page_is_for_this_machine_only(app, detector):
    assert app.local_url.startswith('http://127.0.0.1:') and app.share_url is None
    assert app.analytics_enabled is False
    with pytest.raises(UserError, match='cannot be used .* --port'):
        launch(detector, 'again', int(app.local_url.rstrip('/').rpartition(':')[2]))
