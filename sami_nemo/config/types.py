"""Types of the configuration's fields, and what they refuse."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from sami_nemo.config.address import web_address
from sami_nemo.config.request import request_parameters

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Of one file or directory, in bytes: Linux's limit.
LONGEST_FILE_NAME = 255


# What bash sets itself, whatever a script exports, or does not let it set (bash 5, by trying each).
BASH_OWN = re.compile(
    "_|BASHOPTS|BASHPID|BASH_(ALIASES|ARGC|ARGV|CMDS|COMMAND|LINENO|SOURCE|SUBSHELL|VERSINFO)|DIRSTACK|EPOCHREALTIME|"
    "EPOCHSECONDS|EUID|FUNCNAME|GROUPS|HISTCMD|LINENO|OPTIND|PIPESTATUS|PPID|RANDOM|SECONDS|SHELLOPTS|SRANDOM|UID"
)
# What launch/slurm/job.sh.j2 sets behind the user's variables.
SCRIPT_OWN = re.compile("stage|in_stage|head|work|status|SAMI_EVENTS|SAMI_STOP")
VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def _exportable(name: str) -> str:
    """A variable that a job's script can hand on to its stage."""
    if not VARIABLE.fullmatch(name):
        raise ValueError("no name of a variable; letters, digits and _ make one, and it begins with no digit")
    if BASH_OWN.fullmatch(name) or SCRIPT_OWN.fullmatch(name):
        raise ValueError("is set by bash or the script of a job; choose another name")
    return name


def _line(value: str) -> str:
    """What a line of a script can hold; half characters are what Python makes of bytes that are not UTF-8."""
    if re.search("[\0\n\ud800-\udfff]", value):
        raise ValueError("has a line break, or what is no character; give one line of text in UTF-8")
    return value


def _path(value: str) -> str:
    """Longer names are no name of a file anywhere, and make Python's questions about files fail."""
    if any(len(name.encode()) > LONGEST_FILE_NAME for name in _line(value).split("/")):
        raise ValueError(f"no path; the names in it have {LONGEST_FILE_NAME} bytes at most")
    return value


PathText = Annotated[str, AfterValidator(_path)]
WebAddress = Annotated[str, AfterValidator(web_address)]
RequestParameters = Annotated[dict[str, Any], AfterValidator(request_parameters)]
VariableName = Annotated[str, Field(pattern=rf"^{VARIABLE.pattern}$")]
VariableToExport = Annotated[str, AfterValidator(_exportable)]
Line = Annotated[str, AfterValidator(_line)]


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
