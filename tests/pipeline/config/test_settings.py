"""Settings of a workspace: one TOML file, overrides, and errors that say what was meant."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pipeline.config.settings import Settings, to_toml
from pipeline.config.workspace import FILE_NAME, open_workspace
from pipeline.core.errors import UserError


def written(root: Path, text: str) -> Path:
    (root / FILE_NAME).write_text(text, encoding="utf-8")
    return root


def test_without_a_file_everything_has_its_default_and_nothing_is_created(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "W")
    assert workspace.settings == Settings()
    assert not (tmp_path / "W").exists()


def test_the_file_is_read_and_overrides_win(tmp_path: Path) -> None:
    written(tmp_path, '[training]\nepochs = 7\nvariant = "cpu_tiny"\n[workers]\nkind = "local"\n')
    settings = open_workspace(tmp_path, ["training.epochs=3", "workers.n = 5"]).settings
    assert (settings.training.epochs, settings.training.variant) == (3, "cpu_tiny")
    assert (settings.workers.kind, settings.workers.n) == ("local", 5)
    assert open_workspace(tmp_path, ["workers.n=4", "workers.n=6"]).settings.workers.n == 6


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("training.rotate=false", "training", "rotate", False),
        ("training.variant=cpu_tiny", "training", "variant", "cpu_tiny"),
        ('training.variant="cpu_tiny"', "training", "variant", "cpu_tiny"),
        ("folders.models=/somewhere/my models = all", "folders", "models", "/somewhere/my models = all"),
        ("input.picture_rendering=ls-dr8-grz", "input", "picture_rendering", "ls-dr8-grz"),
        ("input.picture_rendering=", "input", "picture_rendering", ""),
    ],
)
def test_overrides_are_typed(tmp_path: Path, override: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(open_workspace(tmp_path, [override]).settings, section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("training.epoch=3", "training.epochs"),
        ("workers.thread=3", "workers.threads"),
        ("trainng.epochs=3", "training.epochs"),
        ("survey.row=3", "survey.rows"),
    ],
)
def test_unknown_names_name_the_nearest(tmp_path: Path, override: str, near: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(UserError) as error:
        open_workspace(tmp_path, [override])
    assert name in str(error.value) and f"did you mean {near}?" in str(error.value) and "--set" in str(error.value)


def test_an_unknown_name_in_the_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"morphcat\.toml: unknown setting 'training\.epoch'.*training\.epochs"):
        open_workspace(written(tmp_path, "[training]\nepoch = 3\n"))
    with pytest.raises(UserError, match=r"zzzzzz.*morphcat config"):
        open_workspace(written(tmp_path, "[zzzzzz]\nqqqqqq = 3\n"))


@pytest.mark.parametrize(
    "override", ["training.epochs=0", "training.epochs=many", "workers.kind=moon", "survey.rows=0"]
)
def test_bad_values_name_the_setting(tmp_path: Path, override: str) -> None:
    name, _, value = override.partition("=")
    with pytest.raises(UserError) as error:
        open_workspace(tmp_path, [override])
    assert name in str(error.value) and value in str(error.value)


@pytest.mark.parametrize("override", ["epochs=3", "training.epochs", "=3", ".=3", "training.=3"])
def test_overrides_of_another_form(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"expected section\.key=value"):
        open_workspace(tmp_path, [override])


@pytest.mark.parametrize("content", [b"[training\n", b"\xff\xfe", b"training = 3\n", b"[[training]]\nepochs = 3\n"])
def test_a_file_that_is_no_settings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"morphcat\.toml"):
        open_workspace(tmp_path, ["training.epochs=3"])


def test_the_written_file_reads_back_and_explains_every_setting(tmp_path: Path) -> None:
    overrides = ["training.learning_rate=1e-7", 'folders.models="a \\"quoted\\" \\\\ näme"', "training.mirror=false"]
    settings = open_workspace(tmp_path, overrides).settings
    text = to_toml(settings)
    assert Settings.model_validate(tomllib.loads(text)) == settings
    assert open_workspace(written(tmp_path, text)).settings == settings
    for _, section in settings:
        for key, field in type(section).model_fields.items():
            assert field.description and f"\n{key} = " in text and field.description in text


def test_relative_folders_start_at_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = open_workspace(Path("W"), ["folders.models=../models", "folders.catalog=/data/catalog"])
    assert workspace.incoming == tmp_path / "W" / "incoming"
    assert workspace.models == tmp_path / "W" / ".." / "models"
    assert workspace.catalog == Path("/data/catalog")


def test_the_digest_follows_every_setting(tmp_path: Path) -> None:
    base = open_workspace(tmp_path).settings
    assert base.digest() == Settings().digest()
    assert open_workspace(tmp_path, ["workers.retries=1"]).settings.digest() != base.digest()
