"""Settings whose names changed: the alias of a field is its old name.

The old name is accepted with a warning where people write settings. Files that the program writes (model cards, run
records, decisions of the gate, grids) keep it, because ids and digests were computed over it.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from pydantic import BaseModel, ConfigDict

_log = logging.getLogger(__name__)

RENAMED_FIELDS = ConfigDict(
    frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
)


def old_names(section: type[BaseModel]) -> dict[str, str]:
    """The present name of each renamed setting of a section, by its old name."""
    return {field.alias: name for name, field in section.model_fields.items() if field.alias}


def by_present_names(section: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a section that the program wrote, under their present names."""
    renamed = old_names(section)
    return {renamed.get(name, name): value for name, value in values.items()}


@functools.cache
def warn_of_old_name(where: str, old: str, new: str) -> None:
    """Log once a process that an old name was used."""
    _log.warning("%s: %s is now called %s; the old name works for this release only", where, old, new)
