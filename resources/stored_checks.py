"""Checks of what is stored: files, ids, rows, the sources and the model, against each other.

Each check returns its findings; nothing here runs a model.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from circuitseer_assets.errors import ArtifactError, CorpusError, ModelError
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.method.verification import (
    NotCheckedError,
    different_rows,
    different_settings,
)
from circuitseer_assets.method.weights import strata_from_table, weigh_samples
from circuitseer_assets.records import Artifact, Sample, artifact_id_of
from circuitseer_assets.settings import SLICES, Benchmark, HubCorpus, SelectionSettings
from resources.artifacts import MANIFEST, data_version_of, digest_file, digest_files
from resources.corpora import columns_of, read_rows
from resources.draw import draw_subset
from resources.home import Home
from resources.recorded_model import IDENTITY, ModelIdentities, name_of, recorded_settings
from resources.sample_files import read_sample_ids, read_samples
from resources.table_differences import find_differences

# Parents that follow from the others: they are recorded, and no part of the identity.
_FOLLOWS = {"pool": "probe_set", "subset": "length_strata", "evaluation": "evaluation"}
# What an artifact's content is, of all the files in its folder.
_CONTENT = {
    "corpus": ("samples",),
    "probe_set": ("ranking", "confirmation", "control"),
    "pool": ("pool.parquet",),
    "head_ranking": ("head_importance.parquet",),
    "sample_scores": ("scores.parquet",),
    "length_strata": ("length_strata.parquet",),
    "subset": ("subset_members.parquet",),
    "checkpoint": ("checkpoint.json", "weights.json"),
    "evaluation": ("evaluation_outcomes.parquet",),
    "audit": ("lineage.json",),
    "study_cell": ("study_cell.json", "held_out_losses.parquet"),
    "study_results": ("study_comparisons.parquet",),
}
RESTORE = "restore it from a backup, or make it anew"
"""What is done about an artifact that is not what it was."""


_MANIFESTS = "select manifest_sha256 from artifact_evidence where artifact_id = $id"


@dataclass(frozen=True)
class Store:
    """A home, and the artifacts of it that are looked at."""

    home: Home
    artifacts: tuple[Artifact, ...]

    def of_stage(self, stage: str) -> list[Artifact]:
        """Returns those of one stage."""
        return [artifact for artifact in self.artifacts if artifact.stage == stage]

    def folder(self, artifact: Artifact) -> Path:
        """Returns the folder an artifact's files lie in, when all of them are there.

        Raises:
            NotCheckedError: one is not; the check of the files says which.
        """
        if not self.home.artifacts.is_present(artifact.stage, artifact.artifact_id):
            raise NotCheckedError(f"the files of {artifact.artifact_id} are not whole")
        return self.home.artifacts.folder(artifact.stage, artifact.artifact_id)

    def parent(self, artifact: Artifact, stage: str) -> Artifact:
        """Returns the parent of a stage.

        Raises:
            NotCheckedError: it is not recorded; the check of the lineage says so.
        """
        for one in self.artifacts:
            if one.stage == stage and one.artifact_id in artifact.parents:
                return one
        raise NotCheckedError(f"no {stage} is recorded for {artifact.artifact_id}")

    def corpora_in_use(self) -> list[Artifact]:
        """Returns the corpora that a pool is of, or that are looked at themselves.

        Others gave probes only, which are kept while their rows exist: new rows, or changed
        settings, make another corpus and leave the probes alone.
        """
        used = {parent for pool in self.of_stage("pool") for parent in pool.parents}
        used.add(self.artifacts[0].artifact_id)
        return [corpus for corpus in self.of_stage("corpus") if corpus.artifact_id in used]


def check_files(store: Store) -> Iterator[str]:
    """Returns every file that is missing, changed or new, and every manifest that is another."""
    for artifact in store.artifacts:
        try:
            yield from store.home.artifacts.find_problems(artifact.stage, artifact.artifact_id)
        except ArtifactError as error:
            yield str(error)
            continue
        manifest = store.home.artifacts.folder(artifact.stage, artifact.artifact_id) / MANIFEST
        recorded = store.home.warehouse.query(_MANIFESTS, {"id": artifact.artifact_id}).to_pylist()
        now = digest_file(manifest)
        if recorded and now != recorded[0]["manifest_sha256"]:
            yield (
                f"{manifest} must have the SHA-256 {recorded[0]['manifest_sha256']} that the "
                f"warehouse has for {artifact.artifact_id}, got {now}: it was replaced, and files "
                f"with it; {RESTORE}"
            )


def check_ids(store: Store) -> Iterator[str]:
    """Returns the artifacts whose id does not follow from what is recorded of them."""
    for artifact in store.artifacts:
        follows = _FOLLOWS.get(artifact.stage, "")
        parents = [name for name in artifact.parents if not name.startswith(f"{follows}-")]
        wanted = artifact_id_of(artifact.stage, artifact.settings, parents, artifact.code_version)
        if wanted != artifact.artifact_id:
            yield (
                f"the settings, parents and code version that the table artifacts records of "
                f"{artifact.artifact_id} are those of {wanted}: its row was changed; {RESTORE}"
            )


def check_content(store: Store) -> Iterator[str]:
    """Returns the artifacts whose files are not those that the warehouse knows by their digest."""
    for artifact in store.artifacts:
        try:
            folder = store.folder(artifact)
        except NotCheckedError:
            continue  # the check of the files has said so
        files = [
            path.relative_to(folder).as_posix()
            for name in _CONTENT[artifact.stage]
            for path in (
                [folder / name] if (folder / name).is_file() else (folder / name).rglob("*")
            )
            if path.is_file()
        ]
        version = data_version_of(folder, files)
        if version != artifact.data_version:
            yield (
                f"the content of {artifact.artifact_id} must be {artifact.data_version}, got "
                f"{version}: {', '.join(_CONTENT[artifact.stage])} in {folder}, or its row in the "
                f"table artifacts, was changed; {RESTORE}"
            )


# what lies outside of the store -------------------------------------------------------------------


def check_settings(store: Store) -> Iterator[str]:
    """Returns every setting that is not what the artifacts were made by."""
    in_use, corpora = store.home.settings(), store.corpora_in_use()
    seen = set()
    for artifact in store.artifacts:
        if artifact.stage == "corpus" and artifact not in corpora:
            continue
        for name in SLICES:
            recorded = artifact.settings.get(name)
            if not isinstance(recorded, Mapping):
                continue
            for key, was, now in different_settings(recorded, in_use.slice(name)):
                if (name, key) not in seen:
                    seen.add((name, key))
                    yield (
                        f"{name}.{key} is {json.dumps(now)} in the settings in use, and "
                        f"{artifact.artifact_id} was made with {json.dumps(was)}; set it back, or "
                        f"run `make run` and verify what that makes"
                    )
    yield from _other_base_model(store)


def _other_base_model(store: Store) -> Iterator[str]:
    """Returns the setting `base_model` where it names another model than the one recorded.

    The same model in another place makes no difference.
    """
    identities, in_use = ModelIdentities(), store.home.settings().base_model
    for artifact in _made_with_a_model(store):
        recorded = recorded_settings(store.home, artifact)
        if recorded is None or recorded == in_use:
            continue
        try:
            differing = list(identities.differing(in_use, artifact))
        except ModelError as error:
            differing = [str(error)]
        if differing:
            yield (
                f"base_model names {name_of(in_use)} in the settings in use, and "
                f"{artifact.artifact_id} was made with {name_of(recorded)}; set it back, or run "
                f"`make run` and verify what that makes"
            )
            return


def check_model(store: Store) -> Iterator[str]:
    """Returns where the base model's files are not those that the artifacts were made with.

    They are looked for where they were then; where that is not recorded, or nothing is there any
    more, where the settings in use say.
    """
    identities, in_use = ModelIdentities(), store.home.settings().base_model
    seen = set()
    for artifact in _made_with_a_model(store):
        settings = recorded_settings(store.home, artifact) or in_use
        try:
            try:
                differing = list(identities.differing(settings, artifact))
            except ModelError:
                settings = in_use
                differing = list(identities.differing(settings, artifact))
        except ModelError as error:
            yield str(error)
            return
        for name in differing:
            if name not in seen:
                seen.add(name)
                yield (
                    f"the {IDENTITY[name]} of base_model ({name_of(settings)}) must be that of "
                    f"{artifact.artifact_id}, {artifact.settings[name]}, got "
                    f"{identities.of(settings)[name]}: its files, or base_model, were changed; put "
                    f"them back"
                )


def _made_with_a_model(store: Store) -> list[Artifact]:
    return [artifact for artifact in store.artifacts if "model_digest" in artifact.settings]


def check_corpus(store: Store) -> Iterator[str]:
    """Returns every row of the corpus's source that is another, is gone or is new.

    A ranking stands on its probes alone: of the corpus that they came from, only they are sought.
    """
    corpora = store.corpora_in_use()
    find = _changed_rows if corpora else _lost_probes
    for corpus in corpora or store.of_stage("corpus")[:1]:
        settings = store.home.changed(corpus=corpus.settings["corpus"]).settings().corpus
        rows = curate_rows(read_rows(settings), columns_of(settings))
        try:
            yield from find(store, corpus, (row for row in rows if isinstance(row, Sample)))
        except CorpusError as error:
            if isinstance(settings, HubCorpus):
                raise NotCheckedError(str(error)) from error
            yield str(error)
            return


def _changed_rows(store: Store, corpus: Artifact, source: Iterator[Sample]) -> Iterator[str]:
    stored = read_samples(store.folder(corpus) / "samples")
    for place, was, now in different_rows(_by_place(stored), _by_place(source)):
        yield _say_row(corpus, place, was, now)


def _by_place(samples: Iterator[Sample]) -> Iterator[tuple[tuple[str, int], str]]:
    return (((sample.source, sample.position), sample.sample_id) for sample in samples)


def _lost_probes(store: Store, corpus: Artifact, source: Iterator[Sample]) -> Iterator[str]:
    [probe_set, *_] = store.of_stage("probe_set")
    kinds = (store.folder(probe_set) / kind for kind in ("ranking", "confirmation"))
    probes = {sample_id for folder in kinds for sample_id in read_sample_ids(folder)}
    for sample_id in sorted(probes.difference(sample.sample_id for sample in source)):
        yield (
            f"probe {sample_id} of {probe_set.artifact_id} is in no row of the source of "
            f"{corpus.artifact_id} any more: the source was changed; put it back, or run "
            f"`make run`, which draws new probes"
        )


def _say_row(corpus: Artifact, place: tuple[str, int], was: str | None, now: str | None) -> str:
    source, position = place
    return (
        f"row {position} of {source} is {now or 'no usable sample'} and was "
        f"{was or 'no usable sample'} in {corpus.artifact_id}: the source was changed; put it "
        f"back, or run `make run`, which makes a new corpus"
    )


def check_benchmarks(store: Store) -> Iterator[str]:
    """Returns the evaluations whose problems lie in files that are others now."""
    for evaluation in store.of_stage("evaluation"):
        benchmarks = [Benchmark.model_validate(b) for b in evaluation.settings["benchmarks"]]
        files = [path for benchmark in benchmarks for path in benchmark.files()]
        try:
            now = list(digest_files(files).values())
        except ArtifactError as error:
            yield str(error)
            continue
        if now != evaluation.settings["benchmark_files"]:
            yield (
                f"the files of the benchmarks of {evaluation.artifact_id} "
                f"({', '.join(path.as_posix() for path in files)}) must be what they were when it "
                f"was made; put them back, or run `make run`, which evaluates anew"
            )


def check_weights(store: Store) -> Iterator[str]:
    """Returns the checkpoints whose weights MLflow no longer holds as they were logged."""
    for checkpoint in store.of_stage("checkpoint"):
        folder = store.folder(checkpoint)
        recorded = json.loads((folder / "weights.json").read_text())
        uri = json.loads((folder / "checkpoint.json").read_text())["mlflow_model_uri"]
        try:
            model = store.home.tracking().model_folder(uri)
        except ArtifactError as error:
            yield str(error)
            continue
        found = digest_files(model.glob("*.safetensors"))
        now = {Path(path).name: digest for path, digest in found.items()}
        for name in sorted({*recorded, *now}):
            if recorded.get(name) != now.get(name):
                yield (
                    f"{model / name} must have the SHA-256 {recorded.get(name)} that "
                    f"{checkpoint.artifact_id} was logged with, got {now.get(name)}; {RESTORE}"
                )


def check_draw(store: Store) -> Iterator[str]:
    """Returns every sample of whom a draw from the stored scores says other than the subset."""
    for subset in store.of_stage("subset"):
        scores = pq.read_table(
            store.folder(store.parent(subset, "sample_scores")) / "scores.parquet"
        )
        selection = SelectionSettings.model_validate_json(json.dumps(subset.settings["selection"]))
        strata = [a for a in store.of_stage("length_strata") if a.artifact_id in subset.parents]
        frozen = [pq.read_table(store.folder(one) / "length_strata.parquet") for one in strata]
        pool = weigh_samples(scores, selection, strata_from_table(frozen[0]) if frozen else ())
        members = pq.read_table(store.folder(subset) / "subset_members.parquet")
        for found in find_differences(draw_subset(pool, selection), members, ["sample_id"]):
            what = found.column or "member"
            yield (
                f"{what} of {found.key[0]} is {found.first} when {subset.artifact_id} is drawn "
                f"again from its scores, and {found.second} as stored; {RESTORE}"
            )
