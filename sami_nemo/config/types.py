"""Types of the configuration's fields, and what they refuse."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from sami_nemo.config.address import web_address
from sami_nemo.config.request import request_parameters

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Of one file or directory, in bytes: Linux's limit.
LONGEST_FILE_NAME = 255


def _number_as_text(value: Any) -> Any:
    """Environment variables such as OMP_NUM_THREADS look like numbers in YAML."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _path(value: str) -> str:
    """Longer names are no name of a file anywhere, and make Python's questions about files fail."""
    if "\0" in value or any(len(name.encode()) > LONGEST_FILE_NAME for name in value.split("/")):
        raise ValueError(f"no path; the names in it have {LONGEST_FILE_NAME} bytes at most")
    return value


PathText = Annotated[str, AfterValidator(_path)]
WebAddress = Annotated[str, AfterValidator(web_address)]
RequestParameters = Annotated[dict[str, Any], AfterValidator(request_parameters)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
EnvironmentText = Annotated[str, BeforeValidator(_number_as_text)]


class Section(BaseModel):
    """A group of settings: immutable, strict about types, without room for unknown keys, and without blank texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        """A blank path is the working directory, a blank name anything: never what was meant."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.strip():
                raise ValueError("is blank; give a value, or leave the key out")
        return value
