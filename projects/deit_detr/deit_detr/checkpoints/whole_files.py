"""Writing files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


@contextmanager
def replacing(path: str | Path) -> Iterator[BufferedWriter]:
    """Write a file beside its place and rename it when it is on the disk: nobody ever sees half of it.

    Args:
        path: The file; folders are made. If anything fails, what was there before stays.

    Yields:
        BufferedWriter: What to write to.

    Raises:
        OSError: Names the file, also when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> list[str]:
    """Delete what a process that was killed in the middle of :func:`replacing` has left.

    Args:
        folder: No other process writes checkpoints to it.

    Returns:
        list[str]: The names.
    """
    leftovers = sorted(Path(folder).glob('.*.pth.*.tmp'))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return [path.name for path in leftovers]


class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files, with :func:`replacing`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        with replacing(filepath) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file."""
        self.put(obj.encode(encoding), filepath)


def write_whole_files() -> None:
    """Let mmengine write all its local files, checkpoints above all, whole or not at all."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
