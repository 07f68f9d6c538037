"""Evaluation for real: lm-eval, generation on a small model, and answers scored by math-verify."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.records import Message, Outcome
from circuitseer_assets.settings import PROJECT_ROOT, Benchmark, EvaluationSettings
from resources.benchmarks import TASKS, load_task
from resources.evaluator import evaluate, known_tasks, load_problems, task_version
from resources.language_model import LanguageModel, ModelIdentity
from resources.lm_eval_tasks.answers import answers_match, extract_answer, is_correct

torch.set_num_threads(1)

# Two rows in each data set's own columns: made up, with the right answer and its problem's text.
ROWS: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "gsm8k": [
        (
            {"question": "Ada buys 3 pens at $4. Total?", "answer": "3*4=<<3*4=12>>12\n#### 12"},
            "12",
            "Ada buys 3 pens at $4. Total?",
        ),
        ({"question": "Half of 2,400?", "answer": "2400/2=1200\n#### 1,200"}, "1200", "Half of"),
    ],
    "svamp": [
        (
            {"Body": "Ben has 9 nuts.", "Question": "How many are 2 fewer?", "Answer": 7.0},
            "7",
            "Ben has 9 nuts. How many are 2 fewer?",
        ),
        ({"Body": "A rope of 1.5 m.", "Question": "Twice it?", "Answer": 3.0}, "3.0", "A rope"),
    ],
    "math500": [
        (
            {"problem": "Which $x$ solve $|x| \\le 2$?", "answer": "[-2,2]", "unique_id": "t/1"},
            "[-2, 2]",
            "Which $x$ solve",
        ),
        (
            {"problem": "Half of $\\pi$?", "answer": "\\frac{\\pi}{2}", "unique_id": "t/2"},
            "\\pi/2",
            "Half of",
        ),
    ],
    "aime24": [
        (
            {"id": 60, "problem": "What is $5^2$?", "answer": "025", "url": ""},
            "25",
            "What is $5^2$",
        ),
        ({"id": 61, "problem": "What is $14^2+8$?", "answer": "204", "url": ""}, "204", "What is"),
    ],
    "aime25": [
        ({"problem": "Find $7 \\cdot 10$.", "answer": "70", "id": "0"}, "70", "Find $7"),
        ({"problem": "Find $2^9+76$.", "answer": "588", "id": "1"}, "588", "Find $2"),
    ],
    "amc23": [
        ({"id": 0, "question": "How many days has June?", "answer": "30.0"}, "30", "How many"),
        ({"id": 1, "question": "Two thirds of 4?", "answer": "8/3"}, "\\frac{8}{3}", "Two thirds"),
    ],
    "minerva_math": [
        (
            {"question": "Give the Sun's power in erg/s.", "answer": "4e33"},
            "4 \\times 10^{33}",
            "Give the Sun",
        ),
        ({"question": "Differentiate $x^2$.", "answer": "2x"}, "2 x", "Differentiate"),
    ],
    "olympiadbench": [
        (
            {"id": 1606, "question": "Solve $x^2=9$.", "final_answer": ["$3$,$-3$"]},
            "-3, 3",
            "Solve $x^2=9$.",
        ),
        (
            {"id": 1607, "question": "Simplify.", "final_answer": ["$\\frac{1}{2 n+2}$"]},
            "\\frac{1}{2(n+1)}",
            "Simplify.",
        ),
    ],
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(**changes: Any) -> EvaluationSettings:
    values = {"tasks": ("word_problems",), "max_new_tokens": 40, "batch_size": 8, **changes}
    return EvaluationSettings(**values)


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    folder = PROJECT_ROOT / "models/tiny"
    return LanguageModel(
        model=AutoModelForCausalLM.from_pretrained(folder).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        identity=ModelIdentity("model", "tokenizer"),
        max_length=1024,
    )


WORD_PROBLEMS = Benchmark(task="word_problems", num_problems=20, seed=3)


@pytest.fixture
def run(language_model: LanguageModel, tmp_path: Path) -> Callable[..., list[Outcome]]:
    def run(*benchmarks: Benchmark, **changes: Any) -> list[Outcome]:
        chosen = benchmarks or (WORD_PROBLEMS,)
        return evaluate(language_model, chosen, settings(**changes), folder=tmp_path)

    return run


def answer_one_by_one(language_model: LanguageModel, prompt: str, max_new_tokens: int) -> list[int]:
    """The definition of a greedy response: the likeliest token, again and again, without cache."""
    ids = list(language_model.tokenize("s", [Message("user", prompt)]).input_ids)
    start = len(ids)
    while len(ids) - start < max_new_tokens:
        with torch.no_grad():
            ids.append(int(language_model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == language_model.tokenizer.eos_token_id:
            break
    return ids[start:]


# tasks --------------------------------------------------------------------------------------------


def test_every_task_of_the_issue_is_known() -> None:
    assert known_tasks() == sorted([*ROWS, "word_problems", "gsm_symbolic"])


@pytest.mark.parametrize("task", sorted(ROWS))
def test_a_task_reads_its_data_sets_own_columns_and_scores_its_answers(
    task: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "test.jsonl", [row for row, _, _ in ROWS[task]])
    benchmark = Benchmark(task=task, path=str(path))
    loaded = load_task(benchmark, folder=tmp_path)
    problems = load_problems(benchmark, folder=tmp_path)
    assert [problem.task for problem in problems] == [task, task]
    assert len({problem.doc_id for problem in problems}) == 2
    for doc, problem, (_, right, text) in zip(
        loaded.lm_eval_task.eval_docs, problems, ROWS[task], strict=True
    ):
        assert problem.prompt.startswith(text)
        for response, expected in [
            (f"Step by step, it is \\boxed{{{right}}}.", 1),
            ("It is \\boxed{41}.", 0),
            ("I cannot say.", 0),
        ]:
            scored = loaded.lm_eval_task.process_results(doc, [response])
            assert scored[loaded.metric] == expected, (response, doc)


@pytest.mark.parametrize("task", sorted(ROWS))
def test_a_task_pins_its_data_set_and_names_its_source(task: str) -> None:
    text = (TASKS / f"{task}.yaml").read_text()
    assert any(
        line.strip().startswith("revision: ") and len(line.strip()) == len("revision: ") + 40
        for line in text.splitlines()
    )
    for key in ("version:", "reference:", "license:", "columns:"):
        assert f"  {key}" in text


def test_own_ids_are_kept_and_repeated_ones_numbered(tmp_path: Path) -> None:
    rows = [{"ID": name, "Body": "B.", "Question": "Q?", "Answer": 1} for name in ("a", "b", "a")]
    path = write_rows(tmp_path / "svamp.jsonl", rows)
    problems = load_problems(Benchmark(task="svamp", path=str(path)), folder=tmp_path)
    assert [problem.doc_id for problem in problems] == ["a", "b", "a-2"]


def test_generated_problems_are_written_where_they_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    problems = load_problems(WORD_PROBLEMS, folder=folder)
    [path] = folder.iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["problem"] for row in rows] == [problem.prompt for problem in problems]
    assert [row["doc_id"] for row in rows] == [problem.doc_id for problem in problems]
    assert load_problems(WORD_PROBLEMS, folder=folder) == problems
    assert len(problems) == 20


def test_gsm_symbolic_is_generated_from_held_out_templates(tmp_path: Path) -> None:
    benchmark = Benchmark(task="gsm_symbolic", num_problems=3)
    problems = load_problems(benchmark, folder=tmp_path)
    assert len({problem.prompt for problem in problems}) == 3


# answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("12+7=19;19*2=38;#### 38", "38"),
        ("#### 5\nOr rather:\n#### $1,200 in all", "1,200"),
        ("#### x+1", "x+1"),
        ("####", None),
        ("so \\boxed{\\frac{1}{2}} and not #### 3", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{2} and then \\boxed{1", "2"),
        ("First 3, then 4 apples.", "4"),
        ("8-4", "4"),
        ("It is -4.", "-4"),
        ("It costs $18.", "18"),
        ("Then \\(x^2\\) it is", "x^2"),
        ("no number", None),
        ("", None),
    ],
)
def test_an_answer_is_boxed_or_behind_four_hashes_or_last(
    response: str, answer: str | None
) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("145.0", "145", True),
        ("18", "18.5", False),
        ("1,200", "1200", True),
        ("12", "1,2", False),
        ("0.5", "\\frac{1}{2}", True),
        ("\\text{Evelyn}", "evelyn", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("3, 5", "5, 3", True),
        ("(3,4)", "(4,3)", False),
        ("[0,1]", "(0,1)", False),
        ("10\\%", "10", True),
        ("2", "", False),
        ("2", "9" * 500, False),
        ("2", "__import__('os').getcwd()", False),
    ],
)
def test_answers_are_compared_as_mathematics(reference: str, answer: str, same: bool) -> None:
    assert answers_match(reference, answer) is same


def test_a_comparison_that_takes_too_long_is_said_and_wrong(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.lm_eval_tasks.answers._TIMEOUT_S", 1)
    with caplog.at_level(logging.WARNING):
        assert not is_correct(["2"], ["\\boxed{10000000!}"])
    assert "took over 1 s: wrong" in caplog.text


# generation ---------------------------------------------------------------------------------------


def test_responses_are_greedy_and_truncation_is_seen(
    run: Callable[..., list[Outcome]], language_model: LanguageModel, tmp_path: Path
) -> None:
    # A limit that cuts some responses and leaves others whole.
    found = run(max_new_tokens=14, batch_size=7)
    problems = load_problems(WORD_PROBLEMS, folder=tmp_path)
    task = load_task(WORD_PROBLEMS, folder=tmp_path).lm_eval_task
    assert [outcome.doc_id for outcome in found] == [problem.doc_id for problem in problems]
    for outcome, problem, doc in zip(found, problems, task.eval_docs, strict=True):
        tokens = answer_one_by_one(language_model, problem.prompt, 14)
        response = language_model.tokenizer.decode(tokens, skip_special_tokens=True)
        assert outcome.truncated == (tokens[-1] != language_model.tokenizer.eos_token_id)
        assert outcome.correct == is_correct([doc["answer"]], [response])
    assert {outcome.truncated for outcome in found} == {True, False}


def test_the_batch_size_changes_no_outcome(run: Callable[..., list[Outcome]]) -> None:
    assert run(batch_size=1) == run(batch_size=20)


def test_the_models_own_generation_settings_are_not_used(
    run: Callable[..., list[Outcome]],
    language_model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = run()
    own = language_model.model.generation_config
    monkeypatch.setattr(own, "max_new_tokens", 1)
    monkeypatch.setattr(own, "repetition_penalty", 5.0)
    monkeypatch.setattr(own, "no_repeat_ngram_size", 1)
    monkeypatch.setattr(own, "min_new_tokens", 30)
    assert run() == before


def test_a_prompt_as_long_as_the_context_is_truncated_alone(
    run: Callable[..., list[Outcome]], language_model: LanguageModel, tmp_path: Path
) -> None:
    everything = run()
    lengths = {
        problem.doc_id: len(
            language_model.tokenize("s", [Message("user", problem.prompt)]).input_ids
        )
        for problem in load_problems(WORD_PROBLEMS, folder=tmp_path)
    }
    limit = sorted(lengths.values())[-3]
    small = LanguageModel(
        language_model.model, language_model.tokenizer, language_model.identity, limit
    )
    found = evaluate(small, [WORD_PROBLEMS], settings(), folder=tmp_path)
    for outcome, free in zip(found, everything, strict=True):
        if lengths[outcome.doc_id] >= limit:
            assert outcome.truncated
            assert not outcome.correct
        elif lengths[outcome.doc_id] + 40 <= limit:
            assert outcome == free


def test_repeats_are_seeded_and_do_not_depend_on_their_number(
    run: Callable[..., list[Outcome]],
) -> None:
    sampled = {"temperature": 2.0, "max_problems": 10, "max_new_tokens": 24}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    two = run(num_repeats=2, **sampled)
    assert torch.equal(torch.rand(1), expected), "the caller's random numbers were used up"
    three = run(num_repeats=3, **sampled)
    assert len(two) == 20
    assert three[:20] == two
    assert [o.repeat for o in three] == [0] * 10 + [1] * 10 + [2] * 10
    assert run(num_repeats=2, seed=1, **sampled) != two


def test_prompts_have_the_tokens_that_training_and_scoring_see(
    language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resources.generation import AnsweringModel

    seen: list[list[int]] = []
    encode = AnsweringModel._encode
    monkeypatch.setattr(
        AnsweringModel, "_encode", lambda self, text: seen.append(encode(self, text)) or seen[-1]
    )
    problems = load_problems(WORD_PROBLEMS, folder=tmp_path)
    for template in (None, "Question: {prompt}\nAnswer:"):
        model = LanguageModel(
            language_model.model, language_model.tokenizer, language_model.identity, 1024, template
        )
        seen.clear()
        evaluate(model, [WORD_PROBLEMS], settings(max_new_tokens=1), folder=tmp_path)
        expected = [
            list(model.tokenize("s", [Message("user", p.prompt)]).input_ids) for p in problems
        ]
        assert seen == expected


# which problems -----------------------------------------------------------------------------------


def test_fewer_problems_are_a_stable_subset(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in range(40)]
    forwards = write_rows(tmp_path / "forwards.jsonl", rows)
    backwards = write_rows(tmp_path / "backwards.jsonl", rows[::-1])

    def chosen(path: Path, number: int | None) -> list[str]:
        task = load_task(Benchmark(task="gsm8k", path=str(path)), folder=tmp_path)
        return [task.doc_ids[i] for i in task.subset(number)]

    assert set(chosen(forwards, 10)) == set(chosen(backwards, 10))
    assert set(chosen(forwards, 10)) < set(chosen(forwards, 20))
    assert len(chosen(forwards, None)) == len(chosen(forwards, 100)) == 40
    assert chosen(forwards, 10) == [d for d in chosen(forwards, 40) if d in chosen(forwards, 10)]


def test_the_subset_is_evaluated_and_progress_told(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    found = evaluate(
        language_model,
        [WORD_PROBLEMS],
        settings(max_problems=5, batch_size=2, num_repeats=2, temperature=0.5),
        folder=tmp_path,
        report_progress=lambda *message: told.append(message),
        responses=tmp_path / "responses.jsonl",
    )
    task = load_task(WORD_PROBLEMS, folder=tmp_path)
    wanted = [task.doc_ids[i] for i in task.subset(5)]
    assert [outcome.doc_id for outcome in found] == wanted * 2
    assert told == [("word_problems", done, 10) for done in (2, 4, 5, 7, 9, 10)]
    lines = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    answers = {doc["doc_id"]: doc["answer"] for doc in task.lm_eval_task.eval_docs}
    for line, outcome in zip(lines, found, strict=True):
        assert (line["doc_id"], line["repeat"]) == (outcome.doc_id, outcome.repeat)
        assert is_correct([answers[line["doc_id"]]], [line["response"]]) == outcome.correct


def test_the_version_of_a_task_is_that_of_its_rules(tmp_path: Path) -> None:
    first = task_version(own_task(tmp_path))
    assert task_version(own_task(tmp_path)) == first
    assert task_version(own_task(tmp_path, OWN_TASK.replace("last", "first"))) != first
    assert task_version(Benchmark(task="gsm8k")) != task_version(Benchmark(task="svamp"))


# a user's own task --------------------------------------------------------------------------------

OWN_TASK = """
task: sums
test_split: test
output_type: generate_until
doc_to_text: "{{left}}+{{right}}="
doc_to_target: "{{left + right}}"
generation_kwargs: {until: ["x"]}
filter_list:
  - name: first
    filter:
      - function: regex
        regex_pattern: "(\\\\d)"
      - function: take_first
  - name: last
    filter:
      - function: regex
        regex_pattern: "(\\\\d)"
        group_select: -1
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata: {version: 1.0, filter: last}
"""


def own_task(tmp_path: Path, text: str = OWN_TASK) -> Benchmark:
    (tmp_path / "sums.yaml").write_text(text)
    rows = write_rows(tmp_path / "sums.jsonl", [{"left": 1, "right": i} for i in range(4)])
    return Benchmark(task="sums", yaml=str(tmp_path / "sums.yaml"), path=str(rows))


def test_a_users_own_task_is_scored_by_its_own_rules(
    run: Callable[..., list[Outcome]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resources.generation import AnsweringModel

    # The third response never ends; the others stop at the task's own word, which is not kept.
    replies = iter(["1x", "5 2x9", "7 3", "9x4"])
    end = [AutoTokenizer.from_pretrained(PROJECT_ROOT / "models/tiny").eos_token_id]

    def generate(self: Any, prompts: Any, *rest: Any) -> list[list[int]]:
        texts = [next(replies) for _ in prompts]
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [row if "3" in text else row + end for row, text in zip(ids, texts, strict=True)]

    monkeypatch.setattr(AnsweringModel, "_generate", generate)
    found = run(own_task(tmp_path), tasks=("sums",))
    assert [problem.prompt for problem in load_problems(own_task(tmp_path), folder=tmp_path)] == [
        "1+0=",
        "1+1=",
        "1+2=",
        "1+3=",
    ]
    assert [(o.correct, o.truncated) for o in found] == [
        (True, False),
        (True, False),
        (True, True),
        (False, False),
    ]


# refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({"task": "gsm9k"}, r"task must be one of aime24, .*, got 'gsm9k'; correct it, or name"),
        ({"task": "gsm8k", "path": "none.jsonl"}, r"path of gsm8k must name a file, got .*none"),
        ({"task": "own", "yaml": "none.yaml"}, r"yaml of own must name a file, got .*none.yaml"),
        (
            {"task": "gsm8k", "num_problems": 5},
            r"num_problems is for generated problems, and those of gsm8k are read; set evaluation",
        ),
    ],
)
def test_an_impossible_benchmark_is_refused(
    benchmark: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_problems(Benchmark(**benchmark), folder=tmp_path)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.jsonl", [{"question": "1+1?", "solution": "2"}])
    message = r"gsm8k must have the columns question, answer, and lacks answer \(it has question,"
    with pytest.raises(EvaluationError, match=message):
        load_problems(Benchmark(task="gsm8k", path=str(path)), folder=tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.jsonl", [])
    with pytest.raises(EvaluationError, match="gsm8k must hold a problem, got none"):
        load_problems(Benchmark(task="gsm8k", path=str(path)), folder=tmp_path)


def test_a_torn_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": "1+')
    with pytest.raises(EvaluationError, match=r"every row of .* must be readable, and number 1 is"):
        load_problems(Benchmark(task="gsm8k", path=str(path)), folder=tmp_path)


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    message = r"aime25 must be readable from the data set math-ai/aime25, and is not .*local copy"
    with pytest.raises(EvaluationError, match=message):
        load_problems(Benchmark(task="aime25"), folder=tmp_path)


def test_a_hub_data_set_must_be_pinned(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("task: own\ndataset_path: a/b\ntest_split: test\ndoc_to_text: q\n")
    with pytest.raises(EvaluationError, match="revision of the task own must name a commit of a/b"):
        load_problems(Benchmark(task="own", yaml=str(path)), folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{{left}}", "{{up}}"), "sums must render its problems, and fails with UndefinedError"),
        (("task: sums", "- task"), "must be an lm-eval task in YAML, and fails with"),
        (("generate_until", "multiple_choice"), "must be generate_until, got multiple_choice"),
    ],
)
def test_a_broken_task_of_the_users_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_problems(own_task(tmp_path, OWN_TASK.replace(*change)), folder=tmp_path)


def test_a_metric_that_is_not_right_or_wrong_is_refused(
    run: Callable[..., list[Outcome]], tmp_path: Path
) -> None:
    text = OWN_TASK.replace("filter: last", "filter: last, metric: chrf")
    with pytest.raises(EvaluationError, match="metric chrf of the task sums must be 0 or 1"):
        run(own_task(tmp_path, text), tasks=("sums",))


def test_examples_are_refused_where_the_task_has_none(run: Callable[..., list[Outcome]]) -> None:
    with pytest.raises(EvaluationError, match="num_fewshot must be 0 for the task word_problems"):
        run(num_fewshot=2)


def test_solutions_are_the_rows_own_and_none_where_a_file_has_none(tmp_path: Path) -> None:
    task = load_task(WORD_PROBLEMS, folder=tmp_path)
    assert len(task.solutions()) == len(task.problems())
    for doc, solution in zip(task.lm_eval_task.eval_docs, task.solutions(), strict=True):
        assert solution.endswith(f"#### {doc['answer']}")
    path = write_rows(tmp_path / "own.jsonl", [{"doc_id": "a", "problem": "1+1?", "answer": "2"}])
    own = load_task(Benchmark(task="word_problems", path=str(path)), folder=tmp_path)
    assert own.solutions() == []
