"""`circuitseer explain` and the audit's page in a real home: what is shown is what was stored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuitseer_assets.assets.audit import make_audit
from circuitseer_assets.assets.stage import StageRun
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.audit import trace_lineage
from circuitseer_assets.method.report_page import render_report
from circuitseer_assets.settings import parse_settings
from resources.home import Home
from resources.lineage_facts import read_facts
from resources.report_data import read_report
from resources.report_files import REPORT_FILE, find_report
from resources.sample_explanation import explain_sample, find_sample_id
from resources.subset_chain import SubsetChain
from tests.test_cli import circuitseer


@pytest.fixture(scope="module")
def home(home_folder: Path, first_run: Any) -> Home:
    return Home.prepared(home_folder)


@pytest.fixture(scope="module")
def chain(home: Home, first_run: Any) -> SubsetChain:
    return SubsetChain.of(home, first_run.of("subset", "artifact_id"))


def test_the_variance_of_the_shown_numbers_is_the_stored_score(
    home: Home, chain: SubsetChain, tmp_path: Path
) -> None:
    stored = chain.pool_scores.to_pylist()
    row = stored[len(stored) // 2]
    sample_id, subset_id = row["sample_id"], chain.subset.artifact_id
    done = circuitseer(home.folder, "explain", sample_id, "--subset", subset_id, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    received = [token["received"] for token in said["read"]["tokens"]]
    even = 1 / len(received)
    assert sum(received) == pytest.approx(1)
    variance = sum((value - even) ** 2 for value in received) / len(received)
    assert variance == pytest.approx(row["score"], rel=1e-5)
    assert said["standing"]["score"] == row["score"]
    higher = [r for r in stored if (-r["score"], r["sample_id"]) < (-row["score"], sample_id)]
    assert said["standing"]["rank"] == len(higher) + 1
    assert said["read"]["is_score"] is True

    page = tmp_path / "sample.html"
    done = circuitseer(
        home.folder, "explain", sample_id, "--subset", subset_id, "--html", str(page)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(page)
    assert f"<h1>Sample {sample_id}</h1>" in page.read_text()
    page.unlink()
    done = circuitseer(
        home.folder, "explain", sample_id, "--subset", subset_id, "--html", str(page), "--json"
    )
    assert json.loads(done.stdout) == {"path": str(page), **said}
    assert page.is_file()


def test_the_draw_is_told_as_it_was_stored(home: Home, chain: SubsetChain) -> None:
    sql = "select * from subset_members where subset_id = $id"
    stored = home.warehouse.query(sql, {"id": chain.subset.artifact_id}).to_pylist()
    assert stored
    places = chain.order.places(chain.pool_scores["sample_id"].to_pylist())
    for member in stored:
        place = places[member["sample_id"]]
        assert place.is_drawn
        assert place.weight == member["weight"]
        assert place.sampling_key == pytest.approx(member["sampling_key"], rel=1e-12)
        assert place.inclusion_probability == pytest.approx(member["inclusion_probability"])
    assert sum(place.is_drawn for place in places.values()) == len(stored)

    explained = explain_sample(chain, stored[0]["sample_id"])
    assert chain.subset.artifact_id in explained.subsets
    assert explained.status == "scored"


def test_the_tokens_spell_the_prompt(chain: SubsetChain) -> None:
    explained = explain_sample(chain, str(chain.pool_scores["sample_id"][0]))
    assert explained.read is not None
    text = "".join(token.text for token in explained.read.tokens)
    [prompt] = chain.home.warehouse.query(
        "select source, position from samples where sample_id = $id",
        {"id": explained.sample_id},
    ).to_pylist()
    assert (explained.source, explained.position) == (prompt["source"], prompt["position"])
    assert text.startswith("<|user|>")
    assert text.endswith("<|assistant|>")


def test_who_is_not_in_the_pool_is_told_why(home: Home, chain: SubsetChain) -> None:
    probe = explain_sample(chain, chain.probes.ranking[0])
    assert (probe.status, probe.standing, probe.place) == ("probe", None, None)
    assert "ranking probe" in probe.reason
    assert probe.read is not None

    contaminated = explain_sample(chain, chain.contaminated[0]["sample_id"])
    assert contaminated.status == "contaminated"
    assert chain.contaminated[0]["doc_id"] in contaminated.reason

    [at] = home.warehouse.query(
        "select source, position from samples where sample_id = $id", {"id": probe.sample_id}
    ).to_pylist()
    assert find_sample_id(chain, f"{at['source']}:{at['position']}") == probe.sample_id


def test_a_beginning_is_enough_where_only_one_has_it(chain: SubsetChain) -> None:
    sample_id = str(chain.pool_scores["sample_id"][3])
    assert find_sample_id(chain, sample_id[:12]) == sample_id
    with pytest.raises(ArtifactError, match=r"must be the beginning of one sample's id, got '\w'"):
        find_sample_id(chain, sample_id[0])
    for name in ("", "nobody", "reading:999999"):
        with pytest.raises(ArtifactError, match="SAMPLE_ID must be a sample's id"):
            find_sample_id(chain, name)


def test_the_model_that_read_a_subset_explains_it_though_settings_have_moved_on(
    home: Home, chain: SubsetChain, other_model: Path
) -> None:
    changed = home.changed(base_model={"source": "local", "path": str(other_model)})
    sample_id = str(chain.pool_scores["sample_id"][0])
    elsewhere = SubsetChain.of(changed, chain.subset.artifact_id)
    assert explain_sample(elsewhere, sample_id) == explain_sample(chain, sample_id)
    scores = replace(elsewhere.scores, settings={**chain.scores.settings, "model_digest": "lost"})
    with pytest.raises(ArtifactError, match=r"the base model that sample_scores-\w+ was made with"):
        explain_sample(replace(elsewhere, scores=scores), sample_id)


# the audit's page ---------------------------------------------------------------------------------


def test_the_page_lies_beside_the_lineage_and_with_the_training_in_mlflow(
    home: Home, first_run: Any
) -> None:
    audit_id = first_run.of("audit", "artifact_id")
    done = circuitseer(home.folder, "report", audit_id, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    path = Path(said["path"])
    assert said["audit_id"] == audit_id
    assert path.name == REPORT_FILE
    assert (path.parent / "lineage.json").is_file()
    assert first_run.of("audit", "report") == str(path)

    audit = home.warehouse.find_artifact(audit_id)
    checkpoint = home.warehouse.find_artifact(first_run.of("checkpoint", "artifact_id"))
    assert audit is not None
    assert checkpoint is not None
    assert audit.mlflow_run_id == checkpoint.mlflow_run_id is not None
    logged = home.tracking().client().list_artifacts(audit.mlflow_run_id, f"audit/{audit_id}")
    assert [file.path for file in logged] == [f"audit/{audit_id}/{REPORT_FILE}"]
    assert [file.file_size for file in logged] == [path.stat().st_size]


def test_any_ancestor_leads_to_the_page(home: Home, first_run: Any) -> None:
    audit_id, path = find_report(home, first_run.of("audit", "artifact_id"))
    assert find_report(home, first_run.of("subset", "artifact_id")) == (audit_id, path)
    with pytest.raises(ArtifactError, match="ID must be that of a recorded artifact, got 'none'"):
        find_report(home, "none")


def test_the_page_made_again_is_the_same_and_its_settings_give_the_run_again(
    home: Home, chain: SubsetChain, first_run: Any
) -> None:
    evaluation_id = first_run.of("evaluation", "artifact_id")
    lineage = trace_lineage(evaluation_id, home.warehouse.find_artifact)
    facts = read_facts(home.warehouse, lineage.artifacts)
    audit_id, path = find_report(home, evaluation_id)
    report = read_report(home, type(lineage)(lineage.artifacts, facts=facts), audit_id)
    assert render_report(report) == path.read_text()
    pool, members = chain.pool_scores.to_pylist(), len(chain.members)
    ranked = sorted(pool, key=lambda row: (-row["score"], row["sample_id"]))
    places = chain.order.places([row["sample_id"] for row in pool]).values()
    drawn = sorted((place for place in places if place.order), key=lambda place: place.order or 0)
    shown = {title: [one.sample_id for one in group] for title, group in report.samples.items()}
    assert shown == {
        "Highest scores": [row["sample_id"] for row in ranked[:3]],
        "Lowest scores": [row["sample_id"] for row in ranked[-3:]],
        "Last to be drawn": [place.sample_id for place in drawn[members - 2 : members]],
        "First not to be drawn": [place.sample_id for place in drawn[members : members + 2]],
    }
    assert report.scores.scores.tolist() == [row["score"] for row in pool]
    ids = [row["sample_id"] for row in pool]
    assert report.scores.is_drawn.tolist() == [one in chain.members for one in ids]

    settings = parse_settings(yaml.safe_load(report.settings_yaml), origin="the page")
    in_use = home.settings()
    for name in ("base_model", "corpus", "decontamination", "probe_set", "head_ranking"):
        assert settings.slice(name) == in_use.slice(name)
    for name in ("scoring", "selection", "training", "evaluation"):
        assert settings.slice(name) == in_use.slice(name)


def test_the_page_tells_the_run(home: Home, first_run: Any) -> None:
    html = find_report(home, first_run.of("audit", "artifact_id"))[1].read_text()
    for stage in ("corpus", "pool", "head_ranking", "subset", "checkpoint", "evaluation"):
        assert first_run.of(stage, "artifact_id") in html
    for head in first_run.of("head_ranking", "reasoning_heads"):
        layer, number = head.split(".")
        assert f"Layer {layer}, head {number}: loss rise" in html
    [task] = first_run.of("evaluation", "pass_at_1")
    assert f"{100 * task['checkpoint']['pass_at_1']:.1f} % [" in html
    assert "a demonstration, not evidence" in html


def test_a_planned_audit_finds_the_page_and_computes_nothing(home: Home, first_run: Any) -> None:
    evaluation = home.warehouse.find_artifact(first_run.of("evaluation", "artifact_id"))
    assert evaluation is not None
    done = make_audit(StageRun.planned(home, {"evaluation": evaluation}))
    assert done.reused
    assert done.artifact.artifact_id == first_run.of("audit", "artifact_id")
