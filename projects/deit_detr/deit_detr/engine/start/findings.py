"""What a check says."""

from dataclasses import dataclass

from deit_detr.errors import UserError

OK, WARN, FAIL, UNKNOWN = 'ok', 'warn', 'FAIL', 'unknown'


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        check: What was looked at.
        status: ``OK``, ``WARN``, ``FAIL`` or ``UNKNOWN``: it could not be looked at.
        message: What is the case and, unless that is fine, how to change it; one line.
    """

    check: str
    status: str
    message: str


def table(findings: list[Finding]) -> str:
    """The findings as lines of text, in their order."""
    width = max(len(finding.check) for finding in findings)
    return '\n'.join(f'{finding.check:<{width}}  {finding.status:<7}  {finding.message}' for finding in findings)


def require(findings: list[Finding], ignore: tuple[str, ...] = ()) -> None:
    """Stop for all failures at once.

    Args:
        findings: Of all checks.
        ignore: Checks whose failures do not count.

    Raises:
        UserError: With a line for each failure.
    """
    failed = [f'{finding.check}: {finding.message}' for finding in findings
              if finding.status == FAIL and finding.check not in ignore]
    if len(failed) == 1:
        raise UserError(failed[0])
    if failed:
        raise UserError('\n  '.join([f'{len(failed)} of {len(findings)} checks before training failed:', *failed]))
