"""Errors caused by input, printed as one sentence instead of a traceback."""

import errno
import sys
from contextlib import suppress

#: Errors of the system for a full disk, a used-up quota and a file that is too large.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input. The message names the file, the field and the fix; the user sees nothing else."""


class CannotWrite(UserError, OSError):
    """A file or folder that cannot be written. The arguments are those of ``OSError``: errno, its text, the path."""

    def __str__(self) -> str:
        advice = '. Files written before are whole: make room and run this again, a training with --resume'
        return f'{self.filename}: cannot be written ({self.strerror}){advice if self.errno in DISK_FULL else ""}'


def printable(text: str) -> str:
    """Return the text in one line, with line breaks and control characters escaped."""
    return ''.join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def print_last(*lines: str) -> None:
    """Print to standard error, after everything that was printed before to standard output."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
    print(*lines, sep='\n', file=sys.stderr)
