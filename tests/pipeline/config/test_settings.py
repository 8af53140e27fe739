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
    settings = open_workspace(tmp_path, ["training.epochs=3", "workers.count = 5"]).settings
    assert (settings.training.epochs, settings.training.variant) == (3, "cpu_tiny")
    assert (settings.workers.kind, settings.workers.count) == ("local", 5)
    assert open_workspace(tmp_path, ["workers.count=4", "workers.count=6"]).settings.workers.count == 6


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


RENAMED = {
    "training.optimiser": ("training.optimizer", '"lookahead_radam"'),
    "workers.gang": ("workers.train_processes", "3"),
    "workers.deaths": ("workers.max_worker_deaths", "3"),
    "workers.give_up": ("workers.max_consecutive_failures", "3"),
    "workers.n": ("workers.count", "3"),
    "workers.patience": ("workers.patience_seconds", "3.0"),
    "survey.settle": ("survey.settle_seconds", "3.0"),
    "retraining.quiet": ("retraining.quiet_seconds", "3.0"),
    "gate.chance": ("gate.significance", "0.03"),
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_works_with_a_warning(tmp_path: Path, old: str, caplog: pytest.LogCaptureFixture) -> None:
    new, value = RENAMED[old]
    section, _, key = old.partition(".")
    expected = open_workspace(tmp_path, [f"{new}={value}"]).settings
    assert expected != Settings() and not caplog.records
    assert open_workspace(tmp_path, [f"{old}={value}"]).settings == expected
    assert open_workspace(written(tmp_path, f"[{section}]\n{key} = {value}\n")).settings == expected
    assert {record.getMessage() for record in caplog.records} == {
        f"{where}: {old} is now called {new}; the old name works for this release only"
        for where in ("--set", tmp_path / FILE_NAME)
    }
    assert f"\n{new.partition('.')[2]} = {value}  #" in to_toml(expected) and f"\n{key} = " not in to_toml(expected)


def test_an_override_wins_over_the_file_whichever_names_they_use(tmp_path: Path) -> None:
    written(tmp_path, "[workers]\nn = 4\n")
    assert open_workspace(tmp_path, ["workers.count=5"]).settings.workers.count == 5
    assert open_workspace(tmp_path, ["workers.n=6"]).settings.workers.count == 6


def test_one_setting_by_both_names_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"morphcat\.toml: workers\.count is given twice, by its old name too"):
        open_workspace(written(tmp_path, "[workers]\nn = 4\ncount = 4\n"))


def test_files_keep_the_names_that_ids_were_computed_over() -> None:
    """The digest is the one that the version before the new names gave for the same settings."""
    assert Settings().digest() == "7dfc4d688c4da821"
    plain = Settings().model_dump()
    assert all(old.partition(".")[2] in plain[old.partition(".")[0]] for old in RENAMED)
    assert (
        Settings.model_validate(plain) == Settings.model_validate(Settings().model_dump(by_alias=False)) == Settings()
    )
