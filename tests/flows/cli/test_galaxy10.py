"""`morphcat galaxy10`, and the options that name labelled images, as a user types them."""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from flows.cli.images import image_options, image_source
from flows.cli.main import main
from pipeline.config.inputs import InputSettings
from pipeline.core.errors import UserError
from pipeline.datasets.galaxy10 import open_galaxy10
from pipeline.datasets.splits import read_split
from tests.pipeline.makers import hdf5_columns, write_hdf5

TABLE = "data/galaxy10_decals/catalog/galaxy10_decals_radec_label.csv"


def galaxy10(path: Path, count: int = 80) -> Path:
    return write_hdf5(path, {**hdf5_columns(count), "ans": np.arange(count) % 10})


def run(capsys: pytest.CaptureFixture[str], workspace: Path, *words: object) -> tuple[int, str, str]:
    status = main(["--workspace", str(workspace), *map(str, words)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_splitting_the_real_table(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "split.json"
    status, text, _ = run(capsys, tmp_path, "galaxy10", "split", shared / TABLE, "--seed", 7, "--out", out, "--json")
    assert status == 0
    summary, kept = json.loads(text), json.loads(out.read_text())
    assert summary["positions_across_parts"] == 0 and summary["shared_positions"] == 59
    assert summary["totals"] == {part: len(kept[part]) for part in ("train", "validation", "test")}
    assert sum(summary["totals"].values()) == 17736 and summary["digest"] == kept["digest"]
    assert sum(summary["counts"][part]["cigar_smooth"] for part in summary["counts"]) == 334
    assert kept["seed"] == summary["seed"] == 7 and kept["fractions"] == {"validation": 0.1, "test": 0.15}
    status, text, _ = run(capsys, tmp_path, "galaxy10", "split", shared / TABLE, "--seed", 7)
    assert "in more than one part: 0" in text and kept["digest"] in text


def test_a_split_follows_settings_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = galaxy10(tmp_path / "g.h5")

    def digest(*words: str) -> str:
        status, text, _ = run(capsys, tmp_path, "galaxy10", "split", path, "--json", *words)
        assert status == 0
        return str(json.loads(text)["digest"])

    assert digest() == digest("--seed", "0") != digest("--seed", "1")
    assert digest("--set", "training.split_seed=1") == digest("--seed", "1")
    assert digest("--set", "training.test_fraction=0.3") == digest("--test", "0.3") != digest()
    out = tmp_path / "split.json"
    written = digest("--validation", "0.2", "--out", str(out))
    assert written == read_split(out, open_galaxy10(path, InputSettings())).digest


def test_a_split_that_leaves_a_class_untaught_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = galaxy10(tmp_path / "g.h5", 9)
    status, _, error = run(capsys, tmp_path, "galaxy10", "split", path)
    assert status == 1 and "no example of edge_on_bulge" in error


def test_check_says_what_is_there_and_whether_it_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = galaxy10(tmp_path / "g.h5")
    status, text, _ = run(capsys, tmp_path, "galaxy10", "check", path)
    assert status == 0 and text.endswith("usable\n") and "not usable" not in text
    assert f"is not the published file: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in text
    assert "80 at 0.262″" in text and "images: uint8 (80, 24, 24, 3)" in text
    status, text, _ = run(capsys, tmp_path, "galaxy10", "check", galaxy10(path, 5), "--json")
    found = json.loads(text)
    assert status == 1 and found["usable"] is False and "no example of" in found["problems"][0]
    assert found["published"] is False and found["published_counts"]["cigar_smooth"] == 334


def test_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    (tmp_path / "mirror").mkdir()
    content = (tmp_path / "mirror" / "g.h5").write_bytes(b"content") and b"content"
    sha256 = hashlib.sha256(content).hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "mirror"))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        words = ["galaxy10", "fetch", "--url", f"http://127.0.0.1:{server.server_address[1]}/g.h5", "--json"]
        status, _, error = run(capsys, tmp_path, *words)  # the sum of the published file is asked for
        assert status == 1 and sha256 in error and "19aefc477c41bb7f" in error
        first, again = (run(capsys, tmp_path, *words, "--sha256", sha256) for _ in range(2))
        server.shutdown()
    path = tmp_path / "benchmark" / "Galaxy10_DECals.h5"
    assert first[0] == again[0] == 0 and path.read_bytes() == content
    assert json.loads(first[1]) == {"path": str(path), "sha256": sha256, "fetched": True}
    assert json.loads(again[1])["fetched"] is False


# --- options that name images ---------------------------------------------------------------------------------------


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    image_options(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("--galaxy10", "x"), "galaxy10"),
        (("--cifar10", "x"), "cifar10"),
        (("--cifar100", "x"), "cifar100"),
        (("--tiny-imagenet", "x"), "tiny_imagenet"),
        (("--images", "x", "--labels", "t.csv", "--label-column", "ans"), "pictures"),
    ],
)
def test_options_name_one_source(words: tuple[str, ...], kind: str) -> None:
    source = image_source(parsed(*words))
    assert source is not None and source.kind == kind and source.path == Path("x").absolute()
    if kind == "pictures":
        assert source.table == Path("t.csv").absolute() and source.label_column == "ans"
    else:
        assert source.table is None and source.label_column == ""


def test_no_option_names_no_source() -> None:
    assert image_source(parsed()) is None and image_source(argparse.Namespace()) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "x"), "go together"),
        (("--labels", "x"), "go together"),
        (("--galaxy10", "x", "--labels", "y"), "go together"),
        (("--galaxy10", "x", "--label-column", "y"), "go together"),
        (("--galaxy10", "x", "--tiny-imagenet", "y"), "not 2: --galaxy10, --tiny-imagenet"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_source(parsed(*words))
