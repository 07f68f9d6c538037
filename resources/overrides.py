"""Command-line overrides: a preset, a corpus or a benchmark file, written to the home."""

import os
from pathlib import Path
from typing import Any

import yaml

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    Settings,
    home_path,
    load_settings,
    parse_settings,
    resolve_path,
    settings_path,
)
from circuitseer_assets.yaml_file import read_mapping
from resources.corpora import corpus_files


def write_overrides(preset: str | None, corpus: str | None, evaluation: str | None) -> Path:
    """Returns the home to work in; with an override, its `settings.yaml` holds it from now on.

    Raises:
        SettingsError: the preset or a file does not exist, or the overrides do not fit the preset.
    """
    if preset is None and corpus is None and evaluation is None:
        return home_path()
    named = os.environ.get("CIRCUITSEER_SETTINGS")
    if named:
        raise SettingsError(
            f"PRESET, CORPUS and EVAL must not be given while CIRCUITSEER_SETTINGS names the "
            f"settings ({named}); unset one or the other"
        )
    source = _preset_path(preset) if preset else settings_path(home_path())
    load_settings(source)
    values = read_mapping(source)
    if corpus:
        _override_corpus(values, _existing_file("CORPUS", corpus))
    if evaluation:
        _override_benchmark(values, _existing_file("EVAL", evaluation))
    settings = parse_settings(values, origin=source.name)
    _check_files(settings)
    folder = _home_of_preset(settings.preset)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "settings.yaml.part"
    part.write_text(
        f"# Written by the command line from {source.name}; delete it to go back to"
        " circuitseer.yaml.\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )
    part.replace(folder / "settings.yaml")
    return folder


def settings_of(preset: str | None) -> Settings:
    """Returns the settings in use, or a preset's own; nothing is written.

    Raises:
        SettingsError: there is no such preset, or its file breaks a rule.
    """
    if preset is not None:
        return load_settings(_preset_path(preset))
    return load_settings(settings_path(home_path()))


def _check_files(settings: Settings) -> None:
    """Returns when every file the settings name exists: what cannot run replaces nothing."""
    corpus_files(settings.corpus)
    for benchmark in settings.decontamination.benchmarks:
        for path in benchmark.files():
            if not path.is_file():
                raise SettingsError(
                    f"the benchmark {benchmark.task} must name existing files, {path} does not "
                    f"exist; give EVAL=path/to/file, or correct decontamination.benchmarks"
                )


def home_of(preset: str | None) -> Path:
    """Returns the home of a preset, with the settings of its last run, or the preset's own.

    Raises:
        SettingsError: there is no such preset, or CIRCUITSEER_HOME is another's home.
    """
    if preset is None:
        return home_path()
    folder = _home_of_preset(load_settings(_preset_path(preset)).preset)
    if not (folder / "settings.yaml").is_file():
        return write_overrides(preset, None, None)
    in_use = load_settings(folder / "settings.yaml").preset
    if in_use != preset:
        raise SettingsError(
            f"PRESET must be the one in use in CIRCUITSEER_HOME, {in_use}, got {preset!r}; leave "
            f"PRESET out, or unset CIRCUITSEER_HOME"
        )
    return folder


def _home_of_preset(preset: str) -> Path:
    named = os.environ.get("CIRCUITSEER_HOME")
    return resolve_path(named) if named else PROJECT_ROOT / ".circuitseer" / preset


def _preset_path(preset: str) -> Path:
    path = PROJECT_ROOT / "presets" / f"{preset}.yaml"
    if Path(preset).name != preset or not path.is_file():
        known = ", ".join(sorted(p.stem for p in (PROJECT_ROOT / "presets").glob("*.yaml")))
        raise SettingsError(f"PRESET must be one of {known}, got {preset!r}; name one of them")
    return path


def _existing_file(name: str, path: str) -> str:
    # A path on the command line starts where the user stands, not at the project's root.
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise SettingsError(f"{name} must be an existing file, got {path!r}; correct the path")
    return str(found)


def _override_corpus(values: dict[str, Any], path: str) -> None:
    if values["corpus"].get("source") != "files":
        raise SettingsError(
            f"CORPUS needs a preset whose corpus.source is files, got "
            f"{values['corpus']['source']}; use PRESET=gsm8k, or write the columns into "
            f"circuitseer.yaml"
        )
    values["corpus"]["paths"] = [path]


def _override_benchmark(values: dict[str, Any], path: str) -> None:
    benchmarks = values["decontamination"]["benchmarks"]
    if len(benchmarks) != 1:
        raise SettingsError(
            f"EVAL needs settings with exactly one benchmark, got {len(benchmarks)}; "
            f"set decontamination.benchmarks[].path in the settings file"
        )
    benchmarks[0]["path"] = path
