"""Files that are written whole or not at all: nobody ever reads half of one."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deit_detr.errors import CannotWrite

#: Where something is written until it is whole: a folder beside its place, with the number of the process.
_UNFINISHED = re.compile(r'\.(?P<name>.+)\.(?P<pid>\d+)\.tmp')


@contextmanager
def replacing(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """Write a file, a folder or a link elsewhere, and move it to its place when the block has succeeded.

    Args:
        path: Its place; missing folders are made. What was there before stays if anything fails. A folder can only
            take the place of an empty one.
        flush: Wait until a file is on the disk. Without, a power cut may leave an empty file: of thousands, the caller
            can wait once for all.

    Yields:
        Path: Where to write it: the same name, in a folder of its own. What killed processes left there for this
        path is removed first.

    Raises:
        CannotWrite: If it cannot be written, for instance because the disk is full. It names ``path``.
    """
    path = Path(path)
    folder = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        folder.mkdir()
        yield folder / path.name
        if flush:
            _flush(folder / path.name)
        os.replace(folder / path.name, path)
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        if named and named not in (path, *path.parents) and folder not in (named, *named.parents):
            raise  # of something that the block reads
        raise CannotWrite(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk; a power cut could otherwise leave an empty one in its place."""
    if path.is_file() and not path.is_symlink():
        with path.open('rb') as file:
            os.fsync(file.fileno())


def write_bytes(path: str | Path, content: bytes, flush: bool = True) -> None:
    """Write a file, whole or not at all. ``flush``: see :func:`replacing`."""
    with replacing(path, flush) as part:
        part.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a text in UTF-8, whole or not at all. Surrogates, of file names in other encodings, become ``?``."""
    write_bytes(path, content.encode(errors='replace'))


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + '\n')


def remove_leftovers(folder: str | Path, name: str | None = None) -> list[str]:
    """Delete what killed processes were writing with :func:`replacing`.

    Args:
        folder: Where to look; its subfolders are left alone.
        name: Only for the file or folder of this name. Default: for all.

    Returns:
        list[str]: The names of what was being written.
    """
    removed = []
    for path in sorted(Path(folder).glob('.*.tmp')):
        found = _UNFINISHED.fullmatch(path.name)
        if found and name in (None, found['name']) and not _runs(int(found['pid'])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:  # version 0.1 wrote files of this name
                path.unlink(missing_ok=True)
            removed.append(found['name'])
    return removed


def _runs(pid: int) -> bool:
    """Return whether another process of this machine is running under this pid."""
    with suppress(OSError, OverflowError):
        os.kill(pid, 0)  # asks, and sends nothing
        return pid != os.getpid()
    return False
