"""Averages around bases of many kinds: several steps a call or none, several batches, an average of their own."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniperf import spec
from tests.submissions.test_averaged import averaged, module
from tests.support.submission_runs import Run
from weight_averaging import averages

POINT = {"learning_rate": 0.01}
LEARNED = slice(10, 16)  # of `weights()`, behind scales, biases and statistics of batch norm


def stepping(counts, own_average=None, on_a_copy=False):
    """A base that takes `counts[call]` steps in a call, each on a batch of its own from an iterator.

    Args:
        own_average: "queue" leaves the mean of its latest three weights after each call, and trains on from the latest.
            "schedule-free" leaves such a mean, and takes its gradients between it and the latest.
        on_a_copy: whether weights are put back as new tensors, not into those that were there.
    """
    base = module()
    step, queue = base.update_params, []

    def put(model, values):
        for parameter, value in zip(model.parameters(), values, strict=True):
            if on_a_copy:
                parameter.data = value.clone()
            else:
                parameter.data.copy_(value)

    def copies(model):
        return [parameter.detach().clone() for parameter in model.parameters()]

    def update_params(batch, **rest):
        model, call = rest["current_param_container"], rest["global_step"]
        if own_average and queue:
            share = 1.0 if own_average == "queue" else 0.9
            put(model, [left.lerp(latest, share) for left, latest in zip(copies(model), queue[-1], strict=True)])
        result = rest["optimizer_state"], model, rest["model_state"]
        for _ in range(counts[call % len(counts)]):
            result = step(batch=next(batch), **rest)
        if own_average:
            queue[:] = [*queue[-2:], copies(model)]
            put(model, [torch.stack(values).mean(0) for values in zip(*queue, strict=True)])
        return result

    base.update_params = update_params
    base.data_selection = lambda workload, queue, *rest: queue
    return base


class Calls(Run):
    """A run that hands an iterator over batches to every call."""

    def update(self, count=1):
        for _ in range(count):
            draw = np.random.RandomState(self.step)
            batches = (
                {
                    "inputs": torch.from_numpy(draw.randn(8, 5).astype(np.float32)),
                    "targets": torch.from_numpy(draw.randn(8).astype(np.float32)),
                }
                for _ in range(10)
            )
            chosen = self.submission.data_selection(
                self.workload, batches, self.state, self.params, self.model_state, self.hyperparameters, self.step, None
            )
            self.state, self.params, self.model_state = self.submission.update_params(batch=chosen, **self.common())
            self.step += 1
        return self


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    evaluated=st.lists(st.booleans(), min_size=1, max_size=12),
    interval=st.integers(1, 3),
    window=st.integers(1, 4),
)
def test_whatever_a_call_does_raw_weights_are_as_without_and_the_mean_is_over_calls(
    counts, evaluated, interval, window
):
    alone = Calls(stepping(counts), "pytorch", POINT)
    run = Calls(averaged(stepping(counts), averages.LAWA(interval=interval, window=window)), "pytorch", POINT)
    after = []
    for call, here in enumerate(evaluated, 1):
        after.append(alone.update().weights())
        assert (run.update().weights() == after[-1]).all(), call
        if here:
            due = after[interval - 1 :: interval][-window:]
            expected = np.mean(due, axis=0) if len(due) == window else after[-1]
            run.prepare()
            np.testing.assert_allclose(run.weights()[LEARNED], expected[LEARNED], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("on_a_copy", [False, True])
@pytest.mark.parametrize("own", ["queue", "schedule-free"])
@pytest.mark.parametrize("evaluations", [0, 1])
def test_a_base_that_leaves_an_average_of_its_own_is_refused_or_averaged_on_purpose(own, on_a_copy, evaluations):
    """As schedule-free optimizers and the published lawa_queue do: between updates the model holds their average."""
    lawa = averages.LAWA(interval=1, window=2)

    def run_plainly():
        run = Calls(averaged(stepping([2], own, on_a_copy), lawa), "pytorch", POINT)
        for _ in range(4):
            run.update()
            if evaluations:
                run.prepare()

    with pytest.raises(ValueError, match=r"made begins updates at other weights than it leaves.* on_top=True .*--on_"):
        run_plainly()
    alone = Calls(stepping([2], own, on_a_copy), "pytorch", POINT)
    run = Calls(averaged(stepping([2], own, on_a_copy), lawa, on_top=True), "pytorch", POINT)
    after = []
    for _ in range(9):
        after.append(alone.update().weights())
        assert (run.update().weights() == after[-1]).all()
        run.prepare()
    np.testing.assert_allclose(run.weights()[LEARNED], np.mean(after[-2:], axis=0)[LEARNED], rtol=1e-6)


def test_one_that_begins_to_average_late_is_refused_after_the_next_evaluation():
    late = stepping([1])
    early, counts = late.update_params, []

    def update_params(**given):
        counts.append(None)
        if len(counts) > 21:
            with torch.no_grad():
                given["current_param_container"][1].weight.add_(1.0)
        return early(**given)

    late.update_params = update_params
    run = Calls(averaged(late, averages.LAWA(interval=1, window=2)), "pytorch", POINT).update(24).prepare()
    with pytest.raises(ValueError, match="begins updates at other weights than it leaves"):
        run.update()
    assert "model_fn" not in vars(run.workload)


def test_a_second_pass_elsewhere_is_no_average():
    """As in sharpness-aware minimisation: the first gradient is taken where the last update ended."""
    base = module()
    step = base.update_params

    def update_params(**given):
        weight = given["current_param_container"][1].weight
        before = weight.detach().clone()
        given["workload"].model_fn(given["current_param_container"], given["batch"], None, spec.ForwardPassMode.TRAIN,
                                   given["rng"], True)  # fmt: skip
        weight.data.add_(0.1)
        result = step(**given)
        weight.data.sub_(0.1 + 0.0 * before)
        return result

    base.update_params = update_params
    Run(averaged(base, averages.LAWA(interval=1, window=2)), "pytorch", POINT).update(5).prepare().update(4)


def test_what_is_averaged_on_top_is_said(caplog):
    around = averaged(module(), averages.LAWA(interval=1, window=2), on_top=True)
    with caplog.at_level("INFO", logger="absl"):
        Run(around, "pytorch", POINT)
    assert "averaged are the weights that made leaves after its updates, on top of its own" in caplog.text


def test_the_device_is_not_waited_for_in_most_updates(monkeypatch):
    looks = []
    around = importlib.import_module("submissions.averaged.pytorch").Around
    fingerprint = around.fingerprint
    monkeypatch.setattr(around, "fingerprint", lambda self, params: looks.append(1) or fingerprint(self, params))
    run = Run(averaged(module(), averages.LAWA(interval=1, window=2)), "pytorch", POINT).update(16)
    before = len(looks)
    run.update(10)
    assert len(looks) == before
    run.prepare().update(3)
    assert len(looks) == before + 2  # at the first update after the evaluation
