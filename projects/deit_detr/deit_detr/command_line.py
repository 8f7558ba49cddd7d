"""Run a tool's ``main`` and print errors as sentences."""

import re
import sys
from collections.abc import Callable

from deit_detr.errors import DISK_FULL, CannotWrite, UserError, print_last, printable
from deit_detr.import_errors import explain

#: EX_TEMPFAIL of sysexits.h: not an error, try again. Python, shells and torchrun do not use it themselves.
REQUEUE_STATUS = 75


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line's ``main`` and exit with its status.

    Args:
        main: Returns the exit status; ``None`` counts as 0.

    Raises:
        SystemExit: Always. The status is 2, with a sentence on standard error, for a :class:`UserError`, a full disk
            or a package that cannot be imported, and 130 for Ctrl-C.
    """
    try:
        sys.exit(main() or 0)
    except SystemExit as end:
        if end.code in (0, REQUEUE_STATUS):  # all processes have come to this point
            _leave_processes()
        raise
    except UserError as error:
        print_last(*map(printable, f'error: {error}'.split('\n')))
        sys.exit(2)
    except ImportError as error:  # of an import inside a function
        # mmengine's "Failed to import" of custom_imports names no package; usually a module of the user failed. That of
        # a class in a pure-Python config names the config's line.
        sentence = explain(error) if error.name or 'install' in str(error) else (
            str(error) if re.match(r'Failed to import .* in .*, line \d', str(error)) else None)
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


def _leave_processes() -> None:
    """Leave the other processes of a training, where all of them have come to their end.

    Otherwise threads of PyTorch's gloo may free tensors while the interpreter ends, and abort a process whose work is
    done (pytorch/pytorch#179291): the launcher then reports a failure. After an error it is not called: processes that
    still wait for this one would keep it from ending.
    """
    distributed = sys.modules.get('torch.distributed')
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
