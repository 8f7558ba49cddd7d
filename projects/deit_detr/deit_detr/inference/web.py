"""A web page for a detector, made with Gradio and served to this machine only."""

import os
import time
from typing import TYPE_CHECKING

from mmdet.structures import DetDataSample
from PIL import Image

from deit_detr.errors import UserError
from deit_detr.inference.detector import Detector

if TYPE_CHECKING:
    import gradio


def launch(detector: Detector, title: str, port: int = 7860) -> 'gradio.Blocks':
    """Serve the page at 127.0.0.1 in the background; nothing is sent to other machines.

    Args:
        detector: The detector.
        title: Heading of the page.
        port: The port.

    Returns:
        gradio.Blocks: The running page, with ``local_url``, ``block_thread()`` and ``close()``.

    Raises:
        UserError: If Gradio is not installed, or the port is taken.
    """
    app = build_app(detector, title)
    import gradio

    # the default theme loads fonts from Google
    theme = gradio.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    try:
        app.launch(
            server_name='127.0.0.1', server_port=port, share=False, theme=theme, footer_links=[], max_file_size='50mb',
            ssr_mode=False, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise UserError(f'port {port}: cannot be used ({error}). Choose another one with --port') from None
    return app


def build_app(detector: Detector, title: str) -> 'gradio.Blocks':
    """Build the page: upload, threshold, picture, table of boxes, time.

    Args:
        detector: The detector.
        title: Heading of the page.

    Returns:
        gradio.Blocks: The page, not launched yet.

    Raises:
        UserError: If Gradio is not installed.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1')
    try:
        import gradio
    except ImportError:
        raise UserError('the web demo needs Gradio: pip install -r requirements/optional.txt') from None

    def detect(image: Image.Image | None, score_thr: float) -> tuple:
        if image is None:
            return None, None, [], ''
        start = time.perf_counter()
        try:
            sample = detector(image, score_thr=0)
        except UserError as error:
            raise gradio.Error(str(error)) from None
        seconds = time.perf_counter() - start
        return sample, *show(image, score_thr, sample), f'{image.width}x{image.height} pixels, {seconds * 1000:.0f} ms'

    def show(image: Image.Image | None, score_thr: float, sample: DetDataSample | None) -> tuple:
        if image is None or sample is None:
            return None, []
        found = sample.pred_instances[sample.pred_instances.scores >= score_thr]
        rows = [
            [name, round(float(score), 3), *(round(value, 1) for value in box.tolist())]
            for name, score, box in zip(found.label_names, found.scores, found.bboxes, strict=True)
        ]
        return detector.draw(image, DetDataSample(pred_instances=found)), rows

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gradio.Markdown(f'## {title}')
        sample = gradio.State()
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type='pil', image_mode=None, label='Image', sources=['upload', 'clipboard'])
                score_thr = gradio.Slider(0, 1, value=0.3, step=0.01, label='Score threshold')
                timing = gradio.Textbox(label='Time', interactive=False)
            with gradio.Column():
                picture = gradio.Image(
                    label='Detections', show_label=False, interactive=False, format='png',
                    buttons=['download', 'fullscreen'])  # the third button would upload the picture
                table = gradio.Dataframe(
                    headers=['class', 'score', 'x1', 'y1', 'x2', 'y2'], label='Boxes, in pixels', interactive=False)
        image.change(detect, [image, score_thr], [sample, picture, table, timing], api_name='detect')
        score_thr.change(
            show, [image, score_thr, sample], [picture, table], trigger_mode='always_last', api_visibility='private')
    return app
