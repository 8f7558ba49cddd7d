"""Draw class names of any script with Matplotlib: with a font that has their characters, and not as formulas."""

import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from mmengine.logging import print_log


@contextmanager
def class_names_drawn(names: Sequence[str] | None) -> Iterator[list[str]]:
    """Let Matplotlib draw class names in the block as they are: two dollar signs in one do not make it a formula.

    Args:
        names: The class names.

    Yields:
        list[str]: The font families, also Matplotlib's default in the block: of each character, the first that has it.
    """
    families = ['sans-serif', *find_fonts(frozenset(''.join(map(str, names or ()))))]
    with matplotlib.rc_context({'text.parse_math': False, 'font.family': families}), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing from')
        yield families


@functools.cache
def find_fonts(characters: frozenset[str]) -> list[str]:
    """Return families of installed fonts, as few as possible, for the characters that Matplotlib's default lacks.

    Logs a warning about characters that no font has.
    """
    default = findfont(FontProperties(family=['sans-serif']))
    missing = {x for x in characters if unicodedata.category(x)[0] not in 'CZ' and not _has(default, x)}
    if not missing:
        return []
    for path in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}):
        with suppress(RuntimeError, OSError):  # installed after Matplotlib made its list
            fontManager.addfont(path)
    # those that Matplotlib takes of a family; its last resort has a box for everything
    fonts = {font.name: font.fname for font in fontManager.ttflist
             if font.style == 'normal' and font.weight in (400, 'normal') and not font.name.startswith('Last Resort')}
    found = {name: {x for x in missing if _has(path, x)} for name, path in sorted(fonts.items())}
    families = []
    while best := max(found, key=lambda name: len(found[name] & missing), default=None):
        if not found[best] & missing:
            break
        families.append(best)
        missing -= found[best]
    if missing:
        print_log(
            f'no installed font has {" ".join(sorted(missing)[:20])} of the class names: pictures show boxes instead. '
            'Install one, of Debian and Ubuntu fonts-noto-cjk for Chinese, Japanese and Korean, fonts-noto-core for '
            'other scripts', 'current', logging.WARNING)
    return families


def _has(path: str, character: str) -> bool:
    with suppress(RuntimeError, OSError):  # Matplotlib cannot open fonts of bitmaps
        return get_font(path).get_char_index(ord(character)) != 0
    return False
