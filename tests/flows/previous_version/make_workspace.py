"""Make `workspace.tar.xz` with the version before the districts (commit 85b1740), for test_previous_version.py.

    git worktree add OLD 85b1740
    cd OLD && PYTHONPATH=$PWD python MAIN/tests/flows/previous_version/make_workspace.py OUT.tar.xz

The environment must have the packages that OLD asks for. The inputs are small blobs written here; the model is trained
for two epochs on a simulated benchmark, so that its labels mean nothing. What can be made again (Prefect's database,
caches, the benchmark) is left out of the archive.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import duckdb
import numpy as np
from astropy.io import fits
from PIL import Image

SIDE = 24
LEFT_OUT = (".prefect", "cache", "benchmark", "exports")
SETTINGS = """\
[training]
variant = "cpu_tiny"
image_size = 32
epochs = 2
batch_size = 16
warmup_epochs = 0.5
optimiser = "adamw"

[survey]
settle = 0.0

[gate]
chance = 0.01

[workers]
n = 1
threads = 1
"""


def main(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "workspace"
        root.mkdir()
        (root / "morphcat.toml").write_text(SETTINGS)
        incoming = root / "incoming"
        morphcat(root, "simulate", "--tiles", "0", "--benchmark", "60", "--seed", "0")
        morphcat(root, "train")
        write_pictures(incoming / "pictures", 5)
        write_cutouts(incoming / "cutouts", 4)
        (incoming / "cutouts" / "empty.fits").touch()
        round_times(incoming)
        morphcat(root, "survey")
        morphcat(root, "labels", "add", str(write_corrections(root)), "--author", "a scientist")
        write_cutouts(incoming / "more", 3, first=10)
        round_times(incoming)
        morphcat(root, "survey")
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT) as file:
            for path in sorted(root.iterdir()):
                if path.name not in LEFT_OUT:
                    file.add(path, arcname=f"workspace/{path.name}", filter=without_owner)


def morphcat(root: Path, *command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "flows.cli", *command, "--workspace", str(root)], check=True, env=environment)


def blob(seed: int) -> np.ndarray:
    """A round blob on a little noise: float32 (3, SIDE, SIDE), nanomaggies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    profile = np.exp(-(x**2 + y**2) / (2 * (2 + 4 * rng.random()) ** 2))
    return (rng.uniform(0.1, 1, (3, 1, 1)) * profile + rng.normal(0, 0.003, (3, SIDE, SIDE))).astype(np.float32)


def write_cutouts(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        header = fits.Header({"SURVEY": "LegacySurvey", "VERSION": "DR9-south", "IMAGETYP": "image", "BANDS": "grz"})
        header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150 + i / 100, "CRVAL2": 2 + i / 200})
        header.update({"CRPIX1": SIDE / 2 + 0.5, "CRPIX2": SIDE / 2 + 0.5, "CD1_2": 0.0, "CD2_1": 0.0})
        header.update({"CD1_1": -0.262 / 3600, "CD2_2": 0.262 / 3600})
        fits.PrimaryHDU(blob(i), header).writeto(folder / f"g{i:03d}.fits")


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    with (folder / "positions.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["file", "ra", "dec", "pixscale"])
        for i in range(count):
            pixels = (blob(i).transpose(1, 2, 0) * 200 + 40).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"p{i:03d}.png")
            table.writerow([f"p{i:03d}.png", 30 + i / 10, i / 10, 0.262])


def round_times(folder: Path) -> None:
    """Set times of change to whole seconds: the archive keeps no nanoseconds, and a changed time is a changed input."""
    for path in folder.rglob("*"):
        seconds = int(path.stat().st_mtime)
        os.utime(path, (seconds, seconds))


def write_corrections(root: Path) -> Path:
    """Labels by a scientist for two objects of the first release."""
    rows = duckdb.sql(f"SELECT object_id FROM '{root}/catalog/tiles/*/*/*.parquet' ORDER BY source_name LIMIT 2")
    path = root / "corrections.csv"
    ids = [row[0] for row in rows.fetchall()]
    path.write_text("object_id,label\n" + "".join(f"{i},edge_on_bulge\n" for i in ids))
    return path


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
