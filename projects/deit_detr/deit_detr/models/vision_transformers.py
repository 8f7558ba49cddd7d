"""Import mmpretrain's vision transformers with any version of transformers installed.

mmpretrain 1.2 also has optional multimodal models. It accepts every transformers from 4.28 on, but fails to import when
newer versions lack names that those models need. mmdet then fails too, because it imports mmpretrain if installed.
"""

import sys
from importlib import import_module
from importlib.metadata import version

from deit_detr.errors import printable

#: From this version of transformers on, mmpretrain's multimodal models cannot be imported beside it.
TOO_NEW = (4, 52)


def load_vision_transformers() -> None:
    """Import ``mmpretrain.models``, without the multimodal models if the installed transformers does not support them.

    In that case mmpretrain is told that its optional packages are missing, and registers placeholders. Nothing is
    changed if transformers fits or is missing, or if ``mmpretrain.models`` was imported before.
    """
    if 'mmpretrain.models' in sys.modules:
        return
    from mmpretrain.utils import dependency

    problem = _problem() if getattr(dependency, 'WITH_MULTIMODAL', False) else None
    if problem:
        dependency.WITH_MULTIMODAL = False
        _forget_half_imported()
    import_module('mmpretrain.models')
    if problem:
        _say_why(dependency.__name__, problem)


def _problem() -> str | None:
    """Return why the installed transformers does not fit mmpretrain's multimodal models; None if it fits."""
    number = version('transformers')
    if tuple(map(int, number.split('.')[:2])) >= TOO_NEW:  # not imported, which takes seconds
        return f'transformers {number} is too new for mmpretrain'
    try:
        import_module('transformers.modeling_utils')
    except Exception as error:
        return f'transformers {number} cannot be imported ({type(error).__name__}: {printable(str(error)[:300])})'
    return None


def _forget_half_imported() -> None:
    """Remove what a failed import left behind (mmdet ignores the error): nothing can be registered twice."""
    from mmpretrain.registry import MODELS

    place = 'mmpretrain.models.multimodal'
    for name in [name for name in sys.modules if name.startswith(place)]:
        del sys.modules[name]
    for name, item in list(MODELS.module_dict.items()):
        if getattr(item, '__module__', '').startswith(place):
            del MODELS.module_dict[name]


def _say_why(placeholders: str, problem: str) -> None:
    """Replace mmpretrain's placeholders, whose message says that transformers is not installed."""
    from mmpretrain.registry import MODELS

    def placeholder(name: str):
        def refuse(*args, **kwargs):
            raise ImportError(
                f'mmpretrain.{name} was left out when mmpretrain was imported: {problem}. It needs transformers '
                f'4.28 to 4.{TOO_NEW[1] - 1}')
        return refuse

    for name, item in list(MODELS.module_dict.items()):
        if getattr(item, '__module__', None) == placeholders:
            MODELS.register_module(name, module=placeholder(name), force=True)
