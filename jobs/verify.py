"""Verifying: whether an artifact, and all it was made from, is what it was when it was made."""

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.verification import (
    Check,
    NotCheckedError,
    Verification,
    run_check,
)
from circuitseer_assets.records import Artifact
from jobs.lineage import read_lineage
from resources import stored_checks
from resources.home import Home
from resources.lineage_facts import read_facts
from resources.model_registry import MODEL_URI, find_release
from resources.recomputation import Recomputation
from resources.row_checks import check_rows
from resources.stored_checks import Store

# What a check is called, what it looks at, and the function that makes it.
_STORED: dict[str, tuple[str, Callable[[Store], Iterable[str]]]] = {
    "files": ("every file against the manifest's digests", stored_checks.check_files),
    "ids": ("ids against recorded settings, parents and code", stored_checks.check_ids),
    "content": ("files against the warehouse's digests", stored_checks.check_content),
    "rows": ("the warehouse's rows against the files, exactly", check_rows),
    "settings": ("recorded settings against those in use", stored_checks.check_settings),
    "model": ("weights, tokenizer and data type, read anew", stored_checks.check_model),
    "corpus": ("the corpus's source, read anew", stored_checks.check_corpus),
    "benchmarks": ("the benchmarks' files, read anew", stored_checks.check_benchmarks),
    "weights": ("the checkpoint's weights in MLflow", stored_checks.check_weights),
    "draw": ("the subset, drawn again from the stored scores", stored_checks.check_draw),
}
CHECKS = ("release", "lineage", *_STORED, "scores", "heads")
"""Every check; `release` is made of a model's URI alone."""


def verify(
    home: Home,
    name: str,
    *,
    num_samples: int = 16,
    num_heads: int = 2,
    seed: int | None = None,
    skip: Collection[str] = (),
) -> Verification:
    """Returns every check of an artifact and of all it was made from; nothing is changed.

    Args:
        home: where it was made.
        name: the artifact's id, or the MLflow URI of a checkpoint's model.
        num_samples: how many samples are scored again.
        num_heads: how many heads are ablated again.
        seed: of the lots by which samples and heads are drawn; by chance where left out, so that
            nobody knows beforehand which these are.
        skip: the checks, of `CHECKS`, that are not made.

    Raises:
        ArtifactError: there is no such artifact.
        SettingsError: a check to skip is unknown, or a number is negative.
        TrackingError: MLflow cannot be reached.
    """
    _refuse(skip, num_samples=num_samples, num_heads=num_heads)
    lineage = read_lineage(home, name)
    store = Store(home, lineage.artifacts)
    seed = secrets.randbelow(2**32) if seed is None else seed
    again = Recomputation(store, seed)
    made: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
        **(
            {
                "release": (
                    "what the registered version holds against its checkpoint",
                    lambda: check_release(home, name, lineage.artifacts[0]),
                )
            }
            if MODEL_URI.fullmatch(name)
            else {}
        ),
        "lineage": (
            f"{len(lineage.artifacts)} artifacts, each with all its parents",
            lambda: (f"{one} is named as a parent and not recorded" for one in lineage.missing),
        ),
        **{check: (what, _bind(find, store)) for check, (what, find) in _STORED.items()},
        "scores": (
            f"{num_samples} samples, scored again (--seed {seed})",
            lambda: again.rescore(num_samples),
        ),
        "heads": (
            f"{num_heads} chosen heads, ablated again (--seed {seed})",
            lambda: again.reablate(num_heads),
        ),
    }
    checks = tuple(
        Check(check, "skipped", looked_at=what) if check in skip else run_check(check, find, what)
        for check, (what, find) in made.items()
    )
    return Verification(lineage.artifact_id, checks)


def check_release(home: Home, name: str, checkpoint: Artifact) -> Iterator[str]:
    """Returns how what a released version holds differs from the checkpoint its tag names.

    Raises:
        NotCheckedError: the name is no URI of a registered model.
    """
    release = find_release(home.tracking(), name)
    if release is None:
        raise NotCheckedError(f"{name} names no version of a registered model")
    facts = read_facts(home.warehouse, [checkpoint])[checkpoint.artifact_id]
    if release.source != facts["model"]:
        yield (
            f"{release.uri} must be the model {facts['model']} of {checkpoint.artifact_id}, got "
            f"{release.source or 'none'}: the version was pointed elsewhere; release the "
            f"checkpoint under another name"
        )
    elif release.location != release.logged_location:
        yield (
            f"the files of {release.uri} must be taken from {release.logged_location}, where "
            f"{release.source} lies, got {release.location}: the version was pointed elsewhere; "
            f"release the checkpoint under another name"
        )


def _bind(find: Callable[[Store], Iterable[str]], store: Store) -> Callable[[], Iterable[str]]:
    return lambda: find(store)


def _refuse(skip: Collection[str], **counts: int) -> None:
    for check in skip:
        if check not in CHECKS:
            raise SettingsError(
                f"--skip must be one of {', '.join(CHECKS)}, got {check!r}; correct it"
            )
    for name, count in counts.items():
        if count < 1:
            option = name.removeprefix("num_")
            raise SettingsError(
                f"--{option} must be at least 1, got {count}; `--skip "
                f"{'scores' if option == 'samples' else 'heads'}` leaves the check out"
            )
