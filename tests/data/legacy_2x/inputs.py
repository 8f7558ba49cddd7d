"""The weights, images and boxes that the golden values in this folder were made from."""

import zlib

import numpy as np

#: case -> (image seed, height, width) of each image, zero-padded at the right and the bottom to the batch's largest.
#: Image i has boxes(seed, 3 + 4 * i, height, width).
CASES = {
    'single': [(11, 480, 640)],
    'padded': [(13, 480, 640), (14, 416, 600)],
}


def weight(key: str, shape: tuple) -> np.ndarray:
    """A float32 weight that depends on its 2.x key and shape alone."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return values * np.float32(1.0 / np.sqrt(int(np.prod(shape[1:]))))
    is_norm_scale = ('ln' in key or 'norm' in key) and key.endswith('weight')
    return (1 + 0.1 * values) if is_norm_scale else 0.02 * values


def image(seed: int, height: int, width: int) -> np.ndarray:
    """A normalised image of coloured blocks with noise, float32 (3, height, width)."""
    random = np.random.RandomState(seed)
    coarse = random.standard_normal((3, (height + 31) // 32, (width + 31) // 32)).astype(np.float32)
    blocks = np.kron(coarse, np.ones((1, 32, 32), np.float32))[:, :height, :width]
    return blocks + 0.1 * random.standard_normal((3, height, width)).astype(np.float32)


def boxes(seed: int, number: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, xyxy in pixels, float32 (number, 4), and their labels, int64 (number,)."""
    random = np.random.RandomState(seed)
    top_left = random.uniform(0, 0.6, (number, 2))
    size = random.uniform(0.05, 0.4, (number, 2))
    xyxy = np.concatenate([top_left, top_left + size], 1) * np.array([width, height, width, height])
    return xyxy.astype(np.float32), random.randint(0, 20, number)
