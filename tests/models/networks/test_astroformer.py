"""The network against independent numbers: golden outputs, exact sizes, formulas written out by hand."""

from __future__ import annotations

import copy
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks.astroformer import (
    HEAD_DIM,
    VARIANTS,
    Astroformer,
    Attention,
    DropPath,
    MBConvBlock,
    RelativePositionBias,
    TransformerBlock,
    Variant,
    create_model,
    relative_position_index,
    weight_decay_groups,
)
from tests.paths import SHARED

GOLDEN = sorted((SHARED / "golden").glob("astroformer_*.npz"))
LAYOUTS = ("CCCC", "CCCT", "CCTT", "CTTT")


@pytest.fixture(autouse=True)
def fixed_seed_and_one_thread() -> Iterator[None]:
    """Same numbers each time; one thread, since small maps wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(20230405)
    yield
    torch.set_num_threads(threads)


def images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def parameter_count(name: str, **settings: object) -> int:
    with torch.device("meta"):
        model = create_model(name, **settings)  # type: ignore[arg-type]
    return sum(p.numel() for p in model.parameters())


# --- golden outputs -----------------------------------------------------------------------------------------------


def golden_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weights of the golden files, a function of the key and the shape (shared/README.md)."""
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape) if shape else np.zeros(())
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        x = 1 + 0.5 * np.tanh(x)
    elif key.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) <= 1:
        x = 1 + 0.1 * x if "norm" in key and key.endswith("weight") else 0.05 * x
    elif key.endswith("relative_position_bias_table"):
        x = 0.5 * x
    else:
        x = x / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


@pytest.mark.skipif(not GOLDEN, reason=f"no golden files under {SHARED}")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_logits_and_pooled(path: Path) -> None:
    match = re.fullmatch(r"(astroformer_\d)_([CT]{4})_(\d+)px_(\d+)", path.stem)
    assert match is not None
    name, layout, side, classes = match.groups()
    model = create_model(name, layout=layout, image_size=int(side), num_classes=int(classes)).eval()
    model.load_state_dict({key: golden_tensor(key, tuple(v.shape)) for key, v in model.state_dict().items()})
    noise = np.random.RandomState(7).standard_normal((2, 3, int(side), int(side))).astype(np.float32)
    with torch.inference_mode():
        pooled = model.pooled(model.forward_features(torch.from_numpy(noise)))
        logits = model.head(pooled)
    expected = np.load(path)
    for found, key in ((logits, "logits"), (pooled, "pooled")):
        np.testing.assert_allclose(found.numpy(), expected[key], rtol=0, atol=1e-4 * np.abs(expected[key]).max())


# --- exact sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("astroformer_0", "CCCT", 22_774_970),
        ("astroformer_0", "CCCC", 20_181_002),
        ("astroformer_0", "CCTT", 24_292_118),
        ("astroformer_0", "CTTT", 24_576_536),
        ("astroformer_1", "CCCT", 37_390_826),
        ("astroformer_2", "CCCT", 66_370_698),
        ("astroformer_3", "CCCT", 148_892_362),
        ("astroformer_3", "CCCC", 138_396_010),
        ("astroformer_3", "CCTT", 165_527_962),
        ("astroformer_3", "CTTT", 167_550_370),
        ("astroformer_4", "CCCT", 241_088_650),
        ("astroformer_4", "CCCC", 230_592_298),
        ("astroformer_4", "CCTT", 274_064_938),
        ("astroformer_4", "CTTT", 278_036_026),
        ("astroformer_5", "CCCT", 593_558_346),
    ],
)
def test_parameters_at_256_px_and_10_classes(name: str, layout: str, expected: int) -> None:
    assert parameter_count(name, layout=layout) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("astroformer_0", 22_910_712),
        ("astroformer_1", 37_526_568),
        ("astroformer_2", 66_551_624),
        ("astroformer_3", 149_163_656),
        ("astroformer_4", 241_359_944),
        ("astroformer_5", 593_920_008),
    ],
)
def test_parameters_at_64_px_and_200_classes(name: str, expected: int) -> None:
    assert parameter_count(name, image_size=64, num_classes=200) == expected


@pytest.mark.parametrize(
    ("name", "giga_macs"),
    [
        ("astroformer_0", 5.22),
        ("astroformer_1", 8.90),
        ("astroformer_2", 17.42),
        ("astroformer_3", 39.03),
        ("astroformer_4", 63.39),
        ("astroformer_5", 141.35),
    ],
)
def test_multiply_adds_at_256_px(name: str, giga_macs: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model(name).eval()(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.01)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_stage_of_every_variant_can_be_a_transformer(variant: Variant) -> None:
    assert all(width % HEAD_DIM == 0 for width in variant.widths)


# --- names --------------------------------------------------------------------------------------------------------

STEM = "conv1.weight norm1.* conv2.weight"
MBCONV = "pre_norm.* conv1_1x1.weight norm1.* conv2_kxk.weight norm2.* se.fc1.+ se.fc2.+ conv3_1x1.+"
TRANSFORMER = "attn.qkv.+ attn.rel_pos.relative_position_bias_table attn.proj.+ norm2.+ mlp.fc1.+ mlp.fc2.+"
HEAD = "norm.+ pre_logits.fc.+ fc.+"
LEAVES = {"*": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"), "+": ("weight", "bias")}


def written_out(prefix: str, names: str) -> set[str]:
    """State-dict keys of a line above: `*` stands for a batch norm, `+` for a weight and a bias."""
    return {prefix + name[:-1] + leaf for name in names.split() for leaf in LEAVES.get(name[-1], name[-1])}


def test_state_dict_names_are_those_of_the_reference() -> None:
    model = create_model("cpu_small", layout="CCCT", image_size=64)
    expected = written_out("stem.", STEM) | written_out("head.", HEAD)
    for stage, depth in enumerate((2, 3, 5)):
        expected |= written_out(f"stages.{stage}.blocks.0.", "shortcut.expand.+")
        for block in range(depth):
            expected |= written_out(f"stages.{stage}.blocks.{block}.", MBCONV)
    expected -= written_out("stages.0.blocks.0.", "shortcut.expand.+")  # stem and first stage have the same width
    expected |= written_out("stages.3.blocks.0.", f"shortcut.expand.+ norm1.norm.+ {TRANSFORMER}")
    expected |= written_out("stages.3.blocks.1.", f"norm1.+ {TRANSFORMER}")
    assert set(model.state_dict()) == expected


# --- what the network computes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["cpu_tiny", "cpu_small"])
def test_shapes_and_gradients_of_small_variants(name: str, layout: str) -> None:
    model = create_model(name, layout=layout, image_size=64, num_classes=7)
    assert model.forward_features(images(2, 64)).shape == (2, VARIANTS[name].widths[-1], 2, 2)
    assert_every_parameter_gets_a_gradient(model, classes=7)


def test_gradients_of_astroformer_0() -> None:
    assert_every_parameter_gets_a_gradient(create_model("astroformer_0", image_size=64), classes=10)


def assert_every_parameter_gets_a_gradient(model: nn.Module, classes: int) -> None:
    logits = model(images(4, 64))
    assert logits.shape == (4, classes) and logits.dtype == torch.float32 and logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert idle == []


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    model = create_model("cpu_tiny", image_size=64, drop_path=0.5, head_dropout=0.5)
    x = images(4, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)  # no image sees another


def test_head_dropout_acts_in_training_alone() -> None:
    head = create_model("cpu_tiny", image_size=64, head_dropout=0.5).head
    pooled = torch.randn(4, 128)
    assert not torch.equal(head(pooled), head(pooled))
    head.eval()
    assert torch.equal(head(pooled), head(pooled))


def test_forward_is_head_of_pooled_features() -> None:
    model = create_model("cpu_tiny", image_size=64).eval()
    features = model.forward_features(images(2, 64))
    torch.testing.assert_close(model.pooled(features), features.flatten(2).mean(2))
    torch.testing.assert_close(model(images(2, 64)), model.head(model.pooled(features)))


def test_forward_is_classify_of_penultimate() -> None:
    model = create_model("cpu_tiny", image_size=64, num_classes=7).eval()
    features = model.penultimate(images(2, 64))
    assert features.shape == (2, VARIANTS["cpu_tiny"].widths[-1])
    torch.testing.assert_close(features, model.forward_features(images(2, 64)).mean((2, 3)))
    assert torch.equal(model.classify(features), model(images(2, 64)))


def test_channels_last_gives_the_same_logits() -> None:
    model, x = create_model("cpu_tiny", layout="CCTT", image_size=64).eval(), images(2, 64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_equation_1() -> None:
    side, channels = 3, 2 * HEAD_DIM
    attention = Attention(HEAD_DIM, channels, side).double()
    table = nn.init.normal_(attention.rel_pos.relative_position_bias_table).detach()
    x = torch.randn(2, HEAD_DIM, side, side, dtype=torch.float64)
    qkv = attention.qkv(x).reshape(2, 2, 3, HEAD_DIM, side * side)  # image, head, (q, k, v), channel, pixel
    heads = []
    for head in range(2):
        q, k, v = qkv[:, head].unbind(1)  # 3 x (N, 32, 9)
        bias = torch.tensor([[float(table[row_by_hand(i, j, side, side), head]) for j in range(9)] for i in range(9)])
        weights = (torch.einsum("nci,ncj->nij", q, k) / math.sqrt(32) + bias).softmax(-1)
        heads.append(torch.einsum("nij,ncj->nci", weights, v))
    expected = attention.proj(torch.cat(heads, 1).reshape(2, channels, side, side))
    torch.testing.assert_close(attention(x), expected, rtol=1e-6, atol=1e-6)


def row_by_hand(i: int, j: int, height: int, width: int) -> int:
    (y_i, x_i), (y_j, x_j) = divmod(i, width), divmod(j, width)
    return (y_i - y_j + height - 1) * (2 * width - 1) + (x_i - x_j + width - 1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 5), (8, 8)])
def test_relative_position_index_is_the_formula(height: int, width: int) -> None:
    count = height * width
    expected = [[row_by_hand(i, j, height, width) for j in range(count)] for i in range(count)]
    index = relative_position_index(height, width)
    assert index.tolist() == expected
    assert index.unique().numel() == (2 * height - 1) * (2 * width - 1)  # every row of the table is read


def test_bias_depends_on_the_offset_alone() -> None:
    rel_pos = RelativePositionBias(4, 4, heads=3)
    nn.init.normal_(rel_pos.relative_position_bias_table)
    bias = rel_pos().detach().reshape(3, 4, 4, 4, 4)  # head, y_i, x_i, y_j, x_j
    assert torch.equal(bias[:, 1:, 1:, 1:, 1:], bias[:, :-1, :-1, :-1, :-1])  # moved by one pixel
    assert not torch.equal(bias, bias.permute(0, 3, 4, 1, 2))  # i - j is not j - i


# --- training: stochastic depth, first weights, weight decay ---------------------------------------------------------


def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation() -> None:
    drop = DropPath(0.3)
    found = drop(torch.ones(20_000, 2, 1, 1))
    assert torch.equal(found[:, 0], found[:, 1])
    values = found.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.7]))
    assert float(found.mean()) == pytest.approx(1.0, abs=0.025)  # five standard deviations
    assert torch.equal(drop.eval()(torch.ones(9, 2, 1, 1)), torch.ones(9, 2, 1, 1))


@pytest.mark.parametrize("layout", ["CCCT", "CTTT"])
def test_stochastic_depth_grows_linearly(layout: str) -> None:
    model = create_model("cpu_small", layout=layout, image_size=64, drop_path=0.22)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


@pytest.mark.parametrize(
    "block",
    [MBConvBlock(HEAD_DIM, HEAD_DIM, 1, 1 - 1e-9), TransformerBlock(HEAD_DIM, HEAD_DIM, 1, 1 - 1e-9, side=2)],
    ids=["C", "T"],
)
def test_dropped_blocks_pass_their_input_through(block: nn.Module) -> None:
    x = torch.randn(3, HEAD_DIM, 2, 2)
    block.train()
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


def test_first_weights_of_convolutions() -> None:
    weights = {n: p.detach() for n, p in create_model("astroformer_0", image_size=64).named_parameters()}
    for name, fan_out in {
        "stem.conv1.weight": 9 * 64,
        "stem.conv2.weight": 9 * 64,
        "stages.1.blocks.0.shortcut.expand.weight": 192,
        "stages.1.blocks.0.conv1_1x1.weight": 768,
        "stages.1.blocks.0.conv2_kxk.weight": 9,  # depthwise: one output per group
        "stages.1.blocks.1.se.fc1.weight": 48,
        "stages.1.blocks.1.se.fc2.weight": 768,
        "stages.1.blocks.1.conv3_1x1.weight": 192,
    }.items():
        assert float(weights[name].std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.06), name
        assert float(weights[name].mean()) == pytest.approx(0.0, abs=0.1 * math.sqrt(2 / fan_out)), name
    biases = [p for name, p in weights.items() if re.match(r"stages\.[012].*(expand|fc\d|conv3_1x1)\.bias", name)]
    assert len(biases) == 33 and not any(bias.any() for bias in biases)


def test_first_weights_of_transformer_and_norms() -> None:
    weights = {n: p.detach() for n, p in create_model("astroformer_0", image_size=256).named_parameters()}
    block = "stages.3.blocks.0."
    for name, fans in {"shortcut.expand": 384 + 768, "attn.qkv": 384 + 2304, "mlp.fc1": 768 + 3072}.items():
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < float(weights[f"{block}{name}.weight"].abs().max()) <= bound
        assert float(weights[f"{block}{name}.weight"].std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(weights[f"{block}{name}.bias"].any() for name in ("shortcut.expand", "attn.qkv", "attn.proj"))
    for name in ("mlp.fc1", "mlp.fc2"):
        assert float(weights[f"{block}{name}.bias"].std()) == pytest.approx(1e-6, rel=0.1)
    table = weights[f"{block}attn.rel_pos.relative_position_bias_table"]
    assert table.shape == (225, 24) and float(table.std()) == pytest.approx(0.02, rel=0.05)
    norms = {name: p for name, p in weights.items() if "norm" in name}
    assert len(norms) == 2 * (1 + 3 * 10 + 2 * 2 + 1)
    assert all(bool((p == float(name.endswith("weight"))).all()) for name, p in norms.items())
    assert float(weights["head.fc.weight"].abs().max()) <= 1 / math.sqrt(768)  # PyTorch's default


def test_weight_decay_spares_vectors_biases_and_tables() -> None:
    model = create_model("cpu_tiny", layout="CCTT", image_size=64)
    decayed, free = weight_decay_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    free_names = {names[id(p)] for p in free["params"]}
    assert decayed_names | free_names == set(names.values()) and not decayed_names & free_names
    assert "stages.3.blocks.0.attn.qkv.weight" in decayed_names
    assert "stages.3.blocks.0.attn.rel_pos.relative_position_bias_table" in free_names
    assert all(name.endswith("weight") and "norm" not in name for name in decayed_names)


def test_weight_decay_leaves_out_frozen_parameters() -> None:
    model = create_model("cpu_tiny", image_size=64)
    model.stem.requires_grad_(False)
    kept = [p for group in weight_decay_groups(model, 0.05) for p in group["params"]]
    assert len(kept) == len(list(model.parameters())) - len(list(model.stem.parameters()))
    torch.optim.AdamW(weight_decay_groups(model, 0.05))


# --- activation checkpointing and compilation ------------------------------------------------------------------------


def one_step(model: Astroformer, *, backend: str | None = None, bfloat16: bool = False) -> dict[str, Tensor]:
    """Loss, gradients and buffers of a training step with dropped blocks, always from the same random numbers."""
    x, labels = images(4, 64), torch.arange(4)
    forward = torch.compile(model, backend=backend, fullgraph=True) if backend else model
    torch.manual_seed(11)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = nn.functional.cross_entropy(forward(x), labels)
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("layout", ["CCCT", "CTTT"])
@pytest.mark.parametrize(
    ("backend", "bfloat16"),
    [(None, False), (None, True), pytest.param("aot_eager", False, marks=pytest.mark.slow)],
    ids=["float32", "bfloat16", "compiled"],
)
def test_checkpointing_changes_no_loss_gradient_or_statistic(layout: str, backend: str | None, bfloat16: bool) -> None:
    plain = create_model("cpu_tiny", layout=layout, image_size=64, drop_path=0.5, head_dropout=0.3)
    frugal = copy.deepcopy(plain)
    frugal.set_checkpointing(True)
    expected, found = one_step(plain, bfloat16=bfloat16), one_step(frugal, backend=backend, bfloat16=bfloat16)
    assert expected["stages.0.blocks.0.norm1.num_batches_tracked"] == 1
    assert expected.keys() == found.keys() and len(expected) > 100
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_checkpointing_keeps_fewer_activations() -> None:
    kept = {}
    for enabled in (False, True):
        model = create_model("cpu_tiny", image_size=64)
        model.set_checkpointing(enabled)
        sizes: dict[int, int] = {}

        def pack(saved: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[saved.data_ptr()] = saved.nbytes
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            logits = model(images(4, 64))
        kept[enabled] = sum(sizes.values())
        assert logits.requires_grad
    assert kept[True] < 0.5 * kept[False]


def test_checkpointing_leaves_evaluation_alone() -> None:
    model = create_model("cpu_tiny", image_size=64).eval()
    expected = model(images(2, 64))
    model.set_checkpointing(True)
    assert torch.equal(model(images(2, 64)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_graph_breaks(training: bool) -> None:
    model = create_model("cpu_tiny", layout="CCTT", image_size=64, drop_path=0.2, head_dropout=0.1).train(training)
    explained = torch._dynamo.explain(model)(images(2, 64))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "astroformer0"}, r"did you mean 'astroformer_0'"),
        ({"variant": "tiny"}, r"did you mean 'cpu_tiny'"),
        ({"layout": "CCC"}, r"four letters .* found 'CCC'"),
        ({"layout": "C-C-C-T"}, r"like 'CCCT', found 'C-C-C-T'"),
        ({"layout": "CCXT"}, r"found 'CCXT'"),
        ({"image_size": 100}, r"multiple of 32 px, found 100: use 96"),
        ({"image_size": 0}, r"found 0: use 32"),
        ({"num_classes": 0}, r"num_classes of at least 1, found 0"),
        ({"drop_path": 1.0}, r"drop_path as a probability in \[0, 1\), found 1.0"),
        ({"head_dropout": -0.1}, r"head_dropout as a probability .* found -0.1"),
    ],
)
def test_wrong_settings_say_what_was_expected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(**{"variant": "cpu_tiny", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 3, 96, 96), (2, 3, 64, 96), (2, 1, 64, 64), (3, 64, 64)])
def test_wrong_images_say_what_was_expected(shape: tuple[int, ...]) -> None:
    model = create_model("cpu_tiny", image_size=64).eval()
    found = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"expected images of shape \(N, 3, 64, 64\), found {found}.*image_size"):
        model(torch.zeros(shape))


def test_unnormalised_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating-point type, found torch.uint8"):
        create_model("cpu_tiny", image_size=64)(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
