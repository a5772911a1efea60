"""The paper's language model as a workload: small here, at full size with -m heavy."""

import importlib
import time
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miniperf import workloads
from miniperf.workloads.finewebedu_lm.sizes import PAPER, Sizes
from miniperf.workloads.finewebedu_lm_124m import pytorch
from submissions.recipe.pytorch.gradients import backward, micro_batches
from tests.miniperf.workloads.test_token_batches import write
from weight_averaging.errors import UsageError

SMALL = Sizes(vocabulary=50, context=8, width=16, layers=2, heads=2, hidden=32)
KEY = np.array([0, 1])
POINT = {
    "learning_rate": 0.01, "one_minus_beta1": 0.1, "beta2": 0.95, "epsilon": 1e-12, "warmup_factor": 0.1,
    "grad_clip": 0.1, "weight_decay": 0.1, "averaging_interval": 2, "averaging_window": 2,
}  # fmt: skip


@pytest.fixture
def workload(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(pytorch.FinewebeduLm124mWorkload, "sizes", SMALL)
    monkeypatch.setattr(pytorch.FinewebeduLm124mWorkload, "micro_batch_size", 3)
    monkeypatch.setattr(pytorch.FinewebeduLm124mWorkload, "eval_batch_size", 4)
    return workloads.make("finewebedu_lm_124m")


@pytest.fixture
def folder(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50, 600).tolist()
    return write(tmp_path / "tokens", [ids[:350], ids[350:]])


def gradients(workload, batch: dict, size: int | None) -> tuple[float, list[torch.Tensor]]:
    model, _ = workload.init_model_fn(KEY)
    workload.micro_batch_size = size
    loss, _ = backward(workload, model, batch, None, KEY, 0.1, {})
    return loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 12, 20])
def test_gradients_in_parts_are_those_of_the_whole_batch(workload, masked, size):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (12, 9), generator=generator)
    # How many are valid differs between the parts.
    weights = (torch.rand(12, 8, generator=generator) < torch.linspace(0.2, 1, 12)[:, None]).float() if masked else None
    batch = {"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": weights}
    loss, whole = gradients(workload, batch, None)
    in_parts, parts = gradients(workload, batch, size)
    assert in_parts == pytest.approx(loss, rel=1e-5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("valid", [slice(5, 9), slice(0, 1), slice(11, 12)])
def test_parts_without_a_valid_example_add_nothing(workload, size, valid):
    rows = torch.randint(0, 50, (12, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(12, 8)
    weights[valid] = 1
    batch = {"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": weights}
    loss, whole = gradients(workload, batch, None)
    in_parts, parts = gradients(workload, batch, size)
    assert in_parts == pytest.approx(loss, rel=1e-5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [None, 3])
def test_a_batch_without_a_valid_example_moves_nothing(workload, size):
    rows = torch.randint(0, 50, (12, 9), generator=torch.Generator().manual_seed(0))
    loss, parts = gradients(
        workload, {"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": torch.zeros(12, 8)}, size
    )
    assert loss == 0
    assert not any(part.any() for part in parts)


def test_parts_of_a_batch():
    batch = {"inputs": torch.arange(5), "targets": torch.arange(5), "weights": None}
    assert [part["inputs"].tolist() for part in micro_batches(batch, 2)] == [[0, 1], [2, 3], [4]]
    assert next(micro_batches(batch, 2))["weights"] is None
    assert list(micro_batches(batch, None)) == [batch]


def test_the_parts_of_a_batch_have_keys_of_their_own(workload, monkeypatch):
    keys = []
    model_fn = workload.model_fn
    monkeypatch.setattr(
        workload, "model_fn", lambda *args, **options: keys.append(list(args[4])) or model_fn(*args, **options)
    )
    rows = torch.randint(0, 50, (12, 9))
    gradients(workload, {"inputs": rows[:, :-1], "targets": rows[:, 1:]}, 4)
    assert keys == [[0, 1], [1, 1], [2, 1]]


def test_it_trains_and_evaluates(workload, folder):
    """Every AlgoPerf property of it is used; the evaluation's loss is the mean over the tokens of all chunks."""
    queue = workload._build_input_queue(KEY, "train", str(folder), 12)
    assert workload.num_train_examples == workload.num_validation_examples == 600 // 9
    model, model_state = workload.init_model_fn(KEY)
    submission = importlib.import_module("submissions.pytorch.adamw_lawa.submission")
    hyperparameters = namedtuple("Hyperparameters", POINT)(**POINT)
    state = submission.init_optimizer_state(workload, model, model_state, hyperparameters, KEY)
    common = {
        "workload": workload, "current_params_types": workload.model_params_types, "hyperparameters": hyperparameters,
        "loss_type": workload.loss_type, "eval_results": [],
    }  # fmt: skip
    results = []
    for step in range(6):
        batch = submission.data_selection(workload, queue, state, model, model_state, hyperparameters, step, KEY)
        assert batch["inputs"].shape == batch["targets"].shape == (12, 8)
        state, model, model_state = submission.update_params(
            **common, current_param_container=model, model_state=model_state, batch=batch, optimizer_state=state,
            global_step=step, rng=KEY,
        )  # fmt: skip
        state, model, model_state = submission.prepare_for_eval(
            **common, current_param_container=model, model_state=model_state, optimizer_state=state, global_step=step,
            rng=KEY,
        )  # fmt: skip
        results.append(workload.eval_model(4, model, model_state, KEY, str(folder), None, step))
    ids = workload._tokens["validation"].read(0, 600 // 9 * 9).astype(np.int64).reshape(-1, 9)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[:, :-1]))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten()).item()
    assert results[-1]["validation/loss"] == pytest.approx(expected, rel=1e-5)
    assert results[-1]["validation/ppl"] == pytest.approx(np.exp(expected), rel=1e-5)
    assert results[-1]["validation/num_examples"] == 66
    # As AlgoPerf's finewebedu_lm has it of a split that is not there.
    assert (results[-1]["test/loss"], results[-1]["test/ppl"], results[-1]["test/num_examples"]) == (0.0, 1.0, 0)
    assert workload.has_reached_test_target(results[-1])
    assert not workload.has_reached_validation_target(results[-1])
    assert workload.has_reached_validation_target({"validation/loss": 3.28})


def test_a_queue_that_skips_is_where_one_that_drew_is(workload, folder):
    drawn = workload._build_input_queue(KEY, "train", str(folder), 12)
    for _ in range(13):  # two epochs
        next(drawn)
    skipped = workload._build_input_queue(KEY, "train", str(folder), 12)
    skipped.skip(13)
    assert torch.equal(next(drawn)["inputs"], next(skipped)["inputs"])


@pytest.mark.parametrize(
    ("batch", "ranks", "micro_batch", "fits"),
    [
        (512, 1, 16, True), (512, 8, 16, True), (512, 8, 64, True), (512, 8, 128, True), (512, 3, 16, False),
        (512, 8, 48, False), (12, 1, 16, True),
    ],
)  # fmt: skip
def test_a_batch_must_divide(batch, ranks, micro_batch, fits):
    if fits:
        pytorch.check_division(batch, ranks, micro_batch)
    else:
        with pytest.raises(UsageError, match=f"the batch of {batch} sequences does not divide by {ranks} ranks"):
            pytorch.check_division(batch, ranks, micro_batch)


def test_bad_data_is_refused_before_training(workload, folder, monkeypatch):
    with pytest.raises(UsageError, match="--data_dir must be given: a folder made by"):
        workload._build_input_queue(KEY, "train", "", 12)
    shard = folder / "validation_000001.bin"
    content = shard.read_bytes()
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(UsageError, match=r"validation_000001.bin: its checksum is not the index's"):
        workload._build_input_queue(KEY, "train", str(folder), 12)
    shard.write_bytes(content)
    longer = Sizes(vocabulary=50, context=600, width=16, layers=2, heads=2, hidden=32)
    monkeypatch.setattr(pytorch.FinewebeduLm124mWorkload, "sizes", longer)
    with pytest.raises(UsageError, match="has no chunk of 601 tokens"):
        workload._build_input_queue(KEY, "train", str(folder), 12)


def test_it_is_known_by_name_and_is_no_miniature():
    assert "finewebedu_lm_124m" not in workloads.WORKLOADS
    with pytest.raises(UsageError, match="mini_wmt, finewebedu_lm_124m"):
        workloads.make("finewebedu_lm")


@pytest.mark.heavy
def test_a_step_at_full_size(tmp_path):
    """123,551,232 parameters, two sequences of 1024 tokens, one at a time."""
    ids = np.random.default_rng(0).integers(0, 50, 5000).tolist()
    workload = workloads.make("finewebedu_lm_124m")
    workload.micro_batch_size = 1
    assert workload.sizes == PAPER
    queue = workload._build_input_queue(KEY, "train", str(write(tmp_path, [ids])), 2)
    model, _ = workload.init_model_fn(KEY)
    assert sum(np.prod(shape.shape_tuple) for shape in workload.param_shapes.values()) == 123_551_232
    submission = importlib.import_module("submissions.pytorch.adamw_ema.submission")
    point = {**POINT, "averaging_interval": 1, "averaging_decay": 0.9}
    del point["averaging_window"]
    hyperparameters = SimpleNamespace(**point, _asdict=lambda: point)
    state = submission.init_optimizer_state(workload, model, None, hyperparameters, KEY)
    losses = []
    for step in range(3):
        start = time.perf_counter()
        batch = next(queue)
        submission.update_params(workload, model, {}, None, hyperparameters, batch, None, state, [], step, KEY)
        losses.append(workload.loss_fn(batch["targets"], model(batch["inputs"]))["summed"].item() / 2048)
        print(f"update {step + 1}: {time.perf_counter() - start:.1f} s, loss after it {losses[-1]:.4f}")
    assert 9 < losses[0] < 11.5  # about ln 50257 = 10.8
