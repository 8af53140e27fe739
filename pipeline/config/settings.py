"""All settings: one TOML file in the workspace plus `--set section.key=value`.

Each section is a frozen model that stands with its owner; unknown names are errors that say which name is nearest.
Reading settings has no side effects.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config.drift import DriftSettings
from pipeline.config.inputs import BrickSettings, InputSettings, ReadingSettings
from pipeline.config.promotion import GateSettings
from pipeline.config.renamed import old_names, warn_of_old_name
from pipeline.config.service import RetrainingSettings, ServeSettings
from pipeline.config.survey import FolderSettings, ReleaseSettings, SurveySettings
from pipeline.config.training import TrainingSettings
from pipeline.config.workers import WorkerSettings
from pipeline.core.errors import UserError


class Settings(BaseModel):
    """Every setting of a workspace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    workers: WorkerSettings = WorkerSettings()
    survey: SurveySettings = SurveySettings()
    release: ReleaseSettings = ReleaseSettings()
    drift: DriftSettings = DriftSettings()
    input: InputSettings = InputSettings()
    bricks: BrickSettings = BrickSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    serve: ServeSettings = ServeSettings()
    folders: FolderSettings = FolderSettings()

    @property
    def reading(self) -> ReadingSettings:
        """What the readers need."""
        return ReadingSettings(input=self.input, bricks=self.bricks)

    def digest(self) -> str:
        """Sixteen hexadecimal digits over every setting."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def read_settings(path: Path, overrides: Iterable[str] = ()) -> Settings:
    """The settings in a TOML file, which need not exist, with `section.key=value` overrides.

    Raises
    ------
    UserError : the file is no TOML, or a name or value is not known; the message names the nearest known one.
    """
    values: dict[str, Any] = {}
    if path.is_file():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a TOML file ({error})") from error
    return _validated(_current_names(values, str(path)), overrides)


def to_toml(settings: Settings) -> str:
    """The settings as a TOML file that explains itself."""
    lines = ["# Settings of a morphcat workspace. Delete what you do not change."]
    for section, model in settings:
        lines += ["", f"[{section}]"]
        for key, field in type(model).model_fields.items():
            lines.append(f"{key} = {_as_toml(getattr(model, key))}  # {field.description}")
    return "\n".join(lines) + "\n"


def _as_toml(value: Any) -> str:
    """A setting as TOML: what JSON writes, but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_as_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _validated(values: dict[str, Any], overrides: Iterable[str]) -> Settings:
    for override in overrides:
        section, key, value = _split(override)
        values.setdefault(section, {}).update(_current_names({section: {key: value}}, "--set")[section])
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise UserError("settings: " + "; ".join(problems)) from error


def _split(override: str) -> tuple[str, str, Any]:
    """`section.key=value`, the value read as TOML where it is TOML, else as a string."""
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {override!r}: expected section.key=value, such as workers.count=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return section, key, value


def _current_names(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same settings under their present names; UserError for a name that is unknown or given twice."""
    current: dict[str, Any] = {}
    sections = dict(_sections())
    for section, keys in values.items():
        if not isinstance(keys, dict):
            raise _unknown(section, where)
        if section not in sections:
            raise _unknown(".".join([section, *list(keys)[:1]]), where)
        model = sections[section]
        renamed = old_names(model)
        current[section] = {}
        for key, value in keys.items():
            name = renamed.get(key, key)
            if name not in model.model_fields:
                raise _unknown(f"{section}.{key}", where)
            if name in current[section]:
                raise UserError(f"{where}: {section}.{name} is given twice, by its old name too; keep {section}.{name}")
            if key in renamed:
                warn_of_old_name(where, f"{section}.{key}", f"{section}.{name}")
            current[section][name] = value
    return current


def _unknown(name: str, where: str) -> UserError:
    near = difflib.get_close_matches(name, list(_names()), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`morphcat config` lists all settings"
    return UserError(f"{where}: unknown setting {name!r} ({hint})")


def _names() -> Iterator[str]:
    for section, model in _sections():
        yield from (f"{section}.{key}" for key in model.model_fields)


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for section, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        yield section, model
