"""Cameras at an address of this machine: pictures over HTTP, and over RTSP (RFC 2326, JPEG as in RFC 2435)."""

import io
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import StreamRequestHandler, ThreadingTCPServer

import numpy as np
from PIL import Image

#: Part of the password that an RTSP camera wants: user and secret, in base64.
PASSWORD = b'Basic dXNlcjpzZWNyZXQ='


def http_camera(server: ThreadingTCPServer) -> type:
    """Return the handler of a camera that sends Motion JPEG."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.send_response(200)
            self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=part')
            self.end_headers()
            for jpeg in server.pictures():
                self.wfile.write(b'--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n' % len(jpeg))
                self.wfile.write(jpeg + b'\r\n')

        def log_message(self, *args):
            pass

    return Handler


def rtsp_camera(server: ThreadingTCPServer) -> type:
    """Return the handler of a camera that asks for a password, and sends its packets in the RTSP connection."""
    sdp = (b'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=room\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=framerate:20\r\n'
           b'a=control:track0\r\n')

    class Handler(StreamRequestHandler):
        def handle(self):
            while words := self.rfile.readline().split():
                fields = dict(line.split(b': ', 1) for line in iter(self.rfile.readline, b'\r\n') if b': ' in line)
                status, extra, body = b'200 OK', b'Session: 1\r\n', b''
                if words[0] == b'OPTIONS':
                    extra = b'Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n'
                elif fields.get(b'Authorization', b'').strip() != PASSWORD:
                    status, extra = b'401 Unauthorized', b'WWW-Authenticate: Basic realm="room"\r\n'
                elif words[0] == b'DESCRIBE':
                    extra, body = b'Content-Type: application/sdp\r\n', sdp
                elif words[0] == b'SETUP':
                    extra += b'Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n'
                self.wfile.write(b'RTSP/1.0 %s\r\nCSeq: %s%sContent-Length: %d\r\n\r\n%s' % (
                    status, fields[b'CSeq'], extra, len(body), body))
                if words[0] == b'PLAY':
                    sequence = 0
                    for number, jpeg in enumerate(server.pictures()):
                        for packet in rtp_packets(jpeg, sequence, 4500 * number):
                            self.wfile.write(struct.pack('>cBH', b'$', 0, len(packet)) + packet)
                            sequence += 1
                    return

    return Handler


def rtp_packets(jpeg: bytes, sequence: int, time90k: int) -> Iterator[bytes]:
    """Yield the packets of a JPEG file with two quantization tables and 4:2:0 colour."""
    tables, position = b'', 2
    while True:
        marker, length = struct.unpack_from('>HH', jpeg, position)
        content, position = jpeg[position + 4 : position + 2 + length], position + 2 + length
        if marker == 0xFFDB:
            tables += b''.join(content[i + 1 : i + 65] for i in range(0, len(content), 65))
        elif marker == 0xFFC0:
            height, width = struct.unpack_from('>HH', content, 1)
        elif marker == 0xFFDA:
            break
    data = jpeg[position:-2]
    for offset in range(0, len(data), 1200):
        last = offset + 1200 >= len(data)
        header = struct.pack('>BBHII', 0x80, 26 | last << 7, sequence, time90k, 7)
        header += struct.pack('>IBBBB', offset, 1, 255, width // 8, height // 8)
        yield header + (struct.pack('>HH', 0, 128) + tables if offset == 0 else b'') + data[offset : offset + 1200]
        sequence += 1


@contextmanager
def camera(kind: str, picture: np.ndarray, first: int = 3) -> Iterator[tuple[str, list]]:
    """Serve a picture 20 times a second; hang up after ``first`` of them, the first time.

    Args:
        kind: ``http`` or ``rtsp``.
        picture: BGR uint8, both sides multiples of 8.
        first: Number of pictures in the first connection.

    Yields:
        tuple[str, list]: The address, with a password, and the list of the connections that got pictures.
    """
    file = io.BytesIO()
    Image.fromarray(picture[..., ::-1]).save(file, 'JPEG', quality=90, subsampling='4:2:0')
    connections = []

    class Server(ThreadingTCPServer):
        daemon_threads = True

        def pictures(self) -> Iterator[bytes]:
            connections.append(time.monotonic())
            for _ in range(first if len(connections) == 1 else 1000):
                yield file.getvalue()
                time.sleep(0.05)

        def handle_error(self, *_):
            """Say nothing: the client leaves."""

        def finish_request(self, *args):
            with suppress(OSError):
                super().finish_request(*args)

    with Server(('127.0.0.1', 0), None) as server:
        server.RequestHandlerClass = dict(http=http_camera, rtsp=rtsp_camera)[kind](server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'{kind}://user:secret@127.0.0.1:{server.server_address[1]}/room', connections
        server.shutdown()
