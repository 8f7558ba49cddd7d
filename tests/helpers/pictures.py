"""Seeded pictures."""

from pathlib import Path

import cv2
import numpy as np


def image_of(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return an image with soft areas."""
    areas = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(areas, (width, height), interpolation=cv2.INTER_LINEAR)


def picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """Write such an image, with grain."""
    grain = np.random.default_rng(seed).integers(-20, 21, (height, width, 3))
    cv2.imwrite(str(path), (image_of(width, height, seed) + grain).clip(0, 255).astype(np.uint8))
    return path
