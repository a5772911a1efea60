"""What other packages do around an average, with those packages themselves: `make test-trainers` installs them."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed.fsdp
from torch import nn

from tests.support import ROOT
from weight_averaging import EMA, LAWA

pytestmark = pytest.mark.trainers


def set_to(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)


def test_lora_that_loralib_merges_in_eval():
    lora = pytest.importorskip("loralib")
    layer = lora.Linear(2, 2, r=1, lora_alpha=1, bias=False)
    layer.weight.requires_grad_(True)
    lawa = LAWA(layer, interval=1, window=2)
    for step in (1, 2):
        set_to(layer, float(step))
        lawa.update(step)
    layer.eval()
    with pytest.raises(RuntimeError, match=r"train\(\)|merged"), lawa.averaged():
        layer(torch.ones(1, 2))
    layer.train()
    with lawa.averaged():  # in training mode nothing is merged: 1.5 x + 1.5 (1.5 x)
        assert layer(torch.ones(1, 2))[0, 0].item() == pytest.approx(2 * 1.5 + 2 * 1.5 * 1.5)
    assert layer.weight[0, 0].item() == 2.0


@pytest.mark.parametrize("frozen", [True, False])
def test_a_base_that_torchao_has_quantised(frozen):
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1, bias=False))
    quantization.quantize_(model[0], quantization.Int8WeightOnlyConfig())
    model[0].requires_grad_(False)
    if not frozen:
        model[0].weight = nn.Parameter(model[0].weight.detach(), requires_grad=True)
        with pytest.raises((ValueError, TypeError), match=r"0\.weight"):
            LAWA(model, interval=1, window=2).update(1)
        return
    lawa = LAWA(model, interval=1, window=2)
    for step in (1, 2):
        set_to(model, float(step))
        lawa.update(step)
    with lawa.averaged():
        assert model[1].weight[0, 0].item() == 1.5


def test_a_schedule_free_optimizer_of_its_authors():
    schedulefree = pytest.importorskip("schedulefree")
    results = []
    for averaged in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.1)
        ema = EMA(model, decay=0.5)
        optimizer.train()
        for step in range(1, 7):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            ema.update(step)
            if averaged and step % 2 == 0:
                optimizer.eval()  # before the average comes in, as docs/trainers.md has it
                with ema.averaged():
                    model(torch.ones(1, 4))
                optimizer.train()
            elif step % 2 == 0:
                optimizer.eval()
                optimizer.train()
        results.append(model.weight.detach().clone())
    assert torch.equal(*results)


def test_an_adapter_of_peft_is_averaged_and_its_base_left():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(r=2, target_modules=["0"]))
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora" not in name}
    lawa = LAWA(model, interval=1, window=2)
    for step in (1, 2):
        set_to(model, float(step))
        lawa.update(step)
    average = lawa.average_state_dict()
    adapters = [name for name in average if "lora" in name]
    assert len(adapters) == 2
    assert all(average[name].eq(1.5).all() for name in adapters)
    assert all(torch.equal(average[name], tensor) for name, tensor in base.items())
    model.merge_adapter()
    with pytest.raises(RuntimeError, match="merge"), lawa.averaged():
        pass
    model.unmerge_adapter()


def test_a_hyperparameter_search_leaves_an_earlier_runs_state_alone(tmp_path):
    pytest.importorskip("optuna")
    from tests.weight_averaging.trainers.growing_transformers import averaging, trainer

    saving = {"save_strategy": "steps", "save_steps": 4}

    def held(folder):
        state = torch.load(folder / "checkpoint-4" / "weight_averaging.pt")
        return [vector.item() for vector in state["tracks"][0]["vectors"]]

    first = trainer(tmp_path, learning_rate=100.0, **saving)
    averaging().attach(first)
    first.train()
    assert held(tmp_path) == [300.0, 400.0]
    searching = trainer(tmp_path, search=True, **saving)
    averaging().attach(searching)
    searching.hyperparameter_search(
        lambda trial: {"seed": trial.suggest_int("seed", 1, 2)}, n_trials=1, backend="optuna"
    )
    assert held(tmp_path) == [300.0, 400.0]
    assert held(tmp_path / "run-0") == [3.0, 4.0]


@pytest.mark.parametrize(
    "checks",
    [(["1", "2"]), (["pieces:3"]), (["hugging_face:1", "hugging_face:2", "hugging_face:3"])],
    ids=["zero_1_and_2", "zero_3", "hugging_face"],
)
def test_deepspeed_is_averaged_from_its_float32_masters(checks):
    """`DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed` brings it onto a machine without a GPU."""
    pytest.importorskip("deepspeed")
    run_on(2, "deepspeed_ranks", *checks)


def run_on(ranks: int, module: str, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "-m", f"tests.processes.{module}", *words],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.count("as expected") == ranks


@pytest.mark.parametrize(
    "checks",
    [
        ["fsdp2:FULL_STATE_DICT", "fsdp2:SHARDED_STATE_DICT"],
        ["hsdp:SHARDED_STATE_DICT"],
        ["zero:1", "zero:2", "zero:3"],
    ],
    ids=["fsdp2", "hsdp", "zero"],
)
def test_the_loop_of_accelerate_with_shards(tmp_path, checks):
    """The averages are those of the weights in float64, and a run from `save_state` goes on bit for bit."""
    pytest.importorskip("accelerate")
    if checks[0].startswith("zero"):
        pytest.importorskip("deepspeed")
    elif not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("FSDP2 does not run on a CPU in this torch")
    run_on(4 if checks[0].startswith("hsdp") else 2, "accelerate_ranks", str(tmp_path), *checks)


def test_tensor_parallel_under_hugging_faces_trainer(tmp_path):
    """Evaluations see the average of what both ranks have; the raw weights are as before."""
    pytest.importorskip("transformers", minversion="5")
    pytest.importorskip("accelerate.parallelism_config")
    run_on(2, "transformers_ranks", str(tmp_path), "tensor")


def test_lightning_runs_fsdp1_and_deepspeed_on_no_cpu(monkeypatch):
    """The reason why `WeightAveraging` refuses both: what cannot be run here cannot be shown to be right."""
    pl = pytest.importorskip("lightning.pytorch")
    demos = pytest.importorskip("lightning.pytorch.demos.boring_classes")
    with pytest.raises(ValueError, match="`fsdp` requires a GPU accelerator"):
        pl.Trainer(strategy="fsdp", accelerator="cpu", logger=False)
    pytest.importorskip("deepspeed")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29999"}.items():
        monkeypatch.setenv(name, value)
    trainer = pl.Trainer(strategy="deepspeed", accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="only supported on CUDA GPUs"):
        trainer.fit(demos.BoringModel())


def test_the_handlers_of_ignite_in_the_docs():
    engines = pytest.importorskip("ignite.engine")
    text = (ROOT / "docs/trainers.md").read_text().partition("## ignite")[2]
    names = {"torch": torch, "nn": nn, "LAWA": LAWA, "model": nn.Linear(1, 1, bias=False)}
    names["trainer"] = engines.Engine(
        lambda engine, batch: names["model"].weight.data.fill_(float(engine.state.iteration))
    )
    names["evaluator"] = engines.Engine(lambda engine, batch: names["model"].weight.item())
    exec(text.partition("```py\n")[2].partition("```")[0], names)
    names["trainer"].run(range(4), max_epochs=2)
    assert names["lawa"].snapshot_steps == [6, 7, 8]
    names["evaluator"].run([0])
    assert names["evaluator"].state.output == 7
    assert names["model"].weight.item() == 8

    def fails(engine, batch):
        raise KeyError("in the evaluation")

    names["evaluator"]._process_function = fails
    with pytest.raises(KeyError, match="in the evaluation"):
        names["evaluator"].run([0])
    assert names["model"].weight.item() == 8


def test_the_callback_of_composer_in_the_docs(tmp_path):
    composer = pytest.importorskip("composer")
    names = {"LAWA": LAWA}
    text = (ROOT / "docs/trainers.md").read_text().partition("## composer")[2]
    exec(text.partition("```py\n")[2].partition("```")[0], names)
    evaluated = []

    class Model(composer.ComposerModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, batch):
            return self.layer(batch[0])

        def loss(self, outputs, batch):
            return nn.functional.mse_loss(outputs, batch[1])

        def eval_forward(self, batch, outputs=None):
            evaluated.append(flat(self))
            if len(evaluated) == fails_at:
                raise KeyError("in the evaluation")
            return self.forward(batch)

    def flat(model):
        return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()])

    class Recorder(composer.Callback):
        def batch_end(self, state, logger):
            snapshots.append(flat(state.model))

    def trained(seed, **options):
        torch.manual_seed(seed)
        model = Model()
        trainer = composer.Trainer(
            model=model,
            train_dataloader=torch.utils.data.DataLoader(data, batch_size=4),
            eval_dataloader=torch.utils.data.DataLoader(data, batch_size=32),
            optimizers=torch.optim.Adam(model.parameters(), lr=0.05),
            max_duration="8ba",
            eval_interval="4ba",
            device="cpu",
            progress_bar=False,
            callbacks=[names["Averaging"](), Recorder()],
            **options,
        )
        trainer.fit()
        return trainer, model

    fails_at, snapshots = 0, []
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    trainer, model = trained(0, save_folder=str(tmp_path), save_interval="4ba")
    assert len(snapshots) == 8
    expected = [torch.stack(snapshots[step - 3 : step]).mean(0) for step in (4, 8)]
    for found, value in zip(evaluated, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)
    assert torch.equal(flat(model), snapshots[-1])
    trainer.eval()
    assert torch.equal(evaluated[2], evaluated[1])
    trainer.close()

    first, seen = list(snapshots), list(evaluated)
    snapshots.clear(), evaluated.clear()
    trainer, again = trained(5, load_path=str(tmp_path / "ep0-ba4-rank0.pt"))
    assert torch.equal(torch.stack(snapshots), torch.stack(first[4:]))
    assert torch.equal(evaluated[-1], seen[1])
    fails_at = len(evaluated) + 1
    with pytest.raises(KeyError, match="in the evaluation"):
        trainer.eval()
    trainer.close()
    assert torch.equal(flat(again), first[-1])
