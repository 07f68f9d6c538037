"""The artifact store: whole or absent, whatever happens while it is written."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuitseer_assets.errors import ArtifactError
from resources.artifacts import ArtifactStore, data_version_of, digest_file, digest_files


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def write_scores(store: ArtifactStore, text: str = "one") -> Path:
    with store.write("subset", "subset-1") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "scores.txt").write_text(text)
        (folder / "summary.json").write_text("{}")
    return store.folder("subset", "subset-1")


def test_written_artifact_is_whole_and_has_a_manifest_of_digests(store: ArtifactStore) -> None:
    folder = write_scores(store)
    assert folder == store.root / "subset" / "subset-1"
    store.verify("subset", "subset-1")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    digest = hashlib.sha256(b"one").hexdigest()
    assert files["deep/scores.txt"] == {"sha256": digest, "bytes": 3}
    assert sorted(files) == ["deep/scores.txt", "summary.json"]


def test_an_exception_leaves_nothing(store: ArtifactStore) -> None:
    def fail_half_way() -> None:
        with store.write("subset", "subset-1") as folder:
            (folder / "scores.txt").write_text("half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        fail_half_way()
    assert list((store.root / "subset").iterdir()) == []
    assert not store.is_whole("subset", "subset-1")


def test_whole_artifact_stays_and_the_new_one_is_discarded(store: ArtifactStore) -> None:
    folder = write_scores(store, "first")
    write_scores(store, "second")
    assert (folder / "deep" / "scores.txt").read_text() == "first"
    assert [path.name for path in folder.parent.iterdir()] == ["subset-1"]


def test_broken_artifact_is_replaced(store: ArtifactStore) -> None:
    folder = write_scores(store, "first")
    (folder / "deep" / "scores.txt").unlink()
    write_scores(store, "second")
    assert (folder / "deep" / "scores.txt").read_text() == "second"
    store.verify("subset", "subset-1")
    assert [path.name for path in folder.parent.iterdir()] == ["subset-1"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "summary.json").unlink(), r"subset-1/summary\.json is missing; delete"),
        (lambda f: (f / "summary.json").write_text("[]"), r"summary\.json must have the SHA-256"),
        (lambda f: (f / "summary.json").write_text("{ }"), r"summary\.json must have 2 bytes, got"),
        (lambda f: (f / "new.txt").write_text(""), r"new\.txt is not in manifest\.json; move"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing; run again"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json must be a manifest"),
    ],
)
def test_verify_names_the_file_that_is_wrong(store: ArtifactStore, harm, message: str) -> None:
    harm(write_scores(store))
    with pytest.raises(ArtifactError, match=message):
        store.verify("subset", "subset-1")
    assert not store.is_whole("subset", "subset-1")


def test_artifact_without_a_file_or_with_a_link_is_refused(store: ArtifactStore) -> None:
    with (
        pytest.raises(ArtifactError, match="must hold at least one file"),
        store.write("subset", "subset-1"),
    ):
        pass
    with (
        pytest.raises(ArtifactError, match="must be a plain file"),
        store.write("subset", "subset-1") as folder,
    ):
        (folder / "link").symlink_to(store.root)
    assert list((store.root / "subset").iterdir()) == []


def test_id_that_leaves_the_store_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"artifact_id must be letters.*got '\.\./x'"):
        store.folder("subset", "../x")
    with pytest.raises(ArtifactError, match="stage must be letters"):
        store.folder("", "subset-1")


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_kept(
    store: ArtifactStore,
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from resources.artifacts import ArtifactStore
with ArtifactStore(Path({str(store.root)!r})).write("subset", "subset-1") as folder:
    (folder / "scores.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    (dead,) = (store.root / "subset").iterdir()
    alive = dead.with_name(f".subset-2.{os.getpid()}.00000000.tmp")
    alive.mkdir()
    write_scores(store)
    assert not dead.exists()
    assert alive.exists()
    store.verify("subset", "subset-1")


def test_second_writer_of_the_same_artifact_keeps_the_first(store: ArtifactStore) -> None:
    with store.write("subset", "subset-1") as slower:
        (slower / "scores.txt").write_text("slower")
        with store.write("subset", "subset-1") as faster:
            (faster / "scores.txt").write_text("faster")
    folder = store.folder("subset", "subset-1")
    assert (folder / "scores.txt").read_text() == "faster"


def test_data_version_follows_names_and_content_only(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "x.txt").write_text("x")
        (folder / "manifest.json").write_text(folder.name)
    assert data_version_of(first) == data_version_of(second)
    (second / "y.txt").write_text("y")
    assert data_version_of(first) != data_version_of(second)
    assert data_version_of(first) == data_version_of(second, ["x.txt"])
    (second / "x.txt").rename(second / "z.txt")
    assert data_version_of(first) != data_version_of(second, ["z.txt"])
    assert len(data_version_of(first)) == 16


def test_data_version_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="must hold at least one file to have a version"):
        data_version_of(tmp_path)
    with pytest.raises(ArtifactError, match=r"gone\.txt does not exist"):
        data_version_of(tmp_path, ["gone.txt"])


def test_digests_are_sha_256(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"abc")
    assert digest_file(path) == hashlib.sha256(b"abc").hexdigest()
    assert digest_files([path]) == {str(path): digest_file(path)}
