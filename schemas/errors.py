"""The error tree. Every message says where, what was expected, what was seen, and what to do next.

IntegrandError
├── SpecError        the job cannot work as written               exit 2
├── DataError        the input or the output place cannot be used  exit 2
├── TransientError   it may work if it is run again               exit 4
└── IntegrityError   something is not what the plan recorded      exit 6
"""

from integrand.schemas.redaction import redact


class IntegrandError(Exception):
    """Base of every error that Integrand raises on purpose. Secrets in where it was and in what was
    seen are starred out.
    """

    exit_code = 1

    def __init__(
        self, where: str, *, expected: str = "", seen: str = "", next_step: str = ""
    ) -> None:
        self.where = redact(where)
        self.expected = expected
        self.seen = redact(seen)
        self.next_step = next_step
        super().__init__(self.where, expected, self.seen, next_step)

    def __str__(self) -> str:
        parts = [self.where]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.seen:
            parts.append(f"seen: {self.seen}")
        if self.next_step:
            parts.append(f"next: {self.next_step}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between a Ray worker and the driver."""
        words = (self.where, self.expected, self.seen, self.next_step)
        return _rebuild, (type(self), *words)


def _rebuild(
    kind: type[IntegrandError], where: str, expected: str, seen: str, next_step: str
) -> IntegrandError:
    return kind(where, expected=expected, seen=seen, next_step=next_step)


class SpecError(IntegrandError, ValueError):
    """The job cannot work as it is written: a bad field, target, shape or model."""

    exit_code = 2


class DataError(IntegrandError, ValueError):
    """The input cannot be read as described, or the output place cannot be written."""

    exit_code = 2


class TransientError(IntegrandError):
    """A failure that says nothing about the job: storage, network or cluster. Running again
    resumes.
    """

    exit_code = 4


class IntegrityError(IntegrandError):
    """Something is not what the plan recorded: an input, the model, the code or a stored object."""

    exit_code = 6
