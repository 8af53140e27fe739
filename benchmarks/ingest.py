"""Stamps per second from survey bricks and from cutout files, beside a plain astropy loop on the same files.

    python benchmarks/ingest.py [--objects 300] [--files 300] [--repeats 5] [--out FILE]

The sky is simulated: two neighbouring bricks of 3600 x 3600 pixels, and cutouts of 256 x 256 pixels, written to a
temporary folder. "Plain" is what one writes without a library for it: open each file with astropy, `Cutout2D` around
each object, the colour rule in numpy. Two plain loops over a brick are timed: one that opens the three images once and
keeps them, and one that opens them for each object, as scripts that go down a list of objects do. Both do less than
ours, which also reads invvar, nexp and maskbits, completes edges, and judges the quality of each stamp; "images alone"
is ours on a brick that has only the images. Each case runs in turn, the medians of ratios are what counts. Peak memory
is that of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from models.preprocessing import DR8_GRZ, Preprocessing
from pipeline.config.inputs import BrickSettings, ReadingSettings
from pipeline.ingest.discovery import discover
from pipeline.readers.dispatch import read_tile
from pipeline.simulation import write_bricks, write_cutout_tile
from pipeline.survey.prediction import render_stamps

BANDS = "grz"
SIDE = 256
EVERYTHING = ReadingSettings(bricks=BrickSettings(faintest_r=99.0, large_radius=0))


def main() -> None:
    """Write the sky, time each case in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=300, help="galaxies in each of the two bricks")
    parser.add_argument("--files", type=int, default=300, help="cutout files")
    parser.add_argument("--per-open", type=int, default=20, help="objects for the loop that opens the files for each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--sky", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        count, seconds = timed(cases(arguments.sky, arguments.per_open)[arguments.only])
        print(json.dumps({"count": count, "seconds": seconds, "peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measured(Path(folder), arguments)
    print_report(report)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Rates of each case over the repeats, ratios within each repeat, peak memory."""
    write_bricks(folder / "survey", seed=1, columns=2, rows=1, galaxies=2 * arguments.objects)
    write_cutout_tile(folder / "cutouts", seed=1, tile=0, galaxies=arguments.files)
    images_alone(folder)
    chosen = cases(folder, arguments.per_open)
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for repeat in range(arguments.repeats + 1):
        for name, case in chosen.items():
            count, seconds = timed(case)
            if repeat:  # the first round warms up: imports, the disk's cache
                rates[name].append(count / seconds)
    pairs = {
        "brick / plain, opened once": ("brick", "plain brick, opened once"),
        "brick, images alone / plain, opened once": ("brick, images alone", "plain brick, opened once"),
        "brick / plain, opened for each object": ("brick", "plain brick, opened for each"),
        "cutouts / plain": ("cutouts", "plain cutouts"),
    }
    return {
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "repeats": arguments.repeats,
        "simulated": True,
        "stamps_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": {
            name: statistics.median(a / b for a, b in zip(rates[ours], rates[plain], strict=True))
            for name, (ours, plain) in pairs.items()
        },
        "peak_mb": {name: peak_of(name, folder, arguments.per_open) for name in chosen},
    }


def cases(folder: Path, per_open: int) -> dict[str, Callable[[], int]]:
    """Each case as a function that makes model-ready pictures and returns their number."""
    brick = next((folder / "survey" / "coadd").glob("*/*"))
    bare = folder / "bare" / "coadd" / brick.parent.name / brick.name
    return {
        "brick": lambda: ours(brick),
        "brick, images alone": lambda: ours(bare),
        "plain brick, opened once": lambda: plain_brick_once(brick),
        "plain brick, opened for each": lambda: plain_brick_each(brick, per_open),
        "cutouts": lambda: ours(folder / "cutouts"),
        "plain cutouts": lambda: plain_cutouts(folder / "cutouts"),
    }


def images_alone(folder: Path) -> None:
    """A second survey of the same images and objects, without the planes beside the images."""
    shutil.copytree(
        folder / "survey",
        folder / "bare",
        ignore=lambda _, names: [n for n in names if n.endswith(".fz") and "-image-" not in n],
    )


def ours(place: Path) -> int:
    """Stamps as the survey reads and renders them."""
    recipe, count = Preprocessing(), 0
    for tile in discover([place], 10_000, EVERYTHING).tiles:
        for batch in read_tile(tile, EVERYTHING, 64):
            if batch.stamps:
                count += len(render_stamps(batch, recipe, torch.device("cpu")))
    return count


def positions_of(brick: Path) -> SkyCoord:
    """The objects that `ours` cuts from the brick: galaxies, primary ones."""
    survey = brick.parents[2]
    rows = fits.getdata(survey / "tractor" / brick.parent.name / f"tractor-{brick.name}.fits", 1)
    wanted = rows["brick_primary"] & ~np.isin(np.char.strip(rows["type"]), ["PSF", "DUP"]) & (rows["flux_r"] > 0)
    return SkyCoord(rows["ra"][wanted], rows["dec"][wanted], unit="deg")


def image(brick: Path, band: str) -> Path:
    return brick / f"legacysurvey-{brick.name}-image-{band}.fits.fz"


def plain_brick_once(brick: Path) -> int:
    """Open the three images once, then `Cutout2D` and colour for each object."""
    planes = []
    for band in BANDS:
        with fits.open(image(brick, band)) as hdus:
            planes.append((hdus[1].data, WCS(hdus[1].header)))
    for place in positions_of(brick):
        cuts = [Cutout2D(data, place, SIDE, wcs=wcs, mode="partial", fill_value=0).data for data, wcs in planes]
        plain_colour(np.stack(cuts))
    return len(positions_of(brick))


def plain_brick_each(brick: Path, count: int) -> int:
    """Open the images anew for each object."""
    for place in positions_of(brick)[:count]:
        cuts = []
        for band in BANDS:
            with fits.open(image(brick, band)) as hdus:
                wcs = WCS(hdus[1].header)
                cuts.append(Cutout2D(hdus[1].data, place, SIDE, wcs=wcs, mode="partial", fill_value=0).data)
        plain_colour(np.stack(cuts))
    return count


def plain_cutouts(folder: Path) -> int:
    """Open each cutout, take the field of view around its middle, colour it."""
    paths = sorted(folder.glob("*.fits"))
    for path in paths:
        with fits.open(path) as hdus:
            header, data = hdus[0].header, hdus[0].data
            wcs = WCS(header, naxis=2)
        place = SkyCoord(*wcs.wcs_pix2world([[(data.shape[2] - 1) / 2, (data.shape[1] - 1) / 2]], 0)[0], unit="deg")
        plain_colour(np.stack([Cutout2D(band, place, SIDE, wcs=wcs).data for band in data]))
    return len(paths)


def plain_colour(flux: np.ndarray) -> np.ndarray:
    """The colour rule of DR8 in numpy: float32 (3, H, W) to uint8 (H, W, 3)."""
    scaled = flux.astype(np.float32) * np.array(DR8_GRZ.scales, np.float32)[:, None, None] + DR8_GRZ.offset
    intensity = np.maximum(scaled, 0).mean(axis=0)
    intensity[intensity == 0] = 1e-6
    stretched = np.arcsinh(DR8_GRZ.stretch * intensity) / np.sqrt(DR8_GRZ.stretch)
    planes = np.clip(scaled * (stretched / intensity), 0, 1)
    return (planes[::-1, ::-1].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def timed(case: Callable[[], int]) -> tuple[int, float]:
    """How many stamps a case made, in how many seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        count = case()
        return count, time.perf_counter() - start


def peak_of(name: str, folder: Path, per_open: int) -> float:
    """Peak resident memory (MB) of a process of its own for one case."""
    command = [sys.executable, __file__, "--only", name, "--sky", str(folder), "--per-open", str(per_open)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def peak_mb() -> float:
    """Peak resident memory of this process; what getrusage gives a child begins with that of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def print_report(report: dict[str, object]) -> None:
    """The rates, ratios and memory as Markdown."""
    rates, ratios, peaks = (report[name] for name in ("stamps_per_second", "ratios", "peak_mb"))
    assert isinstance(rates, dict) and isinstance(ratios, dict) and isinstance(peaks, dict)
    print("| case (simulated sky) | stamps per second | peak memory, MB |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {peaks[name]:.0f} |")
    print("\n| ratio | median |\n|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
