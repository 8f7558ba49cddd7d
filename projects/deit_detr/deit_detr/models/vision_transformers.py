"""mmpretrain's vision transformers, beside whichever transformers is installed.

They are what this project needs of mmpretrain. Its ``models`` also have optional multimodal ones: mmpretrain 1.2 takes
any transformers from 4.28 on for good enough, and then fails as a whole for want of names that newer ones dropped.
mmdet fails with it, as it imports mmpretrain where that is there.
"""

import sys
from importlib import import_module
from importlib.metadata import version

from deit_detr.errors import printable

#: From this version of transformers on, mmpretrain's multimodal models cannot be imported beside it.
TOO_NEW = (4, 52)


def load_vision_transformers() -> None:
    """Import ``mmpretrain.models``, without the multimodal ones where transformers is not fit for those.

    mmpretrain is told that its optional packages are missing: it registers placeholders then. Where transformers is
    fit for them, or is not there, or somebody has imported ``mmpretrain.models`` before, nothing is changed.
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
    """Why the installed transformers is not fit for mmpretrain's multimodal models; None if it is."""
    number = version('transformers')
    if tuple(map(int, number.split('.')[:2])) >= TOO_NEW:  # not imported: that takes seconds
        return f'transformers {number} is too new for mmpretrain'
    try:
        import_module('transformers.modeling_utils')
    except Exception as error:
        return f'transformers {number} cannot be imported ({type(error).__name__}: {printable(str(error)[:300])})'
    return None


def _forget_half_imported() -> None:
    """Remove what an earlier import that failed has left, which mmdet passes over: nothing can be registered twice."""
    from mmpretrain.registry import MODELS

    place = 'mmpretrain.models.multimodal'
    for name in [name for name in sys.modules if name.startswith(place)]:
        del sys.modules[name]
    for name, item in list(MODELS.module_dict.items()):
        if getattr(item, '__module__', '').startswith(place):
            del MODELS.module_dict[name]


def _say_why(placeholders: str, problem: str) -> None:
    """Replace mmpretrain's placeholders, which say that transformers is not installed, and name one model for all."""
    from mmpretrain.registry import MODELS

    def placeholder(name: str):
        def refuse(*args, **kwargs):
            raise ImportError(
                f'mmpretrain.{name} was left out when mmpretrain was imported: {problem}. It is for transformers '
                f'4.28 to 4.{TOO_NEW[1] - 1}')
        return refuse

    for name, item in list(MODELS.module_dict.items()):
        if getattr(item, '__module__', None) == placeholders:
            MODELS.register_module(name, module=placeholder(name), force=True)
