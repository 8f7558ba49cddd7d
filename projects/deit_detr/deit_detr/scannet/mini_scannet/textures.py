"""Procedural textures.

Every painter takes a random generator and returns an RGB image (TEXTURE_SIZE, TEXTURE_SIZE, 3), about 0..1, that can be
repeated or stretched over a face.
"""

import zlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.random import Generator

TEXTURE_SIZE = 256
_LEVELS = 7  # halvings, down to 4 x 4
_PAD = 1  # texels repeated around each level, for bilinear sampling across its border
_ROW, _COLUMN = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE


def _noise(rng: Generator, across: float, along: float) -> np.ndarray:
    """Return smooth periodic noise of unit deviation whose grains measure ``across`` x ``along`` texels."""
    frequency_y = np.fft.fftfreq(TEXTURE_SIZE)[:, None]
    frequency_x = np.fft.rfftfreq(TEXTURE_SIZE)
    keep = np.exp(-2 * np.pi * ((frequency_x * across) ** 2 + (frequency_y * along) ** 2))
    keep[0, 0] = 0
    noise = np.fft.irfft2(keep * np.fft.rfft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))))
    return noise / noise.std()


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


def _canvas(color: Sequence[float] = (1, 1, 1)) -> np.ndarray:
    return np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), color, float)


def _vivid(rng: Generator, low: float = 0.15, high: float = 0.95) -> np.ndarray:
    """Return a random colour (3,) with a clear hue."""
    color = rng.uniform(low, high, 3)
    color[rng.integers(3)] *= rng.uniform(0.2, 0.8)
    return 0.85 * color + 0.15 * color.mean()


def plain(rng: Generator) -> np.ndarray:
    """Paint even paint or plastic."""
    return _grey(0.95 + 0.004 * _noise(rng, 40, 40) + 0.01 * _noise(rng, 2, 2))


def wood(rng: Generator) -> np.ndarray:
    """Paint wood with its grain along the vertical axis."""
    rings = np.sin(2 * np.pi * (5 * _COLUMN + 0.25 * _noise(rng, 50, 120)))
    return _grey(0.85 + 0.025 * rings + 0.045 * _noise(rng, 2, 60) + 0.03 * _noise(rng, 12, 120))


def planks(rng: Generator) -> np.ndarray:
    """Paint parquet: boards with staggered ends along the vertical axis."""
    boards = 6
    board = (_COLUMN * boards).astype(int)
    stagger = rng.random(boards)[board]
    piece = ((_ROW * 2 + stagger) % 2).astype(int)
    tone = rng.uniform(0.72, 1.0, (boards, 2))[board, piece]
    gap = np.minimum((_COLUMN * boards) % 1 / boards, (_ROW * 2 + stagger) % 1 / 2) < 0.008
    return _grey(np.where(gap, 0.45, tone * (0.92 + 0.05 * _noise(rng, 2, 40))))


def carpet(rng: Generator) -> np.ndarray:
    """Paint a carpet with short pile."""
    return _grey(0.82 + 0.07 * _noise(rng, 2, 2) + 0.04 * _noise(rng, 12, 12))


def fabric(rng: Generator) -> np.ndarray:
    """Paint woven upholstery."""
    weave = np.sin(2 * np.pi * 64 * _COLUMN) * np.sin(2 * np.pi * 64 * _ROW)
    return _grey(0.87 + 0.05 * weave + 0.035 * _noise(rng, 2, 2) + 0.015 * _noise(rng, 30, 30))


def tiles(rng: Generator) -> np.ndarray:
    """Paint ceramic tiles, 4 x 4, with grout."""
    tone = rng.uniform(0.88, 1.0, (4, 4))[(_ROW * 4).astype(int), (_COLUMN * 4).astype(int)]
    joint = np.minimum((_ROW * 4) % 1, (_COLUMN * 4) % 1) < 0.05
    return _grey(np.where(joint, 0.6, tone + 0.012 * _noise(rng, 20, 20)))


def checks(rng: Generator) -> np.ndarray:
    """Paint chequered floor tiles, 2 x 2."""
    dark = ((_ROW * 2).astype(int) + (_COLUMN * 2).astype(int)) % 2
    return _grey(np.where(dark, rng.uniform(0.35, 0.6), 0.95) + 0.012 * _noise(rng, 10, 10))


def granite(rng: Generator) -> np.ndarray:
    """Paint speckled stone."""
    return _grey(0.72 + 0.16 * np.tanh(_noise(rng, 3, 3)) + 0.08 * _noise(rng, 10, 10))


def stripes(rng: Generator) -> np.ndarray:
    """Paint wallpaper with vertical stripes."""
    return _grey(np.where(rng.uniform(0.4, 0.7) < (_COLUMN * 4) % 1, 0.86, 0.97) + 0.01 * _noise(rng, 2, 2))


def blanket(rng: Generator) -> np.ndarray:
    """Paint a bedspread: broad stripes or checks in two colours."""
    first, second = rng.uniform(0.55, 1, 3), rng.uniform(0.3, 1, 3)
    bands = (_ROW * rng.integers(2, 6)) % 1 < 0.4
    if rng.random() < 0.5:
        bands = bands ^ ((_COLUMN * rng.integers(2, 6)) % 1 < 0.4)
    soft = 1 + 0.04 * _noise(rng, 25, 25) + 0.03 * _noise(rng, 2, 2)
    return np.where(bands[..., None], first, second) * _grey(soft)


def folds(rng: Generator) -> np.ndarray:
    """Paint cloth that hangs in vertical folds."""
    phase = 7 * _COLUMN + 0.05 * np.sin(2 * np.pi * _ROW) + 0.03 * _noise(rng, 30, 160)
    return _grey(0.72 + 0.24 * np.sin(2 * np.pi * phase) + 0.02 * _noise(rng, 2, 2))


def shower(rng: Generator) -> np.ndarray:
    """Paint a shower curtain: pale folds printed with dots or waves."""
    image = 0.93 + 0.055 * _grey(np.sin(2 * np.pi * 6 * _COLUMN)) * _canvas()
    ink = _vivid(rng, 0.3, 0.9)
    count = rng.integers(4, 7)
    if rng.random() < 0.5:
        row = (_ROW * count) % 1 - 0.5
        column = (_COLUMN * count + 0.5 * ((_ROW * count).astype(int) % 2)) % 1 - 0.5
        print_ = row**2 + column**2 < 0.07
    else:
        print_ = (_ROW * count + 0.15 * np.sin(2 * np.pi * count * _COLUMN)) % 1 < 0.3
    return np.where(print_[..., None], image * (0.35 + 0.65 * ink), image)


def books(rng: Generator) -> np.ndarray:
    """Paint the spines of a row of books."""
    image, x = _canvas((0.12, 0.1, 0.08)), 0
    while x < TEXTURE_SIZE:
        width = int(rng.integers(9, 24))
        top = int(rng.integers(0, 70))
        color = 0.55 * _vivid(rng) + 0.45 * rng.choice([0.12, 0.3, 0.55, 0.75])
        round_ = 0.7 + 0.3 * np.sin(np.linspace(0.2, np.pi - 0.2, width))[: TEXTURE_SIZE - x, None]
        image[top:, x : x + width] = color * round_
        label = rng.integers(top + 15, 170)
        image[label : label + rng.integers(6, 40), x + 2 : x + width - 2] = rng.choice([0.9, 0.8, 0.15])
        x += width
    return image


def painting(rng: Generator) -> np.ndarray:
    """Paint a landscape, or coloured shapes."""
    image = _canvas()
    if rng.random() < 0.5:
        horizon = rng.uniform(0.4, 0.7)
        image[:] = _vivid(rng, 0.6, 1) * (1 - 0.5 * _grey(_ROW)) + 0.25 * _grey(_ROW)
        for depth in range(3):
            ridge = horizon + 0.13 * depth + 0.06 * _noise(rng, 40, 40)[depth]
            image[ridge[None] < _ROW] = _vivid(rng, 0.2, 0.75)
        cv2.circle(image, (int(rng.integers(40, 216)), 50), int(rng.integers(12, 26)), (1.0, 0.93, 0.7), -1)
    else:
        image[:] = _vivid(rng, 0.5, 1)
        for _ in range(rng.integers(4, 9)):
            color = _vivid(rng).tolist()
            a, b = rng.integers(0, TEXTURE_SIZE, (2, 2)).tolist()
            if rng.random() < 0.5:
                cv2.circle(image, a, int(rng.integers(15, 60)), color, -1)
            else:
                cv2.rectangle(image, a, b, color, -1)
    return image * _grey(1 + 0.04 * _noise(rng, 4, 4))


def view(rng: Generator) -> np.ndarray:
    """Paint what a window shows: sky with clouds, and trees."""
    blue = np.array([0.45, 0.68, 0.95]) + rng.uniform(-0.08, 0.08, 3)
    image = blue + (1 - blue) * _grey(np.clip(_ROW * 0.9 + 0.25 * _noise(rng, 60, 30), 0, 1))
    treeline = rng.uniform(0.65, 0.95) + 0.05 * _noise(rng, 25, 25)[0]
    trees = treeline[None] < _ROW
    image[trees] = (np.array([0.2, 0.36, 0.16]) * _grey(1 + 0.25 * _noise(rng, 6, 6)))[trees]
    return image


def panels(rng: Generator) -> np.ndarray:
    """Paint a door leaf with sunken panels."""
    image = _grey(0.9 + 0.02 * _noise(rng, 2, 40))
    columns = int(rng.integers(1, 3))
    rows = [(0.06, 0.3), (0.36, 0.62), (0.68, 0.94)] if rng.random() < 0.5 else [(0.06, 0.48), (0.55, 0.94)]
    for top, bottom in rows:
        for k in range(columns):
            left, right = 0.12 + k * 0.41, 0.12 + k * 0.41 + (0.35 if columns == 2 else 0.76)
            low, high = ((int(x * TEXTURE_SIZE), int(y * TEXTURE_SIZE)) for x, y in ((left, top), (right, bottom)))
            cv2.rectangle(image, low, high, (0.78,) * 3, -1)
            cv2.rectangle(image, low, high, (0.55,) * 3, 4)
            cv2.line(image, (low[0], high[1]), high, (1.0,) * 3, 4)
            cv2.line(image, (high[0], low[1]), high, (1.0,) * 3, 4)
    return image


def screen(rng: Generator) -> np.ndarray:
    """Paint a monitor that is switched on."""
    image = _canvas(rng.uniform(0.1, 0.6, 3))
    for _ in range(rng.integers(1, 4)):
        left, top = rng.integers(5, 130, 2)
        right, bottom = rng.integers(150, 250, 2)
        image[top:bottom, left:right] = 0.95
        image[top : top + 14, left:right] = _vivid(rng)
        for line in range(top + 26, bottom - 10, 14):
            image[line : line + 4, left + 8 : left + 8 + int(rng.uniform(0.3, 0.9) * (right - left - 16))] = 0.35
    return image


def leaf(rng: Generator) -> np.ndarray:
    """Paint a leaf with its midrib along the horizontal axis."""
    veins = 0.06 * np.sin(2 * np.pi * (12 * _COLUMN - 5 * np.abs(_ROW - 0.5)))
    midrib = 0.25 * (np.abs(_ROW - 0.5) < 0.04)
    return _grey(0.75 + veins + midrib + 0.03 * _noise(rng, 12, 12))


def rug(rng: Generator) -> np.ndarray:
    """Paint a woven rug with a border."""
    ground, line, figure = (_vivid(rng, 0.3, 0.9) for _ in range(3))
    image = _canvas(ground)
    edge = np.minimum(np.minimum(_ROW, 1 - _ROW), np.minimum(_COLUMN, 1 - _COLUMN))
    image[(np.abs(_ROW - 0.5) + np.abs(_COLUMN - 0.5)) * 8 % 1 < 0.35] = figure
    image[edge < 0.1] = line
    return image * _grey(0.9 + 0.06 * _noise(rng, 2, 2))


PAINTERS: dict[str, Callable[[Generator], np.ndarray]] = {painter.__name__: painter for painter in (
    plain, wood, planks, carpet, fabric, tiles, checks, granite, stripes, blanket, folds, shower, books, painting, view,
    panels, screen, leaf, rug)}


class Atlas:
    """The textures of one scene with their mip levels, side by side in one image.

    Args:
        seed: Integers that, together with the name of a texture, fix how it looks.
    """

    def __init__(self, seed: tuple[int, ...]):
        self._seed = seed
        self._columns: dict[str, int] = {}
        self._image: np.ndarray | None = None
        sizes = TEXTURE_SIZE >> np.arange(_LEVELS)
        self._tops = np.concatenate([[0], np.cumsum(sizes + 2 * _PAD)[:-1]]).astype(np.float32)

    def column(self, name: str) -> int:
        """Return the first column of the texture ``'painter'`` or ``'painter:variant'``; paint it if it is new.

        Raises:
            KeyError: If there is no such painter.
        """
        if name not in self._columns:
            rng = np.random.default_rng((*self._seed, zlib.crc32(name.encode())))
            image = (np.clip(PAINTERS[name.partition(':')[0]](rng), 0, 1) * 255).astype(np.uint8)
            levels = []
            for _ in range(_LEVELS):
                level = cv2.copyMakeBorder(image, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_WRAP)
                gap = TEXTURE_SIZE + 2 * _PAD - level.shape[1]
                levels.append(cv2.copyMakeBorder(level, 0, 0, 0, gap, cv2.BORDER_CONSTANT))
                image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            stack = np.concatenate(levels)
            self._columns[name] = 0 if self._image is None else self._image.shape[1]
            self._image = stack if self._image is None else np.concatenate([self._image, stack], 1)
        return self._columns[name]

    def sample(self, u: np.ndarray, v: np.ndarray, column: np.ndarray, texels: np.ndarray) -> np.ndarray:
        """Return the colours of textures at the given coordinates.

        Args:
            u: Horizontal coordinates (h, w) float32; 1 is one repeat.
            v: Vertical coordinates (h, w) float32, downwards.
            column: What :meth:`column` returned, (h, w) float32.
            texels: Texels of the largest level per sample, (h, w); they choose the level.

        Returns:
            np.ndarray: Linear RGB reflectance (h, w, 3) float32, 0..1.
        """
        level = np.clip(np.log2(texels), 0, _LEVELS - 1).astype(np.int32)
        size = (TEXTURE_SIZE >> level).astype(np.float32)
        x = column + (u - np.floor(u)) * size + (_PAD - 0.5)
        y = self._tops[level] + (v - np.floor(v)) * size + (_PAD - 0.5)
        texture = cv2.remap(self._image, x, y, cv2.INTER_LINEAR).astype(np.float32)
        return texture * texture * (1 / 255**2)
