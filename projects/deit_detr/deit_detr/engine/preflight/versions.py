"""Installed versions and what is known about them; needs none of the packages themselves."""

from importlib.metadata import PackageNotFoundError, version

from deit_detr.engine.preflight.finding import FAIL, OK, WARN

#: What this project is tested with (requirements/).
TESTED = dict(torch='2.11', mmengine='0.10', mmcv='2.1', mmdet='3.3', mmpretrain='1.2')
#: The maintained forks have other names on the package index, and the same import names.
FORKS = dict(mmengine='onedl-mmengine', mmcv='onedl-mmcv', mmdet='onedl-mmdetection', mmpretrain='onedl-mmpretrain')


def check_versions() -> tuple[str, str]:
    """Compare what is installed with what is known not to work together."""
    installed = {name: installed_version(name) for name in (*TESTED, 'torchvision')}
    problems = incompatibilities(installed)
    if problems:
        return FAIL, '; '.join(problems)
    shown = ', '.join(f'{name} {number}' for name, number in installed.items())
    untested = [
        name for name, number in TESTED.items()
        if _release(installed[name])[:2] != _release(number)]
    if untested:
        return WARN, f'{shown}; not tested with this version of {", ".join(untested)}: bash tools/setup_env.sh'
    return OK, shown


def installed_version(name: str) -> str | None:
    """The version of a package, or of its fork; None if neither is there."""
    for candidate in (name, FORKS.get(name, name)):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def incompatibilities(installed: dict[str, str | None]) -> list[str]:
    """What does not work together, with the way out.

    Args:
        installed: Package -> version, or None.

    Returns:
        list[str]: A sentence for each problem.
    """
    missing = [name for name, number in installed.items() if number is None]
    if missing:
        return [f'{", ".join(missing)} not installed: bash tools/setup_env.sh']
    release = {name: _release(number) for name, number in installed.items()}
    problems = []
    # mmdet's own assertion, without its traceback
    if release['mmdet'] < (3, 4) and not (2, 0) <= release['mmcv'] < (2, 2):
        problems.append(f'mmdet {installed["mmdet"]} refuses mmcv {installed["mmcv"]}: install mmcv 2.1.0 '
                        '(bash tools/setup_env.sh)')
    if release['mmdet'] < (3, 0):
        problems.append(f'mmdet {installed["mmdet"]} is 2.x: install 3.3.0, and see docs/migration.md')
    if release['mmpretrain'] < (1, 0):
        problems.append(f'mmpretrain {installed["mmpretrain"]} is too old: install 1.2.0')
    major, minor = release['torch'][:2]
    # torch 2.N and torchvision 0.(N+15) are released together; operators of others are missing at import
    if major == 2 and release['torchvision'][:2] != (0, minor + 15):
        problems.append(f'torchvision {installed["torchvision"]} is not that of torch {installed["torch"]}: install '
                        f'torchvision 0.{minor + 15}')
    if release['torch'] < (2, 6):  # safe loading of checkpoints
        problems.append(f'torch {installed["torch"]} is too old: install 2.11.0')
    return problems


def _release(number: str) -> tuple[int, ...]:
    """Leading numbers of a version: '2.11.0+cu130' -> (2, 11, 0)."""
    parts = []
    for part in number.split('+')[0].split('.'):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
