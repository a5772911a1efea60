"""docs/migrating.md: their line beside ours, on the same weights, by their own code where it is installed."""

import re

import numpy as np
import pytest
import torch
from torch.optim import swa_utils

from tests.support import ROOT
from weight_averaging import EMA, LAWA, Averager

DECAY, UPDATES = 0.9, 40
STREAM = np.cumsum(np.random.default_rng(0).normal(size=(UPDATES + 1, 3)), axis=0).astype(np.float32)


def small() -> torch.nn.Module:
    model = torch.nn.Linear(3, 1, bias=False)
    put(model, 0)
    return model


def put(model: torch.nn.Module, step: int) -> None:
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(STREAM[step])[None])


def ours(make, at_start: bool = False) -> np.ndarray:
    """The average of our line; `at_start`: with the initial weights as the first snapshot."""
    model = small()
    averager = make(model)
    for step in range(0 if at_start else 1, UPDATES + 1):
        put(model, step)
        averager.update(step)
    with averager.averaged():
        return model.weight.detach().numpy()[0].copy()


def theirs(average: torch.nn.Module, update, model: torch.nn.Module, first: int = 1) -> np.ndarray:
    for step in range(first, UPDATES + 1):
        put(model, step)
        update()
    return next(average.parameters()).detach().numpy().reshape(-1)


def test_torch_ema():
    model = small()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(DECAY))
    expected = theirs(average, lambda: average.update_parameters(model), model)
    np.testing.assert_allclose(ours(lambda m: EMA(m, decay=DECAY)), expected, rtol=1e-6)


def test_torch_swa():
    model = small()
    average = swa_utils.AveragedModel(model)
    expected = theirs(average, lambda: average.update_parameters(model), model)
    np.testing.assert_allclose(ours(lambda m: LAWA(m, interval=1, window=UPDATES)), expected, rtol=1e-5)


def test_ema_pytorch():
    theirs_ = pytest.importorskip("ema_pytorch")
    model = small()
    average = theirs_.EMA(model, beta=DECAY, update_after_step=0, update_every=1)
    expected = theirs(average.ema_model, average.update, model)
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "migrating.md").read_text(), re.M | re.S)
    names: dict = {}
    exec(block, names)
    ramp = names["Inverse"](interval=1, beta=DECAY)
    np.testing.assert_allclose(ours(lambda m: Averager(m, ramp)), expected, rtol=1e-5)


def test_timm():
    try:
        import timm.utils as theirs_
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch of another build
        pytest.skip(f"no timm: {error}")
    model = small()
    average = theirs_.ModelEmaV3(model, decay=DECAY)
    expected = theirs(average.module, lambda: average.update(model), model)
    np.testing.assert_allclose(ours(lambda m: EMA(m, decay=DECAY, start=0), at_start=True), expected, rtol=1e-5)


def test_diffusers():
    theirs_ = pytest.importorskip("diffusers.training_utils")
    model = small()
    average = theirs_.EMAModel(model.parameters(), decay=DECAY)
    for step in range(1, UPDATES + 1):
        put(model, step)
        average.step(model.parameters())
    expected = average.shadow_params[0].numpy()[0]
    np.testing.assert_allclose(ours(lambda m: EMA(m, decay=DECAY, warmup=True)), expected, rtol=1e-5)


def test_nnx_and_optax():
    nnx = pytest.importorskip("flax.nnx")
    optax = pytest.importorskip("optax")
    import jax.numpy as jnp

    param = nnx.Param(jnp.asarray(STREAM[0]))
    tracked = nnx.Dict(weight=param)
    if not hasattr(nnx, "EMA"):
        pytest.skip("this flax has no nnx.EMA")
    average = nnx.EMA(tracked, decay=DECAY)
    ema = optax.ema(DECAY, debias=True)
    state = ema.init(jnp.asarray(STREAM[0]))
    for step in range(1, UPDATES + 1):
        param[...] = jnp.asarray(STREAM[step])
        average.update(tracked)
        debiased, state = ema.update(jnp.asarray(STREAM[step]), state)
    expected = np.asarray(average.params["weight"][...])
    np.testing.assert_allclose(ours(lambda m: EMA(m, decay=DECAY, start=0), at_start=True), expected, rtol=1e-5)
    # optax debiases: the weight that our first snapshot has is spread over all.
    mine = ours(lambda m: EMA(m, decay=DECAY))
    first = DECAY**UPDATES * (STREAM[1] - np.asarray(debiased))
    np.testing.assert_allclose(mine - first, np.asarray(debiased), rtol=1e-4)


def test_lightning(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    from weight_averaging.trainers.lightning import WeightAveraging

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small()

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    def fitted(callback):
        module = Module()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(max_epochs=2, callbacks=[callback], enable_checkpointing=False, accelerator="cpu", **quiet)
        trainer.fit(module, torch.utils.data.DataLoader(torch.from_numpy(STREAM), batch_size=4))
        return module

    theirs_ = fitted(callbacks.EMAWeightAveraging(decay=DECAY)).net.weight.detach()
    callback = WeightAveraging(lambda module: EMA(module, decay=DECAY))
    fitted(callback)
    torch.testing.assert_close(callback.averager.average_state_dict()["net.weight"], theirs_)
