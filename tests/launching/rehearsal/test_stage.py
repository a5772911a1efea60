"""The stage around a submission: what it notes of the calls of the runner."""

import importlib
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from launching.rehearsal import sizes
from launching.rehearsal.record import RESTORED, TRAINED
from tests.launching.rehearsal.records import AVERAGES, KILLED_AFTER, UPDATES, failed, promise

POINT = {
    "learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02,
}  # fmt: skip


class Linear:
    """A workload in PyTorch with what a submission and the stage ask of it."""

    step_hint, loss_type, model_params_types, metrics_logger = 300, None, None, None
    num_test_examples = property(lambda self: 4)

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.0):
        return params(batch["inputs"]), None

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        each = (logits_batch[:, 0] - label_batch) ** 2
        return {"summed": each.sum(), "n_valid_examples": torch.tensor(float(len(each))), "per_example": each}

    def eval_model(self, batch_size, params, model_state, rng, data_dir, imagenet_v2_data_dir, global_step):
        return {"validation/loss": 0.0}


def on_stage(folder, framework, base, module, hyperparameters, params, batch, model_state=None):
    """Rehearse a submission as the runner calls it, and return the record."""
    from launching.rehearsal.stage import Rehearsal, Stage

    folder.mkdir()
    size = sizes.settings("mnist", 1, True, False)
    rehearsal = Rehearsal(Stage(framework=framework, record=str(folder), part=1, on_cpu=True, size=size))
    rehearsal.submission(module)
    workload = rehearsal.workload_class(base)()
    assert (workload.step_hint, workload.num_test_examples, module.get_batch_size("x")) == (300, 10_000, 16)
    assert workload.max_allowed_runtime_sec == 10**6  # updates end a rehearsal, and no clock
    assert 0 < workload.eval_period_time_sec < 1e-3  # a base may count the updates in it
    rehearsal.record.event("started")
    state = module.init_optimizer_state(workload, params, model_state, hyperparameters, None)
    for step in range(UPDATES):
        if step == KILLED_AFTER:
            rehearsal.record.part = 2
        common = {
            "workload": workload, "current_param_container": params, "current_params_types": None,
            "model_state": model_state, "hyperparameters": hyperparameters, "loss_type": None,
            "optimizer_state": state, "eval_results": [], "rng": batch["rng"],
        }  # fmt: skip
        chosen = module.data_selection(workload, iter([batch["batch"]]), state, params, model_state, None, step, None)
        state, params, model_state = module.update_params(batch=chosen, **common, global_step=step)
        common |= {"current_param_container": params, "model_state": model_state, "optimizer_state": state}
        state, params, model_state = module.prepare_for_eval(**common, global_step=step + 1)
        workload.eval_model(4, params, model_state, None, "", "", step + 1)
        rehearsal.note("saved", seconds=0.0)
        if step + 1 == KILLED_AFTER:
            rehearsal.keep(RESTORED, params)
    rehearsal.note("ended")
    return rehearsal.record


def functions_of(framework, name, **changes):
    """A submission's module, or one with some functions replaced."""
    module = importlib.import_module(f"submissions.{framework}.{name}.submission")
    names = ("recipe", "init_optimizer_state", "update_params", "prepare_for_eval", "data_selection", "get_batch_size")
    return SimpleNamespace(**{key: getattr(module, key) for key in names} | changes)


def point(name):
    values = POINT | AVERAGES[name][0]
    return namedtuple("H", values)(**values)


def in_pytorch(folder, name, module=None):
    torch.manual_seed(0)
    batch = {"inputs": torch.randn(8, 5), "targets": torch.randn(8)}
    given = {"batch": batch, "rng": [0, 1]}
    module = module or functions_of("pytorch", name)
    return on_stage(folder, "pytorch", Linear, module, point(name), torch.nn.Linear(5, 1), given)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_submission_in_pytorch_passes_on_stage(name, tmp_path):
    record = in_pytorch(tmp_path / "record", name)
    assert failed(record) == {}
    (begun,) = [event for event in record.events() if event["event"] == "initialised"]
    assert begun["promise"] == promise(AVERAGES[name][1])
    assert len(record.weights(TRAINED)) == UPDATES


@pytest.mark.parametrize("name", AVERAGES)
def test_a_submission_in_jax_passes_on_stage(name, tmp_path):
    jax = pytest.importorskip("jax")
    from tests.support.jax_runs import Regression

    class OfJax(Regression):
        step_hint, num_test_examples, eval_model = 300, Linear.num_test_examples, Linear.eval_model

    params, model_state = OfJax().init_model_fn(jax.random.PRNGKey(0))
    rng = np.random.RandomState(0)
    batch = {"inputs": rng.randn(8, 5).astype(np.float32), "targets": rng.randn(8).astype(np.float32)}
    given = {"batch": batch, "rng": jax.random.PRNGKey(1)}
    module = functions_of("jax", name)
    record = on_stage(tmp_path / "record", "jax", OfJax, module, point(name), params, given, model_state)
    assert failed(record) == {}
    assert len(record.weights(TRAINED)) == UPDATES


@pytest.mark.parametrize("on_cpu", [True, False])
def test_translations_are_short_on_a_cpu_alone(on_cpu, tmp_path):
    from launching.rehearsal.stage import Rehearsal, Stage

    class Translation(Linear):
        def translate_and_calculate_bleu(self, params, ds_iter, num_batches, max_predict_length):
            return max_predict_length

    size = sizes.settings("wmt", 1, on_cpu, False)
    rehearsal = Rehearsal(Stage(framework="pytorch", record=str(tmp_path), part=1, on_cpu=on_cpu, size=size))
    given = {"params": None, "ds_iter": None, "num_batches": 1, "max_predict_length": 256}
    made = rehearsal.workload_class(Translation)().translate_and_calculate_bleu(**given)
    assert made == (16 if on_cpu else 256)


@pytest.mark.parametrize(("full", "halvings", "batch"), [(True, 0, 512), (True, 2, 128), (False, 0, 16)])
def test_the_batch_is_small_or_a_half_of_the_official_one(full, halvings, batch, tmp_path):
    from launching.rehearsal.stage import Rehearsal, Stage

    size = sizes.settings("ogbg", 1, True, full, halvings)
    rehearsal = Rehearsal(Stage(framework="pytorch", record=str(tmp_path), part=1, on_cpu=True, size=size))
    module = functions_of("pytorch", "lawa")
    rehearsal.submission(module)
    assert module.get_batch_size("ogbg") == batch
    assert rehearsal.record.batch() == {"batch": batch, "official_batch": 512}


@pytest.mark.parametrize("part", [1, 2])
def test_a_run_waits_for_its_kill_after_a_whole_checkpoint(part, tmp_path, monkeypatch):
    from launching.rehearsal.stage import HELD_SECONDS, Rehearsal, Stage

    size = sizes.settings("mnist", 1, True, False)
    rehearsal = Rehearsal(Stage(framework="pytorch", record=str(tmp_path), part=part, on_cpu=True, size=size))
    model, saved, slept = torch.nn.Linear(2, 2), [], []
    utils = SimpleNamespace(
        save_checkpoint=lambda step: saved.append(step),
        maybe_restore_checkpoint=lambda step: (None, model, None, None, [], step, 0),
    )
    monkeypatch.setattr("launching.rehearsal.stage.time.sleep", slept.append)
    rehearsal.checkpoints(utils)
    utils.maybe_restore_checkpoint(0)
    assert rehearsal.record.weights(RESTORED) == {}
    for rehearsal.step in (KILLED_AFTER - 1, KILLED_AFTER, KILLED_AFTER + 1):
        utils.save_checkpoint(rehearsal.step)
    assert saved == [event["step"] for event in rehearsal.record.events()] == [3, 4, 5]
    assert slept == ([HELD_SECONDS] if part == 1 else [])
    utils.maybe_restore_checkpoint(KILLED_AFTER)
    (kept,) = rehearsal.record.weights(RESTORED).values()
    np.testing.assert_array_equal(kept, torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())


def test_a_submission_that_trains_on_from_the_average_is_seen_on_stage(tmp_path):
    right = functions_of("pytorch", "lawa")

    def forgets(**kwargs):
        """As if the average in the model were the raw weights."""
        averager = kwargs["optimizer_state"]["averager"]
        model = kwargs["current_param_container"]
        kept = [p.detach().clone() for p in model.parameters()]
        averager.swap_out()
        with torch.no_grad():
            for p, value in zip(model.parameters(), kept):
                p.copy_(value)
        return right.update_params(**kwargs)

    record = in_pytorch(tmp_path / "record", "lawa", functions_of("pytorch", "lawa", update_params=forgets))
    assert "raw weights back" in failed(record)


def test_a_submission_that_evaluates_the_raw_weights_is_seen_on_stage(tmp_path):
    def forgets(**kwargs):
        return kwargs["optimizer_state"], kwargs["current_param_container"], kwargs["model_state"]

    record = in_pytorch(tmp_path / "record", "lawa", functions_of("pytorch", "lawa", prepare_for_eval=forgets))
    assert list(failed(record)) == ["average"]
