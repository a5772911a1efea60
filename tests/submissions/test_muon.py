"""Muon for matrices and NadamW for all else, in both frameworks; and growing averages over other optimizers."""

import importlib
import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from analysis.comparisons import comparison
from scripts import average_checkpoints
from submissions.recipe import jax as in_jax
from submissions.recipe import pytorch as in_pytorch
from submissions.recipe.offline import average_of
from submissions.recipe.pytorch.muon import MuonBase
from tests.submissions.test_base_optimizers import Run as TorchRun
from tests.submissions.test_base_optimizers import matrix_and_gradients, needs_them, trained
from tests.support import reference
from tests.support.jax_runs import POINT as JAX_POINT
from tests.support.small_models import flat
from tests.support.submission_runs import Run
from weight_averaging import averages

needs_torchs = pytest.mark.skipif(in_pytorch.muon.missing() is not None, reason="torch has no Muon")
needs_optaxs = pytest.mark.skipif(in_jax.muon.missing() is not None, reason="optax has no Muon, or an early one")
FRAMEWORKS = [pytest.param("pytorch", marks=needs_torchs), pytest.param("jax", marks=needs_optaxs)]
POINT = SimpleNamespace(learning_rate=1e-2, one_minus_beta1=0.1, beta2=0.95, weight_decay=0.5, momentum=0.9)
AVERAGES = {
    "lawa": {"averaging_interval": 2, "averaging_window": 3},
    "ema_growing": {"averaging_interval": 2, "averaging_share": 0.4},
}


@needs_torchs
@pytest.mark.parametrize("seed", range(3))
def test_torchs_follows_its_equations(seed):
    module, theta, gradients = matrix_and_gradients(seed)
    optimizer = in_pytorch.muon.build(module, POINT, step_hint=10)
    expected = reference.muon(theta, gradients, 1e-2, 0.9, 0.5, corrected=False)
    found = trained(optimizer, module, gradients)
    moved = np.linalg.norm(expected - theta)
    assert np.linalg.norm(found - expected) < 0.02 * moved  # it computes in bfloat16


@needs_optaxs
@pytest.mark.parametrize("seed", range(3))
def test_optaxs_follows_its_equations(seed):
    _, theta, gradients = matrix_and_gradients(seed)
    optimizer = in_jax.muon.build(POINT, step_hint=10)
    params = {"kernel": jnp.asarray(theta)}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda update: -1e-2 * update, updates))
    expected = reference.muon(theta, gradients, 1e-2, 0.9, 0.5, corrected=True)
    np.testing.assert_allclose(params["kernel"], expected, rtol=2e-4, atol=2e-5)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.embedding_chunk_0 = nn.Embedding(6, 4), nn.Parameter(torch.ones(6, 4))
        self.convolution, self.norm, self.hidden = nn.Conv1d(4, 4, 3), nn.LayerNorm(4), nn.Linear(4, 4)


@needs_torchs
def test_matrices_that_are_no_embeddings_have_muon_and_all_else_nadamw_bit_for_bit():
    torch.manual_seed(0)
    model, other = Mixed(), Mixed()
    other.load_state_dict(model.state_dict())
    optimizer = in_pytorch.muon.build(model, POINT, 100)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 7]
    nadamw = in_pytorch.nadamw.build(other, POINT, 100)
    for step in range(3):
        for one, its in ((model, optimizer), (other, nadamw)):
            generator = torch.Generator().manual_seed(step)
            for parameter in one.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            its.step()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, other.state_dict()[name])}
    assert set(model.state_dict()) - same == {"hidden.weight"}


@needs_optaxs
def test_so_it_is_in_jax():
    params = {
        "shared_embedding": jnp.ones((6, 4)), "Conv": {"kernel": jnp.ones((3, 4, 4))},
        "Dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    }  # fmt: skip
    gradients = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    both = [one.build(POINT, 100) for one in (in_jax.muon, in_jax.nadamw)]
    first, second = (one.update(gradients, one.init(params), params)[0] for one in both)
    differing = [
        jax.tree_util.keystr(path)
        for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True)
        if not (one == other).all()
    ]
    assert differing == ["['Dense']['kernel']"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("average", AVERAGES)
def test_averaging_leaves_training_as_it_is_and_evaluations_see_the_average(framework, average):
    plain, averaged = (
        Run(importlib.import_module(f"submissions.{framework}.{name}.submission"), framework, {**JAX_POINT, **settings})
        for name, settings in (("muon", {}), (f"muon_{average}", AVERAGES[average]))
    )
    taken = []
    for step in range(1, 13):
        raw = plain.update().weights()
        assert (averaged.update().weights() == raw).all()
        if step % 2 == 0:
            taken.append(raw)
        if step in (3, 8, 12):
            averaged.prepare()
            if average == "lawa":
                expected = raw if len(taken) < 3 else np.mean(taken[-3:], axis=0)
            else:
                expected = averages.Growing(share=0.4).coefficients(len(taken)) @ np.array(taken)
            counters = np.isclose(raw, step)  # of batch norm in PyTorch
            np.testing.assert_allclose(averaged.weights()[~counters], expected[~counters], rtol=1e-5, atol=1e-6)


@needs_torchs
@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize(("name", "settings"), [("muon", {}), ("muon_ema_growing", AVERAGES["ema_growing"])])
def test_a_resumed_run_goes_on_bit_for_bit(name, settings, evaluated):
    whole = TorchRun(name, **settings).update(7)
    if evaluated:
        whole.prepare()
    other = TorchRun(name, **settings).resumed(whole)
    for run in (whole, other):
        run.update(6)
    assert (flat(whole.model) == flat(other.model)).all()
    assert whole.state["optimizer"].param_groups[0]["lr"] == other.state["optimizer"].param_groups[0]["lr"]
    assert (flat(whole.prepare().model) == flat(other.prepare().model)).all()


@pytest.mark.parametrize("base", ["adamw", pytest.param("soap", marks=needs_them)])
def test_a_growing_average_over_other_optimizers(base):
    own = {"precondition_frequency": 3} if base == "soap" else {}
    plain, averaged = TorchRun(base, **own), TorchRun(f"{base}_ema_growing", **own, **AVERAGES["ema_growing"])
    taken = []
    for step in range(1, 11):
        raw = flat(plain.update().model)
        assert (flat(averaged.update().model) == raw).all()
        if step % 2 == 0:
            taken.append(raw)
    expected = averages.Growing(share=0.4).coefficients(len(taken)) @ np.array(taken)
    np.testing.assert_allclose(flat(averaged.prepare().model), expected, rtol=1e-5, atol=1e-6)


NAMES = ["muon", "muon_lawa", "muon_ema_growing", "adamw_ema_growing", "soap_ema_growing", "ema_follows_rate"]
NAMES += ["nadamw_inverse_sqrt", "ema_growing_inverse_sqrt"]


@needs_torchs
@needs_optaxs
@needs_them
@pytest.mark.parametrize("name", NAMES)
def test_every_search_space_suits_its_submission(name):
    for framework in ("pytorch", "jax")[: 1 if name.startswith("soap") else 2]:
        check = importlib.import_module(f"submissions.{framework}.{name}.submission").check_hyperparameters
        for folder in ("tuning_search_spaces", "tuning_search_spaces/miniperf"):
            for point in json.loads(Path(folder, f"{name}.json").read_text()):
                check(namedtuple("H", point)(**point), 10_000)


@pytest.mark.parametrize("name", ["muon_lawa", "muon_ema_growing", "adamw_ema_growing", "soap_ema_growing"])
def test_an_average_can_be_made_of_a_runs_snapshots_instead(name):
    (point, *_) = json.loads(Path("tuning_search_spaces", f"{name}.json").read_text())
    average = average_of(name, SimpleNamespace(**point), 2000)
    assert isinstance(average, averages.LAWA if name.endswith("lawa") else averages.Growing)
    assert comparison._AVERAGED[name] == name.partition("_")[0]
    assert name in average_checkpoints.SUBMISSIONS


def test_a_release_without_it_is_named_in_one_line():
    said = MuonBase(in_pytorch.muon.settings, kind=None).missing()
    assert said == f"muon is torch.optim.Muon, which torch {torch.__version__} has not got: pip install 'torch>=2.9'"


@needs_torchs
def test_its_momentum_is_checked():
    check = importlib.import_module("submissions.pytorch.muon.submission").check_hyperparameters
    point = {**vars(POINT), "warmup_factor": 0.1, "momentum": 1.0}
    with pytest.raises(ValueError, match="momentum must be a number in"):
        check(namedtuple("H", point)(**point), 100)
