"""Running checks one by one, and what they found: a row of a table for each."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO

from mmengine.logging import MMLogger

from deit_detr.errors import UserError

OK, WARN, FAIL, UNKNOWN, IGNORED = 'ok', 'warn', 'FAIL', 'unknown', 'ignored'


@dataclass(frozen=True)
class Finding:
    """The result of a check: a row of the table.

    Attributes:
        check: Name of the check.
        status: ``OK``, ``WARN``, ``FAIL``, ``UNKNOWN`` if the check could not be made, or ``IGNORED`` if it failed and
            the config ignores it.
        message: What was found and, unless that is fine, how to fix it; one line.
    """

    check: str
    status: str
    message: str


def run_check(check: str, function: Callable[..., tuple[str, str]], *args) -> Finding:
    """Run a check. An exception counts as its failure, so that the checks after it still run.

    Args:
        check: Name of its row.
        function: Returns status and message, or raises.
        *args: Its arguments. If one is a ``UserError``, because it could not be made, the check fails with that.
    """
    return as_finding(check, attempt(function, *args))


def as_finding(check: str, result: tuple[str, str] | UserError) -> Finding:
    """Return the row of a check for what it returned or raised."""
    return Finding(check, FAIL, str(result)) if isinstance(result, UserError) else Finding(check, *result)


def attempt(function: Callable, *args):
    """Call a function with its output suppressed; return its result, or a ``UserError`` with what went wrong."""
    for value in args:
        if isinstance(value, UserError):
            return value
    try:
        with _quiet():
            return function(*args)
    except UserError as error:
        return error
    except Exception as error:  # code and data of the user may raise anything
        return UserError(f'{type(error).__name__}: {error}'.replace('\n', ' '))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what libraries print, log and warn: the findings say it in one line each."""
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


def table(findings: list[Finding]) -> str:
    """Format findings as lines of text, in their order."""
    width = max(len(finding.check) for finding in findings)
    return '\n'.join(f'{finding.check:<{width}}  {finding.status:<7}  {finding.message}' for finding in findings)


def mark_ignored(findings: list[Finding], ignore: tuple[str, ...]) -> list[Finding]:
    """Return findings in which failures of the named checks have the status ``IGNORED``."""
    return [
        replace(finding, status=IGNORED) if finding.status == FAIL and finding.check in ignore else finding
        for finding in findings]


def require(findings: list[Finding]) -> None:
    """Raise one error for all failures.

    Args:
        findings: The findings of all checks.

    Raises:
        UserError: If a check failed, with a line for each failure.
    """
    failed = [f'{finding.check}: {finding.message}' for finding in findings if finding.status == FAIL]
    if len(failed) == 1:
        raise UserError(failed[0])
    if failed:
        raise UserError('\n  '.join([f'{len(failed)} of {len(findings)} checks before training failed:', *failed]))
