"""One object explained and classified again: the explanation agrees with the files and names what is gone."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogs.query.sql import query
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.splits import recorded_split
from pipeline.inspection.explain import Explanation, explain, nearest_examples
from pipeline.inspection.explain_report import to_html, to_text
from pipeline.inspection.reproduce import find_object, load_ensemble_for, reproduce
from tests.conftest import Small
from tests.pipeline import survey_driver
from tests.pipeline.makers import galaxy, hdf5_columns, write_cutout, write_cutouts, write_hdf5

HOSTILE = "<img src=x onerror=alert(1)> '&\x1b[31m.fits"


@pytest.fixture(scope="module")
def sky(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Cutouts, one of them blank and one with a hostile name, and an HDF5 tile."""
    workspace = small.elsewhere(tmp_path_factory.mktemp("explain"))
    folder = write_cutouts(workspace.incoming / "C", 4)
    write_cutout(folder / HOSTILE, galaxy(9), ra=30, dec=3)
    write_cutout(folder / "blank.fits", galaxy() * 0, ra=10, dec=10)
    write_hdf5(workspace.incoming / "a.h5", hdf5_columns(3))
    survey_driver.run(workspace)
    return workspace


def ids(workspace: Workspace, where: str) -> list[int]:
    return query(workspace.catalog, f"SELECT object_id FROM morphology WHERE {where} ORDER BY 1")[0].to_pylist()


@pytest.fixture(scope="module")
def explained(sky: Workspace, small: Small) -> Explanation:
    (object_id,) = ids(sky, "source_name LIKE '%g002.fits'")
    return explain(sky, object_id, images=small.images, neighbours=3)


def test_a_classified_object_is_explained_in_full(explained: Explanation, small: Small) -> None:
    row, card = explained.entry.row, small.card
    assert explained.same_input and explained.problems == [] and explained.card == card
    assert explained.classes[0].slug == row["label"] and [c.probability for c in explained.classes] == sorted(
        (row[f"p_{slug}"] for slug in card.class_slugs), reverse=True
    )
    assert sum(one.in_set for one in explained.classes) == row["pred_set_size"]
    assert card.test is not None and sum(one.called for one in explained.classes) == card.test["n"]
    assert [v.name for v in explained.views][::4] == ["as it is", "as it is, mirrored"] and len(explained.views) == 8
    assert explained.views[0].of_label == pytest.approx(row["confidence"], abs=3e-4)  # the one view that was served
    assert explained.flags[0][0] == "fov_mismatch" and explained.flags[0][2]  # 24 pixels are no whole field of view
    text = to_text(explained)
    for expected in (row["run_id"], row["tile_id"], card.model_id, "flags:", "the pixels are those", "simulated"):
        assert expected in text


def test_the_nearest_examples_are_training_images(explained: Explanation, small: Small, sky: Workspace) -> None:
    train = recorded_split(small.workspace.models, small.card, small.images).train
    assert len(explained.neighbours) == 3 and all(n.row in train for n in explained.neighbours)
    distances = [n.distance for n in explained.neighbours]
    assert distances == sorted(distances) and distances[0] > 0
    assert explained.neighbours[0].label == small.images.class_slugs[small.images.labels[explained.neighbours[0].row]]
    assert "simulated" in explained.neighbours_from
    # A training image is its own nearest example.
    ensemble = load_ensemble_for(sky, small.card)
    itself = small.images.pixels(ensemble.preprocessing, sky.cache)[int(train[5])][None]
    (nearest,), _ = nearest_examples(sky, ensemble, small.card, small.images, itself, 1)
    assert nearest.row == train[5] and nearest.distance == pytest.approx(0, abs=0.05)


def test_other_images_than_those_of_the_training_give_no_neighbours(sky: Workspace, small: Small) -> None:
    (object_id, *_) = ids(sky, "label_id >= 0")
    other = explain(sky, object_id, images=replace(small.images, labels=small.images.labels[::-1].copy()))
    assert other.neighbours == [] and "cannot be used" in other.neighbours_from
    without = explain(sky, object_id)
    assert without.neighbours == [] and "are not at hand" in without.neighbours_from


def test_the_page_shows_the_stamp_and_needs_nothing_else(explained: Explanation) -> None:
    html = to_html(explained)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 4 and "<script" not in html and "http" not in html
    stamp = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    assert explained.stamp is not None
    np.testing.assert_array_equal(stamp, explained.stamp.pixels[0].numpy().transpose(1, 2, 0))
    for one in explained.classes:
        assert f"{one.probability:.4f}" in html and f"width:{100 * one.probability:.1f}%" in html


def test_hostile_names_stay_names(sky: Workspace) -> None:
    (object_id,) = ids(sky, "source_name LIKE '%onerror%'")
    explained = explain(sky, object_id, neighbours=0)
    html, text = to_html(explained), to_text(explained)
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "\x1b" not in text and "\\x1b[31m" in text
    explained.problems.append("one\nobject 7")
    assert "one\\nobject 7\n" in to_text(explained)  # a name cannot begin a line of its own
    assert reproduce(sky, object_id).differences == []


def test_an_object_without_a_label_is_explained_too(sky: Workspace) -> None:
    (object_id,) = ids(sky, "label_id < 0")
    explained = explain(sky, object_id)
    assert explained.same_input and explained.views == [] and "unclassified" in [name for name, _, _ in explained.flags]
    assert "not classified" in to_html(explained) and "not classified\n" in to_text(explained)
    again = reproduce(sky, object_id)
    assert again.differences == [] and again.label_again == ""


def test_every_object_is_reproduced(sky: Workspace) -> None:
    everything = ids(sky, "label_id >= 0")
    assert len(everything) == 8
    for object_id in everything:
        again = reproduce(sky, object_id)
        assert again.differences == [] and again.digest_again == again.digest and again.label_again == again.label
        assert again.largest < 3e-4
    assert reproduce(sky, everything[0], tolerance=0.0).differences  # the catalogue's are rounded
    with pytest.raises(UserError, match="object 17 is not in release"):
        reproduce(sky, 17)


def test_the_calibration_is_that_of_the_nearest_bin(explained: Explanation, small: Small) -> None:
    assert small.card.test is not None
    bins = small.card.calibration["test"].after["bins"]
    confidence = explained.entry.row["confidence"]
    near = min(bins, key=lambda one: abs(one["confidence"] - confidence))
    expected = f"of {near['n']} simulated test images called with a confidence near {near['confidence']:.2f}"
    assert expected in explained.calibration
    assert sum(one["n"] for one in bins) == small.card.test["n"]


def test_what_changed_or_is_gone_is_named(sky: Workspace, small: Small, tmp_path: Path) -> None:
    root = tmp_path / "W"
    shutil.copytree(sky.root, root)
    workspace = small.elsewhere(root)
    folder = workspace.incoming / "C"
    (first, second, *_) = (ids(workspace, f"source_name LIKE '%g00{i}.fits'")[0] for i in range(3))
    write_cutout(folder / "g000.fits", galaxy(55), ra=150, dec=2)
    changed = reproduce(workspace, first)
    assert changed.differences[0].startswith("input changed") and changed.digest_again != changed.digest
    assert explain(workspace, first, neighbours=0).same_input is False
    assert "The input changed" in to_html(explain(workspace, first, neighbours=0))
    (folder / "g001.fits").write_bytes(b"junk")
    assert "input gone" in reproduce(workspace, second).differences[0]
    shutil.rmtree(folder)
    (difference,) = reproduce(workspace, second).differences
    assert difference.startswith("input gone") and "incoming/C" in difference
    explained = explain(workspace, second)
    assert explained.stamp is None and explained.problems == [difference] and "Not available" in to_html(explained)
    assert explained.classes[0].probability == find_object(workspace, second).row["confidence"]
    empty = workspace.changed(folders={"models": str(tmp_path / "none")})
    assert reproduce(empty, second).differences[0].startswith("model gone")
    assert explain(empty, second).classes[0].slug == explained.classes[0].slug
