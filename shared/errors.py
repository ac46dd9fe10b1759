"""Every exception the product raises on purpose.

    AutomationError
      SettingsError        fix the configuration; fails at start, CLI exit code 2
      MessageError         a queue message or event that can never be processed
      ApiError             status, code, request id; cause chained
        NotFoundError
        ForbiddenError     a missing role or wrong credentials; retrying is useless
        ConflictError      409/412; observe again next run
        ThrottledError     carries retry_after_seconds
        UnavailableError   5xx, time-out, connection refused; CLI exit code 3
      LostLeaseError       another worker holds the cluster now; stop, write nothing more
      IntegrityError       stored bytes are not what was stored; names the place
      UnsafePlanError      an invariant would break; refuse to act
      RunFailedError       some actions of a run failed; the platform shall deliver again
      NotYetError          an operation goes on by itself; its message shall come again

The text of each is one line that says what happened and what to do, and never holds a secret. Clients
translate SDK errors once; no SDK exception travels further. Declining to act is a reason in a plan, not an
exception. Only `act` catches ApiError, one action at a time; anything unexpected is a bug and travels to the
host untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AutomationError(Exception):
    """Base of all errors raised on purpose; `str(error)` is the one line to show."""


class SettingsError(AutomationError):
    """The configuration, an app setting or a command line argument is wrong."""


class MessageError(AutomationError):
    """A queue message, event or snapshot file that can never be processed as it is."""


class ApiError(AutomationError):
    """A remote API (Azure, Kubernetes, etcd) answered with an error or not at all."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id


class NotFoundError(ApiError):
    """404 with a known code: the thing does not exist."""


class ForbiddenError(ApiError):
    """401/403: wrong credentials or a missing role."""


class ConflictError(ApiError):
    """409/412: somebody else changed it first; observe again."""


class ThrottledError(ApiError):
    """429 or an equivalent; try again after `retry_after_seconds`."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float = 30.0,
        status: int | None = 429,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(ApiError):
    """5xx, a time-out or no connection: nothing is known about the state of the thing."""


class LostLeaseError(AutomationError):
    """This worker's claim on (cluster, automation) is gone; it must not write any more."""


class IntegrityError(AutomationError):
    """Stored bytes differ from what was stored; `place` says where, e.g. `frame 17 of <blob>`."""

    def __init__(self, message: str, *, place: str) -> None:
        super().__init__(message)
        self.place = place


class UnsafePlanError(AutomationError):
    """Acting would break a safety invariant; nothing was written."""


class RunFailedError(AutomationError):
    """A run recorded outcomes of which some failed; raised last, so that the platform delivers again."""


class NotYetError(AutomationError):
    """An operation has begun what it was asked for, and looks again after `seconds`; nothing is wrong.

    `outcomes` (of `shared.model.plan`): what it has done by then, for the journal.
    """

    def __init__(self, message: str, *, seconds: float, outcomes: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.outcomes = outcomes
