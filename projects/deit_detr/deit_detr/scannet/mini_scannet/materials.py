"""Surfaces: what a material is, and the woods, cloths and metals that the objects share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.random import Generator

Option = TypeVar('Option')
Color = Sequence[float]  # RGB, 0..1

WOODS = ((0.62, 0.42, 0.25), (0.48, 0.29, 0.16), (0.78, 0.6, 0.4), (0.36, 0.23, 0.15), (0.85, 0.72, 0.52))
CLOTHS = ((0.7, 0.2, 0.18), (0.2, 0.3, 0.6), (0.25, 0.45, 0.35), (0.5, 0.42, 0.35), (0.4, 0.4, 0.43), (0.75, 0.6, 0.3),
          (0.45, 0.25, 0.42))


def pick(rng: Generator, options: Sequence[Option]) -> Option:
    """Return one of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]


def tint(rng: Generator, color: Color, spread: float = 0.06) -> Color:
    """Return an RGB colour moved by up to ``spread`` per channel, within 0.03..1."""
    return tuple(np.clip(np.asarray(color) + rng.uniform(-spread, spread, 3), 0.03, 1))


@dataclass(frozen=True)
class Material:
    """Surface of a face.

    Attributes:
        color: RGB reflectance, 0..1, multiplied with the texture.
        texture: Name of a texture, with an optional variant: ``'wood'``, ``'painting:3'``.
        scale: Metres that one repeat of the texture covers; None stretches it once over the face.
        gloss: Strength of the highlight, 0..1.
        glow: Light that the surface emits, in units of its colour.
    """

    color: Color
    texture: str = 'plain'
    scale: float | None = 1.0
    gloss: float = 0.0
    glow: float = 0.0

    @classmethod
    def wood(cls, rng: Generator) -> 'Material':
        """Return wood of a random colour."""
        return cls(tint(rng, pick(rng, WOODS), 0.05), 'wood', 0.7, gloss=0.12)

    @classmethod
    def cloth(cls, rng: Generator) -> 'Material':
        """Return cloth of a random colour, for upholstery and curtains."""
        return cls(tint(rng, pick(rng, CLOTHS), 0.1), 'fabric', 0.5)

    def brighter(self, factor: float) -> 'Material':
        """Return the material with its colour multiplied by ``factor``, at most 1 per channel."""
        return replace(self, color=tuple(min(1.0, factor * c) for c in self.color))


CHROME = Material((0.78, 0.8, 0.82), gloss=0.9)
BLACK = Material((0.12, 0.12, 0.13), gloss=0.3)
CERAMIC = Material((0.96, 0.96, 0.95), gloss=0.6)
DRAIN = Material((0.45, 0.52, 0.56), gloss=0.5)
