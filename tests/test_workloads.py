"""What holds for every miniature workload, and the data of each."""

import numpy as np
import pytest
import torch

from miniperf import spec, workloads


@pytest.fixture(scope="module", params=["mini_imagenet_vit", "mini_criteo1tb"])
def workload(request):
    made = workloads.make(request.param)
    made.init_model_fn([0, 0])
    return made


def test_splits_are_disjoint_and_of_real_size(workload):
    sizes = [workload.num_train_examples, workload.num_validation_examples, workload.num_test_examples]
    assert min(sizes) >= 500
    if type(workload).__name__ == "MiniCriteo1TbWorkload":
        assert sum(sizes) == 327_346  # flights that arrived
        late = torch.cat([split["targets"] for split in workload.splits.values()]).mean().item()
        assert late == pytest.approx(0.2377, abs=1e-3)


def test_a_padded_example_changes_nothing(workload):
    model, _ = workload.init_model_fn([1, 0])
    batch = next(workload._build_input_queue([0, 0], "validation", "", 64))
    logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.EVAL, [0, 0], False)
    weights = torch.ones(64)
    weights[50:] = 0
    spoiled = logits.clone()
    spoiled[50:] = float("inf")
    part = workload.loss_fn(batch["targets"][:50], logits[:50])
    masked = workload.loss_fn(batch["targets"], spoiled, weights)
    torch.testing.assert_close(masked["summed"], part["summed"])
    assert masked["n_valid_examples"] == 50 == part["n_valid_examples"]


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    results = []
    for size in (512, 999):
        workload._eval_iters.clear()
        count = workload.num_validation_examples
        results.append(workload._eval_model_on_split("validation", count, size, model, None, [0, 0], ""))
    workload._eval_iters.clear()
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-5)


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
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_batches_depend_on_the_key_alone(workload):
    one, two, three = (workload._build_input_queue(key, "train", "", 32) for key in ([5, 6], [5, 6], [5, 7]))
    first, second, third = next(one), next(two), next(three)
    assert torch.equal(first["inputs"], second["inputs"])
    assert not torch.equal(first["inputs"], third["inputs"])


def test_nothing_known_only_after_departure_is_an_input():
    from miniperf.workloads import criteo1tb

    used = {*criteo1tb.NUMBERS, *criteo1tb.CATEGORIES}
    assert not used & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late"}
    rows = criteo1tb.load_flights()
    for name in criteo1tb.NUMBERS:
        # No single number gives the label away, as a delay would (its correlation is .8).
        assert abs(rows[name].corr(rows["late"])) < 0.3
