"""Reads files made to do harm, in a process of its own whose memory can be measured; writes what became of each."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from pipeline.config.inputs import InputSettings
from pipeline.core.errors import BadInput
from pipeline.readers.archives.reader import list_members, read_archive
from pipeline.readers.cutouts.reader import read_cutout
from pipeline.readers.fits.files import plane, read_columns
from pipeline.readers.hdf5 import count_rows, read_hdf5
from pipeline.readers.images import read_picture
from pipeline.readers.stamps import Stamp
from tests.pipeline.makers import write_cutout


def read(path: Path) -> list[str]:
    """Reasons, or `stamp`, of what is in a file."""
    settings = InputSettings()
    try:
        if path.suffix in (".zip", ".tar", ".tgz"):
            items = list(read_archive(path, 0, len(list_members(path)), "s", settings))
        elif path.suffix == ".h5":
            items = list(read_hdf5(path, 0, max(count_rows(path), 1), "s", settings))
        elif path.suffix == ".png":
            return [str(read_picture(path).shape)]
        elif path.name.startswith("table"):
            return [str(len(read_columns(path, ["ra"])["ra"]))]
        elif path.name.startswith("plane"):
            return [str(plane(path)[1].shape)]
        else:
            items = [read_cutout(path, "s", settings)]
    except BadInput as bad:
        return [str(bad.reason)]
    return ["stamp" if isinstance(item, Stamp) else str(getattr(item, "reason", "note")) for item in items]


def peak() -> int:
    """Most memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    read(write_cutout(folder / "warm-up.fits"))  # what imports and libraries take is not the files' doing
    before, found = peak(), {}
    for file in sorted(folder.glob("bad/*")):
        found[file.name] = read(file)
    sys.stdout.write(json.dumps({"found": found, "grown": peak() - before}))
