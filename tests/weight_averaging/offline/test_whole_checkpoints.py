"""Checkpoints as wholes: every model in them, what lies beside, what is an average already, and what is damaged."""

import json
import multiprocessing
import os
import pathlib
import pickle
import struct
import tempfile
import time
import warnings
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.forms import command, is_mean, state_of
from weight_averaging import cli
from weight_averaging.atomic_file import partial_beside, replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import LAWA, Plan, Snapshots
from weight_averaging.offline.forms import torch_file
from weight_averaging.torch import EMA as OnlineEMA
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


# torch.distributed.checkpoint


@pytest.mark.parametrize("kind", ["flat", "app", "model", "flattened"])
def test_optimizers_in_folders_of_distributed_checkpoint_are_no_model(tmp_path, kind):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    states = {}
    for step in (1, 2):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        model.register_parameter("scaler", torch.nn.Parameter(torch.ones(2)))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        states[step] = model.state_dict()
        moments = {"state": {"0.weight": dict(optimizer.state[model[0].weight])}}
        other = {"w": torch.full((2,), float(step))}
        saved = {
            "flat": {**model.state_dict(), "optimizer": moments, "train_state": {"step": torch.tensor(step)}},
            "app": {"app": {"model": model.state_dict(), "optim": moments}},
            "model": {"model": model.state_dict(), "optimizer": moments, "ema": other, "step": step},
            "flattened": {**model.state_dict(), "optimizer": {"state.0.weight.exp_avg": torch.ones(2)}},
        }[kind]
        dcp.save(saved, checkpoint_id=str(tmp_path / f"step-{step}"))
    snapshots = Snapshots(tmp_path)
    assert snapshots.layout.keys() == states[1].keys()
    for step in (1, 2):
        for name, value in snapshots.state(step).items():
            assert torch.equal(value, states[step][name])
    assert list(snapshots.others) == (["ema:w"] if kind == "model" else [])
    if kind == "model":
        assert snapshots.state(2, ["ema:w"])["ema:w"].tolist() == [2.0, 2.0]


# Damage, other processes, other files


@pytest.mark.parametrize("transposed", [False, True])
def test_a_bit_that_flipped_in_a_zip_is_told(tmp_path, capsys, transposed):
    for step in (1, 2):
        value = torch.randn(700, 300)
        torch.save(
            {"model": {"w": torch.randn(9), "v": value.t() if transposed else value}}, tmp_path / f"step_{step}.pt"
        )
    path, out = tmp_path / "step_2.pt", tmp_path / "x.safetensors"
    whole = path.read_bytes()
    for name, at in (("data/0", 6), ("data/1", 800_000), ("data.pkl", 40)):
        flip(path, name, at)
        said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
        assert "step_2.pt is damaged" in said, name
        assert not out.exists()
        path.write_bytes(whole)
    assert "load: " in command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    flip(path, "data/0", 6)
    snapshots = Snapshots(tmp_path)
    with pytest.raises(SnapshotError, match=r"w is not as its checksum in the file says"):
        list(snapshots.stream([1, 2]))


def flip(path, record, at):
    """Change a bit of a record of a zip."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        start = next(info.header_offset for info in file.infolist() if info.filename.endswith(record))
    name, extra = struct.unpack_from("<HH", data, start + 26)
    data[start + 30 + name + extra + at] ^= 4
    path.write_bytes(data)


def test_files_without_checksums_are_read(tmp_path):
    set_option = getattr(torch.serialization, "set_crc32_options", None)
    if set_option is None:
        pytest.skip("this torch always writes them")
    set_option(False)
    try:
        torch.save({"w": torch.ones(5)}, tmp_path / "step_1.pt")
    finally:
        set_option(True)
    assert next(Snapshots(tmp_path).stream([1]))[1]["w"].tolist() == [1.0] * 5


def write_slowly(path, value, overwrite, results):
    try:
        with replacing(path, overwrite=overwrite) as file:
            for _ in range(20):
                file.write(bytes([value]) * 1000)
                time.sleep(0.005)
        results.put("")
    except OSError as error:
        results.put(error.strerror)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_that_write_one_file_do_not_mix(tmp_path, overwrite):
    path = tmp_path / "x.pt"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=write_slowly, args=(path, value, overwrite, results)) for value in (1, 2, 3)]
    for writer in writers:
        writer.start()
    said = sorted(results.get() for _ in writers)
    for writer in writers:
        writer.join()
    assert len(set(path.read_bytes())) == 1
    assert path.stat().st_size == 20_000
    assert said == (["", "", ""] if overwrite else ["", *["there meanwhile, and not written over"] * 2])
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    path = tmp_path / "x.pt"
    mine = partial_beside(path)
    left = [path.with_name(mine.name.replace(f"~{os.getpid()}~", f"~{process.pid}~"))]
    left.append(left[0].with_name(left[0].name.replace(".partial_x.pt", ".partial_y.pt")))  # of another file
    left.append(left[0].with_name(left[0].name.replace("~", "~another", 1)))  # of another machine
    for one in (mine, *left):
        one.write_bytes(b"half")
    with replacing(path) as file:
        file.write(b"whole")
    assert all(one.exists() for one in (mine, *left))  # it may be of a container with other processes
    for one in (mine, *left):
        os.utime(one, (0, 0))
    with replacing(path) as file:
        file.write(b"whole")
    assert [one.exists() for one in (mine, *left)] == [True, False, True, True]


def test_nothing_is_written_over_unasked(tmp_path, capsys):
    for step in (1, 2):
        torch.save({"model": state_of(step)}, tmp_path / f"step_{step}.pt")
    before = (tmp_path / "step_2.pt").read_bytes()
    (tmp_path / "link.pt").symlink_to("step_2.pt")
    (tmp_path / "dangling.pt").symlink_to("nothing.pt")
    for name in ("step_2.pt", "link.pt", "dangling.pt"):
        out = tmp_path / name
        files = [tmp_path / "step_1.pt", tmp_path / "step_2.pt"]
        for what in (["average", *files, "--lawa=window=2"], ["merge", *files]):
            said = command(capsys, *what, f"--out={out}")
            assert said == f"error: {out} is there already: name another file, or add --overwrite\n"
    assert (tmp_path / "step_2.pt").read_bytes() == before
    command(capsys, "merge", *files, f"--out={tmp_path / 'step_2.pt'}", "--overwrite")
    is_mean(torch.load(tmp_path / "step_2.pt")["model"], [state_of(1), state_of(2)])
    averager = OnlineEMA(model := torch.nn.Linear(2, 2), decay=0.5)
    averager.update(1)
    torch.save({"model": model.state_dict(), "averager": averager.state_dict()}, tmp_path / "c.pt")
    assert "is there already" in command(capsys, "extract", tmp_path / "c.pt", f"--out={tmp_path / 'c.pt'}")
    assert "load: " in command(capsys, "extract", tmp_path / "c.pt", f"--out={tmp_path / 'c.pt'}", "--overwrite")


def test_a_folder_is_replaced_whole_if_asked(tmp_path, capsys):
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(state_of(step), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    (folders[1] / "notes.txt").write_text("kept")
    command(capsys, "merge", *folders, f"--out={folders[0]}", "--overwrite")
    is_mean(load_file(folders[0] / "model.safetensors"), [state_of(1), state_of(2)])
    assert sorted(path.name for path in folders[0].iterdir()) == ["model.safetensors", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("no checkpoint")
    said = command(capsys, "merge", *folders, f"--out={tmp_path / 'mine'}", "--overwrite")
    assert said.endswith("mine is there already: name a new folder\n")


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
    said = command(capsys, "merge", *files, "--weights=inside.pt=.25,outside.pt=.75", f"--out={tmp_path / 'w.pt'}")
    assert "w.pt: weighted mean of 2 models\n" in said
    said = command(capsys, "merge", files[0], f"--out={out}")
    assert said == f"error: {files[0]} is one model, and merging takes two or more: name others\n"
    said = command(capsys, "plan", "--params=7B", "--step-seconds=1")
    assert said.startswith("7e+09 weights in float32, 1 rank;")
    assert torch_file.TorchSource(out).average == "mean of 2 models"


def several(folder) -> None:
    """Three models in each checkpoint, one of them further in; and a folder of torch.distributed.checkpoint of them."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    for step in (1, 2):
        contents = {
            "state": {"model": state_of(step), "ema": state_of(step + 10)},
            "other": {"w": torch.ones(2) * step},
        }
        contents["state"]["optimizers"] = {"state": {}, "param_groups": []}
        torch.save(contents, folder / f"step_{step}.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            del contents["state"]["optimizers"]
            dcp.save(contents, checkpoint_id=folder / f"dcp_{step}")


def test_plans_in_the_metadata_of_megatron(tmp_path, capsys):
    """Its folders are those of torch.distributed.checkpoint, with the plans of all ranks in `.metadata`."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    planner = pytest.importorskip("torch.distributed.checkpoint.planner")
    default = pytest.importorskip("torch.distributed.checkpoint.default_planner")
    for step in (100, 200):
        state = {"decoder.w": torch.full((2,), float(step)), "extra": b"bytes"}
        folder = tmp_path / f"iter_{step:07d}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            dcp.save(state, checkpoint_id=folder)
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        plan = default.create_default_local_save_plan(state, is_coordinator=True)
        assert isinstance(plan.items[0], planner.WriteItem)
        metadata.all_local_plans = [plan]
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    out = tmp_path / "average.pt"
    assert "made of 2 snapshots, steps 100, 200" in command(
        capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}"
    )
    assert torch.load(out)["decoder.w"].tolist() == [150, 150]


def test_the_model_may_be_one_level_down(tmp_path, capsys):
    """As `state.model` of Composer's Trainer is."""
    several(tmp_path)
    files = sorted(tmp_path.glob("*.pt"))
    out = tmp_path / "out.pt"
    said = command(capsys, "average", *files, "--lawa=window=2", f"--out={out}")
    assert f'load: model.load_state_dict(torch.load("{out}")["state"]["model"])' in said
    found = torch.load(out)
    is_mean(found["state"]["model"], [state_of(1), state_of(2)])
    is_mean(found["state"]["ema"], [state_of(11), state_of(12)])
    assert found["other"]["w"].tolist() == [1.5, 1.5]
    assert "optimizers" not in found["state"]


@pytest.mark.parametrize("form", ["step_*.pt", "dcp_*"])
def test_models_by_their_keys(tmp_path, capsys, form):
    several(tmp_path)
    files = sorted(tmp_path.glob(form))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.pt"
    command(capsys, "average", *files, "--lawa=window=2", f"--out={one}", "--key=state.ema")
    is_mean(load_file(one), [state_of(11), state_of(12)])
    apart = ["--exclude=other:w"] if form == "step_*.pt" else []
    said = command(capsys, "merge", *files, f"--out={two}", "--key=state.ema", "--key=other", *apart)
    found = torch.load(two)
    if form == "dcp_*":
        assert "left out, since a state dict is of one model: other (1 tensor)" in said
        is_mean(found, [state_of(11), state_of(12)])
    else:
        assert "not in the average: state.model, state.optimizers" in said
        is_mean(found["state"]["ema"], [state_of(11), state_of(12)])
        assert found["other"]["w"].tolist() == [2, 2]
        assert "model" not in found["state"]
    said = command(capsys, "average", *files, "--lawa=window=2", f"--out={one}.pt", "--key=stat.ema")
    assert "--key=stat.ema" in said
    assert said.count("\n") == 1
    said = command(capsys, "average", one, "--lawa=window=1", f"--out={one}.pt", "--key=ema", "--step-from=order")
    assert said == f"error: {one} is one state dict, and has none at --key=ema\n"


@pytest.mark.parametrize("places", [("model", "ema"), ("app.model", "app.ema"), ("", "")], ids=["model", "app", "flat"])
def test_sharded_folders_come_out_as_such(tmp_path, capsys, places):
    """For torch.distributed.checkpoint.load, in the places that the model had; torchtitan has it at the top."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")

    def tree(*states):
        found: dict = {}
        for place, state in zip(places, states):
            inner = found
            for part in place.split(".") if place else ():
                inner = inner.setdefault(part, {})
            inner.update(state)
        return found

    one = len(set(places)) == 1
    numbers = [(1,), (2,)] if one else [(1, 11), (2, 12)]
    quiet = warnings.catch_warnings()
    with quiet:
        warnings.simplefilter("ignore")  # that there is no process group
        for step, of in enumerate(numbers, start=1):
            optimizer = {"optimizer": {"state": {"w": {"exp_avg": torch.ones(2)}}}, "step": torch.tensor(step)}
            dcp.save(tree(*map(state_of, of)) | optimizer, checkpoint_id=tmp_path / "run" / f"step-{step}")
        out = tmp_path / "run" / "step-3"
        for flags in ([], ["--overwrite"]):
            said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", *flags)
            assert f'load: torch.distributed.checkpoint.load(STATE, checkpoint_id="{out}")' in said
        assert "step-3 is there already" in command(
            capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}"
        )
        states = [{name: torch.zeros_like(value) for name, value in state_of(0).items()} for _ in numbers[0]]
        dcp.load(tree(*states), checkpoint_id=out)
    for number, state in enumerate(states):
        is_mean(state, [state_of(of[number]) for of in numbers])
    assert "left out: step-3 (an average already, lawa window=2" in command(capsys, "inspect", tmp_path / "run")
    assert not list(tmp_path.rglob(".partial*"))
