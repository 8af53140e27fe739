"""Two real processes train as one does: parts, batch norm over all, gradients, curves, a broken loss in one of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.training.distributed import ALONE, Group, SyncBatchNorm2d, joined, synchronise_batch_norm
from tests.models.ranks import TRAININGS, UNEQUAL, in_two_processes, normalise, part_of_network, trained
from tests.models.toys import CPU, little, network, same_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return in_two_processes(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: trained(ALONE, folder, name) for name in ("sync", "apart")}


# --- parts --------------------------------------------------------------------------------------------------------


@given(total=st.integers(0, 300), world=st.integers(1, 9))
def test_parts_are_disjoint_pairs_and_together_all(total: int, world: int) -> None:
    parts = [range(total)[Group(rank, world).part(total)] for rank in range(world)]
    assert [row for part in parts for row in part] == list(range(total))
    assert all(part.start % 2 == 0 for part in parts if part)
    if total % (2 * world) == 0:
        assert {len(part) for part in parts} == {total // world}


def test_a_process_alone_needs_no_group() -> None:
    with joined(0, 1, "tcp://nowhere:0", CPU) as group:
        assert group == ALONE and group.is_first
        rows = torch.arange(3)
        assert group.gather(rows) is rows and group.mean(rows) is rows
        assert not torch.distributed.is_initialized()


def test_the_members_exchange_what_they_have(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["mean"].tolist() == [0.5, 1.0]
        assert found["few"].tolist() == [0, 1, 2]
        assert found["many"].tolist() == torch.arange(22).view(11, 2).tolist()
        assert found["none"].numel() == 0


def test_the_members_of_one_machine_listen_on_its_loopback_interface_alone(ranks: list[dict[str, Any]]) -> None:
    assert [len(found["listening"]) > rank for found, rank in zip(ranks, (1, 0), strict=True)] == [True, True]
    assert {address for found in ranks for address in found["listening"]} == {"127.0.0.1"}


# --- batch norm ---------------------------------------------------------------------------------------------------


def test_batch_norm_over_all_processes_is_that_of_the_whole_batch(ranks: list[dict[str, Any]]) -> None:
    """Parts of six and two images; per channel, deviations from 0.1 to 10 about a mean of 100."""
    whole = normalise(nn.BatchNorm2d(4), slice(0, 8))
    close = {"atol": 2e-4, "rtol": 1e-4}  # 0.1 about 100: float32 leaves four digits of a deviation
    for found, rows in zip(ranks, UNEQUAL, strict=True):
        norm = found["norm"]
        assert norm.keys() == whole.keys()
        for name in ("y", "x", "later"):
            torch.testing.assert_close(norm[name], whole[name][rows], **close)
        torch.testing.assert_close(norm["running_mean"], whole["running_mean"])
        torch.testing.assert_close(norm["running_var"], whole["running_var"], **close)
        assert int(norm["num_batches_tracked"]) == 2
    assert torch.equal(ranks[0]["norm"]["running_mean"], ranks[1]["norm"]["running_mean"])
    for name in ("weight", "bias"):  # each has its part of the gradient
        torch.testing.assert_close(ranks[0]["norm"][name] + ranks[1]["norm"][name], 2 * whole[name], **close)


def test_gradients_of_a_network_are_those_of_the_whole_batch(ranks: list[dict[str, Any]]) -> None:
    whole = part_of_network(ALONE)
    torch.testing.assert_close(torch.cat([found["network"]["logits"] for found in ranks]), whole["logits"])
    for found in ranks:
        torch.testing.assert_close(found["network"]["gradients"], whole["gradients"])
        torch.testing.assert_close(found["network"]["state"], whole["state"])


def test_synchronised_batch_norm_keeps_the_very_same_weights_and_buffers() -> None:
    net, reference = network(), network()
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    synchronise_batch_norm(net)
    assert all(net.get_parameter(name) is value for name, value in parameters.items())
    assert all(net.get_buffer(name) is value for name, value in buffers.items())
    kinds = {type(module) for module in net.modules()}
    assert SyncBatchNorm2d in kinds and nn.BatchNorm2d not in kinds
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(net.train()(images), reference.train()(images))  # alone it is batch norm
    assert torch.equal(net.eval()(images), reference.eval()(images))
    assert same_weights(net, reference)


def test_synchronised_batch_norm_keeps_the_type_of_its_input() -> None:
    net = little()
    synchronise_batch_norm(net)
    assert net.norm.eval()(torch.zeros(2, 8, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


# --- training -----------------------------------------------------------------------------------------------------


def losses(found: dict[str, Any]) -> list[float]:
    return [record[name] for record in found["history"] for name in ("loss", "validation_loss", "gradient_norm")]


@pytest.mark.parametrize("name", ["sync", "lean"])
def test_two_processes_give_the_curve_of_one(name: str, ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """With mixup, rotation, zoom, shift, mirror images and RandAugment; also when activations are computed twice."""
    assert losses(ranks[0][name]) == pytest.approx(losses(alone["sync"]), rel=1e-3)
    torch.testing.assert_close(ranks[0][name]["logits"], alone["sync"]["logits"], atol=5e-3, rtol=1e-2)


def test_computing_activations_twice_changes_nothing_in_a_group(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["lean"]["history"] == ranks[0]["sync"]["history"]


@pytest.mark.parametrize("name", TRAININGS)
def test_all_processes_end_with_the_same_network_and_curve(name: str, ranks: list[dict[str, Any]]) -> None:
    """Also with stochastic depth, dropout, lookahead, parts of a batch, and batch norm apart."""
    assert ranks[0][name]["history"] == ranks[1][name]["history"]
    first, second = (found[name]["weights"] for found in ranks)
    differing = [key for key, value in first.items() if not torch.equal(value, second[key])]
    assert differing == []


def test_batch_norm_apart_is_another_training(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert alone["apart"]["history"] == alone["sync"]["history"]  # alone there is nothing to share
    assert losses(ranks[0]["apart"]) != pytest.approx(losses(alone["sync"]), rel=1e-3)


def test_a_loss_broken_in_one_process_stops_all_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    assert "loss is nan in epoch 1, step 3 of 4" in ranks[0]["broken"]
    assert ranks[0]["broken"] == ranks[1]["broken"]


def test_a_group_writes_one_checkpoint_that_one_process_goes_on_from(
    folder: Path, ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A finished training of two processes is read by one, which ends with the very same network."""
    for name in TRAININGS:
        shutil.copy(folder / f"{name}-2.pt", tmp_path / f"{name}-1.pt")
        again = trained(ALONE, tmp_path, name)
        assert again["history"] == ranks[0][name]["history"]
        assert all(torch.equal(value, again["weights"][key]) for key, value in ranks[0][name]["weights"].items())
        torch.testing.assert_close(again["logits"], ranks[0][name]["logits"])
