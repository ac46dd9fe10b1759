"""What an API server refuses with: Status objects, in the words of the real one."""

from __future__ import annotations

from typing import Any

from sandbox.kube.kinds import Kind


class RefusalError(Exception):
    """Ends a request; `status` is the HTTP status code and `document` the Status object."""

    def __init__(self, status: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.document: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            **({"details": details} if details is not None else {}),
            "code": status,
        }


def bad_request(message: str) -> RefusalError:
    return RefusalError(400, "BadRequest", message)


def not_found(kind: Kind, name: str) -> RefusalError:
    return RefusalError(404, "NotFound", f'{kind.resource} "{name}" not found', _details(kind, name))


def already_exists(kind: Kind, name: str) -> RefusalError:
    return RefusalError(
        409, "AlreadyExists", f'{kind.resource} "{name}" already exists', _details(kind, name)
    )


def conflict(kind: Kind, name: str, why: str, *, subject: str = "") -> RefusalError:
    message = f'Operation cannot be fulfilled on {subject or kind.resource} "{name}": {why}'
    return RefusalError(409, "Conflict", message, _details(kind, name))


def modified(kind: Kind, name: str) -> RefusalError:
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(kind, name, why)


def invalid(
    kind: Kind, name: str, field: str, why: str, *, reason: str = "FieldValueInvalid"
) -> RefusalError:
    details = _details(kind, name) | {"kind": kind.kind}
    details["causes"] = [{"reason": reason, "message": why, "field": field}]
    return RefusalError(422, "Invalid", f'{kind.qualified} "{name}" is invalid: {field}: {why}', details)


def expired(revision: int, oldest: int) -> RefusalError:
    return RefusalError(410, "Expired", f"too old resource version: {revision} ({oldest})")


def unprocessable() -> RefusalError:
    """A JSON patch that does not apply."""
    return RefusalError(422, "Invalid", "the server rejected our request due to an error in our request", {})


def _details(kind: Kind, name: str) -> dict[str, Any]:
    return {"name": name, **({"group": kind.group} if kind.group else {}), "kind": kind.plural}
