"""Make docs/images/readme.jpg from the workspace of the demo: `python docs/images/readme.py WORKSPACE`.

One stamp of each class as the network saw it, with its label and confidence. The galaxies of the demo are simulated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from catalogs.query.sql import query
from models.artifacts.registry import load_card
from models.artifacts.weights import preprocessing_of
from pipeline.config.workspace import open_workspace
from pipeline.survey.catalog_pixels import ROW_COLUMNS, load_catalog_pixels

_BEST = f"""SELECT {ROW_COLUMNS}, label, label_id, confidence, morphology.model_id
FROM morphology JOIN tiles USING (tile_id)
WHERE is_reliable QUALIFY row_number() OVER (PARTITION BY label_id ORDER BY confidence DESC, object_id) = 3
ORDER BY label_id"""


def main(workspace_folder: Path, out: Path) -> None:
    workspace = open_workspace(workspace_folder)
    rows = query(workspace.catalog, _BEST)
    preprocessing = preprocessing_of(load_card(workspace.models, rows["model_id"][0].as_py()))
    pixels = load_catalog_pixels(workspace, preprocessing, preprocessing, rows.drop(["label"]), "reading stamps")
    pictures = np.concatenate(list(pixels.chunks(pixels.usable)))
    figure, axes = plt.subplots(2, 5, figsize=(9, 4.6), facecolor="white")
    for axis, row, picture in zip(axes.flat, pixels.usable, pictures, strict=True):
        axis.imshow(picture)
        axis.set_xticks([])
        axis.set_yticks([])
        label = rows["label"][int(row)].as_py().replace("_", " ")
        axis.set_xlabel(f"{label}\n{rows['confidence'][int(row)].as_py():.2f}", fontsize=10)
    figure.suptitle("Simulated galaxies of `make demo`: label and calibrated confidence", fontsize=11)
    figure.tight_layout(h_pad=1.5)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("readme.jpg"))
