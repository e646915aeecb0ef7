"""The errors of the project, named by what the caller must do.

TidemarkError
├── InvalidInput        fix the input; nothing was written
├── Refused             the request was understood and not allowed (credentials, role, account)
├── Transient           the same call may succeed later; retry after `retry_after_s`
├── Fenced              another process owns this partition's state; stop, restart at the checkpoint
└── OperatorNeeded      going on would risk the counts; stop with the remedy, an operator must choose
    └── HeldUp          a store rejects the call permanently; stop, unless the work can wait
"""

from __future__ import annotations


class TidemarkError(Exception):
    """The root of every error that this project raises on purpose; the message has the remedy."""


class InvalidInput(TidemarkError):
    """The input is wrong in the named field: correct it and send it again. Nothing was written."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Refused(TidemarkError):
    """The credentials do not allow this; use a key with the role and account that the message names."""


class Transient(TidemarkError):
    """A dependency did not answer or asked to wait; the same call may be repeated after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Fenced(TidemarkError):
    """The stored checkpoint is not the one that this process read: another process committed. Stop and restart at the
    checkpoint."""


class OperatorNeeded(TidemarkError):
    """Going on could lose or repeat a count. The process stops; the message has the choices."""


class HeldUp(OperatorNeeded):
    """The store rejects the call permanently; an operator must act. Callers that depend on the store stop; background
    relays log the failure and keep retrying."""
