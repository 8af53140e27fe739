"""The training loop: it learns, goes on after a kill to the very same weights, and stops when numbers break."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from models.astroformer import create_model
from models.errors import ModelError
from models.recipe import Recipe
from models.settings import LoopSettings
from models.training import (
    EpochRecord,
    LabelledPixels,
    Trained,
    TrainingDiverged,
    _Run,
    balanced_order,
    predict_logits,
    train_network,
)

RECIPE, CPU, CLASSES = Recipe(image_size=32), torch.device("cpu"), 3
PLAIN = LoopSettings(
    epochs=1,
    batch_size=16,
    warmup_epochs=0.5,
    mixup=0.0,
    label_smoothing=0.0,
    drop_path=0.0,
    head_dropout=0.0,
    rotate=False,
    mirror=False,
    zoom=0.0,
    shift=0.0,
    ema_decay=0.9,
)
EVERYTHING = LoopSettings(epochs=4, batch_size=16, warmup_epochs=1, randaugment_ops=1, mixup=0.5, ema_decay=0.9)


def toy(count: int, seed: int, weights: tuple[float, ...] = (1, 1, 1)) -> LabelledPixels:
    """Noise with a bright spot whose size says the class; whatever the rotation."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor(weights, dtype=torch.float), count, replacement=True, generator=generator)
    radius = torch.hypot(*torch.meshgrid(torch.arange(-15.5, 16), torch.arange(-15.5, 16), indexing="ij"))
    spot = torch.exp(-0.5 * (radius / (1.5 + 2.5 * labels.view(-1, 1, 1))) ** 2)
    noise = torch.rand(count, 3, 32, 32, generator=generator)
    return LabelledPixels((40 + 60 * noise + 150 * spot[:, None]).to(torch.uint8), labels)


TRAINING, VALIDATION = toy(64, 1), toy(32, 2)


def network(settings: LoopSettings = PLAIN) -> nn.Module:
    torch.manual_seed(settings.seed)
    return create_model(
        "cpu_tiny",
        image_size=32,
        num_classes=CLASSES,
        drop_path=settings.drop_path,
        head_dropout=settings.head_dropout,
    )


def train(
    checkpoint: Path,
    settings: LoopSettings = PLAIN,
    *,
    training: LabelledPixels = TRAINING,
    validation: LabelledPixels = VALIDATION,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Trained:
    return train_network(
        network(settings),
        training,
        validation,
        settings,
        RECIPE,
        device=CPU,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def run_of(settings: LoopSettings, data: LabelledPixels = TRAINING) -> _Run:
    return _Run(network(settings), data, settings, RECIPE, CPU)


def changed(settings: LoopSettings, **values: Any) -> LoopSettings:
    return LoopSettings(**{**settings.model_dump(), **values})


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(a, b) for (name, a), (name2, b) in pairs)


def curve(trained: Trained) -> list[EpochRecord]:
    """The curve without what depends on the clock."""
    return [replace(record, images_per_second=0.0) for record in trained.history]


# --- learning -----------------------------------------------------------------------------------------------------


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    settings = changed(EVERYTHING, epochs=8, randaugment_ops=0, learning_rate=3e-3)
    trained = train(tmp_path / "c.pt", settings, training=toy(192, 1), validation=toy(96, 2))
    assert [record.epoch for record in trained.history] == list(range(8))
    assert trained.history[-1].loss < trained.history[0].loss - 0.2
    assert trained.history[-1].validation_accuracy > 0.8  # chance: 1/3
    assert trained.validation_logits.shape == (96, CLASSES) and trained.validation_logits.dtype == torch.float32


def test_the_outcome_is_the_averaged_network_on_the_validation_set(tmp_path: Path) -> None:
    trained = train(tmp_path / "c.pt")
    assert torch.equal(
        trained.validation_logits, predict_logits(trained.network, VALIDATION.pixels, RECIPE, device=CPU)
    )
    last = trained.history[-1]
    accuracy = (trained.validation_logits.argmax(1) == VALIDATION.labels).float().mean()
    assert last.validation_accuracy == pytest.approx(float(accuracy))
    assert last.validation_loss == pytest.approx(float(F.cross_entropy(trained.validation_logits, VALIDATION.labels)))
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert torch.equal(trained.network.state_dict()["head.fc.weight"], state["average"]["module.head.fc.weight"])
    assert not torch.equal(state["network"]["head.fc.weight"], state["average"]["module.head.fc.weight"])


def test_without_validation_images_the_curve_says_so(tmp_path: Path) -> None:
    trained = train(tmp_path / "c.pt", validation=LabelledPixels(VALIDATION.pixels[:0], VALIDATION.labels[:0]))
    assert math.isnan(trained.history[0].validation_loss) and math.isnan(trained.history[0].validation_accuracy)


def test_prediction_does_not_depend_on_the_batch() -> None:
    net = network().eval()
    whole = predict_logits(net, VALIDATION.pixels, RECIPE, device=CPU)
    parts = predict_logits(net, VALIDATION.pixels, RECIPE, device=CPU, batch_size=5)
    torch.testing.assert_close(parts, whole)
    assert len(predict_logits(net, VALIDATION.pixels[:0], RECIPE, device=CPU)) == 0


# --- resume -------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight.pt", EVERYTHING)

    def kill(record: EpochRecord) -> None:
        if record.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "killed.pt", EVERYTHING, on_epoch=kill)
    torch.rand(7)  # the state of the global generator must not matter
    told: list[int] = []
    resumed = train(tmp_path / "killed.pt", EVERYTHING, on_epoch=lambda record: told.append(record.epoch))
    assert told == [2, 3]
    assert same_weights(straight.network, resumed.network)
    assert curve(straight) == curve(resumed)
    assert torch.equal(straight.validation_logits, resumed.validation_logits)


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first = train(tmp_path / "c.pt")
    again = train(tmp_path / "c.pt", on_epoch=lambda record: pytest.fail("an epoch was run"))
    assert same_weights(first.network, again.network)
    assert first.history == again.history


def test_training_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    run = run_of(EVERYTHING)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    run.epoch(0)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoint_is_whole_hides_nothing_beside_and_runs_no_code(tmp_path: Path) -> None:
    train(tmp_path / "new" / "c.pt")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["c.pt"]
    state = torch.load(tmp_path / "new" / "c.pt", weights_only=True)
    assert set(state) == {"network", "average", "optimizer", "schedule", "history"}


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


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "c.pt")
    with pytest.raises(ModelError, match="delete it"):
        train_network(
            create_model("cpu_tiny", image_size=32, num_classes=5),
            TRAINING,
            VALIDATION,
            PLAIN,
            RECIPE,
            device=CPU,
            checkpoint=tmp_path / "c.pt",
        )


# --- divergence ---------------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """A linear classifier that misbehaves from its `at`-th training step on."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.head = nn.ModuleDict({"fc": nn.Linear(3, CLASSES)})
        self.at, self.how, self.steps = at, how, 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head["fc"](x.mean((2, 3)))
        if self.training:
            self.steps += 1
            if self.steps > self.at and self.how != "gradient":
                logits = logits * float(self.how)
            elif self.steps > self.at:
                logits = logits + torch.sqrt(logits.abs() * 0)  # adds nothing, but its slope is not finite
        return logits


def train_broken(checkpoint: Path, at: int, how: str, settings: LoopSettings) -> None:
    train_network(Breaks(at, how), TRAINING, VALIDATION, settings, RECIPE, device=CPU, checkpoint=checkpoint)


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_broken_loss_stops_with_epoch_and_step_and_keeps_the_last_good_epoch(tmp_path: Path, how: str) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf) in epoch 3, step 2 of 4.*training\.learning_rate"):
        train_broken(path, 9, how, changed(PLAIN, epochs=4))
    state = torch.load(path, weights_only=True)
    assert len(state["history"]) == 2
    assert all(value.isfinite().all() for value in state["network"].values())


def test_a_broken_gradient_of_the_last_step_is_noticed_before_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(TrainingDiverged, match="weights are not finite in epoch 2, step 4 of 4"):
        train_broken(path, 7, "gradient", changed(PLAIN, epochs=3))
    assert len(torch.load(path, weights_only=True)["history"]) == 1


# --- order of images ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=1, max_size=120), st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=150, deadline=None)
def test_every_class_comes_equally_often_and_every_image_before_a_repeat(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    order = balanced_order(array, np.random.default_rng(seed))
    assert len(order) == len(array)
    counts = np.unique(array[order], return_counts=True)[1]
    assert len(counts) == min(len(np.unique(array)), len(array))
    assert counts.max() - counts.min() <= 1
    for c in np.unique(array):
        drawn = np.bincount(order, minlength=len(array))[array == c]
        assert drawn.max() - drawn.min() <= 1


def test_order_differs_from_epoch_to_epoch_and_can_be_plain(tmp_path: Path) -> None:
    data = toy(64, 3, weights=(20, 2, 1))
    stratified, plain = run_of(PLAIN, data), run_of(changed(PLAIN, stratified=False), data)

    def labels(run: _Run, epoch: int) -> Tensor:
        return torch.cat([batch_labels for _, batch_labels in run._batches(epoch)])

    assert not torch.equal(labels(stratified, 0), labels(stratified, 1))
    assert torch.equal(labels(stratified, 1), labels(stratified, 1))
    counts = torch.bincount(labels(stratified, 0), minlength=CLASSES)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(torch.bincount(labels(plain, 0)), torch.bincount(data.labels))


# --- schedule, average, loss --------------------------------------------------------------------------------------


def test_rate_rises_linearly_and_falls_as_a_cosine_to_zero() -> None:
    run = run_of(changed(PLAIN, epochs=5, warmup_epochs=1))
    assert run.steps_per_epoch == 4
    assert [run._rate(step) for step in range(4)] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    wanted = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(17)]
    assert [run._rate(step) for step in range(4, 21)] == pytest.approx(wanted)
    assert run._rate(4) == 1.0 and run._rate(20) == pytest.approx(0.0)


def test_rate_of_the_optimizer_follows_the_schedule() -> None:
    run = run_of(changed(PLAIN, epochs=2, warmup_epochs=1, learning_rate=0.01))
    assert run.learning_rate == pytest.approx(0.01 / 5)
    run.epoch(0)
    assert run.learning_rate == pytest.approx(0.01)
    assert {group["lr"] for group in run.optimizer.param_groups} == {run.learning_rate}


def test_average_is_the_exponential_average_of_weights_and_buffers() -> None:
    """Reckoned again in float64 from the weights after each step; batch-norm statistics included."""
    run = run_of(changed(PLAIN, ema_decay=0.5))
    names = ("head.fc.weight", "stem.norm1.running_var", "stem.norm1.running_mean")
    expected: dict[str, Tensor] = {}
    batches = list(run._batches(0)) * 3
    run.network.train()
    for n, (images, targets) in enumerate(batches):
        run._step(images, targets)
        weight = 1.0 if n == 0 else 1 - min(0.5, (1 + n) / (10 + n))
        for name in names:
            now = run.network.state_dict()[name].double().clone()
            expected[name] = now if n == 0 else expected[name] + weight * (now - expected[name])
    average = run.final().state_dict()
    for name in names:
        torch.testing.assert_close(average[name].double(), expected[name], atol=1e-6, rtol=1e-5)
    assert int(average["stem.norm1.num_batches_tracked"]) == len(batches)
    assert not torch.equal(average["head.fc.weight"], run.network.state_dict()["head.fc.weight"])


def test_average_leaves_the_position_index_alone() -> None:
    run = run_of(PLAIN)
    run.epoch(0)
    index = "stages.3.blocks.0.attn.rel_pos.relative_position_index"
    assert torch.equal(run.average.module.get_buffer(index), run.network.get_buffer(index))


def test_without_decay_the_outcome_is_the_plain_network() -> None:
    run = run_of(changed(PLAIN, ema_decay=0.0))
    run.epoch(0)
    assert run.final() is run.network


def test_label_smoothing_is_part_of_the_loss() -> None:
    images, labels = TRAINING.pixels[:16], TRAINING.labels[:16]
    run = run_of(changed(PLAIN, label_smoothing=0.3))
    run.network.train()
    with torch.no_grad():
        log_p = run.network(RECIPE.to_input(images)).log_softmax(1)
    expected = -(0.7 * log_p[torch.arange(16), labels] + 0.3 * log_p.mean(1)).mean()
    torch.testing.assert_close(run_of(changed(PLAIN, label_smoothing=0.3))._step(images, labels), expected)


def test_gradients_are_clipped_to_the_given_norm() -> None:
    run = run_of(changed(PLAIN, clip_gradient=0.01))
    run.network.train()
    run._step(TRAINING.pixels[:16], TRAINING.labels[:16])
    gradients = [p.grad for p in run.network.parameters() if p.grad is not None]
    assert float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))) == pytest.approx(0.01, rel=1e-3)


def test_speed_counts_the_images_that_were_seen() -> None:
    assert run_of(PLAIN, toy(31, 1)).images_per_epoch == 16  # one batch of 16, the rest waits for another epoch
    assert run_of(PLAIN, toy(5, 1)).images_per_epoch == 5  # fewer images than a batch


# --- every setting counts -----------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_epochs": 0.0,
    "weight_decay": 0.5,
    "clip_gradient": 0.1,
    "label_smoothing": 0.2,
    "mixup": 0.8,
    "randaugment_ops": 1,
    "rotate": True,
    "mirror": True,
    "zoom": 0.2,
    "shift": 0.1,
    "drop_path": 0.5,
    "head_dropout": 0.5,
    "ema_decay": 0.1,
    "stratified": False,
    "seed": 1,
}
SEEN_ELSEWHERE = {"epochs", "randaugment_magnitude", "mixed_precision"}


def one_epoch(settings: LoopSettings, data: LabelledPixels) -> nn.Module:
    run = run_of(settings, data)
    run.epoch(0)
    return run.final()


def test_every_setting_changes_the_weights() -> None:
    assert set(OTHER) | SEEN_ELSEWHERE == set(LoopSettings.model_fields)
    data = toy(32, 4, weights=(6, 2, 1))
    reference = one_epoch(PLAIN, data)
    assert same_weights(reference, one_epoch(PLAIN, data))
    assert [k for k, v in OTHER.items() if same_weights(reference, one_epoch(changed(PLAIN, **{k: v}), data))] == []


def test_strength_of_randaugment_counts() -> None:
    weak = changed(PLAIN, randaugment_ops=2, randaugment_magnitude=1)
    data = toy(32, 4)
    assert not same_weights(one_epoch(weak, data), one_epoch(changed(weak, randaugment_magnitude=29), data))


def test_mixed_precision_is_for_gpus_with_bfloat16() -> None:
    assert not run_of(PLAIN).autocast  # a CPU trains in float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_mixed_precision_learns_on_a_gpu(tmp_path: Path) -> None:
    settings = changed(EVERYTHING, epochs=8, randaugment_ops=0, learning_rate=3e-3)
    gpu = torch.device("cuda")
    trained = train_network(
        network(settings), toy(192, 1), toy(96, 2), settings, RECIPE, device=gpu, checkpoint=tmp_path / "c.pt"
    )
    assert trained.history[-1].validation_accuracy > 0.8
