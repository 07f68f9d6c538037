import hashlib
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.records import Message, Sample
from resources import sample_files
from resources.sample_files import first_rows_of, read_sample_ids, read_samples, write_samples


def make_samples(num: int) -> list[Sample]:
    return [
        sample_from_texts(f"Q{n}", f"A{n}", source="s", position=n, original={"n": n})
        for n in range(num)
    ]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(sample_files, "ROW_GROUP_SAMPLES", 4)
    monkeypatch.setattr(sample_files, "SHARD_SAMPLES", 10)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SAMPLES = st.builds(
    Sample,
    sample_id=st.uuids().map(str),
    prompt_id=TEXT,
    source=TEXT,
    position=st.integers(0, 2**62),
    messages=st.lists(st.builds(Message, TEXT, TEXT), min_size=1, max_size=3).map(tuple),
    response=TEXT,
    answer=st.none() | TEXT,
    original=st.dictionaries(TEXT, st.none() | TEXT | st.integers() | st.lists(TEXT, max_size=2)),
)


@settings(max_examples=60, deadline=None, database=None)
@given(samples=st.lists(SAMPLES, max_size=5))
def test_samples_read_are_the_samples_written(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("samples")
    assert write_samples(samples, folder) == len(samples)
    assert list(read_samples(folder)) == samples


@pytest.mark.parametrize(
    ("num", "num_shards"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (25, 3)]
)
def test_samples_are_cut_into_shards_and_row_groups(tmp_path, small_shards, num, num_shards):
    samples = make_samples(num)
    folder = tmp_path / "new" / "samples"
    assert write_samples(iter(samples), folder) == num
    names = [f"samples-{n:05d}.parquet" for n in range(num_shards)]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert list(read_samples(folder)) == samples
    assert list(read_sample_ids(folder)) == [sample.sample_id for sample in samples]
    groups = [pq.ParquetFile(folder / name).num_row_groups for name in names]
    assert all(number <= 3 for number in groups)


def test_a_filter_keeps_the_corpus_order(tmp_path, small_shards):
    samples = make_samples(25)
    write_samples(samples, tmp_path)
    wanted = [samples[n].sample_id for n in (23, 0, 11, 2)]
    positions = [sample.position for sample in read_samples(tmp_path, sample_ids=wanted)]
    assert positions == [0, 2, 11, 23]
    assert list(read_samples(tmp_path, sample_ids=[])) == []
    assert list(read_samples(tmp_path, sample_ids=["unknown"])) == []


def test_places_are_counted_over_shards_and_row_groups(tmp_path, small_shards):
    samples = make_samples(25)
    write_samples(samples, tmp_path)
    rows = np.zeros(25, bool)
    rows[[0, 2, 11, 23]] = True
    assert list(read_samples(tmp_path, rows=rows)) == [samples[n] for n in (0, 2, 11, 23)]
    assert list(read_samples(tmp_path, rows=np.zeros(25, bool))) == []
    first_rows = first_rows_of(tmp_path)
    assert first_rows.pop(tmp_path) == 25
    assert list(first_rows.values()) == [0, 10, 20]
    for path, first in first_rows.items():
        stored = pq.read_table(path)["sample_id"].to_pylist()
        assert stored == [s.sample_id for s in samples[first : first + len(stored)]]


def test_the_same_samples_give_the_same_bytes(tmp_path, small_shards):
    digests = []
    for name in ("one", "two"):
        write_samples(make_samples(25), tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]


def test_the_columns_and_the_compression(tmp_path):
    write_samples(make_samples(2), tmp_path)
    file = pq.ParquetFile(tmp_path / "samples-00000.parquet")
    assert file.schema_arrow.names == [
        "sample_id",
        "prompt_id",
        "source",
        "position",
        "messages",
        "response",
        "answer",
        "original",
    ]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_samples_are_written_as_they_come(tmp_path, small_shards):
    num_made = 0

    def endless():
        nonlocal num_made
        for sample in itertools.cycle(make_samples(10)):
            num_made += 1
            yield sample
            if num_made == 30:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(endless(), tmp_path)
    whole = sorted(path.name for path in tmp_path.glob("*.parquet"))
    assert whole == ["samples-00000.parquet", "samples-00001.parquet", "samples-00002.parquet"]


def test_a_shard_cut_off_is_never_taken_for_a_whole_one(tmp_path, small_shards):
    def torn():
        yield from make_samples(13)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_samples(torn(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["samples-00000.parquet"]


def test_writing_over_samples_is_refused(tmp_path):
    write_samples(make_samples(1), tmp_path)
    with pytest.raises(ArtifactError) as caught:
        write_samples(make_samples(1), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} must hold no samples before they are written, got some; "
        "write to a new folder, for nothing is overwritten"
    )


@pytest.mark.parametrize("read", [read_samples, read_sample_ids])
def test_a_folder_without_samples_is_one_sentence(tmp_path, read):
    with pytest.raises(ArtifactError) as caught:
        list(read(tmp_path / "none"))
    assert str(caught.value) == (
        f"{tmp_path}/none must hold samples, got none; materialise the asset that writes them again"
    )


@pytest.mark.parametrize("read", [read_samples, read_sample_ids])
def test_a_damaged_shard_is_one_sentence(tmp_path, read):
    write_samples(make_samples(1), tmp_path)
    path = tmp_path / "samples-00000.parquet"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError) as caught:
        list(read(tmp_path))
    assert str(caught.value).startswith(f"{path} must be a whole Parquet file, got: ")
    assert str(caught.value).endswith("; materialise the asset that writes it again")
