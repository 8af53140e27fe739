"""Shows that one process, two processes and a killed training give one loss curve, on simulated images.

Trains cpu_tiny on 600 simulated galaxies four times: in one process; in a process group of two at the same global batch
with synchronised batch norm; in one process that is killed (SIGKILL) midway and started again; in a process group of
which one is killed midway. Stochastic depth and dropout are off, because each process draws them for itself.

Run as `python benchmarks/distributed_curves.py [--table FILE.md] [--plot FILE.png]`: some minutes on two cores.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from matplotlib.figure import Figure

from models.preprocessing import colour_rule
from models.training.trainer import TrainingResult
from pipeline.config.workspace import open_workspace
from pipeline.core.progress import progress_display
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.simulation import write_galaxy10
from pipeline.training.fit import FitJob, fit, write_rows
from pipeline.training.plan import plan_training

_IMAGES, _EPOCHS, _KILLED_IN = 600, 8, 4  # epochs are counted from 1
_SETTINGS = (
    "training.variant=cpu_tiny",
    "training.image_size=64",
    f"training.epochs={_EPOCHS}",
    "training.batch_size=64",
    "training.drop_path=0",
    "training.head_dropout=0",
    "training.randaugment_ops=1",
    "workers.threads=1",
    "workers.device=cpu",
)
_CASES = ("one process", "two processes", "one process, killed", "two processes, one killed")


def begin(root: Path) -> None:
    """Write the simulated images."""
    write_galaxy10(root / "galaxy10.h5", seed=11, images=_IMAGES, render=colour_rule)


def train(root: Path, case: str) -> TrainingResult:
    """One of the trainings, from its last finished epoch on."""
    workspace = open_workspace(root, [*_SETTINGS, f"workers.train_processes={2 if case.startswith('two') else 1}"])
    images = open_galaxy10(root / "galaxy10.h5", workspace.settings.input)
    planned = plan_training(workspace, images)
    job, parts = planned.job, planned.parts
    job = replace(job, folder=root / case.replace(",", "").replace(" ", "-"))
    write_rows(job, images.labels, parts.train, parts.validation)
    with progress_display(killing(job) if case == "two processes, one killed" else quiet):
        return fit(job, workspace.settings.workers)


@contextmanager
def quiet(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A display that shows nothing."""
    yield lambda done, note: None


def killing(job: FitJob) -> Callable:
    """A display that, told of the third epoch, kills a process of the group."""
    epochs: list[str] = []

    @contextmanager
    def display(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        def step(done: int, note: str) -> None:
            epochs.append(note)
            if len(epochs) == _KILLED_IN - 1:
                members = [
                    p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())
                ]
                print(f"group: {len(finished(job.folder))} epochs finished; one of {len(members)} processes is killed")
                members[-1].send_signal(signal.SIGKILL)

        yield step

    return display


def finished(folder: Path) -> list[dict]:
    """The epochs that the checkpoint of a training holds."""
    path = folder / "checkpoint.pt"
    return torch.load(path, weights_only=True)["history"] if path.exists() else []


def killed_and_resumed(root: Path, case: str) -> TrainingResult:
    """A training in another process that is killed within an epoch, and then gone on with here."""
    process = subprocess.Popen([sys.executable, __file__, "--only", str(root), case])
    folder = root / case.replace(",", "").replace(" ", "-")
    while len(finished(folder)) < _KILLED_IN - 1:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    time.sleep(0.5)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"one process: killed with {len(finished(folder))} epochs finished")
    return train(root, case)


def losses(trained: TrainingResult) -> list[float]:
    """Training losses in nats, an epoch each."""
    return [record.loss for record in trained.history]


def same_weights(one: TrainingResult, other: TrainingResult) -> bool:
    """Whether two networks are equal bit by bit."""
    states = (one.network.state_dict(), other.network.state_dict())
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def table(found: dict[str, TrainingResult]) -> str:
    """The curves side by side, as Markdown."""
    lines = ["| epoch | " + " | ".join(found) + " |", "|--:|" + "--:|" * len(found)]
    for epoch, row in enumerate(zip(*(losses(trained) for trained in found.values()), strict=True), start=1):
        lines.append(f"| {epoch} | " + " | ".join(f"{loss:.7f}" for loss in row) + " |")
    one, two, killed, lost = (found[case] for case in _CASES)
    largest = max(abs(a - b) for a, b in zip(losses(one), losses(two), strict=True))
    validation = max(abs(a.validation_loss - b.validation_loss) for a, b in zip(one.history, two.history, strict=True))
    return "\n".join(
        [
            *lines,
            "",
            f"* One process and two: largest difference of the training loss {largest:.1e} nats, of the validation "
            f"loss {validation:.1e}.",
            f"* Killed and resumed, one process: {sameness(one, killed)}.",
            f"* A process of the group killed: {sameness(two, lost)}.",
            "",
        ]
    )


def sameness(undisturbed: TrainingResult, disturbed: TrainingResult) -> str:
    """How a disturbed training compares with the undisturbed one, in words."""
    largest = max(abs(a - b) for a, b in zip(losses(undisturbed), losses(disturbed), strict=True))
    curve = "the same curve bit by bit" if largest == 0 else f"a curve that differs by up to {largest:.1e} nats"
    return f"{curve} and {'the very same' if same_weights(undisturbed, disturbed) else 'other'} weights"


def plot(found: dict[str, TrainingResult], path: Path) -> None:
    """The curves in one figure; they lie on each other."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = ({"lw": 5, "color": "0.8"}, {"lw": 1.5, "color": "tab:blue"}, {"marker": "o"}, {"marker": "x"})
    for (case, trained), style in zip(found.items(), styles, strict=True):
        line = {"ls": "none", "ms": 7, "mfc": "none"} if "marker" in style else {}
        axes.plot(range(1, _EPOCHS + 1), losses(trained), label=case, **line, **style)
    axes.axvline(_KILLED_IN, color="0.6", lw=0.8, ls=":")
    axes.text(_KILLED_IN + 0.1, max(losses(found[_CASES[0]])), "killed in this epoch", fontsize="small", color="0.4")
    axes.set(xlabel="epoch", ylabel="training loss (nats)", title=f"cpu_tiny, {_IMAGES} simulated images")
    axes.legend(fontsize="small", loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def main() -> None:
    """Train all cases and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="Markdown file for the table, which is printed in any case")
    parser.add_argument("--plot", type=Path, help="PNG file for the figure")
    parser.add_argument("--only", nargs=2, metavar=("ROOT", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        train(Path(arguments.only[0]), arguments.only[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        begin(root)
        found = {case: killed_and_resumed(root, case) if case == _CASES[2] else train(root, case) for case in _CASES}
    print(table(found))
    if arguments.table:
        arguments.table.write_text(table(found))
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
