"""Run a check without letting it stop or outshout the others."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from mmengine.logging import MMLogger

from deit_detr.engine.start.findings import FAIL, Finding
from deit_detr.errors import UserError


def look(check: str, function: Callable[..., tuple[str, str]], *args) -> Finding:
    """Run a check; whatever it raises is a failure, so that the checks after it run all the same.

    Args:
        check: Name of its row.
        function: Returns status and message, or raises.
        *args: For the function. One that is an exception, because it could not be made, is raised.
    """
    return as_finding(check, attempt(function, *args))


def as_finding(check: str, result: tuple[str, str] | UserError) -> Finding:
    """The row of a check: what it returned, or a failure."""
    return Finding(check, FAIL, str(result)) if isinstance(result, UserError) else Finding(check, *result)


def attempt(function: Callable, *args):
    """The function's result, quietly, or a ``UserError`` with what went wrong."""
    for value in args:
        if isinstance(value, UserError):
            return value
    try:
        with _quiet():
            return function(*args)
    except UserError as error:
        return error
    except Exception as error:  # of code and data that are yet to be trusted
        return UserError(f'{type(error).__name__}: {error}'.replace('\n', ' '))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries print, log and warn out of the way: the findings say it in one line each."""
    logger = MMLogger.get_current_instance()

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.removeFilter(drop)
