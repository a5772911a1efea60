"""What holds for every miniature workload, and the data of mini_criteo1tb."""

from typing import Any

import numpy as np
import pytest
import torch

from miniperf import cache, spec, workloads


@pytest.fixture(scope="module", params=sorted(workloads.WORKLOADS))
def workload(request):
    made = workloads.make(request.param)
    made.init_model_fn([0, 0])
    return made


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors in a batch or in logits, however nested."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple | list) else []


def test_the_whole_api_is_there(workload):
    assert workload.step_hint > 1000
    assert workload.num_train_examples >= 500
    assert min(workload.num_validation_examples, workload.num_test_examples) >= 50
    assert isinstance(workload.loss_type, spec.LossType)
    model, _ = workload.init_model_fn([0, 0])
    names = {name for name, _ in model.named_parameters()}
    assert set(workload.param_shapes) == set(workload.model_params_types) == names
    assert sum(map(workload.is_output_params, names)) >= 1
    result = {f"{split}/{workload.target_metric_name}": value for split in ("validation", "test") for value in [0.5]}
    assert isinstance(workload.has_reached_validation_target(result), bool)
    better = 1e9 if workload.higher_is_better else -1e9
    assert workload.has_reached_test_target({f"test/{workload.target_metric_name}": better})
    assert not workload.has_reached_test_target({f"test/{workload.target_metric_name}": -better})


def test_what_has_no_weight_changes_no_loss(workload):
    model, _ = workload.init_model_fn([1, 0])
    batch = next(workload._build_input_queue([0, 0], "validation", "", 64))
    logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.EVAL, [0, 0], False)
    weights = batch["weights"].clone()
    weights[50:] = 0
    clean = workload.loss_fn(batch["targets"], logits, weights)
    whole = workload.loss_fn(batch["targets"], logits, batch["weights"])
    assert clean["n_valid_examples"] < whole["n_valid_examples"]
    spoiled = [logits[0].clone(), *logits[1:]] if isinstance(logits, tuple) else [logits.clone()]
    spoiled[0][50:] = float("inf")
    masked = workload.loss_fn(batch["targets"], tuple(spoiled) if isinstance(logits, tuple) else spoiled[0], weights)
    torch.testing.assert_close(masked["summed"], clean["summed"])
    assert masked["n_valid_examples"] == clean["n_valid_examples"]


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    results = []
    for size in (workload.eval_batch_size, 97):  # the last batch of 97 is padded
        workload._eval_iters.clear()
        count = workload.num_eval_train_examples
        results.append(workload._eval_model_on_split("eval_train", count, size, model, None, [0, 0], ""))
    workload._eval_iters.clear()
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_loss_falls_on_real_batches(workload):
    model, _ = workload.init_model_fn([2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = workload._build_input_queue([0, 0], "train", "", workload.batch_size)
    losses = []
    for step in range(200):
        batch = next(queue)
        logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.TRAIN, [step, 0], True)
        result = workload.loss_fn(batch["targets"], logits, batch["weights"])
        loss = result["summed"] / result["n_valid_examples"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.95 * np.mean(losses[:20])


def test_batches_depend_on_the_key_alone(workload):
    one, two, three = (workload._build_input_queue(key, "train", "", 16) for key in ([5, 6], [5, 6], [5, 7]))
    first, second, third = (leaves(next(queue)) for queue in (one, two, three))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, third, strict=True))


def test_mini_criteo1tb_has_all_flights_that_arrived_and_nothing_known_only_after_departure():
    from miniperf.workloads.criteo1tb import data as criteo1tb

    workload = workloads.make("mini_criteo1tb")
    targets = np.concatenate([split["targets"] for split in workload.splits.values()])
    assert len(targets) == 327_346
    assert targets.mean() == pytest.approx(0.2377, abs=1e-3)
    used = {*criteo1tb.NUMBERS, *criteo1tb.CATEGORIES}
    assert not used & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late"}
    rows = criteo1tb.load_flights()
    for name in criteo1tb.NUMBERS:
        # No single number gives the label away, as a delay would (its correlation is .8).
        assert abs(rows[name].corr(rows["late"])) < 0.3


def test_a_damaged_cache_is_generated_again_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIPERF_CACHE", str(tmp_path))
    calls = []

    def generate() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(1000.0)}

    for _ in range(2):
        np.testing.assert_array_equal(cache.cached("data_1", generate)["x"], np.arange(1000.0))
    assert len(calls) == 1
    path = tmp_path / "data_1.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(cache.cached("data_1", generate)["x"], np.arange(1000.0))
        assert "data_1.npz is damaged" in capsys.readouterr().err
        assert path.read_bytes() == whole
    assert len(calls) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["data_1.npz"]
