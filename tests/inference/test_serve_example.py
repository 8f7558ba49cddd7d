"""The example of a server: results of run_onnx.py, a bounded queue, and uploads that are refused in a sentence."""

import concurrent.futures
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from tests.helpers.paths import REPO
from tests.helpers.pictures import picture

pytest.importorskip('fastapi')
TOOLS = REPO / 'tools/deployment'


class Server:
    """A server in another process."""

    def __init__(self, *command) -> None:
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            self.port = taken.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command), '--port', str(self.port)], cwd=TOOLS, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.ask('GET', '/health')
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, 'the server does not start'
                time.sleep(0.1)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
        connection = self.connect()
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def megabytes(self) -> float:
        with open(f'/proc/{self.process.pid}/statm') as pages:
            return int(pages.read().split()[1]) * os.sysconf('SC_PAGESIZE') / 1e6


@pytest.fixture(scope='module')
def serve(small_onnx):
    """Start a server for a queue of some requests and uploads of some megabytes."""
    servers = []

    def start(queue: int, megabytes: float, *command) -> Server:
        servers.append(Server(*command or (TOOLS / 'serve_example.py',), small_onnx, '--threads', 1, '--queue', queue,
                              '--max-upload', megabytes))
        return servers[-1]

    yield start
    for server in servers:
        server.process.terminate()
        server.process.wait()


def test_clients_at_the_same_time(serve, small_onnx, run_onnx, tmp_path):
    server = serve(4, 1)
    detector = run_onnx.OnnxDetector(small_onnx, 1)
    assert server.ask('GET', '/health') == (200, dict(status='ok', classes=20, waiting=0))
    paths = [picture(tmp_path / f'{seed}.jpg', 320, 240, seed) for seed in range(4)]
    expected = [detector(run_onnx.read_image(path)) for path in paths]

    def client(number: int) -> list[int]:
        connection, statuses = server.connect(), []
        stop = time.monotonic() + 3
        while time.monotonic() < stop:
            index = (number + len(statuses)) % 4
            connection.request('POST', '/detect?score_thr=0', paths[index].read_bytes())
            response = connection.getresponse()
            answer = json.loads(response.read())
            statuses.append(response.status)
            if response.status == 503:
                assert answer['detail'] == '4 requests are waiting: try again in a second'
                assert response.getheader('Retry-After') == '1'
            else:
                assert (answer['width'], answer['height']) == (320, 240) and len(answer['objects']) == 20
                for one, box, score, label in zip(answer['objects'], *expected[index], strict=True):
                    assert one['name'] == detector.classes[label] and one['score'] == pytest.approx(score, abs=1e-4)
                    np.testing.assert_allclose(one['box'], box, atol=0.1)
        return statuses

    client(0)
    before = server.megabytes()
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        statuses = sum(clients.map(client, range(8)), [])
    assert set(statuses) == {200, 503} and statuses.count(200) > 5
    assert server.megabytes() < before + 30
    assert server.ask('GET', '/health')[1]['waiting'] == 0


def bomb(side: int) -> bytes:
    """A black PNG of side x side pixels, a thousandth of their size."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b''.join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        chunk(*parts) for parts in ((b'IHDR', header), (b'IDAT', data), (b'IEND', b'')))


def test_bad_uploads(serve, tmp_path):
    server = serve(1, 0.5)
    line = picture(tmp_path / 'line.png', 4000, 8).read_bytes()
    good = picture(tmp_path / 'good.jpg', 320, 240).read_bytes()
    before = server.megabytes()
    for body, status, message in (
            (b'', 422, 'the upload: cannot be read as an image'), (b'text', 422, 'the upload: cannot be read'),
            (good[:300], 422, 'the upload: cannot be read'), (bytes(600_000), 413, 'the upload is larger than 0.5 MB'),
            (line, 422, '4000x8 pixels: one side is more than 20'), (bomb(8000), 422, 'the upload: cannot be read')):
        answer = server.ask('POST', '/detect', body)
        assert answer[0] == status and answer[1]['detail'].startswith(message), (answer, message)
    assert server.megabytes() < before + 50
    assert server.ask('POST', '/detect?score_thr=2', good)[0] == 422
    assert server.ask('GET', '/detect')[0] == 405 and server.ask('GET', '/docs')[0] == 404

    # an upload that is under way has the only place; one that ends early gives it back
    slow = server.connect()
    slow.putrequest('POST', '/detect')
    slow.putheader('Content-Length', str(len(good)))
    slow.endheaders(good[:100])
    while server.ask('GET', '/health')[1]['waiting'] == 0:
        time.sleep(0.01)
    assert server.ask('POST', '/detect', good)[0] == 503
    slow.close()
    while server.ask('GET', '/health')[1]['waiting']:
        time.sleep(0.01)
    assert server.ask('POST', '/detect', good)[0] == 200


def test_slow_uploads_are_ended(serve):
    code = ('import serve_example as example; make = example.make_app; '
            'example.make_app = lambda *args: make(*args, seconds=0.3); example.main()')
    server = serve(1, 1, '-c', code)
    slow = server.connect()
    slow.putrequest('POST', '/detect')
    slow.putheader('Content-Length', '1000')
    slow.endheaders(b'some')
    response = slow.getresponse()
    assert (response.status, json.loads(response.read())['detail']) == (408, 'the upload took more than 0.3 seconds')
    assert server.ask('GET', '/health')[1]['waiting'] == 0
