"""Weights from elsewhere: checkpoints of the reference implementation and of timm, taken by name.

Names are shared with timm's MaxxVit, so what has the name and the shape of a tensor of the network is that tensor.
Tables of relative positions are brought to the size of the network, a head for other classes is left as it is. A
checkpoint of another network is refused unless it is asked for in part. Nothing in a file is ever executed. This
module must not know model folders, classes of galaxies or how a training goes on.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.networks.astroformer import VARIANTS, Astroformer
from models.networks.factory import Peer

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights first: they are the better ones
_PREFIX = re.compile(r"^((module|_orig_mod|model)\.)+")
_TABLE = "relative_position_bias_table"
_STAGE = re.compile(r"^stages\.(\d)\.blocks\.(\d+)\.(.+)")
_SHOWN = 4  # names in a message


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a network took from a file; names of tensors (parameters and statistics of batch norms).

    `taken` as they were, `interpolated` tables of relative positions of another size, `left_fresh` tensors of the
    network that the file does not give, `ignored` tensors of the file that the network has no place for.
    `parameters_taken` and `parameters` count numbers, of `taken` and `interpolated`, and of the whole network.
    """

    source: str
    taken: tuple[str, ...]
    interpolated: tuple[str, ...]
    left_fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    parameters_taken: int
    parameters: int

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.parameters_taken / self.parameters:.1%} of the parameters taken "
            f"({len(self.taken)} tensors as they are, {len(self.interpolated)} interpolated); "
            f"left fresh: {_parts(self.left_fresh)}; ignored: {_parts(self.ignored)}"
        )

    def to_markdown(self) -> str:
        """The same as a table, a row for each part of the network."""
        columns = (self.taken, self.interpolated, self.left_fresh, self.ignored)
        parts = sorted({_part(name) for names in columns for name in names})
        rows = [
            f"| {part} | " + " | ".join(str(sum(_part(name) == part for name in names)) for names in columns) + " |"
            for part in parts
        ]
        head = ["| part | taken | interpolated | left fresh | ignored |", "|---|---|---|---|---|"]
        return "\n".join([f"{self}", "", *head, *rows]) + "\n"


def load_checkpoint(network: nn.Module, path: Path, *, partial: bool = False) -> ConversionReport:
    """Load a checkpoint (.safetensors, or a file of torch.save) into a network, by name.

    network : an Astroformer, or a Peer; left as it was when an error is raised
    partial : take what fits from a checkpoint of another layout, depth or width, such as a CoAtNet; as a start for a
        training, for blocks that look alike may compute another thing (timm's `rw` models). Without it the file must
        hold the same network but for the head and the size of the images.

    Raises
    ------
    ModelError : the file cannot be read or would run code, holds no weights or weights that are not finite, belongs
        to another network, or (with `partial`) nothing in it fits.
    """
    body = network.body if isinstance(network, Peer) else network
    wanted: dict[str, Tensor] = body.state_dict()
    given = _without_prefixes(_state_dict(_read(path), path))
    found, interpolated = _matching(wanted, given)
    missing = [name for name in wanted if name not in found and not _in_head(body, name)]
    if not partial and (missing or _shape_of(given) != _shape_of(wanted)):
        raise ModelError(f"{path}: {_why_not(body, wanted, given, missing)}")
    if all(_in_head(body, name) for name in found):
        raise ModelError(f"{path}: none of its {len(given)} tensors fits; {_description(given)}")
    broken = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(f"{path}: {_some(broken)} hold values that are not finite; take an earlier checkpoint")
    body.load_state_dict(found, strict=False)
    numbers = {name: p.numel() for name, p in body.named_parameters()}
    return ConversionReport(
        source=path.name,
        taken=tuple(name for name in found if name not in interpolated),
        interpolated=interpolated,
        left_fresh=tuple(name for name in wanted if name not in found),
        ignored=tuple(name for name in given if name not in found),
        parameters_taken=sum(numbers.get(name, 0) for name in found),
        parameters=sum(numbers.values()),
    )


# --- the file -----------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    """The content of a file of weights; ModelError if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training keeps its options beside
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}); fetch or save it again") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, struct.error) as error:
        if refused := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
            raise ModelError(
                f"{path}: holds {refused[1]}, and loading that could run code from the file: in the program that wrote "
                "it, save the state dict alone with safetensors.torch.save_file"
            ) from error
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ModelError(
            f"{path}: expected a checkpoint (.safetensors, or of torch.save), found something else or a damaged file "
            f"({why}); fetch or save it again"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of what training scripts wrap them in."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        content = f"a mapping with the keys {_some([str(key) for key in content])}"
    else:
        content = f"a {type(content).__name__}"
    raise ModelError(f"{path}: expected tensors by name, at the top or under {', '.join(_WRAPPERS)}; found {content}")


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network says them, without those of wrappers (data-parallel, compiled, ours for peers)."""
    plain = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items()}
    if all(name.startswith("body.") for name in plain):
        plain = {name.removeprefix("body."): tensor for name, tensor in plain.items()}
    return plain


# --- the match ----------------------------------------------------------------------------------------------------


def _matching(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that fit, and the names of those that were interpolated to fit."""
    found, interpolated = {}, []
    for name, like in wanted.items():
        tensor = given.get(name)
        if tensor is not None and tensor.shape != like.shape and name.endswith(_TABLE):
            tensor = _resized_table(tensor, like)
            interpolated += [name] if tensor is not None else []
        if tensor is not None and tensor.shape == like.shape:
            found[name] = tensor.to(like.dtype)
    return found, tuple(interpolated)


def _resized_table(table: Tensor, like: Tensor) -> Tensor | None:
    """A table of relative positions ((2H-1)^2, heads) at another size, head by head; None if it is not such one."""
    if table.ndim != 2 or table.shape[1] != like.shape[1]:
        return None
    sides = [math.isqrt(len(each)) for each in (table, like)]
    if sides[0] ** 2 != len(table) or sides[0] % 2 == 0:
        return None
    grid = table.float().T.reshape(1, -1, sides[0], sides[0])  # (1, heads, 2H-1, 2H-1)
    grid = F.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return grid.flatten(2).squeeze(0).T.contiguous()


def _in_head(body: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to what depends on the classes."""
    if isinstance(body, Astroformer):
        return name.startswith("head.")
    classifier = {id(p) for p in body.get_classifier().parameters()}  # type: ignore[operator]
    return any(id(p) in classifier for known, p in body.named_parameters() if known == name)


# --- words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """What names and shapes tell of a network of this family; `?` for a stage of another kind."""

    layout: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stem_width: int


def _shape_of(tensors: Mapping[str, Tensor]) -> _Shape | None:
    """The shape of a network of stages; None of any other network."""
    kinds: dict[int, str] = {}
    widths: dict[int, int] = {}
    blocks: dict[int, set[int]] = {}
    for name, tensor in tensors.items():
        if match := _STAGE.match(name):
            stage, leaf = int(match[1]), match[3]
            blocks.setdefault(stage, set()).add(int(match[2]))
            if leaf in ("conv3_1x1.weight", "attn.proj.weight"):
                kinds[stage] = "C" if leaf.startswith("conv3") else "T"
                widths[stage] = tensor.shape[0]
    stem = tensors.get("stem.conv2.weight")
    if not blocks or stem is None:
        return None
    stages = sorted(blocks)
    return _Shape(
        layout="".join(kinds.get(stage, "?") for stage in stages),
        widths=tuple(widths.get(stage, 0) for stage in stages),
        depths=tuple(len(blocks[stage]) for stage in stages),
        stem_width=stem.shape[0],
    )


def _description(tensors: Mapping[str, Tensor]) -> str:
    """What a checkpoint seems to hold, as text."""
    shape = _shape_of(tensors)
    if shape is None:
        return f"its names are those of another kind of network, such as {_some(list(tensors))}"
    sizes = (shape.widths, shape.depths, shape.stem_width)
    known = next((n for n, v in VARIANTS.items() if (v.widths, v.depths, v.stem_width) == sizes), None)
    name = f"{known}, " if known else ""
    return (
        f"it is of {name}layout {shape.layout}, widths {_listed(shape.widths)}, depths {_listed(shape.depths)}, "
        f"stem {shape.stem_width}"
    )


def _why_not(body: nn.Module, wanted: dict[str, Tensor], given: dict[str, Tensor], missing: list[str]) -> str:
    """Why a checkpoint does not fill a network, and what to do."""
    shape, own = _shape_of(given), _shape_of(wanted)
    if shape is None or own is None:
        return f"gives no fitting {_some(missing)}; {_description(given)}: name the network that it was made for"
    if shape.layout != own.layout:
        return (
            f"expected layout {own.layout}, found another: {_description(given)}. Build the network with that layout, "
            "or take the matching stages alone"
        )
    if shape != own:
        return (
            f"expected widths {_listed(own.widths)}, depths {_listed(own.depths)}, stem {own.stem_width}, found "
            f"another network: {_description(given)}. Choose that variant, or take the fitting tensors alone"
        )
    return f"gives no fitting {_some(missing)}: a network with other blocks; the fitting tensors alone can be taken"


def _listed(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "none"


def _part(name: str) -> str:
    """The part of the network that a tensor belongs to: `stages.2` for what lies in stage 2, else the first word."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "stages" else words[0]


def _parts(names: tuple[str, ...]) -> str:
    """How many names fall into which part."""
    counts: dict[str, int] = {}
    for name in names:
        counts[_part(name)] = counts.get(_part(name), 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"
