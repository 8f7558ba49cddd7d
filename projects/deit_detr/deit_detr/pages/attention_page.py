"""The part of a report that shows where its detector looks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

import deit_detr
from deit_detr.inference.attention import Attention, cross_attention, draw_attention, self_attention
from deit_detr.pages.html import data_uri


def attention_pictures(
    config: Config, checkpoint: Path, paths: Sequence[str], score_thr: float, max_detections: int = 4,
) -> list[tuple[str, str]]:
    """Draw, for each image, what its best detections attend to and what the middle of the first one attends to.

    Args:
        config: Of the run.
        checkpoint: Its weights.
        paths: Image files; one in which nothing is found is left out.
        score_thr: Least score of a detection, in 0..1.
        max_detections: So many of the best.

    Returns:
        list[tuple[str, str]]: What is shown, and the picture as a data URI.

    Raises:
        UserError: If the checkpoint does not fit, an image cannot be read, or the model has an unknown kind of
            attention.
    """
    detector = deit_detr.load(config, checkpoint)
    part = 'encoder' if detector.model.encoder is not None else 'backbone'
    pictures = []
    for path in paths:
        found = cross_attention(detector, path, score_thr, max_detections=max_detections)
        if found:
            (own,) = self_attention(detector, path, [_middle(found[0])], part)
            image = draw_attention(detector, path, [*found, replace(own, title=f'{part}, from the circle')])
            pictures.append((', '.join(attention.title for attention in found), data_uri(image)))
    return pictures


def _middle(attention: Attention) -> tuple[float, float]:
    x1, y1, x2, y2 = attention.box.tolist()
    return (x1 + x2) / 2, (y1 + y2) / 2
