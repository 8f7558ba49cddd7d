"""A real headless Chromium, driven through its debugging pipe (Chrome DevTools Protocol): no package needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

FLAGS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
    '--disable-background-networking', '--disable-component-update', '--remote-debugging-pipe')


class Browser:
    """One page. ``problems`` collects console errors, exceptions and network requests of the opened file."""

    def __init__(self, program: str) -> None:
        self.problems, self._number = [], 0
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._process = subprocess.Popen(  # Chromium reads from descriptor 3 and writes to 4
            ['sh', '-c', f'exec "$0" "$@" 3</dev/fd/{commands} 4>/dev/fd/{answers}', program, *FLAGS,
             f'--user-data-dir={self._profile.name}', 'about:blank'],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self._buffer = b''
        self._session = None
        page = next(target for target in self.call('Target.getTargets')['targetInfos'] if target['type'] == 'page')
        self._session = self.call('Target.attachToTarget', targetId=page['targetId'], flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def _receive(self, deadline: float) -> dict:
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._answers, 1 << 16) if ready else b''
            assert data, 'the browser ended' if ready else 'no answer from the browser'
            self._buffer += data
        message, self._buffer = self._buffer.split(b'\0', 1)
        return json.loads(message)

    def call(self, method: str, **params) -> dict:
        """Send a command and wait for its answer, noting events on the way."""
        self._number += 1
        message = dict(id=self._number, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._commands, json.dumps(message).encode() + b'\0')
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline)
            if answer.get('id') == self._number:
                assert 'error' not in answer, answer
                return answer['result']
            self._note(answer.get('method'), answer.get('params', {}))

    def _note(self, event: str, params: dict) -> None:
        if event == 'Runtime.exceptionThrown':
            self.problems.append(params['exceptionDetails'].get('exception', {}).get('description', 'exception'))
        elif event == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning', 'assert'):
            self.problems.append(str(params['args']))
        elif event == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.problems.append(params['entry']['text'])
        elif event == 'Network.requestWillBeSent' and not params['request']['url'].startswith(('file:', 'data:')):
            self.problems.append(f'request of {params["request"]["url"]}')

    def run(self, expression: str):
        """Evaluate JavaScript, await promises, and return the value."""
        answer = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of a size in CSS pixels and wait until its pictures are decoded."""
        self.problems.clear()
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        scheme = 'dark' if dark else 'light'
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
        self.call('Page.navigate', url=path.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.run('location.href + document.readyState') != path.resolve().as_uri() + 'complete':
            assert time.monotonic() < deadline, f'{path} does not load'
            time.sleep(0.05)
        self.run('Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 0)')

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Save the visible part, or the whole page, as PNG."""
        data = self.call('Page.captureScreenshot', captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(data['data']))


@pytest.fixture(scope='module')
def browser():
    """Chromium or Chrome, if one is installed."""
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
    if program is None:
        pytest.skip('needs Chromium or Chrome to open the page (Debian: apt-get install chromium)')
    browser = Browser(program)
    yield browser
    browser.close()
