"""What a user can get wrong, and how it is told: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence

EXIT_USER_ERROR = 2
# What a disk answers to a write alone: it is full, over quota or read-only, or its files may not grow as large.
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class UserError(Exception):
    """A mistake that the user can mend; shown as one line without a traceback.

    Args:
        field: what is wrong: a configuration key, a file, a package.
        value: the value found.
        remedy: what to do about it.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        # One line; spaces stay, because a remedy may be a command to be pasted.
        lines = f"{field} = {value}: {remedy}".splitlines()
        super().__init__(" ".join(filter(None, map(str.strip, lines))))


class ConfigError(UserError):
    """A configuration that cannot work."""


class DataError(UserError):
    """A data file or data set that cannot be used."""


class EnvironmentMismatch(UserError):
    """Packages, devices or programs other than the ones a run needs."""


class RunDirectoryError(UserError):
    """A run directory in a state that a command cannot go on from."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete or does not match what it should."""


class EndpointError(UserError):
    """A model behind an address that cannot be asked."""


class HubError(UserError):
    """The Hugging Face hub refuses, or cannot be asked."""


class TrainingDiverged(UserError):
    """A loss or gradient that is not finite."""


class StorageError(UserError):
    """A disk that takes no more."""


class SeveralErrors(UserError):
    """Mistakes that were found together: a line each. Field, value and remedy are those of the first."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__(errors[0].field, errors[0].value, errors[0].remedy)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(dict.fromkeys(map(str, self.errors)))


def together(errors: Sequence[UserError]) -> UserError:
    """One error as it is, several as one."""
    flat = [each for error in errors for each in (error.errors if isinstance(error, SeveralErrors) else (error,))]
    return flat[0] if len(flat) == 1 else SeveralErrors(flat)


def failures(checks: Iterable[Callable[..., object]], *arguments: object) -> list[UserError]:
    """What each of the checks raises, given the same arguments."""
    errors: list[UserError] = []
    for check in checks:
        try:
            check(*arguments)
        except UserError as error:
            errors.append(error)
    return errors


def raise_all(errors: Sequence[UserError]) -> None:
    """Raise what was found; nothing if there is nothing.

    Raises:
        UserError: the only one, or all of them together.
    """
    if errors:
        raise together(errors)


def storage_error(error: BaseException, place: object) -> StorageError | None:
    """What a disk that is full, over quota or read-only makes of a write, as one line; None of any other error.

    Args:
        place: what was written, if the error does not name it.
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number in DISK_REFUSES else None
    if reason is None:
        # Libraries in other languages have types of their own for it, and quote the system's words.
        words = [os.strerror(each) for each in DISK_REFUSES]
        reason = next((line.strip() for line in str(error).splitlines() if any(each in line for each in words)), None)
    if reason is None:
        return None
    where = error.filename if isinstance(error, OSError) and error.filename else place
    remedy = "free space or make it writable, or set runs_dir= to another disk; the same command goes on from here"
    return StorageError(str(where), f"({reason})", remedy)


def user_error(error: BaseException, place: object) -> UserError | None:
    """The line that a user can mend an error by; None if it is the program's.

    Args:
        place: what was written, if it is a disk that takes no more and the error does not name it.
    """
    return error if isinstance(error, UserError) else storage_error(error, place)


def tell(line: object) -> None:
    """Print a last line on stderr.

    An output that takes nothing, on a full disk or a closed pipe, is given up: Python would complain when it closes it.
    """
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
