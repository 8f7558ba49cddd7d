"""Installed versions and known problems with them.

None of the packages is imported, because one of them may be broken.
"""

import importlib
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version

#: Of this package; pyproject.toml reads it here.
VERSION = '0.2.0'
#: What this project is tested with (requirements/).
TESTED = dict(torch='2.11', mmengine='0.10', mmcv='2.1', mmdet='3.3', mmpretrain='1.2')
#: Other names on the package index of what is imported under the same name: the maintained forks, and mmcv without
#: its compiled operators.
ALTERNATIVES = dict(
    mmengine=('onedl-mmengine',), mmcv=('mmcv-lite', 'onedl-mmcv'), mmdet=('onedl-mmdetection',),
    mmpretrain=('onedl-mmpretrain',))


def version_problems() -> list[str]:
    """Return a sentence for each known problem of the installed packages, with the fix."""
    found = {name: distributions(name) for name in (*TESTED, 'torchvision')}
    problems = incompatibilities({name: next(iter(numbers.values()), None) for name, numbers in found.items()})
    if 'mmcv-lite' in found['mmcv'] and operators() is None:
        problems.append('mmcv-lite comes without operators: pip install projects/mmcv_ops')
    return problems + [
        f'{" and ".join(numbers)} share the folder {name} and differ: pip uninstall -y {" ".join(numbers)}, then '
        'bash tools/setup_env.sh' for name, numbers in found.items() if len(set(numbers.values())) > 1]


def installed() -> str:
    """List the important packages and their versions, for a table."""
    kind = operators()
    return ', '.join(
        f'{package} {number}' + f' (operators: {kind})' * (name == 'mmcv' and kind is not None)
        for name in (*TESTED, 'torchvision') for package, number in distributions(name).items())


def untested() -> list[str]:
    """Return the packages whose installed version differs from the one that this project is tested with."""
    return [
        name for name, number in TESTED.items()
        if _release(next(iter(distributions(name).values()), ''))[:2] != _release(number)]


def distributions(name: str) -> dict[str, str]:
    """Return the installed distributions that are imported under a name: name on the package index -> version."""
    found = {}
    for candidate in (name, *ALTERNATIVES.get(name, ())):
        try:
            found[candidate] = version(candidate)
        except PackageNotFoundError:
            continue
    return found


def operators() -> str | None:
    """Describe mmcv's operators, e.g. 'compiled for CUDA 12.8' or 'mmcv_ops 0.1.0'; None if it has none."""
    package = PathFinder.find_spec('mmcv')
    spec = package and PathFinder.find_spec('mmcv._ext', package.submodule_search_locations)
    if not spec:
        return None
    if spec.origin.endswith('.py'):
        return ' '.join(('mmcv_ops', *distributions('mmcv-ops').values()))
    try:
        importlib.import_module('torch')
        cuda = importlib.import_module('mmcv._ext').get_compiling_cuda_version()
    except Exception:  # the file exists; the first import reports what is wrong with it
        return 'compiled'
    return 'compiled without CUDA' if cuda == 'not available' else f'compiled for CUDA {cuda}'


def incompatibilities(installed: dict[str, str | None]) -> list[str]:
    """Return a sentence for each known incompatibility, with the fix.

    Args:
        installed: Package -> version, or None if it is missing.

    Returns:
        list[str]: A sentence for each problem.
    """
    missing = [name for name, number in installed.items() if number is None]
    if missing:
        return [f'{", ".join(missing)} not installed: bash tools/setup_env.sh']
    release = {name: _release(number) for name, number in installed.items()}
    problems = []
    # as mmdet's assertion, without its traceback
    if release['mmdet'] < (3, 4) and not (2, 0) <= release['mmcv'] < (2, 2):
        problems.append(f'mmdet {installed["mmdet"]} refuses mmcv {installed["mmcv"]}: install '
                        'mmcv-lite 2.1.0 and projects/mmcv_ops (bash tools/setup_env.sh)')
    if release['mmdet'] < (3, 0):
        problems.append(f'mmdet {installed["mmdet"]} is 2.x: install 3.3.0, and see docs/migrate.md')
    if release['mmpretrain'] < (1, 0):
        problems.append(f'mmpretrain {installed["mmpretrain"]} is too old: install 1.2.0')
    major, minor = release['torch'][:2]
    # torch 2.N and torchvision 0.(N+15) belong together; with others, operators are missing at import
    if major == 2 and release['torchvision'][:2] != (0, minor + 15):
        problems.append(f'torchvision {installed["torchvision"]} does not match torch {installed["torch"]}: install '
                        f'torchvision 0.{minor + 15}')
    if release['torch'] < (2, 6):  # safe loading of checkpoints
        problems.append(f'torch {installed["torch"]} is too old: install 2.11.0')
    return problems


def _release(number: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: '2.11.0+cu130' -> (2, 11, 0)."""
    parts = []
    for part in number.split('+')[0].split('.'):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
