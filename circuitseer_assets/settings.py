"""The settings: one frozen class a slice, read from one YAML file, refused in one sentence.

A slice is what one observed source asset stands for; changing it makes stale what depends on it,
and nothing else. `execution`, `automation`, `sweep` and `study` are no slices: how fast to compute,
when to, and what to compare beside the graph, none of which changes what an asset is.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.redaction import holds_credentials, is_secret_name
from circuitseer_assets.yaml_file import read_mapping

PROJECT_ROOT = Path(__file__).resolve().parents[1]
SLICES = (
    "base_model",
    "corpus",
    "decontamination",
    "probe_set",
    "head_ranking",
    "scoring",
    "selection",
    "training",
    "evaluation",
)


def _commit(revision: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            "must be a commit of 40 hexadecimal digits, for a branch or a tag may move; take one "
            "from the page on the hub, under Files, History"
        )
    return revision


def _owner(owner: str) -> str:
    if not re.fullmatch(r"team:\S+|[^@\s:]+@[^@\s]+\.[^@\s.]+", owner):
        raise ValueError("must be an e-mail address, or a team's name after `team:`")
    return owner


def _secret_name(name: str) -> str:
    if not is_secret_name(name):
        raise ValueError(
            "must name a variable that ends in _WEBHOOK, or as other secrets' names do: its value "
            "is kept out of logs and messages for its name"
        )
    return name


def _gpus(number: float) -> float:
    if number > 1 and not number.is_integer():
        raise ValueError("must be a whole number, or a part of one GPU")
    return number


def _ray_address(address: str) -> str:
    if address.startswith("ray://"):
        raise ValueError(
            "must not be a Ray Client's, which Ray Data does not run over; make this machine a "
            "node of the cluster with `ray start --address=HOST:6379 --num-cpus=0`, and set "
            "HOST:6379"
        )
    if not re.fullmatch(r"auto|[^\s:/@]+:\d{1,5}", address):
        raise ValueError("must be auto or host:port")
    return address


Text = Annotated[str, Field(min_length=1)]
Owner = Annotated[str, AfterValidator(_owner)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Commit = Annotated[str, AfterValidator(_commit)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def resolve_path(path: str) -> Path:
    """Returns `path` as an absolute path; a relative one starts at the project's root.

    Raises:
        SettingsError: the system cannot follow it: a link to itself, a user that is not there, a
            name too long or with a zero byte in it.
    """
    try:
        absolute = (PROJECT_ROOT / Path(path).expanduser()).resolve()
        absolute.exists()
    except (RuntimeError, ValueError, OSError) as error:
        shown = ascii(path) if len(path) <= 200 else f"{path[:200]!a} and more"
        raise SettingsError(
            f"a path must be one that can be followed, got {shown} ({type(error).__name__}: "
            f"{str(error).partition(': ')[0]}); correct it in the settings"
        ) from error
    return absolute


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# base_model ---------------------------------------------------------------------------------------


class _Model(_Frozen):
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Text = "auto"
    prompt_template: str | None = None

    @model_validator(mode="after")
    def _template_has_a_prompt(self) -> Self:
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ValueError(
                "prompt_template must contain {prompt}; say where the problem's text goes"
            )
        return self


class LocalModel(_Model):
    """A model folder with a config, safetensors and a tokenizer."""

    source: Literal["local"]
    path: Text


class HubModel(_Model):
    """A model on the Hugging Face hub, pinned to a commit."""

    source: Literal["hub"]
    repo_id: Text
    revision: Commit


class GgufModel(_Model):
    """A GGUF file, by path or inside an installed Python package."""

    source: Literal["gguf"]
    file: Text
    package: str | None = None


BaseModelSettings = Annotated[LocalModel | HubModel | GgufModel, Field(discriminator="source")]


# corpus -------------------------------------------------------------------------------------------


class Columns(_Frozen):
    """Which columns hold the prompt and the response, or the chat they are both part of."""

    prompt: str | None = None
    response: str | None = None
    answer: str | None = None
    messages: str | None = None

    @model_validator(mode="after")
    def _prompt_and_response_or_messages(self) -> Self:
        pair = (self.prompt is not None, self.response is not None)
        if self.messages is not None and any(pair):
            raise ValueError("name either messages, or prompt and response, not both")
        if self.messages is None and not all(pair):
            raise ValueError("name both prompt and response, or messages")
        return self


class _Corpus(_Frozen):
    max_rows: Count | None = None


class WordProblemsCorpus(_Corpus):
    """Step-by-step word problems from the project's own generator.

    A `wrong_share` of them gets a wrong solution, and every row then says whether it has one.
    """

    source: Literal["word_problems"]
    num_samples: Count
    wrong_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Seed = 0
    families: tuple[Text, ...] | None = None
    min_steps: Annotated[int, Field(ge=1, le=3)] = 1
    max_steps: Annotated[int, Field(ge=1, le=3)] = 3


class ReasoningGymCorpus(_Corpus):
    """Problems with worked solutions from the package reasoning-gym.

    Deviation: templates, not rows, are held out, or the evaluation would see its own templates.
    """

    source: Literal["reasoning_gym"]
    dataset: Literal["gsm_symbolic"] = "gsm_symbolic"
    num_samples: Count
    seed: Seed = 0
    # The evaluation always asks the same fifth of the templates; more may be held out, not fewer.
    held_out_share: Annotated[float, Field(ge=0.2, lt=1)] = 0.2


class FilesCorpus(_Corpus):
    """Local JSONL, Parquet or CSV files; a path may be a glob."""

    source: Literal["files"]
    paths: Annotated[tuple[Text, ...], Field(min_length=1)]
    format: Literal["auto", "jsonl", "parquet", "csv"] = "auto"
    columns: Columns


class HubCorpus(_Corpus):
    """A data set on the Hugging Face hub, pinned to a commit."""

    source: Literal["hub"]
    repo_id: Text
    revision: Commit
    config_name: str | None = None
    split: Text = "train"
    columns: Columns


CorpusSettings = Annotated[
    WordProblemsCorpus | ReasoningGymCorpus | FilesCorpus | HubCorpus,
    Field(discriminator="source"),
]


# decontamination ----------------------------------------------------------------------------------


class Benchmark(_Frozen):
    """A benchmark the pool and the probes are cleaned against; only these can be evaluated.

    `task` names one of the project's tasks, or, with `yaml`, a user's own. The problems come from
    `path` where it is set, else from where the task's own file says.
    """

    task: Text
    path: str | None = None
    yaml: str | None = None
    num_problems: Count | None = None
    seed: Seed = 0

    def files(self) -> list[Path]:
        """Returns the local files that the problems, or their form, come from."""
        return [resolve_path(path) for path in (self.path, self.yaml) if path]


class DecontaminationSettings(_Frozen):
    """Against which benchmarks the corpus is cleaned."""

    benchmarks: tuple[Benchmark, ...] = ()

    @model_validator(mode="after")
    def _each_task_once(self) -> Self:
        tasks = [benchmark.task for benchmark in self.benchmarks]
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise ValueError(f"each task must be listed once, {twice[0]} is listed twice")
        return self

    def benchmark(self, task: str) -> Benchmark:
        """Returns the benchmark named `task`.

        Raises:
            SettingsError: `task` is not on the list.
        """
        for benchmark in self.benchmarks:
            if benchmark.task == task:
                return benchmark
        known = ", ".join(b.task for b in self.benchmarks) or "none"
        raise SettingsError(
            f"evaluation.tasks must be among decontamination.benchmarks ({known}), got {task!r}; "
            f"add it to decontamination.benchmarks, so that no training sample repeats its problems"
        )


# probe_set ----------------------------------------------------------------------------------------


class ControlTexts(_Frozen):
    """Texts that need no reasoning: shipped prose, generated plain texts, or a JSONL file.

    A file has the columns `prompt` and `response`.
    """

    source: Literal["prose", "plain_texts", "file"] = "prose"
    path: str | None = None

    @model_validator(mode="after")
    def _file_needs_a_path(self) -> Self:
        if (self.source == "file") != (self.path is not None):
            raise ValueError("path must be set when source is file, and only then")
        return self


class ProbeSetSettings(_Frozen):
    """How many probes of each kind, and which rows may become one.

    The probe set's size is not found in the summaries read.
    """

    num_ranking: Annotated[int, Field(ge=2)] = 64
    num_confirmation: Annotated[int, Field(ge=2)] = 32
    num_control: Annotated[int, Field(ge=0)] = 16
    max_characters: Count | None = None
    control: ControlTexts = ControlTexts()
    seed: Seed = 0


# head_ranking -------------------------------------------------------------------------------------


class HeadRankingSettings(_Frozen):
    """How heads are ablated, ranked and confirmed.

    The share of heads kept is not found in the summaries read.
    """

    ablation: Literal["uniform", "zero", "mean"] = "uniform"
    fraction: Fraction = 0.05
    select_by: Literal["delta", "specific_delta"] = "delta"
    unconfirmed: Literal["keep", "drop"] = "keep"
    exhaustive: bool = False
    first_round_probes: Annotated[int, Field(ge=2)] = 4
    interval_z: Annotated[float, Field(gt=0)] = 3.0
    num_random_draws: Annotated[int, Field(ge=1)] = 19
    seed: Seed = 0


# scoring ------------------------------------------------------------------------------------------


class ScoringSettings(_Frozen):
    """What the score is: a scorer of `method/scorers.py`, for `attention` one of `readings.py`.

    How heads and query positions are averaged is not found in the summaries read.
    """

    scorer: Text = "attention"
    reading: Text = "attention_variance"
    queries: Literal["all", "last"] = "all"
    tokens: Literal["all", "content"] = "all"
    reduce: Literal["mean_then_variance", "variance_then_mean"] = "mean_then_variance"
    heads: Literal["reasoning", "all", "random", "retrieval"] = "reasoning"
    span: Literal["prompt", "response"] = "prompt"
    min_tokens: Annotated[int, Field(ge=2)] = 8
    max_tokens: Count | None = None
    long_prompts: Literal["quarantine", "truncate"] = "quarantine"
    seed: Seed = 0


# selection ----------------------------------------------------------------------------------------


class Budget(_Frozen):
    """How much of the pool is drawn: exactly one of a share, a number of samples, or of tokens."""

    fraction: Fraction | None = None
    samples: Count | None = None
    tokens: Count | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("fraction", "samples", "tokens") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(f"set exactly one of fraction, samples and tokens, got {said}")
        return self


class SelectionSettings(_Frozen):
    """How scores become weights, and how the subset is drawn by them.

    The sampling temperature is not found in the summaries read.
    """

    budget: Budget
    weights: Literal["power", "softmax"] = "power"
    power: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    debias: Literal["none", "length"] = "none"
    sampling: Literal["exponential", "pareto", "top"] = "exponential"
    seed: Seed = 0


# training -----------------------------------------------------------------------------------------


class Lora(_Frozen):
    """Low-rank adapters instead of all weights."""

    rank: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[Text, ...] | Literal["all-linear"] = "all-linear"


class TrainingSettings(_Frozen):
    """The fine-tuning recipe; the article's is not found in the summaries read."""

    lora: Lora | None = None
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Count | None = None
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    batch_size: Count = 4
    gradient_accumulation_steps: Count = 1
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Count = 2048
    long_rows: Literal["drop", "truncate"] = "drop"
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    save_interval_steps: Count = 100
    seed: Seed = 0


# evaluation ---------------------------------------------------------------------------------------


class EvaluationSettings(_Frozen):
    """Which problems are answered, how often, and how answers are generated.

    The article's nine data sets are not named in the summaries read. What answers, `backend`, is
    part of the question: two engines draw, and round, in their own ways.
    """

    backend: Literal["hf", "vllm"] = "hf"
    tasks: Annotated[tuple[Text, ...], Field(min_length=1)]
    max_problems: Count | None = None
    num_repeats: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 1024
    batch_size: Count = 8
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    seed: Seed = 0

    @model_validator(mode="after")
    def _repeats_need_randomness(self) -> Self:
        if self.num_repeats > 1 and self.temperature == 0:
            raise ValueError("temperature must be above 0 when num_repeats is above 1")
        return self


# execution and the whole --------------------------------------------------------------------------


class TrainingPlacement(_Frozen):
    """Which processes train: how many, one a GPU or all on the CPU, and what each of them holds.

    Each takes its share of `training.batch_size`, so that a step's loss is one process's; only what
    a dropout masks is drawn anew. `own_process` keeps a training's memory, and its crash, out of
    the process that runs the graph; the cells of a sweep or a study, which are many and small, do
    without where one process trains.
    """

    num_processes: Count = 1
    sharding: Literal["none", "fsdp"] = "none"
    own_process: bool = True

    @model_validator(mode="after")
    def _shards_are_several(self) -> Self:
        if self.sharding == "fsdp" and self.num_processes == 1:
            raise ValueError(
                "sharding must be none where num_processes is 1, got fsdp; set num_processes to "
                "the number of GPUs"
            )
        return self


class ScoringExecution(_Frozen):
    """Where samples are scored: in this process, or by workers on Ray that each hold the model.

    A worker has one CPU, and computes on one thread beside its GPUs.
    """

    backend: Literal["local", "ray"] = "local"
    num_workers: Count = 1
    gpus_per_worker: Annotated[float, Field(ge=0), AfterValidator(_gpus)] = 0.0


class RayExecution(_Frozen):
    """Which running Ray cluster is used; without an address one is started for the time it takes.

    This machine has to be one of its nodes. `auto` is the cluster of which it is one.
    """

    address: Annotated[str, AfterValidator(_ray_address)] | None = None


class ExecutionSettings(_Frozen):
    """How and where work is done; no result depends on it beyond rounding."""

    max_batch_tokens: Count = 4096
    max_cached_layers: Count | None = None
    shard_samples: Count = 256
    scoring: ScoringExecution = ScoringExecution()
    ray: RayExecution = RayExecution()
    mlflow_tracking_uri: str | None = None
    training: TrainingPlacement = TrainingPlacement()


class AutomationSettings(_Frozen):
    """When the schedules run, how old a subset may be, and who owns and hears of what is made.

    Schedules and sensors are switched on in the Dagster UI. The daemon reads these when the code
    location is loaded.
    """

    recurate_cron: Text = "0 3 * * 1"
    backstop_cron: Text = "0 5 * * *"
    timezone: Text = "UTC"
    max_subset_age_days: Annotated[float, Field(gt=0)] = 8.0
    owners: Annotated[tuple[Owner, ...], Field(min_length=1)] = ("team:data-owners",)
    # The address of a webhook lets whoever knows it write there: it comes from the environment.
    failure_webhook_variable: Annotated[
        str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_secret_name)
    ] = "CIRCUITSEER_FAILURE_WEBHOOK"


MODEL_IN_USE = "in_use"
"""What the sweep calls the base model that the settings name."""


class SweepSettings(_Frozen):
    """Base models and budgets to compare, each by each, with everything else as in the settings."""

    base_models: Mapping[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], BaseModelSettings
    ] = Field(default_factory=dict)
    budget_fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.05, 0.1, 0.2)

    @model_validator(mode="after")
    def _each_cell_once(self) -> Self:
        if MODEL_IN_USE in self.base_models:
            raise ValueError(f"base_models must not name {MODEL_IN_USE!r}: that is the base_model")
        if len(set(self.budget_fractions)) < len(self.budget_fractions):
            raise ValueError("budget_fractions must hold each fraction once")
        return self


class StudySettings(_Frozen):
    """Which ways to select a study compares, and what it says of their subsets.

    `methods` are names of `method/study_methods.py`. `composition_columns` are columns of the
    corpus whose values' shares in pool and subset are told, such as a family or a difficulty;
    `source` and `num_steps` are known of every corpus.
    """

    methods: Annotated[tuple[Text, ...], Field(min_length=2)] = (
        "circuitseer",
        "random",
        "full",
        "oracle",
        "length",
        "circuitseer_tokens",
        "random_tokens",
        "length_tokens",
    )
    num_seeds: Annotated[int, Field(ge=2)] = 6
    composition_columns: tuple[Text, ...] = ("source", "num_steps")

    @model_validator(mode="after")
    def _random_is_compared_with(self) -> Self:
        if "random" not in self.methods:
            raise ValueError("methods must hold random, which all others are compared with")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods must hold each method once")
        return self


class Settings(_Frozen):
    """Everything CircuitSeer is told."""

    preset: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    base_model: BaseModelSettings
    corpus: CorpusSettings
    decontamination: DecontaminationSettings
    probe_set: ProbeSetSettings = ProbeSetSettings()
    head_ranking: HeadRankingSettings = HeadRankingSettings()
    scoring: ScoringSettings = ScoringSettings()
    selection: SelectionSettings
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings
    execution: ExecutionSettings = ExecutionSettings()
    automation: AutomationSettings = AutomationSettings()
    sweep: SweepSettings = SweepSettings()
    study: StudySettings = StudySettings()

    @model_validator(mode="after")
    def _evaluated_is_decontaminated(self) -> Self:
        for task in self.evaluation.tasks:
            self.decontamination.benchmark(task)
        return self

    @model_validator(mode="after")
    def _gsm8k_is_not_its_own_test(self) -> Self:
        if self.corpus.source == "reasoning_gym" and "gsm8k" in self.evaluation.tasks:
            raise ValueError(
                "evaluation.tasks must not hold gsm8k where corpus.source is reasoning_gym: its "
                "templates re-word GSM8K's test problems; evaluate gsm_symbolic, or another corpus"
            )
        return self

    @model_validator(mode="after")
    def _processes_can_train(self) -> Self:
        placement, training = self.execution.training, self.training
        if training.batch_size % placement.num_processes:
            raise ValueError(
                f"training.batch_size must be a multiple of execution.training.num_processes "
                f"({placement.num_processes}), for each takes its share of it, got "
                f"{training.batch_size}"
            )
        if placement.num_processes > 1 and ":" in self.base_model.device:
            raise ValueError(
                f"base_model.device must be auto, cuda or cpu where execution.training."
                f"num_processes is {placement.num_processes}, got {self.base_model.device}"
            )
        if placement.sharding == "fsdp" and training.lora is not None:
            raise ValueError(
                "execution.training.sharding must be none where training.lora is set, for adapters "
                "are merged into whole weights, got fsdp"
            )
        return self

    def slice(self, name: str) -> dict[str, Any]:
        """Returns one slice as plain JSON values."""
        dumped: dict[str, Any] = getattr(self, name).model_dump(mode="json")
        return dumped


def settings_path(home: Path | None = None) -> Path:
    """Returns the settings file in use.

    That is `CIRCUITSEER_SETTINGS` where it is set, else the home's own `settings.yaml` where
    command-line overrides were written to it, else `circuitseer.yaml`.
    """
    named = os.environ.get("CIRCUITSEER_SETTINGS")
    if named:
        return resolve_path(named)
    if home is not None and (home / "settings.yaml").is_file():
        return home / "settings.yaml"
    return PROJECT_ROOT / "circuitseer.yaml"


def home_path() -> Path:
    """Returns where everything made lies: `CIRCUITSEER_HOME`, or `.circuitseer/<preset>`."""
    named = os.environ.get("CIRCUITSEER_HOME")
    if named:
        return resolve_path(named)
    return PROJECT_ROOT / ".circuitseer" / load_settings(settings_path()).preset


def load_settings(path: Path) -> Settings:
    """Returns the settings in the YAML file at `path`.

    Raises:
        SettingsError: the file is missing, is not YAML, or breaks a rule.
    """
    if not path.is_file():
        raise SettingsError(
            f"the settings file {path} does not exist; name one with CIRCUITSEER_SETTINGS, "
            f"or start from one of presets/*.yaml"
        )
    return parse_settings(read_mapping(path), origin=path.name)


def parse_settings(values: Mapping[str, Any], *, origin: str) -> Settings:
    """Returns the settings that `values` hold; `origin` names their file in messages.

    Raises:
        SettingsError: a value breaks a rule; the first breach is named with path and value. Of an
            address with a password in it, the value is not repeated.
    """
    for path, text in _texts(values):
        if holds_credentials(text):
            raise SettingsError(
                f"{path} must hold no password and no token, and its address has one; take it out "
                f"of {origin} and set it in the environment: MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for an MLflow server, "
                f"PGPASSWORD for PostgreSQL, HF_TOKEN for the hub"
            )
    try:
        return Settings.model_validate_json(_as_json(values))
    except ValidationError as error:
        raise SettingsError(_one_sentence(error, origin)) from error


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Returns every text in the settings, keys among them, with where it is."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"a name in {path or 'the settings'}", str(key)
            yield from _texts(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, path)


def _as_json(values: Mapping[str, Any]) -> str:
    # Strict mode takes JSON arrays for tuples, and no Python list: YAML has lists only.
    return json.dumps(values, default=str)


def _one_sentence(error: ValidationError, origin: str) -> str:
    first = error.errors(include_url=False)[0]
    unions = {"local", "hub", "gguf", "word_problems", "reasoning_gym", "files"}
    # A name may hold a line break, and the sentence is one line.
    steps = [s if s.isprintable() else repr(s) for s in map(str, first["loc"])]
    path = ".".join(step for i, step in enumerate(steps) if not (i == 1 and step in unions))
    rule = first["msg"].removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    if first["type"] == "extra_forbidden":
        rule = "no setting has this name"
    elif first["type"] == "missing":
        return f"{path} must be set; add it to {origin} (presets/tiny.yaml is a complete example)"
    value = first["input"]
    shown = "" if isinstance(value, dict) else f", got {value!r}"
    where = path or "the settings"
    return f"{where}: {rule}{shown}; correct it in {origin}"
