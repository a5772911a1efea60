"""Batch-norm statistics that a PyTorch submission recomputes for its average (`averaging_buffers="recompute"`)."""

import torch

from tests.submissions.test_base_optimizers import AVERAGES, Run, Workload


def model_fn(self, model, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.0):
    """As AlgoPerf's workloads do: statistics are moved only where that is asked for."""
    momentum, model[1].momentum = model[1].momentum, model[1].momentum if update_batch_norm else 0.0
    try:
        return model(batch["inputs"]), None
    finally:
        model[1].momentum = momentum


def test_an_evaluation_sees_statistics_that_the_latest_batches_have_under_the_average(monkeypatch):
    monkeypatch.setattr(Workload, "model_fn", model_fn)
    settings = {**AVERAGES["lawa"], "averaging_buffers": "recompute"}
    evaluated, plain = Run("lawa", **settings), Run("lawa", **settings)
    raw = plain.update(12).model[1].running_mean.clone()
    norm = evaluated.update(12).prepare().model[1]
    with torch.no_grad():  # of the first layer's outputs under the average, over the latest ten batches
        outputs = [evaluated.model[0](batch["inputs"]) for batch in evaluated.state["recent_batches"].batches]
    assert len(outputs) == 10
    mean, weight = torch.zeros(5), 0.0
    for output in outputs:
        mean, weight = 0.9 * mean + 0.1 * output.mean(0), 0.9 * weight + 0.1
    torch.testing.assert_close(norm.running_mean, mean / weight, rtol=1e-5, atol=1e-6)
    assert not torch.equal(norm.running_mean, raw)
    for run in (evaluated, plain):  # and training goes on with the raw ones
        run.update()
    assert torch.equal(evaluated.model[1].running_mean, plain.model[1].running_mean)
