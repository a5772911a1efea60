"""The speech workloads: padding, CTC, word error rate, training. Their parts are in test_speech_parts.py."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from miniperf import search, spec, submission, workloads
from miniperf.runner import train_once
from miniperf.settings import Settings
from miniperf.workloads.librispeech_deepspeech import pytorch as librispeech_deepspeech
from miniperf.workloads.speech import data as speech
from miniperf.workloads.speech import pytorch as speech_pytorch

NAMES = ["mini_librispeech_conformer", "mini_librispeech_deepspeech"]
TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL


@pytest.fixture(autouse=True)
def small_data(tmp_path_factory, monkeypatch):
    """112 utterances, generated once for the whole file."""
    monkeypatch.setattr(speech, "SPLIT_SIZES", {"train": 64, "validation": 24, "test": 24})
    monkeypatch.setenv("MINIPERF_CACHE", str(tmp_path_factory.getbasetemp() / "speech"))
    torch.set_num_threads(1)


@pytest.fixture(params=NAMES)
def workload(request):
    return workloads.make(request.param)


def batch_of(workload, split="train", size=16):
    return next(workload._build_input_queue([0, 0], split, "", size))


def lengthened(batch, frames):
    """The batch with more padding behind its inputs."""
    inputs, paddings = batch["inputs"]
    more = frames - inputs.shape[1]
    longer = nn.functional.pad(inputs, (0, 0, 0, more)), nn.functional.pad(paddings, (0, more), value=1.0)
    return {**batch, "inputs": longer}


def running_statistics(model):
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def test_a_batch_is_cut_to_its_longest_utterance(workload):
    batch = batch_of(workload, "validation", 8)
    rows = workload.splits["validation"]
    inputs, paddings = batch["inputs"]
    assert inputs.shape == (8, rows["frames"][:8].max(), speech.BINS)
    assert (1 - paddings).sum(dim=1).tolist() == rows["frames"][:8].tolist()
    targets, target_paddings = batch["targets"]
    assert targets.shape[1] == rows["letter_counts"][:8].max()
    assert ((targets > 0) == (target_paddings == 0)).all()


def test_spec_augment_is_off_in_evaluation_and_repeats_with_the_key(workload):
    model, _ = workload.init_model_fn([0, 0])
    batch = batch_of(workload)

    def logits(mode, key):
        return workload.model_fn(model, batch, None, mode, key, False)[0][0]

    assert torch.equal(logits(EVAL, [1, 0]), logits(EVAL, [2, 0]))
    assert torch.equal(logits(TRAIN, [1, 0]), logits(TRAIN, [1, 0]))
    assert not torch.equal(logits(TRAIN, [1, 0]), logits(TRAIN, [2, 0]))


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_longer_padding_changes_nothing(workload, mode):
    batch = batch_of(workload)
    valid = batch["inputs"][0].shape[1]
    assert valid < speech.MAX_FRAMES
    outcomes = []
    for frames in (valid, valid + 1, speech.MAX_FRAMES):
        model, _ = workload.init_model_fn([3, 0])
        logits, paddings = workload.model_fn(model, lengthened(batch, frames), None, mode, [5, 0], True)[0]
        loss = workload.loss_fn(batch["targets"], (logits, paddings), batch["weights"])
        outcomes.append((logits[paddings == 0], loss["per_example"], running_statistics(model)))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_padded_examples_change_nothing(workload, mode, monkeypatch):
    """Examples that are all padding, as evaluation fills up its last batch with."""
    monkeypatch.setattr(
        speech_pytorch, "spec_augment", lambda features, paddings: features
    )  # drawn for each example in turn
    rows = {name: column[:6] for name, column in workload.splits["train"].items()}
    rows["weights"] = np.ones(6, np.float32)
    more = {name: np.concatenate([column, np.zeros_like(column[:3])]) for name, column in rows.items()}
    outcomes = []
    for chosen in (rows, more):
        model, _ = workload.init_model_fn([3, 0])
        batch = workload.place(workload.collate(chosen, None))
        logits, paddings = workload.model_fn(model, batch, None, mode, [5, 0], True)[0]
        loss = workload.loss_fn(batch["targets"], (logits, paddings), batch["weights"])
        if mode == TRAIN:
            loss["summed"].backward()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        part = {name: loss[name] for name in ("summed", "n_valid_examples")}
        outcomes.append((logits[paddings == 0], part, running_statistics(model)))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-5)


def test_the_lstms_are_torchs_bidirectional_one():
    torch.manual_seed(0)
    layer = librispeech_deepspeech.BidirectionalLSTM()
    width = librispeech_deepspeech.WIDTH
    packed = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
    ahead, back = layer.ahead.state_dict(), layer.back.state_dict()
    packed.load_state_dict({**ahead, **{f"{name}_reverse": value for name, value in back.items()}})
    lengths = torch.tensor([7, 3, 5])
    paddings = (torch.arange(7) >= lengths[:, None]).float()
    x = torch.randn(3, 7, width)
    normed = nn.utils.rnn.pack_padded_sequence(
        layer.batch_norm(x, paddings), lengths, batch_first=True, enforce_sorted=False
    )
    expected = nn.utils.rnn.pad_packed_sequence(packed(normed)[0], batch_first=True)[0]
    valid = paddings == 0
    torch.testing.assert_close(layer(x, paddings)[valid], expected[valid])


def test_running_statistics_stay_where_asked(workload):
    model, _ = workload.init_model_fn([0, 0])
    batch, before = batch_of(workload), running_statistics(model)
    workload.model_fn(model, batch, None, TRAIN, [0, 0], False)
    workload.model_fn(model, batch, None, EVAL, [0, 0], True)
    after = running_statistics(model)
    assert len(before) == len(after) >= 4
    assert all(torch.equal(before[name], after[name]) for name in before)
    workload.model_fn(model, batch, None, TRAIN, [0, 0], True)
    assert not any(torch.equal(before[name], value) for name, value in running_statistics(model).items())


def test_the_loss_is_that_of_all_alignments(workload):
    """Three outputs, two letters: five ways to write `ab` with blanks and repeats."""
    torch.manual_seed(0)
    logits, letters = torch.randn(1, 3, 4), torch.tensor([[1, 2]])
    probabilities = logits.softmax(dim=-1)[0]
    paths = [(1, 2, 0), (1, 0, 2), (0, 1, 2), (1, 1, 2), (1, 2, 2)]
    total = sum(torch.stack([probabilities[t, s] for t, s in enumerate(path)]).prod() for path in paths)
    longer = torch.cat([logits, torch.randn(1, 2, 4)], dim=1), torch.tensor([[0.0, 0, 0, 1, 1]])
    loss = workload.loss_fn((letters, torch.zeros(1, 2)), longer)
    torch.testing.assert_close(loss["summed"], -total.log())
    assert loss["n_valid_examples"] == 2


def test_the_mask_takes_examples_out_of_the_loss(workload):
    model, _ = workload.init_model_fn([1, 0])
    batch = batch_of(workload, "validation", 8)
    (logits, paddings), _ = workload.model_fn(model, batch, None, EVAL, [0, 0], False)
    weights = torch.tensor([1.0] * 5 + [0.0] * 3)
    spoiled = logits.clone()
    spoiled[5:] = float("inf")
    targets, target_paddings = batch["targets"]
    masked = workload.loss_fn((targets, target_paddings), (spoiled, paddings), weights)
    part = workload.loss_fn((targets[:5], target_paddings[:5]), (logits[:5], paddings[:5]))
    torch.testing.assert_close(masked["summed"], part["summed"])
    assert masked["n_valid_examples"] == part["n_valid_examples"] == (1 - target_paddings[:5]).sum()
    assert masked["per_example"].shape == (8,)


def test_perfect_logits_have_no_errors(workload):
    batch = batch_of(workload, "validation", 24)
    targets, paddings = batch["targets"]
    spread = torch.zeros(24, 2 * targets.shape[1], dtype=torch.long)
    spread[:, 1::2] = targets
    logits, logit_paddings = 30 * nn.functional.one_hot(spread, 28).float(), paddings.repeat_interleave(2, dim=1)
    part = workload.evaluate_batch(None, batch, (logits, logit_paddings))
    result = workload.metrics([part], 24)
    assert result["wer"] == 0
    assert result["ctc_loss"] == pytest.approx(0, abs=1e-4)
    wrong = logits.roll(1, dims=0), logit_paddings.roll(1, dims=0)
    batch["weights"][3:] = 0
    part = workload.evaluate_batch(None, batch, wrong)
    assert part["errors"] > 0
    assert part["words"] == sum((row == 1).sum().item() + 1 for row in targets[:3])


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    results = []
    for size in (24, 7):
        workload._eval_iters.clear()
        results.append(workload._eval_model_on_split("validation", 24, size, model, None, [0, 0], ""))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert set(results[0]) == {"wer", "ctc_loss"}


def test_loss_falls_on_real_batches(workload):
    model, _ = workload.init_model_fn([2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    queue = workload._build_input_queue([0, 0], "train", "", workload.batch_size)
    losses = []
    for step in range(60):
        batch = next(queue)
        logits, _ = workload.model_fn(model, batch, None, TRAIN, [step, 0], True)
        result = workload.loss_fn(batch["targets"], logits, batch["weights"])
        loss = result["summed"] / result["n_valid_examples"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_two_runs_with_one_seed_are_identical(workload, tmp_path):
    space = Path("tuning_search_spaces/miniperf/lawa.json")
    point = json.loads(space.read_text())
    (tmp_path / "space.json").write_text(json.dumps(point))
    tables = []
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        settings = Settings(
            workload_name=next(name for name in NAMES if isinstance(workload, type(workloads.make(name)))),
            submission_path="submissions/pytorch/lawa/submission.py",
            rng_seed=3,
            batch_size=8,
            max_global_steps=10,
            eval_every_n_steps=5,
            continue_after_target=True,
        )
        made = workloads.make(settings.workload_name)
        hyperparameters = search.load(tmp_path / "space.json", 1)[0]
        train_once(made, submission.load(settings.submission_path), hyperparameters, settings, tmp_path / run, {})
        table = pd.read_csv(tmp_path / run / "eval_measurements.csv", dtype=str)
        tables.append(table[[name for name in table if "/" in name or name == "global_step"]])
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert tables[0]["validation/ctc_loss"].nunique() == 3


def test_parameters_have_their_types():
    types = {}
    for name in NAMES:
        made = workloads.make(name)
        made.init_model_fn([0, 0])
        types.update(made.model_params_types)
    kinds = spec.ParameterType
    assert types["lstms.0.ahead.bias_ih_l0"] == types["lstms.1.back.bias_hh_l0"] == kinds.BIAS
    assert types["lstms.0.ahead.weight_ih_l0"] == kinds.WEIGHT
    assert types["blocks.0.convolution.depthwise.weight"] == kinds.CONV_WEIGHT
    assert types["blocks.0.convolution.batch_norm.weight"] == kinds.BATCH_NORM_SCALE
    assert types["blocks.1.attention.qkv.weight"] == kinds.ATTENTION_QKV
