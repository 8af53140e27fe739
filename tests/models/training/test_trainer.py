"""The training loop: it learns, shows every image, follows its schedule, and stops when numbers break."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.config import LoopSettings
from models.training.distributed import Group
from models.training.trainer import (
    Trainer,
    TrainingDiverged,
    balanced_order,
    images_per_epoch,
    predict_logits,
    train_network,
)
from tests.models.toys import (
    CLASSES,
    CPU,
    EVERYTHING,
    PLAIN,
    RECIPE,
    TRAINING,
    VALIDATION,
    changed,
    labelled,
    network,
    run_of,
    same_weights,
    toy,
    train,
)

# --- learning -----------------------------------------------------------------------------------------------------


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    settings = changed(EVERYTHING, epochs=6, randaugment_ops=0, learning_rate=3e-3)
    trained = train(tmp_path / "c.pt", settings, training=toy(192, 1), validation=toy(96, 2))
    assert [record.epoch for record in trained.history] == list(range(6))
    assert trained.history[-1].loss < trained.history[0].loss - 0.1
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


def test_only_the_rows_of_a_split_are_looked_at(tmp_path: Path) -> None:
    """Splits of one image set train to the same weights as sets of their own, whatever the other images hold."""
    pixels = torch.cat([VALIDATION.pixels, torch.zeros(8, 3, 32, 32, dtype=torch.uint8), TRAINING.pixels])
    labels = torch.cat([VALIDATION.labels, torch.full((8,), -1), TRAINING.labels])
    order = torch.randperm(64)
    training = type(TRAINING)(pixels, labels, 40 + order)
    validation = type(TRAINING)(pixels, labels, torch.arange(32))
    one = train(tmp_path / "one.pt", training=training, validation=validation)
    other = train(tmp_path / "other.pt", training=labelled(TRAINING.pixels[order], TRAINING.labels[order]))
    assert same_weights(one.network, other.network)
    assert torch.equal(one.validation_logits, other.validation_logits)


def test_without_validation_images_the_curve_says_so(tmp_path: Path) -> None:
    nothing = labelled(VALIDATION.pixels[:0], VALIDATION.labels[:0])
    trained = train(tmp_path / "c.pt", changed(PLAIN, select="best"), validation=nothing)
    assert math.isnan(trained.history[0].validation_loss) and math.isnan(trained.history[0].validation_accuracy)


def test_prediction_does_not_depend_on_the_batch() -> None:
    net = network().eval()
    whole = predict_logits(net, VALIDATION.pixels, RECIPE, device=CPU)
    parts = predict_logits(net, VALIDATION.pixels, RECIPE, device=CPU, batch_size=5)
    torch.testing.assert_close(parts, whole)
    rows = torch.tensor([7, 0, 7])
    torch.testing.assert_close(predict_logits(net, VALIDATION.pixels, RECIPE, device=CPU, rows=rows), whole[rows])
    assert len(predict_logits(net, VALIDATION.pixels[:0], RECIPE, device=CPU)) == 0


# --- divergence ---------------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """A linear classifier that misbehaves from its `at`-th training step on."""

    num_classes = CLASSES

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


@pytest.mark.parametrize("optimizer", ["adamw", "lookahead_radam"])
@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_broken_loss_stops_with_epoch_and_step_and_keeps_the_last_good_epoch(
    tmp_path: Path, how: str, optimizer: str
) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf) in epoch 3, step 2 of 4.*training\.learning_rate"):
        train_broken(path, 9, how, changed(PLAIN, epochs=4, optimizer=optimizer))
    state = torch.load(path, weights_only=True)
    assert len(state["history"]) == 2
    assert all(value.isfinite().all() for value in [*state["network"].values(), *state["lookahead"]])


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


def shown(run: Trainer, epoch: int) -> Tensor:
    return torch.cat([labels for _, labels, _ in run._batches(epoch)])


def test_order_differs_from_epoch_to_epoch_and_can_be_plain() -> None:
    data = toy(64, 3, weights=(20, 2, 1))
    stratified, plain = run_of(PLAIN, data), run_of(changed(PLAIN, stratified=False), data)
    assert not torch.equal(shown(stratified, 0), shown(stratified, 1))
    assert torch.equal(shown(stratified, 1), shown(stratified, 1))
    counts = torch.bincount(shown(stratified, 0), minlength=CLASSES)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(torch.bincount(shown(plain, 0)), torch.bincount(data.labels))


@given(
    images=st.integers(2, 60),
    batch=st.integers(1, 40).map(lambda half: 2 * half),
    world=st.integers(1, 4),
    epoch=st.integers(0, 5),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_no_image_twice_in_an_epoch_over_all_processes(images: int, batch: int, world: int, epoch: int) -> None:
    """The parts of all processes are the batches of one process, in its order, with the views drawn for them."""
    data = labelled(torch.zeros(images, 3, 1, 1, dtype=torch.uint8), torch.arange(images))
    settings = changed(EVERYTHING, batch_size=batch, stratified=False)
    alone = run_of(settings, data, SPOT)
    seen = shown(alone, epoch).tolist()
    assert len(seen) == len(set(seen)) == alone.images_per_epoch == images_per_epoch(images, batch)
    runs = [alone_as(alone, Group(rank, world)) for rank in range(world)]
    for (_, labels, views), *parts in zip(alone._batches(epoch), *(run._batches(epoch) for run in runs), strict=True):
        assert torch.cat([part[1] for part in parts]).tolist() == labels.tolist()
        assert np.array_equal(np.concatenate([part[2].affine for part in parts]), views.affine)
        assert {part[2].kept for part in parts} == {views.kept}


SPOT = Breaks(1000, "nan")


def alone_as(run: Trainer, group: Group) -> Trainer:
    """What a run would draw in its place of a group, without the group."""
    other = object.__new__(Trainer)
    other.__dict__.update({**vars(run), "group": group, "mine": group.part(run.batch_size)})
    return other


# --- schedule, average, loss --------------------------------------------------------------------------------------


def test_rate_rises_linearly_and_falls_as_a_cosine_to_zero() -> None:
    run = run_of(changed(PLAIN, epochs=5, warmup_epochs=1))
    assert run.steps_per_epoch == 4
    assert [run._rate(step) for step in range(4)] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    wanted = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(17)]
    assert [run._rate(step) for step in range(4, 21)] == pytest.approx(wanted)
    assert run._rate(4) == 1.0 and run._rate(20) == pytest.approx(0.0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_rate_of_the_optimizer_follows_the_schedule(accumulate: int) -> None:
    run = run_of(changed(PLAIN, epochs=2, warmup_epochs=1, learning_rate=0.01, accumulate=accumulate))
    assert run.learning_rate == pytest.approx(0.01 / 5)
    run.epoch(0, None)
    assert run.learning_rate == pytest.approx(0.01)
    assert {group["lr"] for group in run.optimizer.param_groups} == {run.learning_rate}


def test_average_is_the_exponential_average_of_weights_and_buffers() -> None:
    """Reckoned again in float64 from the weights after each step; batch-norm statistics included."""
    run = run_of(changed(PLAIN, ema_decay=0.5))
    names = ("head.fc.weight", "stem.norm1.running_var", "stem.norm1.running_mean")
    expected: dict[str, Tensor] = {}
    batches = list(run._batches(0)) * 3
    run.network.train()
    for n, batch in enumerate(batches):
        run._step(*batch)
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
    run.epoch(0, None)
    index = "stages.3.blocks.0.attn.rel_pos.relative_position_index"
    assert torch.equal(run.average.module.get_buffer(index), run.network.get_buffer(index))


def test_without_decay_the_outcome_is_the_plain_network() -> None:
    run = run_of(changed(PLAIN, ema_decay=0.0))
    run.epoch(0, None)
    assert run.final() is run.network


def test_label_smoothing_is_part_of_the_loss() -> None:
    run = run_of(changed(PLAIN, label_smoothing=0.3))
    pixels, labels, views = next(run._batches(0))
    run.network.train()
    with torch.no_grad():
        log_p = run.network(RECIPE.to_input(pixels)).log_softmax(1)
    expected = -(0.7 * log_p[torch.arange(16), labels] + 0.3 * log_p.mean(1)).mean()
    loss, _ = run_of(changed(PLAIN, label_smoothing=0.3))._step(pixels, labels, views)
    torch.testing.assert_close(loss, expected)


def test_gradients_are_clipped_to_the_given_norm_and_told_as_they_were() -> None:
    def step(clip: float) -> tuple[float, float]:
        run = run_of(changed(PLAIN, clip_gradient=clip))
        run.network.train()
        _, norm = run._step(*next(run._batches(0)))
        gradients = [p.grad for p in run.network.parameters() if p.grad is not None]
        return float(norm), float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))

    told, left = step(0.01)
    assert left == pytest.approx(0.01, rel=1e-3)
    assert step(0.0) == pytest.approx((told, told), rel=1e-5)  # 0 leaves them alone
    assert told > 0.1


def test_the_norm_of_the_curve_is_the_mean_over_the_epoch(tmp_path: Path) -> None:
    run = run_of(PLAIN)
    run.network.train()
    norms = [float(run._step(*batch)[1]) for batch in run._batches(0)]
    assert train(tmp_path / "c.pt").history[0].gradient_norm == pytest.approx(sum(norms) / 4, rel=1e-5)


def test_an_epoch_is_whole_batches_of_whole_pairs(tmp_path: Path) -> None:
    assert images_per_epoch(31, 16) == 16  # one batch of 16, the rest waits for another epoch
    assert images_per_epoch(5, 16) == 4  # fewer images than a batch
    with pytest.raises(ValueError, match="1 training images: at least 2"):
        train(tmp_path / "c.pt", training=toy(1, 1))
    told: list[int] = []
    train_network(
        network(), toy(50, 1), VALIDATION, PLAIN, RECIPE, device=CPU, checkpoint=tmp_path / "c.pt", on_step=told.append
    )
    assert told == [16, 16, 16]


@pytest.mark.parametrize(("images", "batch"), [(64, 18), (31, 16 * 4), (3, 16)])
def test_batches_that_cannot_be_shared_out_are_refused(images: int, batch: int, tmp_path: Path) -> None:
    """Parts of unequal size would weigh images unequally, and an empty part makes the loss NaN."""
    with pytest.raises(ValueError, match=r"batches of \d+ images .* 2 processes need a multiple of 4"):
        train_network(
            network(),
            toy(images, 1),
            VALIDATION,
            changed(PLAIN, batch_size=batch),
            RECIPE,
            device=CPU,
            checkpoint=tmp_path / "c.pt",
            group=Group(0, 2),
        )
