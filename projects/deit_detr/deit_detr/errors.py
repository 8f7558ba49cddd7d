"""One way to end a command line: a sentence instead of a traceback."""

import errno
import sys
from collections.abc import Callable
from contextlib import suppress

#: Errors of the system that mean: no room is left, the user's share is used up, or the file may not be that large.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input. The message names the file, the field and the fix, and is all the user sees."""


class CannotWrite(UserError, OSError):
    """A file or folder that cannot be written. Made like every ``OSError``, of errno, its text and the path."""

    def __str__(self) -> str:
        advice = '. Files written before are whole: make room and run this again, a training with --resume'
        return f'{self.filename}: cannot be written ({self.strerror}){advice if self.errno in DISK_FULL else ""}'


def printable(text: str) -> str:
    """The text in one line, with escapes in place of line breaks and other characters that steer a terminal."""
    return ''.join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line's ``main`` and exit with its status.

    Args:
        main: Returns the exit status; ``None`` counts as 0.

    Raises:
        SystemExit: Always. Status 2 with one line on standard error for a :class:`UserError`, a full disk or another
            package that cannot be imported, 130 for Ctrl-C.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print_last(*map(printable, f'error: {error}'.split('\n')))
        sys.exit(2)
    except ImportError as error:  # of what is imported late
        from deit_detr.other_packages import explain

        # mmengine's "Failed to import" of custom_imports names no package; behind it is usually a module of the user
        sentence = explain(error) if error.name or 'install' in str(error) else None
        if sentence is None:
            raise
        print_last(f'error: {sentence}')
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print_last(f'error: {CannotWrite(error.errno, error.strerror, error.filename or "a file")}')
        sys.exit(2)
    except KeyboardInterrupt:
        print_last('interrupted')
        sys.exit(130)


def print_last(*lines: str) -> None:
    """Print to standard error; in a file that receives both streams it stands below what was printed before."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
    print(*lines, sep='\n', file=sys.stderr)
