"""Astroformer: the network that tells galaxy morphologies apart, in one file.

R. Dagli, "Astroformer: More Data Might not be all you need for Classification", arXiv 2304.05350 (2023): a
convolution stem, then four stages that halve the side and widen the map. Each stage is made of MBConv blocks ("C") or
of transformer blocks with a learned relative-position bias ("T"); the paper's choice is the layout "CCCT".

This module knows tensors only. It must not know files, checkpoints, classes of galaxies, colours or data sets: it
imports nothing from this repository. Parameter names are those of the reference implementation and of timm's MaxxVit,
so that their state dicts load unchanged.
"""

from __future__ import annotations

import difflib
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HEAD_DIM = 32  # channels of one attention head
EXPANSION = 4  # hidden channels of an MBConv block or an MLP, in units of the block's output width
LAYER_NORM_EPS = 1e-6
REDUCTION = 32  # image side / side of the last map


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Size of a network: channels and blocks of the four stages, channels of the stem, hidden units of the head.

    `image_size` is the side of the images (pixels) that it is usually built for.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    stem_width: int
    head_hidden: int
    image_size: int = 256


# --- pieces -------------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Stochastic depth per sample: in training, drop a branch with probability `rate`, else divide it by 1 - rate.

    The division keeps the expectation. Huang et al. 2016, arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of an (N, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # free of copies in channels_last


class Shortcut(nn.Module):
    """The unlearned way past a block that halves the side: 2x2 mean, then a 1x1 convolution if the width changes."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.expand = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.pool(x))  # (N, c, H, W) -> (N, d, H/2, W/2)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all. Hu et al. 2018, arXiv 1709.01507."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.fc1(x.mean((2, 3), keepdim=True)))  # (N, r, 1, 1)
        return x * self.fc2(gate).sigmoid()  # (N, m, H, W)


def relative_position_index(height: int, width: int) -> Tensor:
    """Row of the relative-position table for each (query, key) pair of a row-major grid.

    Returns int64 (H*W, H*W): (y_i - y_j + H - 1) * (2W - 1) + (x_i - x_j + W - 1), the i - j of the paper's equation 1.
    """
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    rows = y[:, None] - y[None, :] + height - 1
    columns = x[:, None] - x[None, :] + width - 1
    return rows * (2 * width - 1) + columns


class RelativePositionBias(nn.Module):
    """A learned number for each head and each offset between two pixels of an H x W grid."""

    relative_position_index: Tensor

    def __init__(self, height: int, width: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), heads))
        self.register_buffer("relative_position_index", relative_position_index(height, width), persistent=False)

    def forward(self) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index]  # (HW, HW, heads)
        return bias.permute(2, 0, 1).unsqueeze(0).contiguous()  # (1, heads, HW, HW)


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of a map, with the relative bias added before the softmax.

    softmax_j(q_i . k_j / sqrt(32) + B[h, i - j]) v_j: equation 1 of the paper.
    """

    def __init__(self, in_channels: int, channels: int, side: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_DIM
        self.qkv = nn.Conv2d(in_channels, 3 * channels, 1)  # head-major: 32 q, 32 k, 32 v of head 0, then head 1
        self.rel_pos = RelativePositionBias(side, side, self.heads)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        qkv = self.qkv(x).flatten(2).unflatten(1, (self.heads, 3 * HEAD_DIM))  # (N, heads, 96, HW)
        q, k, v = qkv.transpose(2, 3).chunk(3, dim=-1)  # 3 x (N, heads, HW, 32)
        bias = self.rel_pos().to(q.dtype)  # the table stays float32 under autocast
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (N, heads, HW, 32), divides by sqrt(32)
        x = x.transpose(1, 2).flatten(2).unflatten(1, (height, width))  # (N, H, W, d)
        return self.proj(x.permute(0, 3, 1, 2))  # (N, d, H, W)


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them, on each pixel alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, EXPANSION * channels, 1)
        self.fc2 = nn.Conv2d(EXPANSION * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # (N, d, H, W) -> (N, 4d, H, W) -> (N, d, H, W)


# --- blocks -------------------------------------------------------------------------------------------------------


class MBConvBlock(nn.Module):
    """Inverted bottleneck with squeeze-excite; normalised before, not after. (N, c, H, W) -> (N, d, H/t, W/t)."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        middle = EXPANSION * channels
        self.shortcut = Shortcut(in_channels, channels) if stride == 2 else nn.Identity()
        self.pre_norm = nn.BatchNorm2d(in_channels)
        self.conv1_1x1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2_kxk = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.se = SqueezeExcite(middle, channels // 4)
        self.conv3_1x1 = nn.Conv2d(middle, channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1_1x1(self.pre_norm(x))  # (N, 4d, H, W)
        y = self.conv2_kxk(F.gelu(self.norm1(y)))  # (N, 4d, H/t, W/t)
        y = self.conv3_1x1(self.se(F.gelu(self.norm2(y))))  # (N, d, H/t, W/t)
        return self.shortcut(x) + self.drop_path(y)


class TransformerBlock(nn.Module):
    """Relative attention, then an MLP, each added to what it read. (N, c, H, W) -> (N, d, H/t, W/t), side = H/t."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float, side: int) -> None:
        super().__init__()
        self.shortcut = Shortcut(in_channels, channels) if stride == 2 else nn.Identity()
        self.norm1: nn.Module = ChannelLayerNorm(in_channels)
        if stride == 2:
            self.norm1 = nn.Sequential(OrderedDict(norm=self.norm1, pool=nn.AvgPool2d(2)))
        self.attn = Attention(in_channels, channels, side)  # the widening happens in qkv
        self.norm2 = ChannelLayerNorm(channels)
        self.mlp = Mlp(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(x) + self.drop_path(self.attn(self.norm1(x)))  # (N, d, H/t, W/t)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stem(nn.Module):
    """Two 3x3 convolutions, the first with stride 2. (N, 3, S, S) -> (N, s, S/2, S/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(x))))


class Stage(nn.Module):
    """Blocks of one kind; the first halves the side and changes the width. (N, c, 2H, 2W) -> (N, d, H, W), side = H.

    With `checkpoint_activations` a training step keeps the input of each block alone and runs the block again in the
    backward pass.
    """

    checkpoint_activations = False

    def __init__(self, kind: str, in_channels: int, channels: int, side: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for i, rate in enumerate(drop_paths):
            c, stride = (in_channels, 2) if i == 0 else (channels, 1)
            if kind == "C":
                self.blocks.append(MBConvBlock(c, channels, stride, rate))
            else:
                self.blocks.append(TransformerBlock(c, channels, stride, rate, side))

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            return self.blocks(x)
        for block in self.blocks:
            x = run_again_in_backward(block, x)
        return x


def run_again_in_backward(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)` without keeping what lies between: same output, gradients, random numbers and statistics."""
    if torch.compiler.is_compiling():  # compiled, the second run leaves the statistics alone by itself
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(block)  # first run, second run

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Let the batch norms of a block count into copies of their running statistics, which are thrown away.

    The second run must save for the backward pass what the first did, so the statistics cannot just be switched off.
    """
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


class PreLogits(nn.Module):
    """The hidden layer of the head. (N, D) -> (N, hidden)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class Head(nn.Module):
    """From pooled features (N, D) to logits (N, classes)."""

    def __init__(self, channels: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.pre_logits = PreLogits(channels, hidden)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.pre_logits(self.norm(x))))


# --- the model ----------------------------------------------------------------------------------------------------


class Astroformer(nn.Module):
    """Astroformer for square images of one size; `create_model` builds it.

    The tables of relative positions have the size of the map, so a model reads images of `image_size` pixels only.
    """

    def __init__(
        self, variant: Variant, layout: str, image_size: int, num_classes: int, drop_path: float, head_dropout: float
    ) -> None:
        super().__init__()
        _check_settings(layout, image_size, num_classes, drop_path, head_dropout)
        self.variant, self.layout, self.image_size, self.num_classes = variant, layout, image_size, num_classes
        rates = iter(_linear_rates(drop_path, sum(variant.depths)))
        in_widths = (variant.stem_width, *variant.widths[:-1])
        self.stem = Stem(variant.stem_width)
        self.stages = nn.Sequential()
        for i, (kind, c, d, depth) in enumerate(zip(layout, in_widths, variant.widths, variant.depths, strict=True)):
            side = image_size // 2 ** (i + 2)
            self.stages.append(Stage(kind, c, d, side, [next(rates) for _ in range(depth)]))
        self.head = Head(variant.widths[-1], variant.head_hidden, num_classes, head_dropout)
        _initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Last map of images x : float32 (N, 3, S, S), as float32 (N, D, S/32, S/32); ValueError on another shape."""
        self._check_input(x)
        return self.stages(self.stem(x))

    def pooled(self, features: Tensor) -> Tensor:
        """Mean over the pixels of the last map, features : float32 (N, D, H, W), as float32 (N, D)."""
        return features.mean((2, 3))

    def penultimate(self, x: Tensor) -> Tensor:
        """What the head reads: of images as in `forward`, float32 (N, D).

        Not what its last layer reads: the tanh before that keeps the strangest images near the others.
        """
        return self.pooled(self.forward_features(x))

    def classify(self, features: Tensor) -> Tensor:
        """Logits float32 (N, classes) of penultimate features float32 (N, D)."""
        return self.head(features)

    def set_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory in training: run each block again in the backward pass. No result changes."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpoint_activations = enabled

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images x : float32 (N, 3, S, S), as float32 (N, classes); ValueError on another shape."""
        return self.classify(self.penultimate(x))

    def _check_input(self, x: Tensor) -> None:
        size = self.image_size
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ValueError(
                f"expected images of shape (N, 3, {size}, {size}), found {tuple(x.shape)}: resize them, or build the "
                "model with create_model(..., image_size=<their side>)"
            )
        if not x.is_floating_point():
            raise ValueError(f"expected images of a floating-point type, found {x.dtype}: normalise them to float32")


def _check_settings(layout: str, image_size: int, num_classes: int, drop_path: float, head_dropout: float) -> None:
    if len(layout) != 4 or set(layout) - {"C", "T"}:
        raise ValueError(f"expected layout as four letters C (MBConv) or T (transformer) like 'CCCT', found {layout!r}")
    if image_size < REDUCTION or image_size % REDUCTION:
        nearest = max(REDUCTION, round(image_size / REDUCTION) * REDUCTION)
        raise ValueError(f"expected image_size as a multiple of {REDUCTION} px, found {image_size}: use {nearest}")
    if num_classes < 1:
        raise ValueError(f"expected num_classes of at least 1, found {num_classes}")
    for name, rate in (("drop_path", drop_path), ("head_dropout", head_dropout)):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"expected {name} as a probability in [0, 1), found {rate}")


def _linear_rates(last: float, count: int) -> list[float]:
    """Stochastic-depth rate of each block: 0 at the first, `last` at the last."""
    return [last * i / max(count - 1, 1) for i in range(count)]


def _initialise(model: nn.Module) -> None:
    """Set the first weights; norms (1 and 0) and the linear layers of the head keep PyTorch's defaults."""
    for module in model.modules():  # a block comes before its parts
        if isinstance(module, Stem | MBConvBlock | TransformerBlock):
            for conv in (part for part in module.modules() if isinstance(part, nn.Conv2d)):
                if isinstance(module, TransformerBlock):
                    nn.init.xavier_uniform_(conv.weight)
                else:
                    fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
                    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        elif isinstance(module, Mlp):
            for bias in (part for name, part in module.named_parameters() if name.endswith(".bias")):
                nn.init.normal_(bias, 0.0, 1e-6)
        elif isinstance(module, RelativePositionBias):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups with `weight_decay` on weights, and none on 1-D tensors, biases and relative-position tables."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name.endswith((".bias", "relative_position_bias_table"))
        (free if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


# --- variants -----------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Variant] = {
    # the paper's
    "astroformer_0": Variant(widths=(96, 192, 384, 768), depths=(2, 3, 5, 2), stem_width=64, head_hidden=768),
    "astroformer_1": Variant(widths=(96, 192, 384, 768), depths=(2, 6, 14, 2), stem_width=64, head_hidden=768),
    "astroformer_2": Variant(widths=(128, 256, 512, 1024), depths=(2, 6, 14, 2), stem_width=128, head_hidden=1024),
    "astroformer_3": Variant(widths=(192, 384, 768, 1536), depths=(2, 6, 14, 2), stem_width=192, head_hidden=1536),
    "astroformer_4": Variant(widths=(192, 384, 768, 1536), depths=(2, 12, 28, 2), stem_width=192, head_hidden=1536),
    "astroformer_5": Variant(widths=(256, 512, 1280, 2048), depths=(2, 12, 28, 2), stem_width=192, head_hidden=2048),
    # our own, for two CPU cores and images of 64 to 96 px
    "cpu_small": Variant(widths=(32, 64, 128, 256), depths=(2, 3, 5, 2), stem_width=32, head_hidden=256, image_size=96),
    "cpu_tiny": Variant(widths=(32, 64, 96, 128), depths=(1, 1, 2, 1), stem_width=16, head_hidden=128, image_size=64),
}


def create_model(
    variant: str,
    *,
    layout: str = "CCCT",
    image_size: int = 256,
    num_classes: int = 10,
    drop_path: float = 0.0,
    head_dropout: float = 0.0,
) -> Astroformer:
    """Build a freshly initialised Astroformer of a named variant; seed torch before for the same weights again.

    layout : four letters, stage by stage, C for MBConv and T for transformer blocks
    image_size : side of the images in pixels, a multiple of 32
    drop_path : stochastic-depth rate of the last block, growing linearly from 0 at the first
    head_dropout : dropout rate before the last linear layer
    Raises ValueError on an unknown variant or a setting outside its range.
    """
    if variant not in VARIANTS:
        nearest = difflib.get_close_matches(variant, VARIANTS, n=1, cutoff=0.0)[0]
        known = ", ".join(VARIANTS)
        raise ValueError(f"unknown variant {variant!r}; did you mean {nearest!r}? Expected one of: {known}")
    return Astroformer(VARIANTS[variant], layout, image_size, num_classes, drop_path, head_dropout)
