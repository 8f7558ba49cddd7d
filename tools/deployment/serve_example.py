#!/usr/bin/env python
"""Serve an exported model over HTTP: a small example to start from.

One thread runs the model; the queue before it and the uploads are limited. There is neither encryption nor a login:
the server is reached from this machine only, e.g. by a proxy that has both.

Examples:
    pip install onnxruntime numpy opencv-python-headless fastapi uvicorn
    python tools/deployment/serve_example.py model.onnx
    curl --data-binary @room.jpg 'http://127.0.0.1:8080/detect?score_thr=0.5'
    curl http://127.0.0.1:8080/health
"""

import argparse
import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# OpenCV reads these when it is imported: 150 MB decoded, and no line in the log for each bad upload
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', '50000000')
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')

import numpy as np  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI, HTTPException, Query, Request  # noqa: E402
from run_onnx import InputError, OnnxDetector, decode_image  # noqa: E402
from starlette.requests import ClientDisconnect  # noqa: E402


def make_app(detector: OnnxDetector, queue: int, megabytes: float, seconds: float = 30) -> FastAPI:
    """Return the application; ``queue`` requests at a time upload at most ``megabytes`` each within ``seconds``."""
    app = FastAPI(title='Object detector', docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
    worker, waiting = ThreadPoolExecutor(1), 0

    async def receive(request: Request) -> bytearray:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > 1e6 * megabytes:
                raise HTTPException(413, f'the upload is larger than {megabytes:g} MB')
        return data

    def run(data: bytearray, score_thr: float) -> dict:
        image = decode_image(np.frombuffer(data, np.uint8), 'the upload')
        objects = [
            dict(name=detector.classes[label], score=round(float(score), 4), box=[round(x, 1) for x in box.tolist()])
            for box, score, label in zip(*detector(image), strict=True) if score >= score_thr]
        return dict(width=image.shape[1], height=image.shape[0], objects=objects)

    @app.post('/detect')
    async def detect(request: Request, score_thr: float = Query(0.3, ge=0, le=1)) -> dict:
        nonlocal waiting
        if waiting >= queue:
            raise HTTPException(503, f'{queue} requests are waiting: try again in a second', {'Retry-After': '1'})
        waiting += 1
        try:
            data = await asyncio.wait_for(receive(request), seconds)
            return await asyncio.get_running_loop().run_in_executor(worker, run, data, score_thr)
        except asyncio.TimeoutError:
            raise HTTPException(408, f'the upload took more than {seconds:g} seconds') from None
        except ClientDisconnect:
            raise HTTPException(400, 'the upload was cut off') from None
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        finally:
            waiting -= 1

    @app.get('/health')
    async def health() -> dict:
        return dict(status='ok', classes=len(detector.classes), waiting=waiting)

    return app


def main() -> None:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='file written by export_onnx.py')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: 127.0.0.1, this machine)')
    parser.add_argument('--port', type=int, default=8080, help='port (default: 8080)')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads (default: ONNX Runtime's choice)")
    parser.add_argument('--queue', type=int, default=8, help='requests at a time; others get status 503 (default: 8)')
    parser.add_argument('--max-upload', type=float, default=10, help='megabytes of a picture (default: 10)')
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        parser.error(f'--port {args.port}: 0 to 65535')
    try:
        detector = OnnxDetector(args.model, args.threads)
    except InputError as error:
        sys.exit(f'error: {error}')
    uvicorn.run(make_app(detector, args.queue, args.max_upload), host=args.host, port=args.port, log_level='warning')


if __name__ == '__main__':
    main()
