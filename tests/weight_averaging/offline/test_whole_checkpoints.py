"""Checkpoints as wholes: every model in them, what lies beside, and what is an average already."""

import json
import pathlib
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.forms import command, is_mean, state_of
from weight_averaging import cli
from weight_averaging.offline import LAWA, Plan, Snapshots
from weight_averaging.offline.forms import torch_file
from weight_averaging.torch import LAWA as OnlineLAWA

KEYS = st.sampled_from(["generator", "ema_model", "state_dict_ema", "projector", "extra", "a.b", "net"])


def nested(models):
    """Dictionaries with models somewhere in them, and lists and numbers beside."""
    return st.recursive(models, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=4)


@settings(max_examples=25, deadline=None)
@given(nested(st.integers(0, 5)))
def test_no_model_is_lost_wherever_in_a_checkpoint_it_is(shape):
    """Each leaf of `shape` is a state dict of its own; the tree comes out as it went in, averaged."""

    def filled(tree, step, place=1.0):
        if isinstance(tree, dict):
            return {key: filled(inner, step, place * (2 + number)) for number, (key, inner) in enumerate(tree.items())}
        return {"w": torch.full((2,), place * (tree + 1) * step), "n": torch.tensor(step)}

    def contents(step):
        others = {
            "others": filled(shape, step),
            "losses": [0.5],
            "lr": 1e-3,
            "optimizer": {"state": {}, "param_groups": []},
        }
        return {"model": {"w": torch.full((3,), float(step))}, **others}

    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        for step in (1, 2, 6):
            torch.save(contents(step), folder / f"step_{step}.pt")
        cli.main(["average", str(folder), "--lawa=window=3", f"--out={folder / 'out' / 'x.pt'}"])
        found = torch.load(folder / "out" / "x.pt")
    expected = contents(3)
    del expected["optimizer"]
    assert_tree(found, expected, latest=6)


def assert_tree(found, expected, latest):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            if key == "n" and isinstance(expected[key], torch.Tensor):
                assert found[key] == latest
            else:
                assert_tree(found[key], expected[key], latest)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


def test_models_that_not_all_have_and_outputs_of_one_model_say_so(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for step in (1, 2):
        ema = {"ema": state_of(10 + step)} if step == 2 else {}
        torch.save({"model": state_of(step), "critic": state_of(20 + step), **ema}, run / f"step_{step}.pt")
    said = command(capsys, "average", run, "--lawa=window=2", f"--out={tmp_path / 'x.pt'}")
    assert "averaged too, each on its own: critic (" in said
    assert "left out, since not all checkpoints have them alike: ema\n" in said
    contents = torch.load(tmp_path / "x.pt")
    assert contents.keys() == {"model", "critic"}
    is_mean(contents["critic"], [state_of(21), state_of(22)])
    said = command(capsys, "average", run, "--lawa=window=2", f"--out={tmp_path / 'x.safetensors'}")
    assert "left out, since a state dict is of one model: critic (" in said
    is_mean(load_file(tmp_path / "x.safetensors"), [state_of(1), state_of(2)])
    said = command(capsys, "inspect", run)
    assert "other models in them: critic (" in said
    # A model of one's own loads what Python gets.
    snapshots = Snapshots(run)
    (result,) = Plan([(LAWA(window=2), 2)], snapshots.steps).run(snapshots.stream([1, 2]))
    is_mean(result.state, [state_of(1), state_of(2)])


def test_tensors_of_other_models_are_chosen_by_their_key(tmp_path, capsys):
    for step in (1, 2):
        torch.save({"model": state_of(step), "critic": state_of(20 + step)}, tmp_path / f"step_{step}.pt")
    out = tmp_path / "out" / "x.pt"
    command(capsys, "average", tmp_path, "--lawa=window=2", "--exclude=critic:*", f"--out={out}")
    contents = torch.load(out)
    is_mean(contents["model"], [state_of(1), state_of(2)])
    assert torch.equal(contents["critic"]["0.weight"], state_of(22)["0.weight"])


def test_raw_weights_of_an_averager_of_a_model_beside(tmp_path):
    main, critic = torch.nn.Linear(2, 2), torch.nn.Linear(3, 1)
    averager = OnlineLAWA(critic, interval=1, window=2)
    raw = {}
    for step in (1, 2):
        torch.nn.init.constant_(critic.weight, float(step))
        averager.update(step)
        raw[step] = critic.weight.detach().clone()
    with averager.averaged():
        contents = {"model": main.state_dict(), "critic": critic.state_dict(), "of critic": averager.state_dict()}
        torch.save(contents, tmp_path / "step_2.pt")
    snapshots = Snapshots(tmp_path)
    assert torch.equal(snapshots.state(2, ["critic:weight"])["critic:weight"], raw[2])


def test_lightnings_average_is_not_taken_for_the_weights(tmp_path, capsys):
    lightning = pytest.importorskip("lightning")
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 1)

        def training_step(self, batch, index):
            return self.fc(batch[0]).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    raw = {}

    class Saver(lightning.pytorch.callbacks.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            raw[trainer.global_step] = {name: value.clone() for name, value in module.state_dict().items()}
            trainer.save_checkpoint(tmp_path / "run" / f"step={trainer.global_step}.ckpt")

    data = torch.utils.data.TensorDataset(torch.randn(12, 3))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[averaging.EMAWeightAveraging(decay=0.9), Saver()], enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=4))
    out = tmp_path / "x.ckpt"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=3", f"--out={out}")
    assert "averaged are the raw weights (current_model_state), not Lightning's averages of them (state_dict)" in said
    is_mean(Module.load_from_checkpoint(out).state_dict(), [raw[step] for step in (1, 2, 3)])
    assert not {"current_model_state", "averaging_state"} & torch.load(out).keys()


# Folders of Hugging Face


def test_all_that_a_folder_holds_is_averaged_copied_or_told(tmp_path, capsys):
    for step in (2, 4):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        for name in ("1_Pooling", "2_Dense", "global_step2", "scheduler"):
            (folder / name).mkdir(parents=True)
        for name, seed in (("model", 0), ("model_1", 10), ("2_Dense/model", 20)):
            save_file(state_of(seed + step), folder / f"{name}.safetensors")
        torch.save(state_of(30 + step), folder / "projector.bin")
        for name in ("optimizer.pt", "random_states_0.pkl", "rng_state_0.pth", "flax_model.msgpack", "scheduler_1.bin"):
            (folder / name).write_bytes(b"not read")
        torch.save({"not": "a model"}, folder / "hparams.pt")
        (folder / "global_step2" / "mp_rank_00_model_states.pt").write_bytes(b"not read")
        for name in ("1_Pooling/config.json", "scheduler/scheduler_config.json", "modules.json", "tokenizer.json"):
            (folder / name).write_text(json.dumps({"of": step}))
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "1_Pooling/config.json", "2_Dense/model.safetensors", "model.safetensors", "model_1.safetensors",
        "modules.json", "projector.bin", "scheduler/scheduler_config.json", "tokenizer.json",
    ]  # fmt: skip
    for name, seed in (("model", 0), ("model_1", 10), ("2_Dense/model", 20)):
        is_mean(load_file(out / f"{name}.safetensors"), [state_of(seed + 2), state_of(seed + 4)])
    is_mean(torch.load(out / "projector.bin"), [state_of(32), state_of(34)])
    assert json.loads((out / "1_Pooling" / "config.json").read_text()) == {"of": 4}
    assert "flax_model.msgpack (not averaged)" in said
    assert "global_step2 (not part of the model)" in said
    assert "hparams.pt (no weights are found in it)" in said
    assert "optimizer.pt (for training)" in said
    assert f'load: sentence_transformers.SentenceTransformer("{out}")' in said
    save_file({"w": torch.ones(2)}, tmp_path / "run" / "checkpoint-4" / "model_1.safetensors")
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / 'other'}")
    assert "left out, since not all checkpoints have them alike: model_1.safetensors" in said
    assert not (tmp_path / "other" / "model_1.safetensors").exists()


# What is an average already, or no snapshot


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "folder"])
def test_an_average_in_the_folder_is_no_snapshot_of_the_next_run(tmp_path, capsys, suffix):
    for step in (1, 2):
        if suffix == "folder":
            (tmp_path / f"checkpoint-{step}").mkdir()
            save_file(state_of(step), tmp_path / f"checkpoint-{step}" / "model.safetensors")
        elif suffix == "safetensors":
            save_file(state_of(step), tmp_path / f"step_{step}.safetensors")
        else:
            torch.save(state_of(step), tmp_path / f"step_{step}.pt")
    out = tmp_path / ("checkpoint-9" if suffix == "folder" else f"step_9.{suffix}")
    command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    said = command(capsys, "inspect", tmp_path)
    assert f"left out: {out.name} (an average already, lawa window=2)" in said
    assert "checkpoints: 2, steps 1, 2" in said
    # Named, it is what was named.
    assert "checkpoints: 1, step " in command(capsys, "inspect", out)


def test_what_lies_beside_checkpoints_is_left_out(tmp_path, capsys):
    for step in (1, 2):
        torch.save({"model": state_of(step), "iteration": step}, tmp_path / f"params_{step}.pt")
        torch.save({"state": {}, "param_groups": []}, tmp_path / f"optimizer_{step}.pt")
        torch.save({"state": {}, "param_groups": []}, tmp_path / f"adam_{step}.pt")
    torch.save({"model": state_of(2), "iteration": 2}, tmp_path / "params_final.pt")
    (tmp_path / "last.pt").symlink_to("gone.pt")
    (tmp_path / "step_7.pt").symlink_to("step_7.pt")
    said = command(capsys, "inspect", tmp_path)
    assert "checkpoints: 2, steps 1, 2" in said
    for reason in (
        "optimizer_1.pt (for training)", "adam_2.pt (for training)",
        "params_final.pt (of the same step as params_2.pt)", "last.pt (cannot be opened: No such file or directory)",
        "step_7.pt (cannot be opened: Too many levels of symbo",
    ):  # fmt: skip
        assert reason in said


def test_the_error_names_the_one_that_is_unlike_most(tmp_path, capsys):
    for step in (1, 2, 3):
        torch.save({"w": torch.ones(4 if step == 1 else 2)}, tmp_path / f"step_{step}.pt")
    said = command(capsys, "inspect", tmp_path)
    assert said == f"error: {tmp_path}/step_1.pt does not fit {tmp_path}/step_2.pt: w is float32 [4], not float32 [2]\n"
    torch.save({"w": torch.ones(2)}, tmp_path / "step_1.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "model_final.pt")
    assert "model_final.pt: its step is not known, and that of 3 others is" in command(capsys, "inspect", tmp_path)


@pytest.mark.parametrize("kept", [0, 1])
def test_weights_that_are_elsewhere_are_refused(tmp_path, capsys, kept):
    """As ZeRO-3 leaves them; it keeps small ones in place."""
    for step in (1, 2):
        state = {"0.weight": torch.empty(0), "0.bias": torch.ones(3) if kept else torch.empty(0)}
        torch.save({"module": state, "global_steps": step, "ds_version": "0.19"}, tmp_path / f"{step}.pt")
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'x.pt'}")
    assert "1.pt: 0.weight has no elements, as where DeepSpeed's ZeRO-3 has the weights elsewhere" in said


# LoRA


def adapter(folder, a, b, **config):
    folder.mkdir(parents=True)
    names = [f"base_model.model.q_proj.lora_{one}.weight" for one in "AB"]
    save_file(dict(zip(names, (a, b))), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}))


def test_adapters_of_several_runs_are_refused_and_those_of_one_told(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((4, 32), (24, 4)))
    adapter(tmp_path / "one" / "checkpoint-1", a, b)
    adapter(tmp_path / "one" / "checkpoint-2", a + 0.1, b - 0.1)
    adapter(tmp_path / "other", torch.randn(4, 32, generator=generator), torch.randn(24, 4, generator=generator))
    adapter(tmp_path / "scaled", a + 0.1, b - 0.1, lora_alpha=32)
    said = command(capsys, "average", tmp_path / "one", "--lawa=window=2", f"--out={tmp_path / 'x'}")
    update = (b @ a + (b - 0.1) @ (a + 0.1)) / 2
    off = ((b - 0.05) @ (a + 0.05) - update).norm() / update.norm()
    told = float(said.split("so that the update B A is ")[1].split(" %")[0])
    assert told == pytest.approx(100 * off.item(), rel=0.3)
    assert "load: peft.PeftModel.from_pretrained(base_model, " in said
    first = tmp_path / "one" / "checkpoint-1"
    said = command(capsys, "merge", first, tmp_path / "other", f"--out={tmp_path / 'y'}")
    assert "the adapters' A and B would be averaged apart, and the update B A be " in said
    said = command(capsys, "merge", first, tmp_path / "scaled", f"--out={tmp_path / 'y'}")
    assert f"error: {tmp_path / 'scaled'} has lora_alpha 32, and {first} 8: such adapters cannot be averaged" in said
    assert not (tmp_path / "y").exists()


def test_the_command_speaks_of_what_it_did(tmp_path, capsys):
    for name in ("inside", "outside"):
        torch.save(state_of(len(name)), tmp_path / f"{name}.pt")
    files = [tmp_path / "inside.pt", tmp_path / "outside.pt"]
    out = tmp_path / "both.pt"
    said = command(capsys, "merge", *files, f"--out={out}")
    assert f"{out}: mean of 2 models\n" in said
    assert "lawa" not in said
    assert " step" not in said
    assert "LoRA" not in said
    said = command(capsys, "merge", *files, "--weights=inside.pt=.25,outside.pt=.75", f"--out={tmp_path / 'w.pt'}")
    assert "w.pt: weighted mean of 2 models\n" in said
    said = command(capsys, "merge", files[0], f"--out={out}")
    assert said == f"error: {files[0]} is one model, and merging takes two or more: name others\n"
    said = command(capsys, "plan", "--params=7B", "--step-seconds=1")
    assert said.startswith("7e+09 weights in float32, 1 rank;")
    assert torch_file.TorchSource(out).average == "mean of 2 models"
