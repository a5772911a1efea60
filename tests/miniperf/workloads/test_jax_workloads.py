"""The miniatures in JAX against their twins in PyTorch, from the twins' weights and on the same batches."""

import copy
import re
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flax")

import jax

from miniperf import random_utils, spec, submission, workloads
from miniperf.frameworks import load
from miniperf.frameworks.jax import FRAMEWORK as JAX
from miniperf.workloads.librispeech_deepspeech import jax as deepspeech
from miniperf.workloads.speech import data as speech
from miniperf.workloads.speech import jax as speech_jax
from miniperf.workloads.speech import pytorch as speech_pytorch
from submissions.recipe.optimizers import matrices
from weight_averaging.errors import UsageError

NAMES = ["mini_criteo1tb", "mini_finewebedu_lm", "mini_imagenet_vit", "mini_librispeech_deepspeech"]
TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
UPDATES = 20
POINT = {
    "learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.001,
    "dropout_rate": 0.0, "label_smoothing": 0.1,
}  # fmt: skip


AUGMENT = (speech_pytorch.spec_augment, speech_jax.spec_augment)


@pytest.fixture(autouse=True, scope="module")
def small_and_without_augmentation(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "SPLIT_SIZES", {"train": 64, "validation": 24, "test": 24})
        patch.setenv("MINIPERF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(speech_pytorch, "spec_augment", lambda features, paddings: features)
        patch.setattr(speech_jax, "spec_augment", lambda key, features, paddings: features)
        torch.set_num_threads(1)
        yield


def name_in_pytorch(path: tuple[Any, ...]) -> str:
    *modules, leaf = (str(part.key) for part in path if part.key not in ("params", "batch_stats"))
    numbered = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    recurrent = "_l0" if leaf.startswith(("weight_", "bias_")) else ""
    renamed = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean"}
    return ".".join([*numbered, {**renamed, "var": "running_var"}.get(leaf, leaf) + recurrent])


def from_pytorch(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree with the values that the twin in PyTorch has; every one of its tensors is in it once."""
    used = []

    def value(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = name_in_pytorch(path)
        used.append(name)
        array = tensors[name].detach().numpy()
        if path[-1].key == "kernel" or path[-1].key.startswith("weight_"):
            array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        assert array.shape == leaf.shape, name
        return jax.numpy.array(array)

    moved = jax.tree_util.tree_map_with_path(value, tree)
    assert sorted(used) == sorted(name for name in tensors if "num_batches" not in name)
    return moved


class Twins:
    """A workload in both frameworks, from the same weights."""

    def __init__(self, name: str) -> None:
        self.torch, self.jax = (workloads.make(name, framework) for framework in ("pytorch", "jax"))
        key = random_utils.key_from_seed(1)
        self.model, _ = self.torch.init_model_fn(key)
        self.fresh = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        with torch.no_grad():  # a head of zeros would hide all that is below it
            generator = torch.Generator().manual_seed(0)
            for parameter in self.model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        self.fresh_params, state = self.jax.init_model_fn(JAX.key(key))
        self._tree = {"params": self.fresh_params, **(state or {})}

    def in_jax(self) -> tuple[Any, Any]:
        """Parameters and model state with the values of the model in PyTorch: new arrays, for an update takes them."""
        tree = from_pytorch(self._tree, dict(self.model.state_dict()))
        return tree.pop("params"), tree or None

    def batches(self, split: str, size: int) -> Any:
        return zip(*(w._build_input_queue([3, 4], split, "", size) for w in (self.torch, self.jax)))


@pytest.fixture(params=NAMES, scope="module")
def twins(request):
    return Twins(request.param)


def parts(logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and whether they count: speech has paddings beside them."""
    if isinstance(logits, tuple):
        values, paddings = map(np.asarray, logits)
        return values, np.broadcast_to((paddings < 0.5)[:, :, None], values.shape)
    return np.asarray(logits), np.ones(logits.shape, bool)


def test_logits_losses_and_metrics_are_those_of_pytorch(twins):
    mine, theirs = next(twins.batches("validation", 24))
    params, state = twins.in_jax()
    model_fn = jax.jit(twins.jax.model_fn, static_argnums=(3, 5))
    for mode in (EVAL, TRAIN):
        with torch.no_grad():
            expected, _ = twins.torch.model_fn(twins.model, mine, None, mode, [0, 0], False)
        found, _ = model_fn(params, theirs, state, mode, JAX.key([0, 0]), False)
        (a, there), (b, also) = parts(expected), parts(found)
        b, also = b[:, : a.shape[1]] if b.ndim == 3 else b, also[:, : a.shape[1]] if b.ndim == 3 else also
        np.testing.assert_array_equal(there, also)
        np.testing.assert_allclose(b[there], a[there], atol=1e-5, rtol=1e-5)
    one = twins.torch.evaluate_batch(twins.model, mine, expected)
    other = twins.jax.evaluate_batch(params, theirs, found)
    assert other == pytest.approx(one, rel=1e-5)


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def append_scalar_metrics(self, metrics: dict[str, float], global_step: int) -> None:
        self.values.append(metrics["loss"])


def test_twenty_updates_of_nadamw_have_the_losses_of_pytorch(twins):
    hyperparameters = namedtuple("Hyperparameters", POINT)(**POINT)
    modules = [submission.load(f"submissions/{f}/nadamw/submission.py", f) for f in ("pytorch", "jax")]
    sides = []
    for workload, module, model, state in (
        (twins.torch, modules[0], copy.deepcopy(twins.model), None), (twins.jax, modules[1], *twins.in_jax())
    ):  # fmt: skip
        workload.attach_metrics_logger(Losses())
        optimizer = module.init_optimizer_state(workload, model, state, hyperparameters, JAX.key([0, 0]))
        sides.append([workload, module, model, state, optimizer])
    for step, batches in zip(range(UPDATES), twins.batches("train", twins.torch.batch_size)):
        for side, batch in zip(sides, batches):
            workload, module, model, state, optimizer = side
            key = [step, 0] if workload is twins.torch else JAX.key([step, 0])
            side[4], side[2], side[3] = module.update_params(
                workload, model, workload.model_params_types, state, hyperparameters, batch, workload.loss_type,
                optimizer, [], step, key,
            )  # fmt: skip
    mine, theirs = (side[0].metrics_logger.values for side in sides)
    assert len(mine) == UPDATES
    # Speech: when the initial weights are changed by a ten-millionth, PyTorch's own losses differ by 7e-4 after that.
    tolerance = 1e-3 if isinstance(twins.torch, speech.SpeechData) else 1e-4
    np.testing.assert_allclose(theirs, mine, rtol=tolerance, atol=tolerance)
    assert abs(mine[-1] - mine[0]) > 1e-2  # what is compared has moved
    if sides[1][3] is not None:  # so have batch-norm statistics
        tensors = sides[0][2].state_dict()
        for path, leaf in jax.tree_util.tree_leaves_with_path(sides[1][3]):
            np.testing.assert_allclose(leaf, tensors[name_in_pytorch(path)], rtol=2e-3, atol=2e-3)


def test_both_have_the_same_facts_and_parameters(twins):
    for fact in ("step_hint", "batch_size", "target_metric_name", "validation_target_value", "test_target_value"):
        assert getattr(twins.jax, fact) == getattr(twins.torch, fact)
    types = {
        name_in_pytorch(path): kind for path, kind in jax.tree_util.tree_leaves_with_path(twins.jax.model_params_types)
    }
    assert types == twins.torch.model_params_types
    outputs = {name.split(".")[0] for name in types if twins.torch.is_output_params(name)}
    assert {name for name in twins.jax.model_params_types if twins.jax.is_output_params(name)} == outputs


def test_weight_decay_of_matrices_alone_is_for_the_same_parameters(twins):
    found = {
        name_in_pytorch(path): matrices(path[-1].key, leaf.ndim)
        for path, leaf in jax.tree_util.tree_leaves_with_path(twins.fresh_params)
    }
    assert found == {name: matrices(name.rpartition(".")[2], p.ndim) for name, p in twins.model.named_parameters()}
    assert set(found.values()) == {True, False}


def test_a_fresh_model_begins_as_that_of_pytorch(twins):
    """Of equal spread, tensor by tensor."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(twins.fresh_params):
        expected, found = twins.fresh[name_in_pytorch(path)].numpy(), np.asarray(leaf)
        if expected.size >= 500:
            assert found.std() == pytest.approx(expected.std(), rel=0.1)
        bounded = abs(expected).max() <= 2 * expected.std() or expected.std() == 0  # a normal's tails have no end
        if expected.size >= 40 and bounded:
            assert abs(found).max() == pytest.approx(abs(expected).max(), rel=0.2, abs=1e-6)


def test_spec_augment_masks_as_much_as_in_pytorch():
    features, paddings = np.ones((400, 80, speech.BINS), np.float32), np.zeros((400, 80), np.float32)
    paddings[:, 60:] = 1
    torch.manual_seed(0)
    mine = AUGMENT[0](torch.from_numpy(features), torch.from_numpy(paddings)).numpy()
    theirs = np.asarray(AUGMENT[1](JAX.key([1, 2]), features, paddings))
    assert theirs.mean() == pytest.approx(mine.mean(), abs=0.01)
    assert not (theirs[:, 60:] < mine[:, 60:].min()).any()


def test_reversing_is_its_own_inverse_and_leaves_padding():
    x = np.arange(24.0).reshape(2, 4, 3)
    paddings = np.array([[0, 0, 0, 1], [0, 0, 1, 1]])
    reversed_ = np.asarray(deepspeech.reverse(x, paddings))
    np.testing.assert_array_equal(reversed_[0], x[0][[2, 1, 0, 3]])
    np.testing.assert_array_equal(deepspeech.reverse(reversed_, paddings), x)


def test_a_workload_without_a_form_in_jax_is_one_line():
    with pytest.raises(UsageError, match=r"--workload=mini_wmt has no form in jax; these have: mini_criteo1tb, mini_"):
        workloads.make("mini_wmt", "jax")


@pytest.mark.parametrize(("framework", "other"), [("jax", "pytorch"), ("pytorch", "jax")])
def test_a_submission_in_the_other_framework_is_one_line(framework, other):
    load(framework)
    with pytest.raises(UsageError, match=rf"it is a submission in {other}; run it with --framework={other}") as error:
        submission.load(f"submissions/{other}/lawa/submission.py", framework)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mini_finewebedu_lm"])
def test_a_traced_dropout_rate_is_the_same_as_a_number(name, rate):
    """Published submissions hand their rate through a jit that they wrap around `model_fn`."""
    workload = workloads.make(name, "jax")
    params, state = workload.init_model_fn(JAX.key(random_utils.key_from_seed(0)))
    batch = next(workload._build_input_queue(random_utils.key_from_seed(1), "train", "", 4))
    key = JAX.key(random_utils.key_from_seed(2))

    def loss(params, rate):
        logits, _ = workload.model_fn(params, batch, state, TRAIN, key, True, rate)
        return workload.loss_fn(batch["targets"], logits, batch["weights"])["summed"]

    static = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, rate)
    traced = jax.jit(jax.value_and_grad(loss))(params, rate)
    for one, other in zip(jax.tree.leaves(static), jax.tree.leaves(traced), strict=True):
        # Of each tensor's size: gradients near zero are differences of large sums, rounded otherwise.
        assert np.linalg.norm(np.subtract(one, other)) <= 1e-5 * np.linalg.norm(other)
