"""Shared parts of the fuzz tests: the number of cases, and what must never happen in one.

``FUZZ_SCALE=20 pytest tests/fuzz`` runs 20 times as many cases, new ones each time. With a scale of at most 1, the
default, every run has the same cases.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from deit_detr.errors import UserError

SCALE = float(os.environ.get('FUZZ_SCALE', 1))

#: Events of Python's audit hooks that mean that a program or a connection was started.
STARTED = {'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'socket.connect', 'pty.spawn'}
#: Events that change files, and which argument is the path.
CHANGED = {
    'os.mkdir': 0, 'os.remove': 0, 'os.rename': 1, 'os.rmdir': 0, 'os.symlink': 1, 'os.truncate': 0, 'os.chmod': 0,
    'os.link': 1}
_watched: list[tuple[Path, list[str]]] = []


def cases(number: int) -> settings:
    """Return hypothesis settings: ``number`` cases in CI."""
    return settings(
        max_examples=max(1, round(number * SCALE)), derandomize=SCALE <= 1, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])


def _audit(event: str, arguments: tuple) -> None:
    if not _watched:
        return
    folder, events = _watched[-1]
    if event in STARTED:
        events.append(f'{event}{arguments[:2]}')
        return
    writes = event == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    path = arguments[CHANGED.get(event, 0)] if writes or event in CHANGED else None
    if isinstance(path, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(path)).absolute()
        if not path.is_relative_to(folder) and path.parts[1:2] != ('dev',):
            events.append(f'{event} {path}')


sys.addaudithook(_audit)


@contextmanager
def contained(folder: Path) -> Iterator[list[UserError]]:
    """Check that a block works or raises a UserError with a message, starts no program, and writes only to ``folder``.

    After an error, the folder must have its earlier contents. Yields a list, which gets the error.
    """
    before = _contents(folder)
    errors, events = [], []
    _watched.append((folder.absolute(), events))
    try:
        yield errors
    except UserError as error:
        errors.append(error)
        assert len(str(error)) > 10
    finally:
        _watched.pop()
    assert events == []
    after = _contents(folder)
    assert not [path for path in after - before if path.name.startswith('.')], 'a temporary file is left'
    if errors:
        assert after == before, 'partial output'


def _contents(folder: Path) -> set[Path]:
    return {Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)}


def peak_memory(function: Callable[[], object]) -> float:
    """Return by how much a function raises the peak memory of the process, in MB."""
    if not Path('/proc/self/clear_refs').exists():
        pytest.skip('needs Linux')

    def memory(field: str) -> float:
        text = Path('/proc/self/status').read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field)) / 1000

    Path('/proc/self/clear_refs').write_text('5')  # begins a new peak
    before = memory('VmRSS')
    function()
    return memory('VmHWM') - before


#: Values that do not belong where a file has them.
ODD_VALUES = st.sampled_from([
    None, True, False, 0, -1, 1, 1.5, -0.0, float('nan'), float('inf'), -float('inf'), 1e308, 10 ** 20, 10 ** 400,
    -2 ** 63, '', '1', 'chair', '../../../etc/passwd', '/etc/passwd', 'C:\\x', '..\\x', 'a\0b', 'a\nb', '\ud800',
    'x' * 300, [], {}, [[]], [None], {'id': 1}, [1, 2, 3, 4], ['a'], [1e308, 1e308, 1e308, 1e308],
])


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Draw a damaged copy of the bytes."""
    if not data:
        return data
    kind = draw(st.sampled_from(['cut', 'flip', 'insert', 'drop', 'zeros', 'junk']))
    place = draw(st.integers(0, len(data) - 1))
    if kind == 'cut':
        return data[:place]
    if kind == 'flip':
        result = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            result[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(result)
    if kind == 'insert':
        return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
    if kind == 'drop':
        return data[:place] + data[place + draw(st.integers(1, 16)):]
    if kind == 'zeros':
        return data[:place] + bytes(len(data) - place)
    return data[:place] + draw(st.binary(max_size=64))


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the paths to all values in nested lists and dicts."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(value: object, path: tuple, new: object) -> object:
    """Return a copy with another value at a path; ``...`` removes the value."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        items = {name: changed(item, rest, new) if name == key else item for name, item in value.items()}
        return {name: item for name, item in items.items() if item is not ...}
    items = [changed(item, rest, new) if index == key else item for index, item in enumerate(value)]
    return [item for item in items if item is not ...]
