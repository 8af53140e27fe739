"""Pseudo-labels: confident rows of the catalogue, the pixels that the teacher saw, and nothing that is held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from catalogs.labels.checks import ResolvedLabel
from catalogs.labels.store import add
from catalogs.query.sql import query
from catalogs.releases.registry import current_release
from models.artifacts.registry import ModelCard
from models.errors import ModelError
from models.preprocessing import colour_rule
from pipeline.config.inputs import InputSettings
from pipeline.config.training import TrainingSettings
from pipeline.config.workspace import Workspace, open_workspace
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.image_set import ImageSet
from pipeline.evaluation.evaluate import predict_test_split
from pipeline.survey.prediction import pixel_digests
from pipeline.training.human_labels import with_human_labels
from pipeline.training.plan import preprocessing_for, split_of
from pipeline.training.pseudo_labels import with_pseudo_labels
from pipeline.training.train import train
from pipeline.training.training_set import LABELLED, TrainingSet
from tests.conftest import SMALL_TRAINING
from tests.pipeline import survey_driver
from tests.pipeline.makers import SIDE, galaxy, write_cutout, write_hdf5

EASY = (  # quick to learn, and sure of it
    *SMALL_TRAINING,
    "training.epochs=10",
    "training.label_smoothing=0",
    "training.mixup=0",
    "training.ema_decay=0",
    "training.head_dropout=0",
    "training.pseudo_confidence=0.6",
    "training.pseudo_novelty=1",
)
LABELLED_IMAGES, PER_TILE = 120, 20
ARCSEC = 1 / 3600


def flux_of(label: int, seed: int, side: int = SIDE) -> np.ndarray:
    """A blob whose colour and size tell its class of ten: float32 (3, side, side)."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    width = side * (0.1 if label < 5 else 0.3)
    scale = np.array([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.2, 0.2, 1], [1, 1, 0.1], [0.1, 1, 1]])[label % 5]
    blob = np.exp(-(x**2 + y**2) / (2 * width**2))
    return (0.3 * scale[:, None, None] * blob + 0.02 * galaxy(seed, side)).astype(np.float32)


def pictures_of(labels: np.ndarray, seed: int) -> np.ndarray:
    return colour_rule(np.stack([flux_of(label, seed + i) for i, label in enumerate(labels)]))


@dataclass(frozen=True)
class Sky:
    """A workspace with a teacher and a release of its catalogue: one tile in HDF5, two folders of cutouts."""

    workspace: Workspace
    images: ImageSet
    teacher: ModelCard

    def changed(self, *overrides: str) -> Workspace:
        return open_workspace(self.workspace.root, [*EASY, *overrides])

    def training_set(self, *overrides: str, images: ImageSet | None = None) -> TrainingSet:
        workspace, images = self.changed(*overrides), images or self.images
        settings = workspace.settings.training
        training_set = TrainingSet.of(images, split_of(settings, images))
        return with_pseudo_labels(workspace, training_set, preprocessing_for(settings, images))


def make_sky(root: Path) -> Sky:
    workspace = open_workspace(root, EASY)
    labels = np.arange(LABELLED_IMAGES) * 10 // LABELLED_IMAGES
    ra, dec = 10 + np.arange(LABELLED_IMAGES) / 10, np.full(LABELLED_IMAGES, 1.0)
    columns = {"images": pictures_of(labels, 1000), "ans": labels, "ra": ra, "dec": dec}
    columns["pxscale"] = np.where(np.arange(LABELLED_IMAGES) % 2, 0.262, 0.524)
    path = write_hdf5(workspace.benchmark / "galaxy10.h5", columns, simulated=True)
    images = replace(open_galaxy10(path, InputSettings()), field_pixels=SIDE)
    teacher = train(workspace, images)
    write_tiles(workspace.incoming)
    survey_driver.run(workspace)
    return Sky(workspace, images, teacher)


def write_tiles(incoming: Path) -> None:
    """Objects 0, 1, 2 of the HDF5 tile: on a labelled image, half an arcsec beside one, three beside one. The folder
    `between` has a pixel scale between those of the labelled images; its first two objects stand at one position."""
    labels = np.arange(PER_TILE) % 10
    ra = 100 + np.arange(PER_TILE) / 10
    ra[:3] = 10.0, 10.1 + 0.5 * ARCSEC, 10.2 + 3 * ARCSEC
    dec = np.full(PER_TILE, 1.0)
    scale = np.full(PER_TILE, 0.262)
    write_hdf5(
        incoming / "tile.h5",
        {"images": pictures_of(labels, 2000), "ra": ra, "dec": dec, "pxscale": scale},
        simulated=True,
    )
    for name, side, pixscale, start in (("native", SIDE, 0.262, 200.0), ("between", 16, 0.4, 300.0)):
        for i in range(PER_TILE):
            place = start + (0 if name == "between" and i == 1 else i / 10)
            path = incoming / name / f"g{i:03d}.fits"
            write_cutout(path, flux_of(i % 10, 3000 + i, side), ra=place, dec=-1.0, pixscale=pixscale)


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Sky:
    return make_sky(tmp_path_factory.mktemp("sky"))


def rows_of(sky: Sky, where: str = "TRUE") -> dict[str, np.ndarray]:
    table = query(sky.workspace.catalog, f"SELECT * FROM morphology WHERE {where} ORDER BY object_id")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_the_teacher_is_sure_of_most_of_the_sky(sky: Sky) -> None:
    usable = rows_of(sky, "is_reliable AND confidence >= 0.6")
    assert len(usable["object_id"]) > 1.5 * PER_TILE  # else the tests below would show little


def test_pixels_of_the_sky_are_those_that_the_teacher_saw(sky: Sky) -> None:
    training_set = sky.training_set()
    recipe = preprocessing_for(sky.workspace.settings.training, sky.images)
    pixels = training_set.images.pixels(recipe, sky.workspace.cache)
    count = len(sky.images)
    assert torch.equal(pixels[:count], sky.images.pixels(recipe, sky.workspace.cache))
    rows = rows_of(sky)
    seen = dict(zip(rows["object_id"].tolist(), rows["input_digest"].tolist(), strict=True))
    assert pixel_digests(pixels[count:]).tolist() == [seen[i] for i in training_set.origins["object_id"].to_pylist()]
    assert {name.rsplit("/")[-2] for name in training_set.origins["source_name"].to_pylist()} >= {"native", "between"}


def test_labels_are_those_of_confident_and_reliable_rows(sky: Sky) -> None:
    training_set = sky.training_set("training.pseudo_confidence=0.8")
    chosen = dict(
        zip(training_set.origins["object_id"].to_pylist(), training_set.images.labels[len(sky.images) :], strict=True)
    )
    rows = rows_of(sky, "is_reliable AND confidence >= 0.8")
    named = dict(zip(rows["object_id"].tolist(), rows["label_id"], strict=True))
    assert chosen == {key: named[key] for key in chosen}
    assert len(chosen) == len(named) - sum(training_set.data["left_out"].values())
    strict = sky.training_set("training.pseudo_novelty=0.5").origins
    assert 0 < strict.num_rows < len(rows_of(sky, "is_reliable")["object_id"])
    typical = rows_of(sky, "ood_score <= 0.5")["object_id"]
    assert set(strict["object_id"].to_pylist()) <= set(typical.tolist())


def test_what_is_held_out_does_not_come_back_through_the_sky(sky: Sky) -> None:
    training_set = sky.training_set()
    names = training_set.origins["source_name"].to_pylist()
    usable = rows_of(sky, "is_reliable AND confidence >= 0.6")["source_name"].tolist()
    near = {name for name in usable if name.endswith(("tile.h5#0", "tile.h5#1"))}
    assert near and not near & set(names)
    assert training_set.data["left_out"]["at a labelled position"] == len(near)
    assert [n for n in usable if n.endswith("tile.h5#2")] == [n for n in names if n.endswith("tile.h5#2")]
    twins = [name for name in names if name.endswith(("between/g000.fits", "between/g001.fits"))]
    usable_twins = [name for name in usable if name.endswith(("between/g000.fits", "between/g001.fits"))]
    assert len(twins) == 1 and training_set.data["left_out"]["twice at one position"] == len(usable_twins) - 1


def test_the_split_of_the_labelled_images_stays(sky: Sky) -> None:
    training_set = sky.training_set()
    parts = split_of(sky.workspace.settings.training, sky.images)
    count = len(training_set.images) - len(sky.images)
    assert np.array_equal(training_set.parts.validation, parts.validation)
    assert np.array_equal(training_set.parts.test, parts.test)
    assert np.array_equal(training_set.parts.train[:-count], parts.train)
    assert np.array_equal(training_set.parts.train[-count:], np.arange(len(sky.images), len(training_set.images)))


def test_the_surest_of_each_class(sky: Sky) -> None:
    def confidences(training_set: TrainingSet) -> dict[int, np.ndarray]:
        labels, sure = training_set.images.labels[len(sky.images) :], training_set.origins["confidence"].to_numpy()
        return {label: np.sort(sure[labels == label])[::-1] for label in np.unique(labels).tolist()}

    everything, capped = confidences(sky.training_set()), confidences(sky.training_set("training.pseudo_per_class=2"))
    assert max(map(len, capped.values())) == 2 and capped.keys() == everything.keys()
    for label, taken in capped.items():
        assert np.array_equal(taken, everything[label][:2])


def test_a_student_says_where_its_labels_come_from(sky: Sky, as_was: Callable) -> None:
    workspace = sky.changed("training.preset=noisy_student", "training.epochs=1")
    student = train(workspace, sky.images)
    release = current_release(workspace.catalog)
    assert release is not None
    origin = f"pseudo:{release.release}:{sky.teacher.model_id}"
    parts = split_of(workspace.settings.training, sky.images)
    count = student.data["origins"][origin]
    assert student.data["origins"] == {LABELLED: len(parts.train), origin: count} and count > PER_TILE
    assert student.data["counts"] == sky.teacher.data["counts"] and student.data["simulated"] is True
    assert student.data["left_out"]["at a labelled position"] > 0
    assert any(f"{count} images of the sky" in remark for remark in student.remarks)
    assert not any("too good" in remark for remark in student.remarks)

    table = pq.read_table(workspace.models / student.model_id / "labels.parquet").to_pylist()
    assert len(table) == len(sky.images) + count and [row["row"] for row in table] == list(range(len(table)))
    assert [row["label_id"] for row in table[: len(sky.images)]] == sky.images.labels.tolist()
    assert {row["origin"] for row in table[: len(sky.images)]} == {LABELLED}
    rows = rows_of(sky)
    named = dict(zip(rows["object_id"].tolist(), zip(rows["label"], rows["source_name"], strict=True), strict=True))
    for row in table[len(sky.images) :]:
        assert row["origin"] == origin and (row["label"], row["source_name"]) == named[row["object_id"]]
        assert row["confidence"] >= 0.6

    # Teacher and student are measured on the very same galaxies.
    assert (student.data["digest"], student.split_digest) == (sky.teacher.data["digest"], sky.teacher.split_digest)
    ours, theirs = (predict_test_split(workspace, sky.images, card.model_id) for card in (student, sky.teacher))
    assert np.array_equal(ours.rows, theirs.rows)
    with as_was(workspace.models):
        assert train(workspace, sky.images) == student


def test_people_go_before_the_teacher(sky: Sky) -> None:
    names = sky.training_set().origins.to_pylist()
    first, second = (ResolvedLabel(row["object_id"], "disturbed", 0, 0.0, 0.0) for row in names[:2])
    version = add(sky.workspace.labels, [first, second], author="Ann").version
    assert version is not None
    workspace = sky.changed(f"training.labels={version.name}")
    settings = workspace.settings.training
    recipe, parts = preprocessing_for(settings, sky.images), split_of(settings, sky.images)
    people = with_human_labels(workspace, TrainingSet.of(sky.images, parts), recipe)
    both = with_pseudo_labels(workspace, people, recipe)
    origins = both.origins.to_pylist()
    assert [row["object_id"] for row in origins[:2]] == sorted([first.object_id, second.object_id])
    assert both.images.labels[len(sky.images) :][:2].tolist() == [0, 0]
    assert [row["origin"] for row in origins[:3]] == ["people", "people", names[0]["origin"]]
    ids = [row["object_id"] for row in origins]
    assert sorted(ids) == sorted(row["object_id"] for row in names)  # each once
    assert both.card_data()["origins"] == {LABELLED: len(parts.train), "people": 2, names[0]["origin"]: len(ids) - 2}
    assert (
        both.data["left_out"]["at a labelled position"]
        == sky.training_set().data["left_out"]["at a labelled position"] + 2
    )
    assert len(both.remarks) == 2 and np.array_equal(both.parts.test, parts.test)
    pixels = both.images.pixels(recipe, sky.workspace.cache)
    rows = rows_of(sky)
    seen = dict(zip(rows["object_id"].tolist(), rows["input_digest"].tolist(), strict=True))
    assert pixel_digests(pixels[len(sky.images) :]).tolist() == [seen[i] for i in ids]


def test_a_teacher_of_another_split_is_remarked_on(sky: Sky) -> None:
    assert any("may then be too good" in remark for remark in sky.training_set("training.split_seed=5").remarks)


def test_another_selection_is_another_set_of_images(sky: Sky) -> None:
    assert sky.training_set().images.digest == sky.training_set().images.digest
    fewer = sky.training_set("training.pseudo_per_class=1").images
    assert len({sky.training_set().images.digest, fewer.digest, sky.images.digest}) == 3


def test_objects_that_changed_or_are_gone_are_left_out_and_counted(tmp_path: Path) -> None:
    sky = make_sky(tmp_path)
    before = sky.training_set()
    names = before.origins["source_name"].to_pylist()
    changed, gone = [name for name in names if "/native/" in f"/{name}"][:2]
    write_cutout(sky.workspace.incoming / "native" / Path(changed).name, flux_of(7, 1), ra=200.0, dec=-1.0)
    (sky.workspace.incoming / "native" / Path(gone).name).unlink()
    after = sky.training_set()
    assert sorted([*after.origins["source_name"].to_pylist(), changed, gone]) == sorted(names)
    assert (
        after.data["left_out"]["other pixels than the release was made from"] == 1
        and after.data["left_out"]["no longer there"] == 1
    )

    (sky.workspace.incoming / "tile.h5").write_bytes(b"no longer an HDF5 file")
    (sky.workspace.incoming / "between").rename(sky.workspace.root / "elsewhere")
    rest = sky.training_set()
    assert {Path(name).parent.name for name in rest.origins["source_name"].to_pylist()} == {"native"}
    assert rest.data["left_out"]["no longer there"] == 1 + sum("native" not in name for name in names)

    (sky.workspace.incoming / "native").rename(sky.workspace.root / "elsewhere too")
    expected = rf"no row of release .* can be used: .*{len(names)} no longer there; lower training.pseudo_confidence"
    with pytest.raises(UserError, match=expected):
        sky.training_set()


def test_what_cannot_be_learned_from(sky: Sky, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no release in .* to take labels from; run `morphcat survey`"):
        sky.training_set(f'folders.catalog="{tmp_path}"')
    with pytest.raises(ModelError, match="no model"):
        sky.training_set(f'folders.models="{tmp_path}"')
    nowhere = replace(sky.images, ra=np.full(len(sky.images), np.nan))
    with pytest.raises(UserError, match=r"validation and test images .* have no position on the sky"):
        sky.training_set(images=nowhere)
    others = replace(sky.images, class_slugs=tuple(f"class{i}" for i in range(10)))
    with pytest.raises(UserError, match=r"the classes of the release's model .* differs"):
        sky.training_set(images=others)
    painted = replace(sky.images, rendering="unknown")
    with pytest.raises(UserError, match=r"the rendering of the release's model .* differs"):
        sky.training_set(images=painted)


def test_the_preset_is_ours_with_pseudo_labels_and_more_noise() -> None:
    ours, student = TrainingSettings(), TrainingSettings(preset="noisy_student")
    assert student.pseudo_labels and not ours.pseudo_labels
    assert student.drop_path > ours.drop_path and student.head_dropout > ours.head_dropout
    without = TrainingSettings(preset="noisy_student", pseudo_labels=False)
    assert without.drop_path == student.drop_path and not without.pseudo_labels
