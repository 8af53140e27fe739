"""A training that was killed goes on to the very same weights, and what is kept for that can be trusted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import ModelError
from models.networks.astroformer import create_model
from models.training.config import LoopSettings
from models.training.trainer import EpochRecord, TrainingResult, predict_logits, train_network
from tests.models.toys import (
    CPU,
    EVERYTHING,
    PLAIN,
    RECIPE,
    TRAINING,
    VALIDATION,
    changed,
    curve,
    labelled,
    little,
    run_of,
    same_weights,
    train,
)


class Killed(Exception):
    pass


def killed_after(checkpoint: Path, settings: LoopSettings, epochs: int, **more: Any) -> None:
    def kill(record: EpochRecord) -> None:
        if record.epoch == epochs - 1:
            raise Killed

    with pytest.raises(Killed):
        train(checkpoint, settings, on_epoch=kill, **more)


WAYS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "lookahead": {"optimizer": "lookahead_radam"},  # its six steps go over the end of an epoch of four
    "best": {"select": "best", "accumulate": 2, "learning_rate": 0.05},
    "cutmix": {"cutmix": 1.0, "randaugment_ops": 2, "ema_decay": 0.0, "checkpoint_activations": True},
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way in ("adamw", "cutmix"))) for way in WAYS]
)
def test_a_killed_training_goes_on_to_the_same_weights(way: str, tmp_path: Path) -> None:
    settings = changed(EVERYTHING, **WAYS[way])
    straight = train(tmp_path / "straight.pt", settings)
    killed_after(tmp_path / "killed.pt", settings, 3)
    torch.rand(7)  # the state of the global generator must not matter
    told: list[int] = []
    resumed = train(tmp_path / "killed.pt", settings, on_epoch=lambda record: told.append(record.epoch))
    assert told == [0, 1, 2, 3]  # the epochs of the checkpoint are told as well
    assert same_weights(straight.network, resumed.network)
    assert curve(straight) == curve(resumed)
    assert torch.equal(straight.validation_logits, resumed.validation_logits)


def test_lookahead_without_its_slow_weights_would_end_elsewhere(tmp_path: Path) -> None:
    """The checkpoint needs them: weights differ when they are made anew at the resumption."""
    settings = changed(EVERYTHING, optimizer="lookahead_radam")
    straight = train(tmp_path / "straight.pt", settings, net=little())
    path = tmp_path / "killed.pt"
    killed_after(path, settings, 3, net=little())
    state = torch.load(path, weights_only=True)
    assert int(state["lookahead"][0]) == 12
    fast = [state["network"][name] for name, _ in straight.network.named_parameters()]
    assert all(torch.equal(slow, now) for slow, now in zip(state["lookahead"][1:], fast, strict=True))  # 12 = 2 · 6
    state["lookahead"] = [torch.tensor(11), *state["lookahead"][1:]]
    torch.save(state, path)
    assert not same_weights(straight.network, train(path, settings, net=little()).network)


@pytest.mark.slow
def test_the_best_epoch_is_kept_over_worse_ones_and_over_a_kill(tmp_path: Path) -> None:
    """With wrong labels to validate on, what is learned makes it worse."""
    settings = changed(PLAIN, epochs=4, select="best")
    wrong = labelled(VALIDATION.pixels, (VALIDATION.labels + 1) % 3)

    def train_wrong(name: str, settings: LoopSettings) -> TrainingResult:
        return train(tmp_path / name, settings, validation=wrong)

    trained = train_wrong("c.pt", settings)
    losses = [record.validation_loss for record in trained.history]
    best = losses.index(min(losses))
    assert best < 3
    kept = torch.nn.functional.cross_entropy(trained.validation_logits, wrong.labels)
    assert float(kept) == pytest.approx(losses[best], rel=1e-6)
    last = train_wrong("last.pt", changed(settings, select="last"))
    assert [r.validation_loss for r in last.history] == losses and not same_weights(trained.network, last.network)
    for epochs in (best + 1, best + 2):  # killed as it was the last one, and after it
        killed_after(tmp_path / f"{epochs}.pt", settings, epochs, validation=wrong)
        assert same_weights(trained.network, train_wrong(f"{epochs}.pt", settings).network)


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_finished_training_is_not_done_again(select: str, tmp_path: Path) -> None:
    settings = changed(PLAIN, epochs=2, select=select)
    first = train(tmp_path / "c.pt", settings)
    written = (tmp_path / "c.pt").stat().st_mtime_ns
    again = train(tmp_path / "c.pt", settings)
    assert (tmp_path / "c.pt").stat().st_mtime_ns == written
    assert same_weights(first.network, again.network)
    assert first.history == again.history
    assert torch.equal(first.validation_logits, predict_logits(again.network, VALIDATION.pixels, RECIPE, device=CPU))


def test_training_leaves_the_global_random_numbers_alone() -> None:
    run = run_of(EVERYTHING)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    run.epoch(0, None)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoint_is_whole_hides_nothing_beside_and_runs_no_code(tmp_path: Path) -> None:
    train(tmp_path / "new" / "c.pt")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["c.pt"]
    state = torch.load(tmp_path / "new" / "c.pt", weights_only=True)
    assert set(state) == {"network", "average", "optimizer", "schedule", "lookahead", "best", "history"}


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_damaged_checkpoint_is_named_and_never_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "c.pt", tmp_path / "mark"
    train(path)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"rubbish", pickle.dumps(Trap(mark), protocol=2)):
        path.write_bytes(damage)
        with pytest.raises(ModelError, match=r"c\.pt.*delete it"):
            train(path)
    assert not mark.exists()


def test_a_checkpoint_of_another_network_or_optimiser_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    train(path)
    with pytest.raises(ModelError, match="delete it"):
        train(path, changed(PLAIN, optimizer="lookahead_radam"))
    other = create_model("cpu_tiny", image_size=32, num_classes=5)
    with pytest.raises(ModelError, match="delete it"):
        train_network(other, TRAINING, VALIDATION, PLAIN, RECIPE, device=CPU, checkpoint=path)
