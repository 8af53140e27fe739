"""The vocabulary of failure.

* nothing to do: not an error;
* `BadInput`: one object, or a whole tile, that can never be processed as it is: quarantined with its reason, not
  tried again until the input changes;
* `InputChanged`: files changed while they were read: that unit fails, the next run does it;
* transient: an `OSError` of the system (disk, network), or a lost cluster, retried, then counted;
* anything else is a bug: that unit fails with its traceback and the run goes on.

`UserError` is what a person can put right: a wrong setting, an empty folder. The command line prints it without a
traceback.
"""

from __future__ import annotations

import errno
from enum import StrEnum


class UserError(Exception):
    """Something the user can put right; the message says what was expected, what was found and what to do."""


class WorkerMismatch(UserError):
    """A worker that came after the preflight cannot do the run: other software, or it does not see the folders."""


class ClusterLost(ConnectionError):
    """Scheduler or workers went away under the work; what is committed stays, and running again goes on from there."""


class NoTiles(UserError):
    """There is no sky tile where a run looks: a mistake of a person who asked for it, nothing to do for a schedule."""


class Reason(StrEnum):
    """Why an input was quarantined."""

    UNREADABLE_FILE = "unreadable_file"
    EMPTY_FILE = "empty_file"
    WRONG_SHAPE = "wrong_shape"
    TOO_LARGE = "too_large"
    WRONG_BANDS = "wrong_bands"
    NO_WCS = "no_wcs"
    NO_POSITION = "no_position"
    ARRAYS_DIFFER = "arrays_differ"
    MISSING_DATASET = "missing_dataset"
    DUPLICATE_OBJECT_ID = "duplicate_object_id"
    OUT_OF_FOOTPRINT = "out_of_footprint"
    MISSING_CATALOGUE = "missing_catalogue"
    BRICK_MISMATCH = "brick_mismatch"
    WRONG_COLOUR_RULE = "wrong_colour_rule"
    UNSAFE_NAME = "unsafe_name"
    CHECKSUM_DIFFERS = "checksum_differs"


class BadInput(Exception):
    """Input that cannot be used, with a reason code and details for a person.

    `exception` names what a parser raised, empty if our own check found it.
    """

    def __init__(self, reason: Reason, detail: str, exception: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.exception = exception

    def __reduce__(self) -> tuple[type[BadInput], tuple[Reason, str, str]]:
        return BadInput, (self.reason, self.detail, self.exception)  # comes back from another process as it was


class InputChanged(Exception):
    """The files of a tile are not those that were found when the run began; the next run will find the new ones."""


# Failures of the system, not of the content: worth another try. A vanished or unreadable file is not among them.
_TRANSIENT = {
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ECONNRESET,
    errno.EREMOTEIO,
}


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the operating system or the cluster failed, not the content of the file."""
    return isinstance(error, ClusterLost) or (isinstance(error, OSError) and error.errno in _TRANSIENT)
