"""The noise scale of gradients whose noise is known, and of a real workload's."""

import pytest
import torch

from miniperf import random_utils, workloads
from miniperf.noise_scale import simple_noise_scale, workload_gradients


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_a_known_noise_scale_is_found_whatever_the_batch(batch_size, noise):
    """Examples' gradients are mean + noise x normal: tr(Sigma) / |G|^2 = noise^2 x weights / |mean|^2."""
    weights, batches = 2000, 200
    generator = torch.Generator().manual_seed(batch_size)
    mean = torch.ones(weights)
    gradients = (mean + noise * batch_size**-0.5 * torch.randn(weights, generator=generator) for _ in range(batches))
    assert simple_noise_scale(gradients, batch_size) == pytest.approx(noise**2, rel=0.05)


def test_gradients_of_nothing_but_noise_have_none_to_find():
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(50, generator=generator) for _ in range(2)]
    gradients.append(-sum(gradients))  # their mean is zero
    assert simple_noise_scale(gradients, 4) == float("inf")


def test_one_gradient_is_refused():
    with pytest.raises(ValueError, match="two gradients or more, not 1"):
        simple_noise_scale([torch.ones(3)], 8)


def test_a_workloads_gradients_are_those_of_its_mean_loss():
    """Of the same examples together or in two batches: the mean gradient is the same."""
    workload = workloads.make("mini_finewebedu_lm")
    model, _ = workload.init_model_fn(random_utils.key_from_seed(0))
    queue = workload._build_input_queue(random_utils.key_from_seed(1), "train", "", 8)
    whole = next(queue)
    halves = [{name: values[part] for name, values in whole.items()} for part in (slice(4), slice(4, 8))]
    (expected,) = workload_gradients(workload, model, [whole], 0.0)
    parts = list(workload_gradients(workload, model, halves, 0.0))
    torch.testing.assert_close(sum(parts) / 2, expected)
    assert 1 < simple_noise_scale(parts, 4) < float("inf")
