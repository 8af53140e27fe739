"""Measures what keeping freed memory (pipeline.training.fit) is worth in training on a CPU, two processes in turn.

Run as `python benchmarks/training_memory.py [variant] [side] [rounds]`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_IMAGES = 640


def measure(variant: str, side: int, keep: bool) -> float:
    """Images a second of the second epoch of a training on random pixels."""
    import torch

    from models.networks.astroformer import create_model
    from models.preprocessing import Preprocessing
    from models.training.config import LoopSettings
    from models.training.trainer import LabelledPixels, train_network
    from pipeline.training.fit import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (_IMAGES, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 10, (_IMAGES,))
    network = create_model(variant, image_size=side)
    records: list[float] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train_network(
            network,
            LabelledPixels(pixels, labels, torch.arange(_IMAGES)),
            LabelledPixels(pixels, labels, torch.arange(2)),
            LoopSettings(epochs=2),
            Preprocessing(image_size=side),
            device=torch.device("cpu"),
            checkpoint=Path(folder) / "checkpoint.pt",
            on_epoch=lambda _: records.append(time.monotonic() - started),
        )
    return _IMAGES / (records[1] - records[0])


def main(variant: str = "cpu_tiny", side: str = "64", rounds: str = "3") -> None:
    """Alternate the two ways and print medians and their ratio."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(int(rounds)):
        for keep in (False, True):
            command = [sys.executable, __file__, "--measure", variant, side, str(int(keep))]
            speeds[keep].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    plain, kept = (statistics.median(speeds[keep]) for keep in (False, True))
    result = {
        "benchmark": "training_memory",
        "variant": variant,
        "side": int(side),
        "images_per_second": round(plain),
        "images_per_second_kept": round(kept),
        "ratio": round(kept / plain, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4]))))
    else:
        main(*sys.argv[1:])
