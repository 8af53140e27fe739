"""From labels to a verdict: when it is due, that no step is done twice, and that what a person undid stays undone."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from catalogs.labels.checks import ResolvedLabel
from catalogs.labels.store import add, revert
from catalogs.query.sql import query
from catalogs.releases.registry import current_release
from models.artifacts.registry import champion, history, load_card, set_champion
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import recorded_split
from pipeline.promotion import retraining_trigger as due_labels
from pipeline.promotion.promote import roll_back
from pipeline.promotion.retraining import candidate_workspace, decide, measure, nothing_to_learn, train_candidate
from tests.conftest import SMALL_TRAINING, Small
from tests.pipeline import survey_driver
from tests.pipeline.makers import galaxy, write_cutout

EASY_GATE = ("gate.max_ece=1", "gate.max_flips=1", "gate.min_speed=0", "gate.sky_sample=4")


@dataclass(frozen=True)
class Home:
    """A workspace with a champion of its own and six classified objects."""

    workspace: Workspace
    images: ImageSet
    ids: list[int]

    def changed(self, *overrides: str) -> Workspace:
        return open_workspace(self.workspace.root, [*SMALL_TRAINING, *EASY_GATE, "retraining.epochs=1", *overrides])

    def say(self, label: str, objects: Sequence[int], author: str = "A") -> str:
        number = CLASS_SLUGS.index(label)
        version = add(
            self.workspace.labels, [ResolvedLabel(self.ids[i], label, number, 1.0, 2.0) for i in objects], author=author
        ).version
        assert version is not None
        return version.name


@pytest.fixture
def home(small: Small, tmp_path: Path) -> Home:
    shutil.copytree(small.workspace.models, tmp_path / "models")
    workspace = open_workspace(tmp_path, [*SMALL_TRAINING, *EASY_GATE, "retraining.epochs=1"])
    for i in range(6):
        write_cutout(workspace.incoming / "night" / f"g{i}.fits", galaxy(i), ra=150.0 + i / 10, dec=-40.0)
    survey_driver.run(workspace)
    ids = query(workspace.catalog, "SELECT object_id FROM morphology ORDER BY ra")["object_id"].to_pylist()
    return Home(workspace, small.images, ids)


def test_due_while_the_labels_in_force_differ_from_what_the_champion_learned(home: Home) -> None:
    assert due_labels.due(home.workspace) is None
    version = home.say("merging", [0, 1])
    now = due_labels.due(home.workspace)
    assert now is not None and (now.version, now.labels) == (version, 2)
    assert due_labels.due(home.changed("retraining.min_labels=3")) is None
    home.say("merging", [0, 1], author="B")  # another version, the same labels
    again = due_labels.due(home.workspace)
    assert again is not None and again.digest == now.digest and again.version != now.version
    revert(home.workspace.labels, "2", author="A")
    revert(home.workspace.labels, "1", author="A")
    assert due_labels.due(home.workspace) is None


def test_labels_without_any_model_are_an_error_in_words(home: Home) -> None:
    home.say("merging", [0])
    shutil.rmtree(home.workspace.models)
    with pytest.raises(UserError, match="no model yet"):
        due_labels.due(home.workspace)


def test_one_retraining_for_labels_that_keep_coming(home: Home) -> None:
    """Three files within the quiet time: when it returns, the last one is there."""
    home.say("merging", [0])
    quick = home.changed("retraining.quiet_seconds=1.0")
    came: list[float] = []

    def more() -> None:
        for i in (1, 2):
            time.sleep(0.6)
            home.say("merging", [i])
            came.append(time.monotonic())

    writer = threading.Thread(target=more)
    writer.start()
    due_labels.wait_until_quiet(quick)
    ended = time.monotonic()
    writer.join()
    assert len(came) == 2 and ended >= max(came)
    now = due_labels.due(quick)
    assert now is not None and now.labels == 3


def test_the_whole_way_and_no_step_twice(home: Home) -> None:
    first = champion(home.workspace.models)
    assert first is not None
    home.say("merging", [0, 1, 2])
    labels = due_labels.due(home.workspace)
    assert labels is not None
    assert not nothing_to_learn(home.workspace, labels, home.images)
    card = train_candidate(home.workspace, labels, home.images)
    assert due_labels.learned_labels(card) == (labels.version, labels.digest)
    assert card.settings["initial"] == first  # a warm start
    assert (
        recorded_split(home.workspace.models, card, home.images).digest
        == load_card(home.workspace.models, first).split_digest
    )
    report = measure(home.workspace, home.images, card.model_id)
    made = report.stat().st_mtime_ns
    assert measure(home.workspace, home.images, card.model_id).stat().st_mtime_ns == made
    result, verdict = decide(home.workspace, labels, home.images, card.model_id)
    assert result.outcome == ("promoted" if verdict.passed else "refused")
    if not verdict.passed:  # a small network of one epoch: make the story go on as if it were good
        pytest.fail(verdict.why)
    assert (
        champion(home.workspace.models) == card.model_id and history(home.workspace.models)[-1].verdict == verdict.key
    )
    assert due_labels.due(home.workspace) is None
    assert [one["outcome"] for one in due_labels.reports(home.workspace)] == ["promoted"]

    roll_back(home.workspace, None, by="a person", reason="I do not trust it")
    assert champion(home.workspace.models) == first
    assert due_labels.due(home.workspace) is not None  # by level it is due
    assert train_candidate(home.workspace, labels, home.images) == card  # but all is there
    again, _ = decide(home.workspace, labels, home.images, card.model_id)
    assert again.outcome == "promoted before" and champion(home.workspace.models) == first
    other_policy, _ = decide(home.changed("gate.margin=0.03"), labels, home.images, card.model_id)
    assert other_policy.verdict != again.verdict and champion(home.workspace.models) == first


def test_labels_that_cannot_be_used_are_nothing_to_learn(home: Home) -> None:
    """Such as those of objects that are no longer there."""
    add(home.workspace.labels, [ResolvedLabel(99, "merging", CLASS_SLUGS.index("merging"), 1.0, 2.0)], author="A")
    labels = due_labels.due(home.workspace)
    assert labels is not None and nothing_to_learn(home.workspace, labels, home.images)


def test_the_candidate_is_trained_as_the_champion_was_or_as_the_settings_say(home: Home) -> None:
    home.say("merging", [0])
    labels = due_labels.due(home.workspace)
    assert labels is not None
    first = champion(home.workspace.models)
    other = home.changed("training.learning_rate=0.5", "retraining.epochs=0")
    like_champion = candidate_workspace(other, labels).settings.training
    assert (like_champion.learning_rate, like_champion.initial, like_champion.labels) != (0.5, first, labels.version)
    assert like_champion.epochs == load_card(home.workspace.models, str(first)).settings["epochs"]
    like_settings = candidate_workspace(
        home.changed("training.learning_rate=0.5", "retraining.recipe=settings"), labels
    )
    assert like_settings.settings.training.learning_rate == 0.5
    cold = candidate_workspace(home.changed("retraining.warm_start=false"), labels).settings.training
    assert cold.initial == ""
    wider = home.changed("training.layout=CCTT", "retraining.recipe=settings")
    assert candidate_workspace(wider, labels).settings.training.initial == ""  # another network starts afresh


def test_a_new_champion_takes_over_only_when_it_has_seen_the_whole_sky(home: Home, tmp_path: Path) -> None:
    """Tiles surveyed from elsewhere are found again; until all are done, readers keep the old release."""
    elsewhere = tmp_path / "elsewhere" / "other"
    write_cutout(elsewhere / "g.fits", galaxy(9), ra=10.0, dec=5.0)
    survey_driver.run(home.workspace, roots=[elsewhere])
    old = current_release(home.workspace.catalog)
    assert old is not None and old.objects == 7
    card = load_card(home.workspace.models, old.model_id)
    copy = home.workspace.models / "copy-of-it"
    shutil.copytree(home.workspace.models / old.model_id, copy)
    (copy / "card.json").write_text(card.model_copy(update={"model_id": "copy-of-it"}).model_dump_json())
    set_champion(home.workspace.models, "copy-of-it", reason="test")
    partly = survey_driver.run(home.workspace, roots=[home.workspace.incoming])
    assert partly.release == old.release and "held back" in partly.warnings[0]
    whole = survey_driver.run(home.workspace)
    new = current_release(home.workspace.catalog)
    assert new is not None and (new.model_id, new.objects, whole.warnings) == ("copy-of-it", 7, [])
