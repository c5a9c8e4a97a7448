"""What a user can get wrong, and how it is told: one line, exit status 2, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

EXIT_USER_ERROR = 2


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
