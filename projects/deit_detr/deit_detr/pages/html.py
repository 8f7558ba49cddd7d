"""Pages that are one file: charts as inline SVG, pictures as inline JPEG, nothing from the network."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from deit_detr.files import write_text
from deit_detr.images import decoding, open_image, upright
from deit_detr.scannet.classes import SCANNET_CLASSES

#: Width of the pictures in a page, in pixels; smaller ones keep their size.
PICTURE_WIDTH = 480
#: Most points of a line; longer lines are averaged over this number of stretches.
MAX_POINTS = 300

_LEFT, _BOTTOM, _TOP, _RIGHT = 40, 18, 8, 14  # margins of a chart


def write_page(path: Path, template: str, **context) -> None:
    """Fill in a template and write the page.

    Args:
        path: The HTML file; missing folders are created.
        template: Name of a file in ``templates/``. All values in it are escaped.
        **context: Variables of the template.

    Raises:
        CannotWrite: If the page cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name('templates')), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, colour=class_colour)
    write_text(path, environment.get_template(template).render(**context))


def percent(value: float) -> str:
    """Format a fraction for a table: 0.3021 as '30.2', NaN and ``None`` as a dash."""
    return '–' if value is None or math.isnan(value) else f'{100 * value:.1f}'


def number(value: float) -> str:
    """Format a number in few characters: 1234567 as '1.23M', 0.0000199 as '1.99e-5'."""
    for at_least, divisor, suffix in (1e9, 1e9, 'G'), (1e6, 1e6, 'M'), (1e4, 1e3, 'k'):
        if abs(value) >= at_least:
            return f'{value / divisor:.3g}{suffix}'
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f'{value:.2e}'.split('e')
        return f'{float(mantissa):g}e{int(exponent)}'
    return f'{value:.3g}' if abs(value) < 1000 else f'{value:.0f}'


def class_colour(name: str, index: int) -> str:
    """Return the colour of a class for CSS and Pillow: that of ScanNet's table, or one that depends on the index."""
    for known, _, rgb in SCANNET_CLASSES:
        if known == name:
            return f'rgb({rgb[0]}, {rgb[1]}, {rgb[2]})'
    return f'hsl({index * 137.5 % 360:.0f}, 70%, 60%)'


def picture(path: str | Path) -> str | None:
    """Return a picture as data URI of a JPEG, :data:`PICTURE_WIDTH` wide or less; ``None`` if it cannot be read."""
    try:
        with decoding(), open_image(path) as image:
            image.draft('RGB', (PICTURE_WIDTH, PICTURE_WIDTH))  # the JPEG decoder scales down, which is faster
            image = upright(image).convert('RGB')
            image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return data_uri(image)


def data_uri(image: Image.Image) -> str:
    """Return an RGB image as data URI of a JPEG."""
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=80)
    return 'data:image/jpeg;base64,' + base64.b64encode(data.getvalue()).decode('ascii')


def gallery_image(
    info: dict, path: str | Path, boxes: Sequence[dict], runs: Sequence[Sequence[dict]] = (), kinds: Sequence[int] = (),
) -> dict:
    """Return an image of a gallery as ``templates/page.js`` reads it. Boxes are x, y, width, height in pixels.

    Args:
        info: COCO entry of the image.
        path: Image file.
        boxes: Boxes of the ground truth: ``label``, ``box``, ``kinds`` (oddities, as indices into the gallery's
            ``kinds``) and ``seen``, which holds two scores for each run: that of the detection that found the box, and
            the highest of those that nearly did; 0 for none.
        runs: Detections of each run: ``label``, ``box``, ``score`` and ``kind``, an index into the gallery's ``kinds``
            or 0 if it is correct.
        kinds: Oddities of the whole image, as indices into the gallery's ``kinds``.

    Returns:
        dict: For JSON, with boxes in percent of the image and the picture as ``src``, which is ``None`` if it cannot be
        read.
    """
    size = np.array([info['width'], info['height']] * 2) / 100

    def in_percent(row: dict) -> dict:
        return dict(row, box=[round(float(side), 2) for side in np.asarray(row['box']) / size])

    return dict(
        name=info['file_name'], width=info['width'], height=info['height'], src=picture(path), kinds=list(kinds),
        boxes=[in_percent(row) for row in boxes], runs=[[in_percent(row) for row in run] for run in runs])


def line_chart(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]], label: str, x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None, size: tuple[int, int] = (360, 180),
) -> Markup:
    """Draw a line chart as inline SVG in the colours of the page.

    Args:
        lines: x and y of each line, which is interrupted where y is not finite. Line k has the CSS class ``line-k``.
        label: Description of the chart for screen readers.
        x_range: Range of the x axis. Default: that of the data.
        y_range: Range of the y axis. Default: that of the data and 0.
        size: Unscaled width and height, in CSS pixels.

    Returns:
        Markup: An ``<svg>`` element.
    """
    lines = [_shorten(np.asarray(x, float), np.asarray(y, float)) for x, y in lines]
    x_low, x_high = x_range or _extent([x for x, _ in lines])
    y_low, y_high = y_range or _extent([y for _, y in lines] + [np.zeros(1)])
    width, height = size

    def at_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return height - _BOTTOM - (y - y_low) / (y_high - y_low) * (height - _BOTTOM - _TOP)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for y in ticks(y_low, y_high, height // 40):
        parts.append(f'<path class="grid" d="M{_LEFT} {at_y(y):.1f}H{width - _RIGHT}"/>'
                     f'<text x="{_LEFT - 5}" y="{at_y(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in ticks(x_low, x_high, width // 80):
        parts.append(f'<text x="{at_x(x):.1f}" y="{height - 3}" text-anchor="middle">{number(x)}</text>')
    for index, (xs, ys) in enumerate(lines):
        path, pen_down = '', False
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                path += f'{"L" if pen_down else "M"}{at_x(x):.1f} {at_y(y):.1f}'
            pen_down = math.isfinite(y)
        if len(xs) == 1:
            path += 'h0'  # with round ends, a dot
        parts.append(f'<path class="line line-{index}" d="{path}"/>')
    return Markup(''.join([*parts, '</svg>']))


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return at most ``count + 1`` round numbers within a range."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _extent(values: list[np.ndarray]) -> tuple[float, float]:
    everything = np.concatenate([*values, []])
    finite = everything[np.isfinite(everything)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if low == high == 0:
        return 0.0, 1.0
    margin = abs(low) / 2 if high - low <= 1e-9 * max(abs(low), abs(high)) else 0.0
    return float(low - margin), float(high + margin)


def _shorten(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MAX_POINTS:
        return x, y
    return tuple(np.array([part.mean() for part in np.array_split(values, MAX_POINTS)]) for values in (x, y))
