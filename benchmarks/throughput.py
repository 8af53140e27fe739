"""Throughput of Astroformer 0 to 5 in training and inference, beside timm's MaxxVit of the same layout and widths.

Run as `python benchmarks/throughput.py --json FILE [--seconds 460] [--variants astroformer_0,astroformer_3]`. Both
networks hold the same weights and their logits are compared before anything is timed; then they run in turn, round by
round, and the medians are reported. A case that fails or does not fit is a row of the table, not the end of the run;
the table is printed line by line and the JSON is rewritten after each case, so that a run that is cut off keeps what
it has measured. `--smoke` runs small cases on a CPU (minutes: most of it is compiling). It needs torch, numpy and timm
and of this repository `models.networks.astroformer` and `models.networks.factory` only.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script also runs where morphcat is not installed

from models.networks.astroformer import HEAD_DIM, VARIANTS, Astroformer, create_model, weight_decay_groups
from models.networks.factory import import_timm

CLASSES = 10
BATCHES = {  # (training, inference) at 256 px, for a GPU of 80 GB; halved until it fits
    "astroformer_0": (128, 512),
    "astroformer_1": (128, 512),
    "astroformer_2": (96, 256),
    "astroformer_3": (64, 256),
    "astroformer_4": (32, 256),
    "astroformer_5": (32, 128),
}
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}  # bf16, dense
HOW = ["eager", "checkpointed", "compiled"]
ROUNDS = 7
ROUND_SECONDS = 0.25
COMPILE_SECONDS = {"inference": 60.0, "training": 120.0}  # a compiled case is not begun with less time left


@dataclass(frozen=True)
class Case:
    """What is timed: one variant in one mode."""

    variant: str
    mode: str  # "inference" or "training"
    how: str  # "eager"; "checkpointed": activations made again in the backward pass; "compiled": torch.compile
    batch: int
    side: int


@dataclass(frozen=True)
class Speed:
    """Images per second (median, slowest and fastest round), milliseconds a step, memory, share of the peak."""

    images_per_second: float
    slowest: float
    fastest: float
    step_ms: float
    first_step_seconds: float  # compilation included
    peak_gib: float | None
    mfu: float | None


def timm_twin(network: Astroformer, image_size: int, drop_path: float) -> nn.Module:
    """timm's MaxxVit with the layout and widths of an Astroformer, and its weights."""
    import_timm()
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    variant = network.variant
    settings = MaxxVitCfg(
        embed_dim=variant.widths,
        depths=variant.depths,
        block_type=tuple(network.layout),
        stem_width=variant.stem_width,
        head_hidden_size=variant.head_hidden,
        transformer_cfg=MaxxVitTransformerCfg(rel_pos_type="bias"),
    )
    twin = MaxxVit(settings, img_size=image_size, num_classes=network.num_classes, drop_path_rate=drop_path)
    twin.load_state_dict(network.state_dict())
    return twin


# --- one case -----------------------------------------------------------------------------------------------------


def make_step(network: nn.Module, case: Case, device: torch.device) -> Callable[[], object]:
    """A function that runs one batch: a forward pass, or forward, backward and AdamW; in bfloat16 autocast."""
    images = torch.randn(case.batch, 3, case.side, case.side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (case.batch,), device=device)
    training = case.mode == "training"
    network.train(training)
    forward = torch.compile(network) if case.how == "compiled" else network

    def infer() -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            return forward(images)

    def train() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if not training:
        return infer
    optimizer = torch.optim.AdamW(weight_decay_groups(network, 0.05), lr=1e-4, fused=device.type == "cuda")
    return train


def seconds_of(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Time of `count` steps on the device: by CUDA events on a GPU, else by the clock."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(count):
            step()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(count):
        step()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


def warmed_up(network: nn.Module, case: Case, device: torch.device) -> tuple[Callable[[], object], float, float | None]:
    """The step of a case after its first runs; seconds of the first one; GiB at its peak, this network's own."""
    base = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = make_step(network, case, device)
    started = time.perf_counter()
    seconds_of(step, 1, device)
    first = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what cuDNN tried out in the first step does not count
    seconds_of(step, 3, device)
    peak = (torch.cuda.max_memory_allocated() - base) / 2**30 if device.type == "cuda" else None
    return step, first, peak


def in_turn(steps: list[Callable[[], object]], device: torch.device, seconds: float) -> list[list[float]]:
    """Seconds a step of each, round by round: A, B, B, A, … so that order and drift of the machine meet both."""
    counts = [max(1, round(min(ROUND_SECONDS, seconds) / seconds_of(step, 1, device))) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    started = time.perf_counter()
    for done in range(ROUNDS):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        for i in range(len(steps)) if done % 2 == 0 else reversed(range(len(steps))):
            times[i].append(seconds_of(steps[i], counts[i], device) / counts[i])
    return times


def measure(case: Case, device: torch.device, flops: float, peak_tflops: float | None, seconds: float) -> list[Speed]:
    """Speed of Astroformer and of timm's twin, in this order. RuntimeError when a case does not run or fit."""
    ours = create_model(case.variant, image_size=case.side, num_classes=CLASSES, drop_path=0.1)
    twin = timm_twin(ours, case.side, drop_path=0.1)
    if case.how == "checkpointed":
        ours.set_checkpointing(True)
        for stage in twin.stages:
            stage.grad_checkpointing = True
    ready = [warmed_up(network, case, device) for network in (ours, twin)]
    times = in_turn([step for step, _, _ in ready], device, seconds)
    work = flops * case.batch * (3 if case.mode == "training" else 1)  # backward counts twice the forward
    speeds = []
    for (_, first, peak), found in zip(ready, times, strict=True):
        rates = [case.batch / t for t in found]
        median = statistics.median(found)
        mfu = work / median / peak_tflops / 1e12 if peak_tflops else None
        speeds.append(Speed(case.batch / median, min(rates), max(rates), 1000 * median, first, peak, mfu))
    return speeds


def measure_what_fits(case: Case, *settings: Any) -> tuple[Case, list[Speed]]:
    """`measure`, with the batch halved until both networks fit into the memory of the GPU."""
    while True:
        try:
            return case, measure(case, *settings)
        except torch.cuda.OutOfMemoryError:
            if case.batch == 1:
                raise
        case = replace(case, batch=case.batch // 2)
        clear()  # outside the handler: the exception held the tensors


def clear() -> None:
    """Give back what the case before held: networks, compiled code, cached memory."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- facts beside the times -----------------------------------------------------------------------------------------


def size_of(variant: str, side: int) -> tuple[int, float]:
    """Parameters, and floating-point operations of one image forward (two a multiply-add)."""
    with torch.device("meta"):
        network = create_model(variant, image_size=side, num_classes=CLASSES).eval()
        images = torch.zeros(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        network(images)
    return sum(p.numel() for p in network.parameters()), float(counter.get_total_flops())


def largest_difference(variant: str, side: int, device: torch.device) -> float:
    """Largest difference of the logits of the two networks on the same images, in float32 evaluation."""
    ours = create_model(variant, image_size=side, num_classes=CLASSES).eval()
    twin = timm_twin(ours, side, 0.0).eval().to(device)
    images = torch.randn(2, 3, side, side, device=device)
    with torch.inference_mode():
        return float((ours.to(device)(images) - twin(images)).abs().max())


def attention_backend(variant: str, side: int, device: torch.device) -> str:
    """The kernel that PyTorch picks for the attention of stage 3, without and with a gradient for the bias."""
    from torch.nn.attention import SDPBackend

    heads, tokens = VARIANTS[variant].widths[3] // HEAD_DIM, (side // 32) ** 2
    q = torch.randn(8, heads, tokens, HEAD_DIM, device=device, dtype=torch.bfloat16)
    bias = torch.randn(1, heads, tokens, tokens, device=device, dtype=torch.bfloat16)
    names = []
    for training in (False, True):
        q.requires_grad_(training)
        bias.requires_grad_(training)
        names.append(SDPBackend(torch._fused_sdp_choice(q, q, q, bias)).name.lower())
    return f"inference {names[0]}, training {names[1]}"


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What the times depend on."""
    timm = import_timm()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "timm": timm.__version__, "cuda": torch.version.cuda}


# --- the run ------------------------------------------------------------------------------------------------------

HEADER = """\
| variant | mode | how | batch | Astroformer img/s | timm img/s | ratio | GiB | timm GiB | MFU | first step s |
|---|---|---|---|---|---|---|---|---|---|---|"""


def row(case: Case, speeds: list[Speed]) -> str:
    """One line of the table; in brackets the slowest and the fastest round."""
    ours, timm = speeds
    cells = [
        *start_of_row(case),
        *(f"{s.images_per_second:.0f} ({s.slowest:.0f} to {s.fastest:.0f})" for s in speeds),
        f"{ours.images_per_second / timm.images_per_second:.2f}",
        *("" if s.peak_gib is None else f"{s.peak_gib:.1f}" for s in speeds),
        "" if ours.mfu is None else f"{ours.mfu:.1%}",
        f"{ours.first_step_seconds:.0f}, {timm.first_step_seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def start_of_row(case: Case) -> list[str]:
    """The cells that name a case."""
    return [case.variant, case.mode, case.how, str(case.batch)]


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """Every case, one way after the other: what has to be compiled comes last."""
    cases = []
    for how, variant, mode in itertools.product(arguments.how, arguments.variants, arguments.modes):
        if how != "checkpointed" or mode == "training":
            batch = arguments.batch or BATCHES[variant][mode == "inference"]
            cases.append(Case(variant, mode, how, batch, arguments.side))
    return cases


def say(text: str) -> None:
    """Print at once: the run may be cut off."""
    print(text, flush=True)


def write(found: dict[str, Any], path: Path | None) -> None:
    """Rewrite the JSON file, beside and renamed."""
    if path is not None:
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(found, indent=1))
        beside.replace(path)


def facts_of(variant: str, side: int, device: torch.device) -> dict[str, Any]:
    """Size of a network, how far it agrees with timm's, and which kernel its attention runs on."""
    parameters, flops = size_of(variant, side)
    return {
        "parameters": parameters,
        "forward_flops": flops,
        "largest_logit_difference_from_timm": largest_difference(variant, side, device),
        "attention": attention_backend(variant, side, device),
    }


def run_case(case: Case, flops: float, peak_tflops: float | None, device: torch.device, seconds: float) -> dict:
    """Measure one case, print its row, and return its entry of the JSON."""
    try:
        fitted, speeds = measure_what_fits(case, device, flops, peak_tflops, seconds)
    except RuntimeError as error:  # does not fit at any batch, or the compiler failed
        reason = f"{type(error).__name__}: {error}"
        say("| " + " | ".join([*start_of_row(case), f"failed: {reason.splitlines()[0][:150]}"]) + " |")
        return {**asdict(case), "failed": reason[:1000]}
    say(row(fitted, speeds))
    return {**asdict(fitted), "astroformer": asdict(speeds[0]), "timm": asdict(speeds[1])}


def run(arguments: argparse.Namespace, device: torch.device) -> None:
    """Measure every case that the time allows."""
    end = time.monotonic() + arguments.seconds
    facts = machine_facts(device)
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in facts["device"]), None)
    found: dict[str, Any] = {"machine": facts, "peak_bf16_tflops": peak, "networks": {}, "cases": []}
    say(json.dumps(facts))
    for variant in arguments.variants:
        found["networks"][variant] = facts_of(variant, arguments.side, device)
        say(f"{variant}: {json.dumps(found['networks'][variant])}")
        clear()
    say(HEADER)
    for case in cases_of(arguments):
        left = end - time.monotonic()
        if left < (COMPILE_SECONDS[case.mode] if case.how == "compiled" and device.type == "cuda" else 5.0):
            say("| " + " | ".join([*start_of_row(case), f"not run: {left:.0f} s left"]) + " |")
            found["cases"].append({**asdict(case), "not_run": f"{left:.0f} s left"})
        else:
            flops = found["networks"][case.variant]["forward_flops"]
            found["cases"].append(run_case(case, flops, peak, device, arguments.case_seconds))
        clear()
        write(found, arguments.json)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--seconds", type=float, default=460.0, help="no case is begun when this time is over (460)")
    parser.add_argument("--case-seconds", type=float, default=3.0, help="measuring time of a case (3)")
    for option, every in (("--variants", list(BATCHES)), ("--modes", ["inference", "training"]), ("--how", HOW)):
        parser.add_argument(option, type=lambda text: text.split(","), default=every, help=f"of {','.join(every)}")
    parser.add_argument("--side", type=int, default=256, help="side of the images in pixels (256)")
    parser.add_argument("--batch", type=int, help="batch of every case, instead of the table's")
    parser.add_argument("--smoke", action="store_true", help="cpu_tiny on the CPU, some minutes")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.variants, arguments.side, arguments.batch, arguments.case_seconds = ["cpu_tiny"], 64, 4, 0.1
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    run(arguments, torch.device("cuda" if torch.cuda.is_available() and not arguments.smoke else "cpu"))


if __name__ == "__main__":
    main()
