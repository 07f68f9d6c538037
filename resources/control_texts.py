"""Control texts: what needs no reasoning, to tell reasoning heads from those all text needs."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import read_sample, sample_from_texts
from circuitseer_assets.method.word_problems import generate_plain_texts
from circuitseer_assets.records import QuarantinedRow, Sample
from circuitseer_assets.settings import Columns, ProbeSetSettings, resolve_path
from resources.row_files import format_of, read_file

PROSE_FILE = Path(__file__).with_name("control_texts.jsonl")
_COLUMNS = Columns(prompt="prompt", response="response")


def read_control_texts(settings: ProbeSetSettings) -> list[Sample]:
    """Returns `num_control` different control texts.

    Of the shipped prose and of a file they are drawn by a permanent random number, a digest of the
    seed and the text's id; plain texts are generated from the seed.

    Raises:
        CorpusError: the file cannot be read, holds an unusable row, or there are too few texts.
    """
    match settings.control.source:
        case "plain_texts":
            return list(itertools.islice(_plain_texts(settings), settings.num_control))
        case "prose":
            texts = _read_texts(PROSE_FILE)
        case "file":
            texts = _read_texts(resolve_path(str(settings.control.path)))
    distinct = {text.prompt_id: text for text in texts}
    if len(distinct) < settings.num_control:
        raise CorpusError(
            f"probe_set.num_control must be at most {len(distinct)} (the number of different "
            f"control texts), got {settings.num_control}; ask for fewer, or name a file with more "
            "in probe_set.control"
        )
    in_order = sorted(distinct.values(), key=lambda text: _number(settings.seed, text))
    return in_order[: settings.num_control]


def _plain_texts(settings: ProbeSetSettings) -> Iterator[Sample]:
    seen: set[str] = set()
    for position, text in enumerate(
        generate_plain_texts(100 * settings.num_control, seed=settings.seed)
    ):
        original = {"prompt": text.prompt, "response": text.response, "family": text.family}
        sample = sample_from_texts(
            text.prompt,
            text.response,
            source="plain_texts",
            position=position,
            original=original,
        )
        if sample.prompt_id not in seen:
            seen.add(sample.prompt_id)
            yield sample


def _read_texts(path: Path) -> list[Sample]:
    if not path.is_file():
        raise CorpusError(
            f"probe_set.control.path must name a file, got {path}; "
            "correct the path (a relative one starts at the project's root)"
        )
    format_name = format_of(path, parameter="probe_set.control.path")
    texts = []
    for position, row in read_file(path, format_name):
        text = read_sample(row, _COLUMNS, source=path.name, position=position)
        if isinstance(text, QuarantinedRow):
            raise CorpusError(
                f"{path} must have a prompt and a response in every row, got {text.reason} in row "
                f"{position + 1} ({text.detail}); correct or remove the row"
            )
        texts.append(text)
    return texts


def _number(seed: int, text: Sample) -> bytes:
    return hashlib.md5(f"control:{seed}:{text.sample_id}".encode()).digest()
