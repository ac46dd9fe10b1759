"""What refusals of Azure mean for a pool, and how long it rests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.autoscaling.ledger import (
    BackoffReason,
    Change,
    Ledger,
    failure_by_code,
    failure_of,
    is_busy,
    read_ledger,
)
from shared.autoscaling.policy import Backoff
from shared.errors import ApiError, ConflictError, ForbiddenError, ThrottledError

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
QUOTA = "Operation could not be completed as it results in exceeding approved cores Cores quota."
BUSY = "Operation is not allowed because there's an in progress put operation on agents."


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        ("ZonalAllocationFailed", "", "StockOut"),
        ("AllocationFailed", "", "StockOut"),
        ("OverconstrainedAllocationRequest", "", "StockOut"),
        ("OverconstrainedZonalAllocationRequest", "", "StockOut"),
        ("SkuNotAvailable", "", "StockOut"),
        ("OperationNotAllowed", QUOTA, "Quota"),
        ("QuotaExceeded", "", "Quota"),
        ("SubnetIsFull", "", "Quota"),
        ("PublicIPCountLimitReached", "", "Quota"),
        ("TooManyRequests", "", "Throttled"),
        ("InternalExecutionError", "", "Failed"),
        ("", "", "Failed"),
    ],
)
def test_a_code_says_why(code: str, message: str, reason: str) -> None:
    assert failure_by_code(code, message).reason == reason


@pytest.mark.parametrize(
    ("error", "busy"),
    [
        (ConflictError("x", status=412, code="PreconditionFailed"), True),
        (ConflictError("x", status=412, code="EtagMismatch"), True),
        (ConflictError(BUSY, status=409, code="OperationNotAllowed"), True),
        (ConflictError("x", status=409, code="Conflict"), True),
        (ConflictError("other machines now", code="Changed"), True),
        (ConflictError(QUOTA, status=409, code="OperationNotAllowed"), False),
        (ConflictError("x", status=409, code="SkuNotAvailable"), False),
        (ForbiddenError("x", status=403, code="AuthorizationFailed"), False),
        (ApiError("x", status=400, code="InvalidParameter"), False),
    ],
)
def test_a_pool_that_is_only_busy_is_told_from_one_that_is_refused(error: ApiError, busy: bool) -> None:
    assert is_busy(error) is busy


def test_throttling_rests_as_long_as_azure_says() -> None:
    ledger = Ledger()
    failure = failure_of(ThrottledError("slow down", retry_after_seconds=77))
    rest = ledger.rest("pool", failure, Backoff(), NOW)
    assert (rest.reason, rest.until) == (BackoffReason.THROTTLED, NOW + timedelta(seconds=77))


def test_rests_double_up_to_the_longest() -> None:
    ledger, failure = Ledger(), failure_by_code("AllocationFailed", "")
    minutes = [
        (ledger.rest("pool", failure, Backoff(), NOW).until - NOW).total_seconds() / 60 for _ in range(5)
    ]
    assert minutes == [10, 20, 40, 60, 60]


def test_the_state_of_others_is_kept_and_ours_reads_back() -> None:
    ledger = Ledger(additions=[Change(pool="a", count=3, at=NOW)])
    document = ledger.document({"wishes": {"r": []}, "growths": {"stale": {}}})
    assert document == {
        "wishes": {"r": []},
        "additions": [{"pool": "a", "count": 3, "at": "2026-11-23T10:00:00Z"}],
    }
    assert read_ledger(document) == ledger


def test_changes_are_forgotten_after_an_hour() -> None:
    ledger = Ledger(removals=[Change(pool="a", count=1, at=NOW)])
    ledger.forget_old(NOW + timedelta(minutes=59))
    assert ledger.removals
    ledger.forget_old(NOW + timedelta(minutes=61))
    assert not ledger.removals
