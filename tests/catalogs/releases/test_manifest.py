"""The manifest: every file of a release and its sha256, and nothing else is believed or opened."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from catalogs.errors import CatalogError
from catalogs.releases.manifest import FileMismatch, manifest_path, read_manifest, verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "release"
    for name in ("sidecar/tiles.parquet", "a b/Npix=1.parquet", "release.json", "z/ä.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    write_manifest(root)
    return root


def test_a_manifest_lists_every_file_but_itself_and_sha256sum_agrees(folder: Path) -> None:
    digests, problems = read_manifest(folder)
    assert list(digests) == ["a b/Npix=1.parquet", "release.json", "sidecar/tiles.parquet", "z/ä.txt"]
    assert problems == [] == verify_manifest(folder)
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "--strict", "-c", manifest_path(folder)], cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_what_is_missing_changed_or_unknown_is_named(folder: Path) -> None:
    (folder / "release.json").unlink()
    (folder / "z/ä.txt").write_bytes("z/ä.tx_".encode())
    (folder / "sidecar/new.parquet").write_bytes(b"")
    (folder / "link").symlink_to("/etc/hostname")
    assert [(p.path, p.what.split(":")[0]) for p in verify_manifest(folder)] == [
        ("link", "no plain file with a plain name"),
        ("release.json", "missing"),
        ("sidecar/new.parquet", "not in the manifest"),
        ("z/ä.txt", "changed"),
    ]


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside", "a/../../outside", "./release.json", "a//b", "a\tb"])
def test_paths_that_leave_the_release_are_refused_and_not_opened(folder: Path, path: str) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"")
    manifest = manifest_path(folder)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    manifest.write_text(manifest.read_text() + f"{empty}  {path}\n")
    (problem,) = verify_manifest(folder)
    assert problem.path == "sidecar/manifest.sha256" and "line 5 is refused" in problem.what


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"no manifest\n", b"abc  release.json\n"])
def test_a_broken_manifest_vouches_for_nothing(folder: Path, text: bytes) -> None:
    manifest_path(folder).write_bytes(text)
    assert FileMismatch("release.json", "not in the manifest") in verify_manifest(folder)
    manifest_path(folder).unlink()
    assert len(verify_manifest(folder)) == 5  # the manifest, and four files


def test_a_path_that_is_listed_twice_is_refused(folder: Path) -> None:
    manifest = manifest_path(folder)
    manifest.write_text(manifest.read_text() * 2)
    assert len(verify_manifest(folder)) == 4


def test_links_and_names_that_cannot_be_listed_are_not_published(folder: Path) -> None:
    (folder / "link").symlink_to("release.json")
    with pytest.raises(CatalogError, match="not link"):
        write_manifest(folder)
    (folder / "link").unlink()
    (folder / "a\nb").write_bytes(b"")
    with pytest.raises(CatalogError, match="plain names"):
        write_manifest(folder)


def test_known_digests_are_taken_over(folder: Path) -> None:
    write_manifest(folder, {"release.json": "0" * 64, "not/there": "1" * 64})
    digests, _ = read_manifest(folder)
    assert digests["release.json"] == "0" * 64 and "not/there" not in digests
    assert [p.path for p in verify_manifest(folder)] == ["release.json"]
