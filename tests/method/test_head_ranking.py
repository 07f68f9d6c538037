"""The ranking and its restart, against whole forwards with the ablation written out in loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    CohereConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GraniteConfig,
)

from circuitseer_assets.errors import CorpusError, ModelError, SettingsError
from circuitseer_assets.method.ablation import (
    check_restart,
    decoder_parts,
    mean_head_outputs,
    measure_losses,
)
from circuitseer_assets.method.head_ranking import random_head_sets, rank_heads
from circuitseer_assets.method.ranking_statistics import round_ends
from circuitseer_assets.records import HeadId, Message, TokenizedText
from circuitseer_assets.settings import PROJECT_ROOT, HeadRankingSettings, load_settings
from resources.language_model import load_language_model

from .conftest import (
    HEADS,
    LAYERS,
    SIZES,
    VOCABULARY,
    make_model,
    make_text,
    output_projection,
    value_hook,
    visible_tokens,
)

ALL_HEADS = [HeadId(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def brute_force_loss(model, text: TokenizedText, ablation, kind="uniform", means=None) -> float:
    """A whole forward in which each ablated head's slice of the o_proj input is written over."""
    values, hooks = {}, []
    size, num_heads = len(text.input_ids), model.config.num_attention_heads

    def write_over(layer, heads):
        def hook(_, args):
            z = args[0].clone().unflatten(-1, (num_heads, -1))  # (1, T, H, D)
            visible = visible_tokens(model, layer, [True] * size)
            for head in heads:
                if kind == "uniform":
                    own = values[layer][0, :, head // (num_heads // values[layer].shape[2])]
                    for i in range(size):
                        z[0, i, head] = own[visible[i]].mean(0)
                else:
                    z[0, :, head] = 0 if kind == "zero" else means[layer, head].float()
            return (z.flatten(2),)

        return hook

    for layer in {head.layer for head in ablation}:
        heads = [head.head for head in ablation if head.layer == layer]
        store = lambda value, layer=layer: values.update({layer: value})  # noqa: E731
        hooks.append(value_hook(model, layer, store))
        projection = output_projection(model, layer)
        hooks.append(projection.register_forward_pre_hook(write_over(layer, heads)))
    ids = torch.tensor([text.input_ids])
    labels = ids.clone()
    labels[:, : text.response_start] = -100
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss.item()
    for hook in hooks:
        hook.remove()
    return loss


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 4096])
def test_a_restart_is_the_full_forward(any_model, max_batch_tokens):
    parts, text = decoder_parts(any_model), make_text("probe", 9, 6)
    sets = [frozenset({head}) for head in ALL_HEADS]
    sets += [frozenset(), frozenset({HeadId(0, 1), HeadId(0, 3), HeadId(2, 0)})]
    clean_loss, got = measure_losses(
        parts, text, sets, kind="uniform", max_batch_tokens=max_batch_tokens
    )
    expected = [brute_force_loss(any_model, text, heads) for heads in sets]
    assert clean_loss == pytest.approx(brute_force_loss(any_model, text, []), abs=1e-5)
    assert np.abs(np.array(got) - expected).max() <= 1e-5
    assert np.ptp(expected) > 1e-3  # the ablations do something


def layer_runs(parts, text, sets, **settings):
    """Returns the losses, and of every layer run its layer and number of rows, in order."""
    runs = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out, i=i: runs.append((i, len(rows_of(out)))))
        for i, layer in enumerate(parts.layers)
    ]
    losses = measure_losses(parts, text, sets, **settings)
    for hook in hooks:
        hook.remove()
    return losses, runs


def rows_of(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("max_cached_layers", [1, 2])
def test_layers_that_are_not_kept_are_computed_again(any_model, max_cached_layers):
    parts, text = decoder_parts(any_model), make_text("probe", 9, 6)
    sets = [frozenset({head}) for head in ALL_HEADS]
    settings = {"kind": "uniform", "max_batch_tokens": 64}
    (clean_loss, got), runs = layer_runs(
        parts, text, sets, max_cached_layers=max_cached_layers, **settings
    )
    (kept_clean_loss, kept), kept_runs = layer_runs(parts, text, sets, **settings)
    assert clean_loss == kept_clean_loss
    assert got == pytest.approx(kept, abs=1e-6)
    # Later walks start at each of the three layers: those above what is kept are run once more.
    again = list(runs)
    for run in kept_runs:
        again.remove(run)
    assert again == {1: [(0, 1), (1, 1)], 2: [(0, 1)]}[max_cached_layers]


def test_no_walk_holds_more_than_the_token_budget_and_no_row_runs_below_its_layer(llama):
    parts, text = decoder_parts(llama), make_text("probe", 9, 6)
    sets = [frozenset({HeadId(layer, 0)}) for layer in (2, 0, 1, 1)]
    _, one_walk = layer_runs(parts, text, sets, kind="zero", max_batch_tokens=5 * 15)
    assert one_walk == [(0, 2), (1, 4), (2, 5)]  # with a row for the clean forward
    _, walks = layer_runs(parts, text, sets, kind="zero", max_batch_tokens=2 * 15)
    assert walks == [(0, 2), (1, 2), (2, 2), (1, 2), (2, 2), (2, 1)]


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_the_other_ablations(llama, kind):
    parts, text = decoder_parts(llama), make_text("probe", 9, 6)
    means = mean_head_outputs(parts, [text, make_text("another", 5, 4)])
    sets = [frozenset({head}) for head in ALL_HEADS]
    _, got = measure_losses(parts, text, sets, kind=kind, max_batch_tokens=64, mean_outputs=means)
    expected = [brute_force_loss(llama, text, heads, kind, means) for heads in sets]
    assert np.abs(np.array(got) - expected).max() <= 1e-5


def test_mean_outputs_are_the_mean_over_all_tokens(llama):
    texts = [make_text("one", 9, 3), make_text("two", 4, 3)]
    got = mean_head_outputs(decoder_parts(llama), texts)
    inputs = []
    hook = output_projection(llama, 1).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0][0].unflatten(-1, (HEADS, -1)))
    )
    for text in texts:
        llama(input_ids=torch.tensor([text.input_ids]))
    hook.remove()
    assert torch.allclose(got[1].float(), torch.cat(inputs).mean(0), atol=1e-6)


def test_only_the_ablated_query_head_changes():
    """Heads 0 and 1 share a key/value head: ablating one must leave the other's output alone."""
    model = make_model("llama-gqa")
    parts, text = decoder_parts(model), make_text("probe", 8, 4)
    seen = []
    projection = output_projection(model, 1)
    hook = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    measure_losses(parts, text, [frozenset({HeadId(1, 1)})], kind="uniform", max_batch_tokens=64)
    hook.remove()
    before, after = (z.unflatten(-1, (HEADS, -1)) for z in seen[-1])  # the clean row, the ablated
    assert torch.allclose(before[:, [0, 2, 3]], after[:, [0, 2, 3]], atol=1e-6)
    assert not torch.allclose(before[1:, 1], after[1:, 1], atol=1e-3)


GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(**GPT2_SIZES, n_positions=64),
        GPTBigCodeConfig(**GPT2_SIZES, n_positions=64),
        BioGptConfig(**SIZES),
        CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.25),
        GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=3.0),
    ],
    ids=lambda config: config.model_type,
)
def test_decoders_with_parts_of_other_names_and_scaled_logits_restart(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    # Compares losses with and without ablations to whole forwards'.
    check_restart(decoder_parts(model), make_text("probe", 9, 6), kind="uniform", mean_outputs=None)


@pytest.mark.long
def test_smollm2_restarts_exactly(tmp_path):
    settings = load_settings(PROJECT_ROOT / "presets/smollm2.yaml").base_model
    smollm2 = load_language_model(settings, cache=tmp_path)
    parts = decoder_parts(smollm2.model)
    text = smollm2.tokenize("pens", [Message("user", "A pen costs 3. What are 7?")], "7*3 = 21")
    sets = [frozenset({HeadId(1, 0)}), frozenset({HeadId(18, 8), HeadId(7, 2)})]
    _, got = measure_losses(parts, text, sets, kind="uniform", max_batch_tokens=1024)
    expected = [brute_force_loss(smollm2.model, text, heads, "uniform") for heads in sets]
    assert np.abs(np.array(got) - expected).max() <= 1e-4


def test_a_model_that_does_something_else_to_its_logits_is_refused():
    torch.manual_seed(0)
    config = CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.25)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
    model.config.logit_scale = None  # the model has read it, a restart no longer can
    text = make_text("probe", 9, 6)
    with pytest.raises(ModelError, match=r"'cohere': run layer by layer it gives the loss \d"):
        check_restart(decoder_parts(model), text, kind="uniform", mean_outputs=None)


# the ranking --------------------------------------------------------------------------------------

SETTINGS = HeadRankingSettings(fraction=0.25, num_random_draws=4)  # k = 3 of 12


def own_answer(model, name: str, num_prompt: int, num_response: int) -> TokenizedText:
    """A probe whose response is what the model itself would say: any damage raises its loss."""
    prompt = make_text(name, num_prompt)
    with torch.inference_mode():
        ids = model.generate(
            torch.tensor([prompt.input_ids]),
            attention_mask=torch.ones(1, num_prompt, dtype=torch.long),
            max_new_tokens=num_response,
            min_new_tokens=num_response,
            do_sample=False,
        )
    return replace(prompt, input_ids=tuple(ids[0].tolist()))


def probes_of(model) -> dict[str, list[TokenizedText]]:
    sizes = {"ranking": 8, "confirmation": 4, "control": 2}
    return {
        kind: [own_answer(model, f"{kind}-{i}", 8 + i, 5) for i in range(size)]
        for kind, size in sizes.items()
    }


def planted(*heads: HeadId):
    """A model in which only these heads put anything out, and which is sure of what it says."""
    model = make_model("qwen2-gqa")
    with torch.no_grad():
        for layer in range(LAYERS):
            weight = output_projection(model, layer).weight.unflatten(-1, (HEADS, -1))
            for head in range(HEADS):
                if HeadId(layer, head) not in heads:
                    weight[:, head] = 0
        model.lm_head.weight.mul_(4)
    return model


def test_planted_heads_are_found():
    heads = [HeadId(0, 2), HeadId(1, 1), HeadId(2, 3)]
    model = planted(*heads)
    ranking = rank_heads(model, **probes_of(model), settings=SETTINGS, max_batch_tokens=128)
    assert ranking.reasoning_heads == tuple(heads)
    assert [row.head for row in ranking.importance[:3]] == sorted(
        heads, key=lambda head: -by_head(ranking)[head].delta_loss_nats
    )
    for row in ranking.importance[3:]:
        assert abs(row.delta_loss_nats) < 1e-5
    assert ranking.boundary_gap_nats > 0.01
    assert ranking.joint is not None
    assert ranking.joint.delta_chosen_nats > max(ranking.joint.delta_random_nats) + 0.01
    assert ranking.joint.p_value == 1 / 5
    assert ranking.split_half_overlap == 1


def by_head(ranking):
    return {row.head: row for row in ranking.importance}


def test_exhaustive_ranking_is_the_definition(llama):
    probes = probes_of(llama)
    settings = SETTINGS.model_copy(update={"exhaustive": True})
    ranking = rank_heads(llama, **probes, settings=settings, max_batch_tokens=128)
    effects = {
        kind: np.array(
            [
                [
                    brute_force_loss(llama, text, [head]) - brute_force_loss(llama, text, [])
                    for text in texts
                ]
                for head in ALL_HEADS
            ]
        )
        for kind, texts in probes.items()
    }
    rows = by_head(ranking)
    for i, head in enumerate(ALL_HEADS):
        row = rows[head]
        assert row.delta_loss_nats == pytest.approx(effects["ranking"][i].mean(), abs=1e-5)
        assert (row.num_probes, row.measured_on_all) == (8, True)
        if row.is_reasoning_head:
            assert row.confirmed_delta_nats == pytest.approx(
                effects["confirmation"][i].mean(), abs=1e-5
            )
            assert row.delta_control_nats == pytest.approx(effects["control"][i].mean(), abs=1e-5)
            assert row.ci_low <= row.confirmed_delta_nats <= row.ci_high
        else:
            assert (row.confirmed_delta_nats, row.p_holm, row.delta_control_nats) == (None,) * 3
            assert row.ci_low <= row.delta_loss_nats <= row.ci_high
    order = np.argsort(-effects["ranking"].mean(1), kind="stable")
    assert [row.head for row in ranking.importance] == [ALL_HEADS[i] for i in order]
    assert ranking.reasoning_heads == tuple(sorted(ALL_HEADS[i] for i in order[:3]))
    means = effects["ranking"].mean(1)[order]
    assert ranking.boundary_gap_nats == pytest.approx(means[2] - means[3], abs=1e-5)
    joint = [
        brute_force_loss(llama, text, ranking.reasoning_heads) - brute_force_loss(llama, text, [])
        for text in probes["confirmation"]
    ]
    assert ranking.joint.delta_chosen_nats == pytest.approx(np.mean(joint), abs=1e-5)
    assert ranking.clean_loss_nats == pytest.approx(
        np.mean([brute_force_loss(llama, text, []) for text in probes["ranking"]]), abs=1e-5
    )
    assert ranking.clean_control_loss_nats == pytest.approx(
        np.mean([brute_force_loss(llama, text, []) for text in probes["control"]]), abs=1e-5
    )


def test_the_race_spares_losers_and_finds_the_same_heads():
    heads = [HeadId(0, 2), HeadId(1, 1), HeadId(2, 3)]
    model = planted(*heads)
    texts = [own_answer(model, f"p{i}", 8, 6) for i in range(24)]
    probes = {"ranking": texts[:20], "confirmation": texts[20:], "control": []}
    settings = SETTINGS.model_copy(update={"interval_z": 1.0})
    progress = []
    ranking = rank_heads(
        model,
        **probes,
        settings=settings,
        max_batch_tokens=256,
        report_progress=lambda done, total: progress.append((done, total)),
    )
    assert ranking.reasoning_heads == tuple(heads)
    dropped = [row for row in ranking.importance if not row.measured_on_all]
    assert dropped
    assert {row.num_probes for row in dropped} <= set(round_ends(20, SETTINGS.first_round_probes))
    assert all(np.isfinite([row.ci_low, row.ci_high, row.stderr]).all() for row in dropped)
    assert progress == sorted(progress)
    assert progress[-1][0] == progress[-1][1] < 12 * 20 + 3 * 4 + 5 * 4
    assert ranking.clean_control_loss_nats is None
    assert all(row.delta_control_nats is None for row in ranking.importance)


def test_order_and_batches_of_probes_do_not_matter(llama):
    probes = probes_of(llama)
    first = rank_heads(llama, **probes, settings=SETTINGS, max_batch_tokens=4096)
    turned = {kind: texts[::-1] for kind, texts in probes.items()}
    second = rank_heads(llama, **turned, settings=SETTINGS, max_batch_tokens=1)
    assert [row.head for row in first.importance] == [row.head for row in second.importance]
    for one, other in zip(first.importance, second.importance, strict=True):
        assert one.delta_loss_nats == pytest.approx(other.delta_loss_nats, abs=1e-5)
        assert one.num_probes == other.num_probes


def test_specific_delta_ranks_by_the_relative_rise_over_the_control(llama):
    probes = probes_of(llama)
    settings = SETTINGS.model_copy(update={"select_by": "specific_delta", "exhaustive": True})
    ranking = rank_heads(llama, **probes, settings=settings, max_batch_tokens=128)

    def relative(row):
        return (
            row.delta_loss_nats / ranking.clean_loss_nats
            - row.delta_control_nats / ranking.clean_control_loss_nats
        )

    values = [relative(row) for row in ranking.importance]
    assert values == sorted(values, reverse=True)
    assert [row.is_reasoning_head for row in ranking.importance] == [True] * 3 + [False] * 9
    assert ranking.boundary_gap_nats == pytest.approx(
        (values[2] - values[3]) * ranking.clean_loss_nats
    )
    with pytest.raises(SettingsError, match=r"probe_set.num_control must be at least 1"):
        rank_heads(llama, **{**probes, "control": []}, settings=settings, max_batch_tokens=128)


def test_unconfirmed_heads_are_kept_or_dropped():
    # Only two heads matter, three are chosen: the third can't be confirmed.
    model = planted(HeadId(0, 2), HeadId(2, 3))
    probes = probes_of(model)
    probes["confirmation"] = [own_answer(model, f"more-{i}", 9, 6) for i in range(10)]
    kept = rank_heads(model, **probes, settings=SETTINGS, max_batch_tokens=128)
    drop = SETTINGS.model_copy(update={"unconfirmed": "drop"})
    dropped = rank_heads(model, **probes, settings=drop, max_batch_tokens=128)
    assert len(kept.reasoning_heads) == 3
    confirmed = [row for row in kept.importance if row.p_holm is not None and row.p_holm <= 0.05]
    assert {row.head for row in confirmed} == set(dropped.reasoning_heads)
    assert set(dropped.reasoning_heads) == {HeadId(0, 2), HeadId(2, 3)}


def test_no_confirmed_head_is_an_error():
    model = planted()
    probes = probes_of(model)
    drop = SETTINGS.model_copy(update={"unconfirmed": "drop"})
    with pytest.raises(SettingsError, match=r"none of the chosen heads .* 4 confirmation probes"):
        rank_heads(model, **probes, settings=drop, max_batch_tokens=128)


def test_an_interrupted_ranking_goes_on_where_it_was(llama):
    probes = probes_of(llama)
    whole = rank_heads(llama, **probes, settings=SETTINGS, max_batch_tokens=128)
    journal, calls = {}, []

    def interrupt(done, total):
        calls.append(done)
        if len(calls) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_heads(
            llama,
            **probes,
            settings=SETTINGS,
            max_batch_tokens=128,
            report_progress=interrupt,
            journal=journal,
        )
    measured = dict(journal)
    num_effects = sum(
        int((~np.isnan(values)).sum()) for key, values in measured.items() if "clean" not in key
    )
    assert num_effects == calls[-1]
    poisoned = {key: values.copy() for key, values in measured.items()}
    counted = []
    resumed = rank_heads(
        llama,
        **probes,
        settings=SETTINGS,
        max_batch_tokens=128,
        journal=journal,
        report_progress=lambda done, total: counted.append((done, total)),
    )
    assert resumed == whole
    # What was measured before is no work of this run, and tells nothing of its rate.
    assert counted[0][0] < num_effects
    assert counted[-1][0] == counted[-1][1]
    # What the journal says is believed, not measured again.
    first = next(key for key in poisoned if key.endswith(":0"))
    poisoned[first] += 0.5
    misled = rank_heads(llama, **probes, settings=SETTINGS, max_batch_tokens=128, journal=poisoned)
    believed = {row.head: row.delta_loss_nats for row in misled.importance}
    rises = {
        row.head: believed[row.head] - row.delta_loss_nats
        for row in whole.importance
        if row.head.layer == 0
    }
    assert all(rise > 0.05 for rise in rises.values())
    assert all(np.array_equal(journal[key], measured[key], equal_nan=True) for key in measured)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ranking": 1}, SettingsError, "probe_set.num_ranking must give at least 2 probes, got 1"),
        ({"confirmation": 0}, SettingsError, "probe_set.num_confirmation must give at least 2"),
    ],
)
def test_too_few_probes_are_refused(llama, change, error, message):
    probes = probes_of(llama)
    (kind, size) = next(iter(change.items()))
    with pytest.raises(error, match=message):
        rank_heads(
            llama,
            **{**probes, kind: probes[kind][:size]},
            settings=SETTINGS,
            max_batch_tokens=128,
        )


def test_unusable_probes_are_refused(llama):
    probes = probes_of(llama)
    silent = make_text("silent", 9)
    long = make_text("long", 120, 9)
    for probe, error, message in (
        (silent, CorpusError, "every probe must have a response, sample silent has none"),
        (long, ModelError, "context of 128 tokens, sample long has 129"),
    ):
        with pytest.raises(error, match=message):
            rank_heads(
                llama,
                **{**probes, "ranking": [*probes["ranking"], probe]},
                settings=SETTINGS,
                max_batch_tokens=128,
            )


def test_random_sets_match_the_layers_and_leave_out_the_chosen():
    chosen = [HeadId(0, 0), HeadId(0, 1), HeadId(2, 0), HeadId(2, 1), HeadId(2, 2)]
    sets = random_head_sets(chosen, ALL_HEADS, 50, seed=1)
    assert sets == random_head_sets(chosen, ALL_HEADS, 50, seed=1)
    for drawn in sets:
        assert not drawn & set(chosen)
        assert drawn == {HeadId(0, 2), HeadId(0, 3), HeadId(2, 3)}  # layer 2 has one left
    many = random_head_sets([HeadId(1, 0)], ALL_HEADS, 50, seed=1)
    assert set().union(*many) == {HeadId(1, 1), HeadId(1, 2), HeadId(1, 3)}
