"""Labels of people as training images: who is right at one position, what is left out, and what a model says of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from catalogs.errors import CatalogError
from catalogs.labels import store
from catalogs.labels.checks import ResolvedLabel
from catalogs.query.sql import query
from models.artifacts.registry import load_card
from models.errors import ModelError
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.classes import CLASS_SLUGS
from pipeline.core.errors import UserError
from pipeline.core.progress import progress_display
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import Split, recorded_split
from pipeline.survey.prediction import pixel_digests
from pipeline.training.ensembles import ensemble
from pipeline.training.human_labels import usable, with_human_labels
from pipeline.training.plan import can_start_from, plan_training, preprocessing_for, split_of
from pipeline.training.train import train
from pipeline.training.training_set import TrainingSet
from tests.conftest import SMALL_TRAINING, Small
from tests.pipeline import survey_driver
from tests.pipeline.makers import galaxy, write_cutout

ARCSEC = 1 / 3600
OTHER = "irregular"  # no class of the images
_FREE = 20.0  # degrees; right ascension of objects that are near no labelled image, at a declination where none is


class Killed(BaseException):
    """Stands for the end of the process between two epochs."""


@dataclass(frozen=True)
class Sky:
    """A workspace with the small model, a survey of cutouts by name, and three versions of labels of them."""

    workspace: Workspace
    images: ImageSet
    parts: Split
    model_id: str
    ids: dict[str, int]
    versions: tuple[str, ...]

    def changed(self, *overrides: str) -> Workspace:
        return open_workspace(self.workspace.root, [*SMALL_TRAINING, "training.epochs=1", *overrides])

    def training_set(self, *overrides: str, images: ImageSet | None = None) -> TrainingSet:
        workspace, images = self.changed(f"training.labels={self.versions[1]}", *overrides), images or self.images
        recipe = preprocessing_for(workspace.settings.training, images)
        return with_human_labels(workspace, TrainingSet.of(images, self.parts), recipe)

    def plan_id(self, *overrides: str) -> str:
        return plan_training(self.changed(*overrides), self.images).model_id

    @property
    def at_train(self) -> int:
        """The training image that the object `on a training image` lies on."""
        return int(self.parts.train[5])


def places(images: ImageSet, parts: Split) -> dict[str, tuple[float, float]]:
    """Objects of the sky by name, and where they are, in degrees."""

    def at(row: int, arcsec: float = 0.0) -> tuple[float, float]:
        return float(images.ra[row]), float(images.dec[row]) + arcsec * ARCSEC

    free = ("alone", "older", "newer", "this", "that", "other class", "changed", "gone", "blank", "unlabelled")
    return {
        "on a test image": at(parts.test[0]),
        "by a validation image": at(parts.validation[0], 0.5),
        "on a training image": at(parts.train[5]),
        "near a training image": at(parts.train[6], 3),
        **{name: (_FREE + i / 10, 80.0) for i, name in enumerate(free)},
        "newer": (_FREE + 0.1, 80.0 + 0.5 * ARCSEC),
        "that": (_FREE + 0.3, 80.0 - 0.5 * ARCSEC),
    }


def write_sky(folder: Path, where: dict[str, tuple[float, float]]) -> None:
    for i, (name, (ra, dec)) in enumerate(where.items()):
        data = np.zeros((3, 24, 24), dtype=np.float32) if name == "blank" else galaxy(500 + i)
        write_cutout(folder / ("dawn" if name == "unlabelled" else "night") / f"{name}.fits", data, ra=ra, dec=dec)


@pytest.fixture(scope="module")
def sky(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Sky:
    root = tmp_path_factory.mktemp("people")
    workspace = open_workspace(root, SMALL_TRAINING)
    shutil.copytree(small.workspace.models, workspace.models)
    parts = split_of(workspace.settings.training, small.images)
    write_sky(workspace.incoming, where := places(small.images, parts))
    survey_driver.run(workspace)
    rows = query(workspace.catalog, "SELECT object_id, source_name FROM morphology").to_pylist()
    ids = {Path(row["source_name"]).stem: row["object_id"] for row in rows}
    assert ids.keys() == where.keys()
    write_cutout(workspace.incoming / "night" / "changed.fits", galaxy(7), ra=where["changed"][0], dec=80.0)
    (workspace.incoming / "night" / "gone.fits").unlink()

    def say(author: str, **labels: str) -> str:
        said = [
            ResolvedLabel(ids.get(name.replace("_", " "), 99), label, 0, 0.0, 0.0) for name, label in labels.items()
        ]
        version = store.add(workspace.labels, said, author=author).version
        assert version is not None
        return version.name

    everything = {name.replace(" ", "_"): "disturbed" for name in ids if name not in ("unlabelled", "newer")}
    first = say("Ann", **{**everything, "that": "merging", "other_class": OTHER, "nowhere": "merging"})
    second = say("Bob", newer="cigar_smooth", near_a_training_image="round_smooth")
    third = say("Ann", unlabelled="merging")
    return Sky(workspace, small.images, parts, small.card.model_id, ids, (first, second, third))


def test_the_rules_of_conflict(sky: Sky) -> None:
    training_set, count = sky.training_set(), len(sky.images)
    joined = {
        row["object_id"]: CLASS_SLUGS[training_set.images.labels[count + i]]
        for i, row in enumerate(training_set.origins.to_pylist())
    }
    expected = {
        "alone": "disturbed",
        "on a training image": "disturbed",
        "near a training image": "round_smooth",
        "newer": "cigar_smooth",
    }
    assert joined == {sky.ids[name]: label for name, label in expected.items()}
    assert training_set.replaced.tolist() == [sky.at_train]
    in_force = store.in_force(sky.workspace.labels, sky.versions[1])
    assert training_set.data["labels"] == {
        "version": sky.versions[1],
        "digest": store.digest(in_force),
        "used": 4,
        "replaced": 1,
        "left_out": {
            "no class of these images": 1,
            "not in the release": 1,
            "not classified in the release": 1,
            "at the position of a validation or test image": 2,
            "contradicting labels at one position": 2,
            "another label at the same position": 1,
            "no longer there": 1,
            "other pixels than the release was made from": 1,
        },
    }
    assert 4 + sum(training_set.data["labels"]["left_out"].values()) == in_force.num_rows
    # Before any pixels are read, what changed and what is gone counts too.
    assert usable(sky.changed(f"training.labels={sky.versions[1]}"), sky.images, sky.parts) == 6


def test_the_frozen_splits_stay_and_the_training_split_says_what_is_seen(sky: Sky) -> None:
    training_set, thrice, count = sky.training_set(), sky.training_set("training.label_repeats=3"), len(sky.images)
    own = sky.parts.train[sky.parts.train != sky.at_train]
    for each, repeats in ((training_set, 1), (thrice, 3)):
        assert np.array_equal(each.parts.validation, sky.parts.validation)
        assert np.array_equal(each.parts.test, sky.parts.test)
        assert np.array_equal(each.parts.train, [*own, *np.repeat(count + np.arange(4), repeats)])
        assert each.card_data()["origins"] == {"labelled": len(own), "people": 4}
    assert training_set.images.digest == thrice.images.digest != sky.images.digest


def test_pixels_are_those_that_the_release_was_made_from(sky: Sky) -> None:
    training_set, recipe = sky.training_set(), preprocessing_for(sky.workspace.settings.training, sky.images)
    pixels, count = training_set.images.pixels(recipe, sky.workspace.cache), len(sky.images)
    assert torch.equal(pixels[:count], sky.images.pixels(recipe, sky.workspace.cache))
    table = query(sky.workspace.catalog, "SELECT object_id, input_digest FROM morphology").to_pylist()
    seen = {row["object_id"]: row["input_digest"] for row in table}
    assert pixel_digests(pixels[count:]).tolist() == [seen[i] for i in training_set.origins["object_id"].to_pylist()]


def test_what_was_read_is_kept_tile_by_tile(sky: Sky) -> None:
    read: list[tuple[int, list[int]]] = []  # of each reading, how many objects it is of, and how many at a time

    @contextmanager
    def count(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        read.append((total, []))
        yield lambda done, note: read[-1][1].append(done)

    @contextmanager
    def cut_off(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        def step(done: int, note: str) -> None:
            raise Killed

        yield step

    before, after = (f"training.labels={version}" for version in sky.versions[1:])
    with progress_display(count):
        for labels in (before, before, after, after):
            sky.training_set(labels, "folders.cache=kept")
    assert read == [(6, [6]), (1, [1])]  # the label that came is of another tile
    read.clear()
    with pytest.raises(Killed), progress_display(cut_off):
        sky.training_set(after, "folders.cache=killed")
    with progress_display(count):
        sky.training_set(after, "folders.cache=killed")
    assert read in ([(1, [1])], [(6, [6])])  # the tile that was read before the end is not read again


def test_a_model_is_named_by_its_labels_and_not_by_their_version(sky: Sky) -> None:
    name, more = (f"training.labels={version}" for version in sky.versions[1:])
    ids = {sky.plan_id(name), sky.plan_id(more), sky.plan_id(name, "training.label_repeats=2"), sky.plan_id()}
    assert len(ids) == 4
    assert sky.plan_id("training.label_repeats=2") == sky.plan_id()  # which says nothing without labels
    again = store.revert(sky.workspace.labels, sky.versions[2], author="Ann")
    assert sky.plan_id(f"training.labels={again.number}") == sky.plan_id(name) == sky.plan_id("training.labels=newest")


def test_a_model_says_what_it_learned_from_and_training_resumes(sky: Sky, as_was: Callable) -> None:
    frozen = str(sky.workspace.models / sky.model_id / "split.json")
    options = (f"training.labels={sky.versions[1]}", f"training.initial={sky.model_id}", "training.epochs=2")
    workspace = sky.changed(*options)

    @contextmanager
    def cut_off(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        def step(done: int, note: str) -> None:
            if title.startswith("training") and note:
                raise Killed

        yield step

    with pytest.raises(Killed), progress_display(cut_off):
        train(workspace, sky.images, frozen)
    card = train(workspace, sky.images, frozen)
    assert (
        card.model_id
        == plan_training(workspace, sky.images, frozen).model_id
        == plan_training(workspace, sky.images).model_id
    )
    assert len(card.history) == 2 and not list((sky.workspace.models / ".training").iterdir())
    assert not plan_training(
        workspace, sky.images
    ).job.pixels.exists()  # no file of all images is left for each set of labels
    before = load_card(sky.workspace.models, sky.model_id)
    assert (card.split_digest, card.data["digest"]) == (before.split_digest, before.data["digest"])
    assert recorded_split(sky.workspace.models, card, sky.images).digest == sky.parts.digest
    assert card.data["labels"]["used"] == 4 and card.data["counts"] == before.data["counts"]
    assert card.data["labels"]["digest"] == store.digest(store.in_force(sky.workspace.labels, sky.versions[1]))
    said = "\n".join(card.remarks)
    assert f"Also trained on 4 objects of the sky with labels of people (version {sky.versions[1]})." in said
    assert "Training images at the position of such an object, left out for it: 1." in said
    assert f"Started from {sky.model_id}/weights.safetensors: 100.0% of the parameters taken" in said
    assert "too good" not in said

    table = pq.read_table(sky.workspace.models / card.model_id / "labels.parquet").to_pylist()
    count = len(sky.images)
    assert [row["row"] for row in table if row["origin"] == "replaced"] == [sky.at_train]
    people = [(row["object_id"], row["label"], row["author"], row["version"]) for row in table[count:]]
    assert (sky.ids["newer"], "cigar_smooth", "Bob", sky.versions[1]) in people and len(people) == 4
    assert (sky.ids["alone"], "disturbed", "Ann", sky.versions[0]) in people
    assert all(row["time"] and row["origin"] == "people" for row in table[count:])
    with as_was(sky.workspace.models):
        assert train(workspace, sky.images, frozen) == card
    joint = ensemble(sky.workspace, sky.images, [card.model_id])
    assert joint.data["labels"] == card.data["labels"] and joint.data["origins"] == card.data["origins"]


def test_an_ensemble_gives_the_weights_of_its_first_member(sky: Sky) -> None:
    joint = ensemble(sky.workspace, sky.images, [sky.model_id])
    assert sky.plan_id(f"training.initial={joint.model_id}") == sky.plan_id(f"training.initial={sky.model_id}")
    assert sky.plan_id(f"training.initial={joint.model_id}") != sky.plan_id()
    again = sky.changed(f"training.initial={joint.model_id}", "training.split_seed=5")
    card = train(again, sky.images, may_lead=False)
    assert card.remarks[0] == (
        f"{joint.model_id} is an ensemble, without weights of its own: started from its first member, {sky.model_id}."
    )
    assert "was trained on other images or another split: it may have seen test images" in card.remarks[1]
    for name in (joint.model_id, sky.model_id):
        assert can_start_from(sky.workspace, name)
        assert not can_start_from(sky.changed("training.image_size=64"), name)
        assert not can_start_from(sky.changed("training.layout=CCTT"), name)
        assert not can_start_from(sky.changed("training.variant=cpu_small"), name)
    with pytest.raises(ModelError, match="no model"):
        can_start_from(sky.workspace, "nobody")
    other = sky.changed(f"training.initial={joint.model_id}", "training.variant=cpu_small")
    with pytest.raises(ModelError, match=r"weights.safetensors: expected widths .* Choose that variant"):
        train(other, sky.images)


def test_what_cannot_be_learned_from(sky: Sky, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no version '77'"):
        sky.training_set("training.labels=77")
    nobody = (f'folders.labels="{tmp_path}"', "training.labels=newest")
    assert sky.training_set(*nobody).card_data() == {} and sky.plan_id(*nobody) == sky.plan_id()
    with pytest.raises(UserError, match=r"training.labels: no release in .* run `morphcat survey`"):
        sky.training_set(f'folders.catalog="{tmp_path}"')
    nowhere = replace(sky.images, ra=np.full(len(sky.images), np.nan))
    with pytest.raises(UserError, match=r"training.labels: .* validation and test images .* no position on the sky"):
        sky.training_set(images=nowhere)
    painted = replace(sky.images, rendering="unknown")
    with pytest.raises(UserError, match=r"was trained on images of rendering 'ls-dr8-grz'"):
        sky.training_set(images=painted)
    odd = store.add(tmp_path / "odd", [ResolvedLabel(5, OTHER, 0, 0.0, 0.0)], author="Ann").version
    assert odd is not None
    expected = rf"none of the 1 labels in force at version {odd.name} can be used .*: 1 no class of these images;"
    with pytest.raises(UserError, match=expected):
        sky.training_set(f'folders.labels="{tmp_path / "odd"}"', "training.labels=1")
