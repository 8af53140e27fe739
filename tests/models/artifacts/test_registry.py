"""Model folders, their weights, and the predictor made of them: whole, never executed, loaded once."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.artifacts.registry import (
    WEIGHTS,
    EnsembleMember,
    ModelCard,
    champion,
    describe,
    history,
    list_models,
    load_card,
    publish,
    set_champion,
)
from models.artifacts.weights import load_network, preprocessing_of, save_network, tensors_digest
from models.errors import ModelError
from models.inference import predictor as predictor_module
from models.inference.ensemble import Ensemble
from models.inference.predictor import Predictor, predictor_for
from models.networks.astroformer import create_model
from models.preprocessing import Preprocessing
from models.uncertainty.conformal import ConformalSets
from models.uncertainty.ood import FEATURES, FeatureSpace, OODScale, fit_feature_space

RECIPE = Preprocessing(image_size=32)
SLUGS = ["round", "spiral", "edge_on", "ring"]


def card(model_id: str = "tiny-0001", **values: Any) -> ModelCard:
    numbers = {"n": 10, "accuracy": 0.8, "macro_f1": 0.75, "ece": 0.05, "coverage": 0.9, "mean_set_size": 1.25}
    usual: dict[str, Any] = {
        "model_id": model_id,
        "created": "2026-11-01T00:00:00+00:00",
        "variant": "cpu_tiny",
        "layout": "CCCT",
        "image_size": 32,
        "parameters": 1234567,
        "class_slugs": SLUGS,
        "class_names": [s.title() for s in SLUGS],
        "recipe": RECIPE.to_dict(),
        "recipe_digest": RECIPE.digest,
        "members": [],
        "views": 1,
        "temperature": 1.7,
        "conformal": ConformalSets(
            coverage=0.9,
            thresholds=[0.1, 0.2, 0.3, 0.1],
            own=[False, True, True, False],
            counts=[3, 30, 40, 0],
            pooled=0.1,
        ),
        "novelty": OODScale(quantiles=[1.0, 2.0, 5.0]),
        "settings": {"seed": 0},
        "data": {"source": "toy", "simulated": True, "counts": {"train": 10}},
        "envelope": {"pixscale": [0.262, 0.524]},
        "split_digest": "abc",
        "validation": numbers,
        "test": None,
        "calibration": {},
        "remarks": ["Calibrated on only 10 validation images."],
        "history": [{"epoch": 0, "loss": 1.0}],
        "versions": {"morphcat": "0.1.0"},
    }
    return ModelCard.model_validate_json(ModelCard(**{**usual, **values}).model_dump_json())  # lists, no tuples


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("cpu_tiny", image_size=32, num_classes=len(SLUGS))


def put(root: Path, model_id: str = "tiny-0001", seed: int = 0, **values: Any) -> Path:
    def save(folder: Path) -> None:
        net = network(seed)
        save_network(net, folder)
        space_of(net).save(folder)

    return publish(root, card(model_id, **values), save)


def space_of(net: nn.Module) -> FeatureSpace:
    ensemble = Ensemble([net], [], RECIPE, views=1, device=torch.device("cpu"))
    return fit_feature_space(ensemble.features(images(20), np.arange(20)), np.arange(20) % 4)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


# --- publishing ---------------------------------------------------------------------------------------------------


def test_a_published_model_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "models"
    folder = publish(root, card(), lambda where: save_network(network(), where), files={"split.json": '{"seed": 0}'})
    assert folder == root / "tiny-0001"
    assert set(files_of(folder)) == {WEIGHTS, "card.json", "README.md", "split.json"}
    assert load_card(root, "tiny-0001") == card()
    loaded = load_network(root, card())
    assert not loaded.training
    for name, value in network().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_publishing_again_changes_no_byte(tmp_path: Path) -> None:
    before = files_of(put(tmp_path))
    after = files_of(put(tmp_path, seed=5, temperature=9.9))
    assert after == before


def test_a_publication_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path, card(), fail)
    assert list(tmp_path.iterdir()) == []
    assert champion(tmp_path) is None


def test_what_a_killed_process_left_is_no_model_and_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / f".tiny-0001.{os.getpid()}"
    left.mkdir()
    (left / "card.json").write_text(card().model_dump_json())
    (left / "stray").touch()
    assert list_models(tmp_path) == []
    put(tmp_path)
    assert list_models(tmp_path) == ["tiny-0001"]
    assert "stray" not in files_of(tmp_path / "tiny-0001")


def test_two_processes_that_publish_the_same_model_agree(tmp_path: Path) -> None:
    """The other one is done while ours still saves its weights."""

    def save_late(folder: Path) -> None:
        save_network(network(seed=1), folder)
        save_network(network(seed=2), folder)
        other = tmp_path / "tiny-0001"
        other.mkdir()
        for name, content in files_of(folder).items():
            (other / name).write_bytes(content)
        (other / "card.json").write_text(card().model_dump_json())

    publish(tmp_path, card(), save_late)
    assert load_card(tmp_path, "tiny-0001") == card()
    assert list(tmp_path.glob(".tiny*")) == []


def test_models_are_listed_oldest_first(tmp_path: Path) -> None:
    for age, name in ((1, "b"), (3, "a"), (2, "c")):
        path = put(tmp_path, name) / "card.json"
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    assert list_models(tmp_path) == ["a", "c", "b"]
    assert list_models(tmp_path / "nowhere") == []


def test_what_people_read_names_the_numbers_and_says_simulated(tmp_path: Path) -> None:
    text = (put(tmp_path) / "README.md").read_text()
    assert text == describe(card())
    for part in (
        "tiny-0001",
        "1,234,567",
        "**simulated**",
        RECIPE.digest,
        "| validation | 10 | 0.800 | 0.750 | 0.050 | 0.900 | 1.250 |",
        "* Calibrated on only 10 validation images.",
    ):
        assert part in text
    assert "simulated" not in describe(card(data={"source": "Galaxy10", "counts": {}}))


def test_numbers_that_are_missing_survive_the_card(tmp_path: Path) -> None:
    """The recall of a class without examples is NaN, which JSON does not have."""
    numbers = {**card().validation, "recall": [1.0, float("nan")]}  # type: ignore[dict-item]
    put(tmp_path, validation=numbers)
    assert load_card(tmp_path, "tiny-0001").validation["recall"] == [1.0, None]  # type: ignore[index]


# --- champion -----------------------------------------------------------------------------------------------------


def test_the_first_model_becomes_champion_and_every_change_is_kept(tmp_path: Path) -> None:
    assert champion(tmp_path) is None
    put(tmp_path, "one")
    put(tmp_path, "two")
    assert champion(tmp_path) == "one"
    set_champion(tmp_path, "two", reason="gate passed")
    set_champion(tmp_path, "one", reason="rollback")
    assert champion(tmp_path) == "one"
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(h["from"], h["to"], h["reason"]) for h in lines] == [
        (None, "one", "first model"),
        ("one", "two", "gate passed"),
        ("two", "one", "rollback"),
    ]
    assert all(h["utc"].endswith("+00:00") for h in lines)


def test_an_unknown_model_cannot_become_champion(tmp_path: Path) -> None:
    put(tmp_path, "cpu_tiny-aca3f785b2")
    with pytest.raises(ModelError, match=r"did you mean cpu_tiny-aca3f785b2\?"):
        set_champion(tmp_path, "cpu_tiny-aca3f785b3", reason="typing error")
    assert champion(tmp_path) == "cpu_tiny-aca3f785b2"
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


def test_a_change_says_who_made_it_and_on_which_verdict(tmp_path: Path) -> None:
    put(tmp_path, "one")
    put(tmp_path, "two")
    change = set_champion(tmp_path, "two", reason="better", by="Ann", verdict="abc", override=True, instead_of="one")
    assert history(tmp_path)[-1] == change
    assert (change.before, change.to, change.by, change.verdict, change.override) == ("one", "two", "Ann", "abc", True)
    with pytest.raises(ModelError, match=r"the champion of .* is two by now, one was expected"):
        set_champion(tmp_path, "one", reason="late", instead_of="one")
    with pytest.raises(ModelError, match=r"two is the champion of .* already"):
        set_champion(tmp_path, "two", reason="again")
    assert len(history(tmp_path)) == 2


def test_lines_of_an_older_version_are_read(tmp_path: Path) -> None:
    put(tmp_path, "one")
    line = '{"utc": "2026-11-01T00:00:00+00:00", "from": null, "to": "one", "reason": "first model"}'
    (tmp_path / "history.jsonl").write_text(line + "\n")
    (change,) = history(tmp_path)
    assert (change.before, change.to, change.by, change.verdict, change.rollback) == (None, "one", "", "", False)


KILLED = """
import os, sys
from pathlib import Path
from models.artifacts import registry

root, after = Path(sys.argv[1]), int(sys.argv[2])
written = []
def replace(beside, path, really=os.replace):
    if len(written) == after:
        os._exit(9)
    really(beside, path)
    written.append(path)
os.replace = replace
if after == 2:
    registry._record = lambda root, changes: os._exit(9) if written else None
registry.set_champion(root, "two", reason="better", by="Ann", verdict="abc")
"""


@pytest.mark.parametrize(("after", "expected"), [(0, "one"), (1, "one"), (2, "two")])
def test_a_kill_at_any_moment_leaves_champion_and_history_in_step(tmp_path: Path, after: int, expected: str) -> None:
    """Before the announcement, before the change itself, before its line in the history."""
    for name in ("one", "two", "three"):
        put(tmp_path, name)
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(after)]).returncode == 9
    assert champion(tmp_path) == expected == history(tmp_path)[-1].to
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1  # reading mends nothing
    told = [(change.to, change.verdict) for change in history(tmp_path)]
    assert told == [("one", ""), ("two", "abc")][: 2 if expected == "two" else 1]
    set_champion(tmp_path, "three", reason="next")
    assert [(c.to, c.verdict) for c in history(tmp_path)] == [*told, ("three", "")]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == len(told) + 1


def test_a_line_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    put(tmp_path, "one")
    put(tmp_path, "two")
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"utc": "2026-11-')
    assert len(history(tmp_path)) == 1
    set_champion(tmp_path, "two", reason="next")
    assert [change.to for change in history(tmp_path)] == ["one", "two"]
    (tmp_path / "history.jsonl").write_text("{}\n")
    with pytest.raises(ModelError, match=r"history\.jsonl, line 1: not a change"):
        history(tmp_path)


def test_a_champion_set_by_hand_is_in_the_history(tmp_path: Path) -> None:
    """CHAMPION is the truth, whoever wrote it."""
    put(tmp_path, "one")
    put(tmp_path, "two")
    (tmp_path / "CHAMPION").write_text("two\n")
    last = history(tmp_path)[-1]
    assert (last.before, last.to) == ("one", "two") and "by hand" in last.reason
    set_champion(tmp_path, "one", reason="back")
    assert [change.to for change in history(tmp_path)] == ["one", "two", "one"]


def test_changes_at_once_follow_one_another(tmp_path: Path) -> None:
    names = [f"model-{i}" for i in range(8)]
    for name in names:
        put(tmp_path, name)
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(set_champion, tmp_path, name, reason="at once") for name in names[1:]]
        while not all(one.done() for one in work):  # what a reader sees meanwhile
            assert {change.reason for change in history(tmp_path)} <= {"first model", "at once"}
    assert all(one.exception() is None for one in work)
    changes = history(tmp_path)
    assert len(changes) == 8 and {change.to for change in changes} == set(names)
    assert [change.before for change in changes[1:]] == [change.to for change in changes[:-1]]
    assert changes[-1].to == champion(tmp_path)


def test_an_unknown_model_is_an_error_that_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none yet; train one first"):
        load_card(tmp_path, "x")
    put(tmp_path, "one")
    with pytest.raises(ModelError, match="known: one"):
        load_card(tmp_path, "zzzzzz")


@pytest.mark.parametrize("name", ["../evil", "one/../../evil", "..", "", ".hidden", "{outside}/evil"])
def test_no_name_leads_out_of_the_folder_of_models(tmp_path: Path, name: str) -> None:
    """Also where a card lies there that calls itself by just that name."""
    root, name = tmp_path / "models", name.format(outside=tmp_path)
    put(root, "one")
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "card.json").write_text(card(name).model_dump_json())
    with pytest.raises(ModelError, match="no model"):
        load_card(root, name)
    with pytest.raises(ModelError, match="no model"):
        set_champion(root, name, reason="")
    assert champion(root) == "one"


def test_all_files_of_a_model_can_be_read_by_the_same_people(tmp_path: Path) -> None:
    folder = put(tmp_path)
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / "card.json").stat().st_mode}


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b'{"model_id": "tiny-0001"}', b"\xff\xfe\x00binary", b"[]"])
def test_a_damaged_card_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (put(tmp_path) / "card.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"card\.json"):
        load_card(tmp_path, "tiny-0001")


def test_a_folder_under_another_name_is_not_that_model(tmp_path: Path) -> None:
    put(tmp_path).rename(tmp_path / "other")
    with pytest.raises(ModelError, match="tiny-0001"):
        load_card(tmp_path, "other")


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_network(path: Path) -> None:
    save_file({"x": torch.zeros(3)}, path)


def with_a_tensor_less(path: Path) -> None:
    tensors = load_file(path)
    del tensors["head.fc.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize("damage", [remove, cut, empty, of_another_network, with_a_tensor_less])
def test_damaged_weights_are_an_error_that_names_the_file(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(put(tmp_path) / WEIGHTS)
    with pytest.raises(ModelError, match=r"weights\.safetensors: .*train the model again"):
        load_network(tmp_path, card())


def test_a_pickle_in_place_of_weights_is_refused_without_being_executed(tmp_path: Path) -> None:
    path, mark = put(tmp_path) / WEIGHTS, tmp_path / "executed"
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ModelError):
        load_network(tmp_path, card())
    torch.save({"x": Trap(mark)}, path)
    with pytest.raises(ModelError):
        load_network(tmp_path, card())
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))  # the trap works
    assert mark.exists()


def test_a_variant_that_this_version_does_not_know_is_an_error(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(ModelError, match="unknown network"):
        load_network(tmp_path, card(variant="astroformer_9"))


@pytest.mark.parametrize(
    "values",
    [
        {"recipe_digest": "0000000000000000"},
        {"recipe": {**RECIPE.to_dict(), "image_size": 64}},
        {"recipe": {**RECIPE.to_dict(), "of_the_future": 1}},
        {"recipe": {"rendering": "ls-dr8-grz"}},
    ],
)
def test_another_recipe_than_that_of_the_training_is_an_error(tmp_path: Path, values: dict[str, Any]) -> None:
    put(tmp_path, **values)
    with pytest.raises(ModelError, match=r"trained with preprocessing .* use the version that trained it \(0\.1\.0\)"):
        preprocessing_of(load_card(tmp_path, "tiny-0001"))
    with pytest.raises(ModelError, match="trained with preprocessing"):
        predictor_for(tmp_path, "tiny-0001", "cpu")


# --- predictor ----------------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_logits_over_the_temperature(tmp_path: Path) -> None:
    put(tmp_path)
    found = predictor_for(tmp_path, "tiny-0001", "cpu", batch_size=3).predict(images(7))
    assert found.probabilities.shape == (7, 4) and found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    with torch.no_grad():
        logits = network().eval()(RECIPE.to_input(images(7)))
    np.testing.assert_allclose(found.probabilities, (logits / 1.7).softmax(1).numpy(), atol=1e-6)
    assert np.abs(found.probabilities - logits.softmax(1).numpy()).max() > 1e-3  # so the temperature matters
    np.testing.assert_array_equal(found.sets, found.probabilities >= np.float32([0.1, 0.2, 0.3, 0.1]))


def test_no_images_give_no_probabilities(tmp_path: Path) -> None:
    put(tmp_path)
    assert predictor_for(tmp_path, "tiny-0001", "cpu").predict(images(0)).probabilities.shape == (0, 4)


def test_a_model_without_its_feature_space_cannot_be_loaded(tmp_path: Path) -> None:
    (put(tmp_path) / FEATURES).unlink()
    with pytest.raises(ModelError, match=r"features\.safetensors"):
        predictor_for(tmp_path, "tiny-0001", "cpu")


def test_a_member_that_is_gone_or_changed_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path, "one")
    members = [EnsembleMember(model_id="one", digest=tensors_digest(folder)).model_dump()]
    publish(tmp_path, card("both", members=members), lambda _: None)
    assert predictor_for(tmp_path, "both", "cpu").predict(images(2)).n_views == 1
    kept = (folder / WEIGHTS).read_bytes()
    save_network(network(seed=7), folder)
    with pytest.raises(ModelError, match=r"one: its tensors have digest .* the ensemble both was calibrated with"):
        predictor_for(tmp_path, "both", "cpu", batch_size=2)
    (folder / WEIGHTS).write_bytes(kept)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"one: not found, but the ensemble both"):
        predictor_for(tmp_path, "both", "cpu", batch_size=2)


class Crowded(nn.Module):
    """A network for which only so many images fit into memory."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits, self.seen, self.num_classes = fits, [0], 4

    def penultimate(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(x))
        return x.mean((2, 3))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features @ torch.ones(3, 4)


def crowded(net: Crowded, batch_size: int) -> Predictor:
    space = FeatureSpace(np.zeros((1, 3), np.float32), np.eye(3, dtype=np.float32))
    ensemble = Ensemble([net], [space], RECIPE, views=1, device=torch.device("cpu"), batch_size=batch_size)
    return Predictor(card(), ensemble)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost() -> None:
    net = Crowded(fits=3)
    found = crowded(net, batch_size=16).predict(images(10))
    assert found.probabilities.shape == (10, 4)
    np.testing.assert_array_equal(found.novelty, crowded(Crowded(fits=99), batch_size=1).predict(images(10)).novelty)
    assert sum(net.seen) == 10 and max(net.seen) <= 3
    with pytest.raises(torch.cuda.OutOfMemoryError):
        crowded(Crowded(fits=0), batch_size=4).predict(images(2))


def test_eight_threads_share_one_predictor_that_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    loads: list[str] = []
    real = predictor_module.load_network

    def counted(root: Path, which: ModelCard) -> nn.Module:
        loads.append(which.model_id)
        return real(root, which)

    monkeypatch.setattr(predictor_module, "load_network", counted)
    together = threading.Barrier(8)

    def ask(_: int) -> Predictor:
        together.wait()
        return predictor_for(tmp_path, "tiny-0001", "cpu")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert all(p is found[0] for p in found)
    assert loads == ["tiny-0001"]


def test_a_new_model_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    put(tmp_path, "one", seed=1)
    put(tmp_path, "two", seed=2)
    one = predictor_for(tmp_path, "one", "cpu")
    two = predictor_for(tmp_path, "two", "cpu")
    assert two.card.model_id == "two" and two is predictor_for(tmp_path, "two", "cpu")
    assert not np.array_equal(one.predict(images(2)).probabilities, two.predict(images(2)).probabilities)
    assert list(predictor_module._slot.values()) == [two]


def test_a_model_that_cannot_be_loaded_leaves_the_slot_as_it_was(tmp_path: Path) -> None:
    put(tmp_path, "one")
    one = predictor_for(tmp_path, "one", "cpu")
    with pytest.raises(ModelError, match="no model"):
        predictor_for(tmp_path, "gone", "cpu")
    assert predictor_for(tmp_path, "one", "cpu") is one
