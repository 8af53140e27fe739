"""Weights from elsewhere: what is taken by name, what is refused, and timm's own model against ours."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import ModelError
from models.networks.astroformer import Astroformer, create_model
from models.networks.checkpoint_conversion import ConversionReport, load_checkpoint
from models.networks.factory import create_network, import_timm

TABLE = "stages.3.blocks.0.attn.rel_pos.relative_position_bias_table"


def tiny(layout: str = "CCCT", *, image_size: int = 64, num_classes: int = 10) -> Astroformer:
    return create_model("cpu_tiny", layout=layout, image_size=image_size, num_classes=num_classes).eval()


def scrambled(network: nn.Module) -> nn.Module:
    """The network with random numbers in every parameter and statistic, none of them a default."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            (tensor.uniform_(0.5, 1.5) if "var" in name or "norm" in name else tensor.normal_(0, 0.1))
    return network


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def saved(tensors: object, folder: Path, name: str = "checkpoint.pt") -> Path:
    path = folder / name
    if name.endswith(".safetensors"):
        save_file(tensors, path)  # type: ignore[arg-type]
    else:
        torch.save(tensors, path)
    return path


def refusal(network: nn.Module, path: Path, *, partial: bool = False) -> str:
    """The message of the refusal, after which the network must be as it was."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
        load_checkpoint(network, path, partial=partial)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    return str(caught.value)


# --- timm ---------------------------------------------------------------------------------------------------------


def timm_twin(network: Astroformer) -> nn.Module:
    """timm's own MaxxVit, configured to be this Astroformer, with other weights."""
    import_timm()
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg

    variant = network.variant
    settings = MaxxVitCfg(
        embed_dim=variant.widths,
        depths=variant.depths,
        block_type=tuple(network.layout),
        stem_width=variant.stem_width,
        head_hidden_size=variant.head_hidden,
    )
    return scrambled(MaxxVit(settings, img_size=network.image_size, num_classes=network.num_classes)).eval()


@pytest.mark.parametrize("layout", ["CCCT", "CCTT", "CTTT", "CCCC"])
def test_a_checkpoint_of_timm_gives_the_logits_of_timm(layout: str, tmp_path: Path) -> None:
    ours = tiny(layout)
    twin = timm_twin(ours)
    taken = load_checkpoint(ours, saved(twin.state_dict(), tmp_path, "timm.safetensors"))
    assert (taken.interpolated, taken.left_fresh, taken.ignored) == ((), (), ())
    assert taken.parameters_taken == taken.parameters == sum(p.numel() for p in twin.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(ours(images()), twin(images()), rtol=1e-5, atol=1e-5)


def test_stem_and_convolution_stages_of_a_coatnet_are_taken_in_part(tmp_path: Path) -> None:
    timm = import_timm()
    coatnet = timm.create_model("coatnet_0_224", img_size=64, num_classes=1000)  # astroformer_0 of layout CCTT
    path = saved({"state_dict": coatnet.state_dict()}, tmp_path)
    ours = create_model("astroformer_0", layout="CCCT", image_size=64)
    message = refusal(ours, path)
    assert "expected layout CCCT, found another: it is of astroformer_0, layout CCTT" in message
    taken = load_checkpoint(ours, path, partial=True)
    fresh = {name.rpartition(".blocks")[0] or "head" for name in taken.left_fresh}
    assert fresh == {"stages.2", "head"} and {"head.fc.weight", "head.fc.bias"} < set(taken.left_fresh + taken.ignored)
    for name in ("stem.conv1.weight", "stages.1.blocks.2.se.fc1.weight", "stages.3.blocks.0.attn.qkv.weight"):
        assert torch.equal(ours.state_dict()[name], coatnet.state_dict()[name])
    whole = create_model("astroformer_0", layout="CCTT", image_size=64)
    assert load_checkpoint(whole, path).left_fresh == ("head.fc.weight", "head.fc.bias")


def test_what_a_coatnet_of_other_blocks_does_not_give_is_said(tmp_path: Path) -> None:
    other = import_timm().create_model("coatnet_pico_rw_224", img_size=64, num_classes=10)
    widths = (64, 128, 256, 512)
    ours = create_model("cpu_tiny", image_size=64)
    message = refusal(ours, saved(other.state_dict(), tmp_path))
    assert "layout CCTT, widths " + "-".join(map(str, widths)) in message


# --- what is taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.safetensors", lambda tensors: tensors),
        ("plain.pt", lambda tensors: tensors),
        ("lightning.pth", lambda tensors: {"epoch": 3, "state_dict": prefixed("model.", tensors)}),
        ("parallel.bin", lambda tensors: {"model": prefixed("module.", tensors), "optimizer": {"state": {}}}),
        ("compiled.pt", lambda tensors: prefixed("module._orig_mod.", tensors)),
        ("averaged.pt", lambda tensors: {"state_dict": zeros(tensors), "state_dict_ema": tensors}),
        ("timm.pth.tar", lambda tensors: {"args": argparse.Namespace(lr=0.1), "model_ema": tensors}),
        ("half.pt", lambda tensors: {name: t.half() for name, t in tensors.items()}),
    ],
)
def test_wrapped_checkpoints_load_by_name(
    name: str, wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    source, network = scrambled(tiny()), tiny()
    taken = load_checkpoint(network, saved(wrap(source.state_dict()), tmp_path, name))
    assert taken.left_fresh == taken.interpolated == ()
    precision = 1e-2 if name == "half.pt" else 0.0
    for key, tensor in source.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], tensor, rtol=precision, atol=precision)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def zeros(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def test_a_head_for_other_classes_is_left_fresh(tmp_path: Path) -> None:
    source, network = scrambled(tiny(num_classes=100)), tiny(num_classes=10)
    before = network.head.fc.weight.detach().clone()
    taken = load_checkpoint(network, saved(source.state_dict(), tmp_path))
    assert taken.left_fresh == taken.ignored == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(network.head.fc.weight, before)
    assert taken.parameters - taken.parameters_taken == 128 * 10 + 10
    with torch.inference_mode():
        torch.testing.assert_close(network.penultimate(images()), source.penultimate(images()))  # type: ignore[operator]


def test_tables_of_another_image_size_are_interpolated(tmp_path: Path) -> None:
    source, network = tiny(image_size=128), tiny(image_size=192)
    y, x = torch.meshgrid(torch.arange(-3.0, 4.0), torch.arange(-3.0, 4.0), indexing="ij")
    table = torch.stack([y, x, y + 2 * x, torch.ones_like(x)], dim=-1)  # (7, 7, 4 heads): bias grows with the offset
    state = {**source.state_dict(), TABLE: table.reshape(49, 4)}
    taken = load_checkpoint(network, saved(state, tmp_path))
    assert taken.interpolated == (TABLE,) and taken.left_fresh == ()
    found = network.state_dict()[TABLE].reshape(11, 11, 4)
    offsets = torch.arange(-5.0, 6.0) * 7 / 11  # in steps of the map that the table was made for
    inner = slice(2, 9)  # the rim is flattened by the clamped border
    torch.testing.assert_close(found[inner, 5, 0], offsets[inner], rtol=0, atol=0.05)
    torch.testing.assert_close(found[5, inner, 1], offsets[inner], rtol=0, atol=0.05)
    torch.testing.assert_close(found[..., 2], found[..., 0] + 2 * found[..., 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[..., 3], torch.ones(11, 11))
    network(images(192))


def test_report_in_words_and_as_a_table(tmp_path: Path) -> None:
    taken = load_checkpoint(tiny(num_classes=3), saved({**tiny().state_dict(), "extra.x": torch.ones(1)}, tmp_path))
    assert re.match(r"checkpoint.pt: 99\.\d% of the parameters taken \(\d+ tensors as they are, 0 inter", str(taken))
    assert str(taken).endswith("left fresh: head (2); ignored: head (2), extra (1)")
    table = taken.to_markdown()
    assert "| head | 4 | 0 | 2 | 2 |" in table and "| stem | 7 | 0 | 0 | 0 |" in table
    assert sum(int(row.split("|")[2]) for row in table.splitlines()[4:]) == len(taken.taken)


def test_weights_of_a_peer_load_into_a_peer(tmp_path: Path) -> None:
    source = scrambled(create_network("timm/test_resnet", image_size=64, num_classes=10)).eval()
    network = create_network("timm/test_resnet", image_size=64, num_classes=10).eval()
    taken = load_checkpoint(network, saved(source.state_dict(), tmp_path, "ours.safetensors"))
    assert isinstance(taken, ConversionReport) and taken.left_fresh == ()
    assert torch.equal(network(images()), source(images()))
    other = create_network("timm/test_resnet", image_size=64, num_classes=4)
    assert load_checkpoint(other, saved(source.body.state_dict(), tmp_path)).left_fresh == ("fc.weight", "fc.bias")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_another_layout_is_refused_unless_taken_in_part(tmp_path: Path) -> None:
    path = saved(tiny("CCTT").state_dict(), tmp_path)
    message = refusal(tiny("CCCT"), path)
    assert "expected layout CCCT, found another: it is of cpu_tiny, layout CCTT" in message
    taken = load_checkpoint(tiny("CCCT"), path, partial=True)
    assert {name[:9] for name in taken.left_fresh} == {name[:9] for name in taken.ignored} == {"stages.2."}


@pytest.mark.parametrize("variant", ["astroformer_0", "cpu_small"])
def test_another_variant_is_named(variant: str, tmp_path: Path) -> None:
    message = refusal(tiny(), saved(create_model(variant, image_size=64).state_dict(), tmp_path))
    assert f"widths 32-64-96-128, depths 1-1-2-1, stem 16, found another network: it is of {variant}, " in message


def test_deeper_networks_do_not_pass_for_shallower_ones(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state.update({k.replace("2.blocks.1", "2.blocks.2"): v for k, v in state.items() if "2.blocks.1" in k})
    path = saved(state, tmp_path)
    assert "depths 1-1-3-1" in refusal(tiny(), path)
    assert load_checkpoint(tiny(), path, partial=True).left_fresh == ()


def test_nothing_that_fits_is_an_error_also_in_part(tmp_path: Path) -> None:
    path = saved({"layer1.weight": torch.ones(3), "layer1.bias": torch.ones(3)}, tmp_path)
    for partial in (False, True):
        assert "another kind of network, such as layer1.weight, layer1.bias" in refusal(tiny(), path, partial=partial)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["stages.1.blocks.0.norm1.running_var"][3] = value
    message = refusal(tiny(), saved(state, tmp_path))
    assert "stages.1.blocks.0.norm1.running_var hold values that are not finite" in message


class Dangerous:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    path = saved({"state_dict": tiny().state_dict(), "hook": Dangerous(harm)}, tmp_path)
    assert re.search(r"holds \S*open, and loading that could run code", refusal(tiny(), path))
    assert not harm.exists()


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_damaged_files_say_so(name: str, tmp_path: Path) -> None:
    path = saved(tiny().state_dict(), tmp_path, name)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not a checkpoint at all", b"", whole[:100]):
        path.write_bytes(content)
        assert "fetch or save it again" in refusal(tiny(), path)


def test_missing_files_and_other_content_say_so(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tiny(), tmp_path / "none.pt")
    assert "cannot be read" in refusal(tiny(), tmp_path / "none.safetensors")
    assert "found a list" in refusal(tiny(), saved([1, 2], tmp_path))
    assert "found a mapping with the keys epoch, loss" in refusal(tiny(), saved({"epoch": 1, "loss": 0.5}, tmp_path))
