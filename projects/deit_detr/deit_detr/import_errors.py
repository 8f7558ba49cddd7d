"""One sentence when a third-party package cannot be imported.

Only the standard library is imported, because anything else may be broken.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions, requires, version
from types import TracebackType

from deit_detr.errors import print_last, printable
from deit_detr.versions import version_problems

#: Name on the package index, if it differs from the one that is imported.
INDEX_NAMES = dict(
    mmcv_ops='projects/mmcv_ops', cv2='opencv-python', PIL='pillow', yaml='PyYAML', pkg_resources='"setuptools<82"',
    distutils='"setuptools<82"')
OWN = ('deit_detr', '__main__')


class BrokenEnvironment(ImportError):
    """A package that this project needs cannot be imported. The message names it and the fix."""


@contextmanager
def named_packages() -> Iterator[None]:
    """Raise :class:`BrokenEnvironment` if an import in the block fails because of another package.

    If it is not caught, the program ends with status 2 and the sentence, without a traceback. Errors of this project's
    code are not changed. Python does not collect garbage meanwhile, which takes a quarter of the time of all imports.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.excepthook = _end_in_one_line
        raise BrokenEnvironment(sentence) from error
    finally:
        if collecting:
            gc.enable()


def explain(error: BaseException) -> str | None:
    """Say which package made an import fail, and what to do; None if it is an error of this project."""
    while error.__cause__ is not None:  # numpy's advice has 30 lines, its cause one
        error = error.__cause__
    culprit, importer = _culprit(error)
    if culprit is None:
        return None
    words = printable(f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ""}')
    known = version_problems()
    if known:
        return f'{"; ".join(known)} ({words})'
    names = _distributions(culprit)
    needs = f'{_title(importer)} needs ' if importer else ''
    if isinstance(error, ModuleNotFoundError) and not names:
        return f'{needs}{culprit}, which is not installed: pip install {INDEX_NAMES.get(culprit, culprit)}'
    if isinstance(error, ImportError) and not error.name and 'install' in words:  # the package gives advice itself
        return f'{_title(culprit)}: {words}'
    wanted = next((found for name in names if (found := _unmet(importer, name))), None)
    if wanted:
        advice = f'{_title(importer)} asks for another version: pip install "{wanted}"'
    elif len(names) > 1:
        advice = f'they share their files: pip uninstall -y {" ".join(names)}, then install one of them'
    elif 'cannot open shared object file' in words:
        advice = 'install that library of the system' + (
            ', or opencv-python-headless in the place of opencv-python' if culprit == 'cv2' else '')
    elif names:
        advice = f'pip install --force-reinstall --no-deps {names[0]}=={version(names[0])}'
    else:
        advice = 'is that a file or folder of yours, with the name of a package?'
    fails = ', which cannot be imported' if importer else ' cannot be imported'
    return (
        f'{needs}{_title(culprit)}{fails} ({words}): {advice}; or set up an environment for this project alone, bash '
        'tools/setup_env.sh')


def _culprit(error: BaseException) -> tuple[str | None, str | None]:
    """Return the import names of the package that fails and of the one that imports it."""
    frames = [name for name in _packages(error.__traceback__) if name not in sys.stdlib_module_names]
    if isinstance(error, ImportError) and error.name:
        named = error.name.split('.')[0]
    elif isinstance(error, AttributeError) and type(error.obj) is type(sys):  # a module without an attribute
        named = error.obj.__name__.split('.')[0]
    else:
        named = frames[-1] if frames else None
    if named is None or named in OWN or named in sys.stdlib_module_names:
        return None, None
    importers = [name for name in frames if name not in (named, *OWN)]
    return named, importers[-1] if importers else None


def _packages(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_globals.get('__name__', '').split('.')[0]
        trace = trace.tb_next


def _unmet(importer: str | None, name: str) -> str | None:
    """Return the requirement of a package that an installed distribution does not meet; None if there is none."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return None
    for distribution in _distributions(importer) if importer else ():
        for requirement in map(Requirement, requires(distribution) or []):
            if (
                requirement.name.lower() == name.lower() and version(name) not in requirement.specifier
                and (requirement.marker is None or requirement.marker.evaluate({'extra': ''}))
            ):
                return f'{name}{requirement.specifier}'
    return None


def _distributions(module: str) -> list[str]:
    """Return the names on the package index of the distributions that contain a module."""
    names = set(packages_distributions().get(module, []))
    if not names:  # Python 3.10 knows only of packages that list their modules
        with suppress(PackageNotFoundError):
            names.add(metadata(INDEX_NAMES.get(module, module))['Name'])
    return sorted(names)


def _title(module: str) -> str:
    """Return the distributions that contain a module, with versions: 'opencv-python 5.0.0.93' for cv2."""
    names = _distributions(module)
    return ' and '.join(f'{name} {version(name)}' for name in names) or module


def _end_in_one_line(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """End as ``run_cli`` does for a UserError; for ``sys.excepthook``."""
    cause = error
    while cause is not None and not isinstance(cause, BrokenEnvironment):
        cause = cause.__cause__ or cause.__context__  # mmengine wraps what custom_imports raise
    if cause is None:
        sys.__excepthook__(kind, error, trace)
        return
    print_last(f'error: {cause}')
    sys.exit(2)
