"""The whole error hierarchy: what a person can mend, what the gate refused, and everything else.

Each class carries the process exit code; HTTP and gRPC map the same classes in one place of their own.
"""

from __future__ import annotations


class DarkroomError(Exception):
    """Any failure that Darkroom itself raises on purpose."""

    exit_code = 3


class UserError(DarkroomError):
    """Something a person can mend; the text names the file, key or row and says how."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe key is unknown, has the wrong type or is out of range."""


class SourceError(UserError):
    """A data source is missing, unreadable or contradicts itself."""


class NotFound(UserError):
    """A named thing (model, version, run, result) does not exist."""


class NeedsTorch(UserError):
    """What was asked for is computed by torch, which this process has not."""


class ImageError(DarkroomError):
    """Bytes that are not an image we accept.

    `reason` is one of the stable codes that the quarantine table and HTTP problems show.
    """

    exit_code = 2

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class GateRejected(DarkroomError):
    """A gate said no: the data or the model is not good enough to go on."""

    exit_code = 1


class DeploymentFailed(DarkroomError):
    """A deployment did not become ready or failed its proof; what served before still serves."""

    exit_code = 1


class IntegrityError(DarkroomError):
    """Stored bytes do not match their digest."""


class PlatformError(DarkroomError):
    """A platform process is down or does not answer."""
