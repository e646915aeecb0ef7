"""The errors of the project, named by what the caller must do.

TidemarkError
├── InvalidInput        fix the input; nothing was written
├── Refused             the request was understood and not allowed (credentials, role, account)
├── Transient           the same call may succeed later; retry after `retry_after_s`
├── Fenced              another process owns this partition's state; stop, restart at the checkpoint
└── OperatorNeeded      going on would risk the counts; stop loudly, a person must choose
    └── HeldUp          one store says no for good; stop, unless what you do can wait for it without harm
"""

from __future__ import annotations


class TidemarkError(Exception):
    """The root of every error this project raises on purpose; its message says the remedy."""


class InvalidInput(TidemarkError):
    """The input is wrong in the named field: correct it and send it again. Nothing was written."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Refused(TidemarkError):
    """The credentials do not allow this; use a key with the role and account the message names."""


class Transient(TidemarkError):
    """A dependency did not answer or asked to wait; the same call may be repeated after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Fenced(TidemarkError):
    """The stored checkpoint is not what this process believes: another process committed. Stop and restart at the
    checkpoint."""


class OperatorNeeded(TidemarkError):
    """Going on could lose or repeat a count. The process stops; the message says what to choose from."""


class HeldUp(OperatorNeeded):
    """A store says no, and will until a person acts. What needs it stops; who can let it wait goes on, and says so."""
