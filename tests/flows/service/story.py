"""A year of a workspace in minutes, by the commands alone: `python -m tests.flows.service.story [FOLDER]`.

A service runs on a real Prefect server of its own. Two new sky tiles arrive and the scheduled survey classifies them;
labels are added and the event starts a retraining; the gate lets the candidate pass, it is promoted, classifies the sky
again, and the new release differs from the old one by the labels that changed. Then a candidate is made worse on
purpose, and the gate refuses it. All galaxies are simulated. Fails with an AssertionError at the first thing that is
not as told.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import psutil

from tests.paths import ROOT

SETTINGS = """
[serve]
survey = "* * * * *"
at_start = false
ui = false
port = 0
poll = 2.0
[retraining]
quiet = 15.0
[training]
variant = "cpu_tiny"
image_size = 32
epochs = 12
warmup_epochs = 1.0
[gate]
min_speed = 0.0  # the machine may be busy with other things
max_flips = 1.0  # small networks change their minds
[workers]
threads = 1
device = "cpu"
"""
WORSE = """
[retraining]
quiet = 1.0
recipe = "settings"
warm_start = false
epochs = 1
"""

Found = TypeVar("Found")


class Story:
    """A workspace, its commands, and what has been told so far: lines with the seconds since the beginning."""

    def __init__(self, root: Path) -> None:
        self.root = root / "W"
        self.began = time.monotonic()
        self.lines: list[str] = []

    def tell(self, text: str) -> None:
        self.lines.append(f"{time.monotonic() - self.began:6.0f} s  {text}")
        print(self.lines[-1], flush=True)

    def run(self, *words: str) -> Any:
        """A command's answer as JSON."""
        return json.loads(self.call(*words))

    def call(self, *words: str) -> str:
        """What a command prints; it has to end well."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "--workspace", str(self.root), "--json", *words],
            cwd=ROOT,
            env=environment(self.root.parent),
            capture_output=True,
            text=True,
        )
        alarmed = words[0] == "status" and done.returncode == 4  # the moment before the new champion's survey
        assert alarmed or done.returncode == 0, (words, done.returncode, done.stdout[-2000:], done.stderr[-4000:])
        return done.stdout

    def until(self, what: str, look: Callable[[], Found | None], seconds: float = 600.0) -> Found:
        """What `look` finds, as soon as it finds something."""
        end = time.monotonic() + seconds
        while (found := look()) is None:
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}; {self.run('status')}"
            time.sleep(1)
        return found

    @contextmanager
    def service(self) -> Iterator[subprocess.Popen[bytes]]:
        """`morphcat serve` as a process of its own; it has to end in order, and its server with it."""
        words = [sys.executable, "-m", "flows.cli.main", "--workspace", str(self.root), "serve"]
        with (self.root.parent / "serve.log").open("wb") as log:
            process = subprocess.Popen(words, cwd=ROOT, env=environment(self.root.parent), stdout=log, stderr=log)
        try:
            yield process
        finally:
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            _, left = psutil.wait_procs(started, timeout=20)
            for one in left:
                one.kill()
        assert process.returncode == 0 and not left, (process.returncode, left)


def environment(home: Path) -> dict[str, str]:
    """An environment without Prefect's variables and without the user's profile."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**plain, "HOME": str(home), "OMP_NUM_THREADS": "1"}


def tell(root: Path) -> list[str]:
    """The whole story; returns its lines."""
    story = Story(root)
    story.run("simulate", "--tiles", "2", "--galaxies", "60", "--benchmark", "600")
    (story.root / "incoming").rename(story.root / "later")
    (story.root / "incoming").mkdir()
    (story.root / "morphcat.toml").write_text(SETTINGS)
    first = story.run("train")["model_id"]
    story.tell(f"champion {first}, trained on 600 simulated galaxies; no tiles yet")
    with story.service():
        story.until("the service", lambda: story.run("status")["service"])
        story.tell("morphcat serve: its own Prefect server answers")
        before = new_tiles(story, first)
        after = better_labels(story, before)
        worse_candidate(story, after)
    story.tell("the service has ended in order, and its server with it")
    return story.lines


def new_tiles(story: Story, model: str) -> str:
    """Two tiles arrive; returns the release that the scheduled survey makes."""
    for tile in sorted((story.root / "later").iterdir()):
        shutil.move(tile, story.root / "incoming" / tile.name)
    story.tell("two new sky tiles in incoming/")

    def released() -> dict[str, Any] | None:
        now = story.run("status")
        return now if now["release"] else None

    now = story.until("the scheduled survey", released)
    assert now["tiles"] == {"found": 2, "done": 2, "to_do": 0, "arriving": 0}
    assert (now["release"]["objects"], now["release"]["model_id"]) == (120, model)
    story.tell(f"the scheduled survey has classified both: release {now['release']['release']}, 120 objects")
    return str(now["release"]["release"])


def better_labels(story: Story, before: str) -> str:
    """Labels of 60 objects, in four files, start one retraining; returns the release of the new champion."""
    truth, told = true_labels(story), []
    for start in range(0, 60, 15):
        path = labels_file(story, truth[start : start + 15])
        added = story.run("labels", "add", str(path), "--author", "a scientist")
        told.append(time.time())
        story.tell(f"labels add {path.name}: {added['added']} labels, version {added['version']}")
    run = story.until("the run that the event starts", lambda: run_by_event(story, told[0]))
    story.tell(f"the first event has started the retraining run {run['name']} {run['seconds']:.1f} s later")
    report = story.until("the verdict", lambda: verdict_of(story, added["version"]))
    assert len(story.run("models")) == 2, "four files within the quiet time train once"
    assert report["outcome"] == "promoted", report["why"]
    story.tell(f"the gate: {report['why']}; promoted")

    def taken_over() -> str | None:
        release = story.run("release", "current")
        return release["release"] if release["model_id"] == report["candidate"] else None

    after = story.until("the re-classification", taken_over)
    flips = flips_of(story, before, after)
    assert flips == label_changes(story, before, after) and flips
    assert story.run("audit", "--quick")["ok"]
    story.tell(f"release {after} by the new champion; diff names the {len(flips)} labels that changed; audit ok")
    assert story.run("status")["labels"]["not_learned"] == 0
    return str(after)


def worse_candidate(story: Story, release: str) -> None:
    """A candidate from random weights after one epoch is refused; nothing changes for readers."""
    champion = story.run("status")["champion"]["model_id"]
    before, _, after = SETTINGS.partition("[retraining]\nquiet = 15.0\n")
    (story.root / "morphcat.toml").write_text(before + WORSE + after)
    added = story.run("labels", "add", str(labels_file(story, true_labels(story)[60:])), "--author", "a scientist")
    story.tell(f"{added['added']} more labels, and the settings now make a bad candidate (one epoch, random weights)")
    report = story.until("the verdict on the bad candidate", lambda: verdict_of(story, added["version"]))
    assert report["outcome"] == "refused", report
    now = story.run("status")
    assert now["champion"]["model_id"] == champion and now["release"]["release"] == release
    assert "refused by" in report["why"]
    story.tell(f"the gate: {report['why']}")
    story.tell(f"champion {champion} and release {release} stay")


def true_labels(story: Story) -> list[tuple[str, str]]:
    """Object id and true class of every simulated object of the release, in the order of their ids."""
    rows = story.run("query", "SELECT object_id::VARCHAR AS id, ra, dec FROM morphology ORDER BY object_id")
    truth = {}
    with (story.root / "simulated_truth.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            truth[f"{float(row['ra']):.6f},{float(row['dec']):.6f}"] = row["slug"]
    return [(row["id"], truth[f"{row['ra']:.6f},{row['dec']:.6f}"]) for row in rows]


def labels_file(story: Story, labels: list[tuple[str, str]]) -> Path:
    path = story.root.parent / f"labels-{len(list(story.root.parent.glob('labels-*')))}.csv"
    path.write_text("object_id,label\n" + "".join(f"{one},{label}\n" for one, label in labels))
    return path


def verdict_of(story: Story, version: str) -> dict[str, Any] | None:
    """What came of a version of the labels."""
    reports = story.run("status")["retrainings"]
    return next((one for one in reports if one["labels"]["version"] == version), None)


def run_by_event(story: Story, since: float) -> dict[str, Any] | None:
    """The retraining run that an event has started since, and how many seconds after."""
    body = json.dumps({"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC", "limit": 50}).encode()
    served = json.loads((story.root / ".prefect" / "served.json").read_text())
    login = f"Basic {b64encode(served['password'].encode()).decode()}"
    headers = {"Content-Type": "application/json", "Authorization": login}
    request = Request(f"{served['url']}/flow_runs/filter", body, headers)
    with urlopen(request, timeout=10) as answer:
        runs = json.load(answer)
    for run in runs:
        started = run["start_time"] and seconds_of(run["start_time"])
        if started and started > since - 5 and str(run["parameters"].get("event", "")).startswith("event "):
            return {"name": run["name"], "seconds": started - since}
    return None


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def flips_of(story: Story, before: str, after: str) -> set[str]:
    """Object ids whose label differs, as `diff` names them."""
    path = story.root.parent / "changes.json"
    story.call("diff", before, after, "--out", str(path))
    return {str(row["object_id"]) for row in json.loads(path.read_text()) if row["kind"] == "label"}


def label_changes(story: Story, before: str, after: str) -> set[str]:
    """The same by comparing the rows of both releases."""
    statement = "SELECT object_id::VARCHAR AS id, label FROM morphology"
    old, new = (story.run("query", statement, "--release", name) for name in (before, after))
    old, new = ({row["id"]: row["label"] for row in rows} for rows in (old, new))
    assert old.keys() == new.keys()
    return {one for one in old if old[one] != new[one]}


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="morphcat-story-"))
    place.mkdir(parents=True, exist_ok=True)
    tell(place.absolute())
