"""Measures how many simulated stamps a second one core makes, and prints one JSON line.

Run as `OMP_NUM_THREADS=1 python -m benchmarks.simulated_sky [stamps]` from the repository root.
"""

from __future__ import annotations

import json
import sys
import time

from pipeline.core.classes import CLASS_SLUGS
from pipeline.simulation import tile_object


def main(stamps: int) -> None:
    """Time `stamps` stamps of 256 pixels, all classes mixed, after a short warm-up (imports, PSF cache)."""
    for index in range(2 * len(CLASS_SLUGS)):
        tile_object(0, 0, index)
    start, cpu_start = time.perf_counter(), time.process_time()
    for index in range(stamps):
        tile_object(1, 0, index)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    result = {
        "benchmark": "simulated_sky",
        "stamps": stamps,
        "stamps_per_second": round(stamps / seconds, 1),
        "stamps_per_cpu_second": round(stamps / cpu_seconds, 1),  # differs where other work shares the core
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
