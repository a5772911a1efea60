"""Checkpoints as trainers write them, averaged, and loaded back by what wrote them.

Lightning and transformers write their own files here. timm, fairseq and ESPnet are not installed: the files have the
keys and names that their savers give (timm/utils/checkpoint_saver.py, fairseq/checkpoint_utils.py and
espnet2/train/trainer.py in their repositories).
"""

import argparse
import json
import os
import warnings

import pytest
import torch
from torch import nn

from tests.small_models import model_of, randomise
from weight_averaging import cli
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import Snapshots
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.order import place


def state_of(seed: int) -> dict[str, torch.Tensor]:
    model = model_of()
    randomise(model, seed)
    return model.state_dict()


def mean_of(states, name: str) -> torch.Tensor:
    return torch.stack([state[name].double() for state in states]).mean(0).float()


def command(capsys, *arguments) -> str:
    """What the command says: on stderr if it fails."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit:
        return capsys.readouterr().err
    return capsys.readouterr().out


def is_mean(state, states) -> None:
    assert state.keys() == states[-1].keys()
    for name, value in state.items():
        expected = mean_of(states, name) if value.is_floating_point() else states[-1][name]
        torch.testing.assert_close(value, expected.to(value.dtype))


# Lightning


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory):
    """A module, and checkpoints of a run of it with a link to the last and hyperparameters of a class."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, args: argparse.Namespace, width: int = 5) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

        def training_step(self, batch, index):
            return self.net(batch[0]).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.1)

    folder = tmp_path_factory.mktemp("lightning")
    data = torch.utils.data.TensorDataset(torch.randn(16, 3))
    saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, save_last="link")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(argparse.Namespace(a=1)), torch.utils.data.DataLoader(data, batch_size=4))
    return Module, folder


def test_lightning(lightning_run, tmp_path, capsys):
    module, folder = lightning_run
    out = tmp_path / "average.ckpt"
    said = command(capsys, "average", folder, "--lawa=window=2", f"--out={out}")
    assert "is refused: unpickling it would call argparse.Namespace" in said
    assert "if you trust that class: --allow-class=argparse.Namespace" in said
    said = command(capsys, "average", folder, "--lawa=window=2", f"--out={out}", "--allow-class", "argparse.Namespace")
    assert "left out: last.ckpt ('last' in its name)" in said
    assert "made of 2 snapshots, steps 8, 12" in said
    assert f'load: YourModule.load_from_checkpoint("{out}")' in said
    states = [
        torch.load(folder / f"epoch={epoch}-step={4 * epoch + 4}.ckpt", weights_only=False)["state_dict"]
        for epoch in (1, 2)
    ]
    loaded = module.load_from_checkpoint(out, weights_only=False)
    assert loaded.hparams.args.a == 1
    is_mean(loaded.state_dict(), states)
    contents = torch.load(out, weights_only=False)
    assert "optimizer_states" not in contents
    assert "callbacks" not in contents
    assert contents["global_step"] == 12


# Hugging Face


@pytest.fixture(scope="module")
def trainer_run(tmp_path_factory):
    """The output folder of a Trainer: checkpoint-STEP folders with a tokenizer in them, and the last model beside."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, **{f"w{number}": number for number in range(1, 30)}}
    made = Tokenizer(models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    data = [{"input_ids": torch.arange(4) + i, "labels": torch.arange(4) + i} for i in range(8)]
    folder = tmp_path_factory.mktemp("trainer")
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=6, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = transformers.Trainer(
            language_model(transformers),
            arguments,
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=transformers.default_data_collator,
        )
        trainer.train()
        trainer.save_model()
    return folder


def language_model(transformers):
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=30, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def loaded(folder) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_a_folder_of_a_hugging_face_trainer(trainer_run, tmp_path, capsys):
    from transformers import AutoTokenizer

    out = tmp_path / "average"
    said = command(capsys, "average", trainer_run, "--lawa=window=3", f"--out={out}")
    assert "left out: model.safetensors (not a checkpoint-STEP)" in said
    assert "made of 3 snapshots, steps 2, 4, 6" in said
    assert f'load: transformers.LlamaForCausalLM.from_pretrained("{out}")' in said
    is_mean(loaded(out), [loaded(trainer_run / f"checkpoint-{step}") for step in (2, 4, 6)])
    assert AutoTokenizer.from_pretrained(out)("w3 w5")["input_ids"] == [3, 5]
    there = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= there
    assert not there & {"optimizer.pt", "trainer_state.json", "scheduler.pt", "rng_state.pth", "training_args.bin"}
    said = command(capsys, "average", trainer_run, "--lawa=window=3", f"--out={out}")
    assert said.endswith(f"error: {out} is there already: name a new folder\n")
    said = command(capsys, "average", trainer_run, "--lawa=window=1:2", f"--out={tmp_path / 'several'}")
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == [
        "lawa_window1_step_6", "lawa_window2_step_6"
    ]  # fmt: skip
    with pytest.raises(SnapshotError, match="is one Hugging Face checkpoint: name the folder that has several"):
        Snapshots(trainer_run / "checkpoint-2")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_stay_parts(kind, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    model = language_model(transformers)
    for step in (10, 20, 30):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}", max_shard_size="2KB")
    if kind == "bin":  # which this release of transformers reads and does not write
        for folder in (tmp_path / "run").iterdir():
            in_parts_of_torch(folder)
    for float32 in (False, True):
        out = tmp_path / f"average_{float32}"
        command(
            capsys, "average", tmp_path / "run", "--lawa=window=3", f"--out={out}", *(["--float32"] if float32 else [])
        )
        state = loaded(out)
        assert {value.dtype for value in state.values()} == {torch.float32 if float32 else torch.bfloat16}
        states = [loaded(tmp_path / "run" / f"checkpoint-{step}") for step in (10, 20, 30)]
        is_mean(state, states)
        assert {path.name for path in out.iterdir()} == {
            path.name for path in (tmp_path / "run" / "checkpoint-10").iterdir()
        }
        index = json.loads(next(out.glob("*.index.json")).read_text())
        # Tied weights are in the files once.
        elements = sum(value.numel() for name, value in state.items() if name != "lm_head.weight")
        assert index["metadata"]["total_size"] == elements * (4 if float32 else 2)
    part = next(iter(json.loads(next(out.glob("*.index.json")).read_text())["weight_map"].values()))
    (tmp_path / "run" / "checkpoint-20" / part).unlink()
    said = command(capsys, "inspect", tmp_path / "run")
    assert f"checkpoint-20: {part}, which " in said
    assert said.endswith("names, is not there\n")


def in_parts_of_torch(folder) -> None:
    """Parts of safetensors as `pytorch_model-*.bin` with an index, as earlier releases of transformers wrote them."""
    from safetensors.torch import load_file

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in sorted(folder.glob("model-*.safetensors")):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    names = {name: f"pytorch_{file.removesuffix('.safetensors')}.bin" for name, file in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({**index, "weight_map": names}))
    (folder / "model.safetensors.index.json").unlink()


# timm, fairseq, ESPnet


def test_timm_counts_epochs_from_0(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    args = argparse.Namespace(model="resnet18")
    for epoch in range(3):
        contents = {
            "epoch": epoch, "arch": "resnet18", "state_dict": state_of(epoch), "version": 2, "args": args,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "state_dict_ema": state_of(9),
        }  # fmt: skip
        torch.save(contents, run / f"checkpoint-{epoch}.pth.tar")
    for name in ("last.pth.tar", "model_best.pth.tar"):
        os.link(run / "checkpoint-2.pth.tar", run / name)
    out = tmp_path / "average.pth.tar"
    said = command(capsys, "average", run, "--lawa=window=2", f"--out={out}", "--allow-class=argparse.Namespace")
    assert "left out: last.pth.tar ('last' in its name), model_best.pth.tar ('best' in its name)" in said
    assert "3 snapshots, epochs 1 to 3" in said
    assert "made of 2 snapshots, epochs 2, 3" in said
    assert f'load: timm.create_model("resnet18", checkpoint_path="{out}")' in said
    contents = torch.load(out, weights_only=False)
    is_mean(contents["state_dict"], [state_of(1), state_of(2)])
    assert contents["args"] == args
    assert not {"optimizer", "state_dict_ema"} & {key for key, value in contents.items() if value}


def test_fairseq_has_updates_within_and_epochs_in_names(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name, updates in (("checkpoint1.pt", 150), ("checkpoint_2_200.pt", 200), ("checkpoint2.pt", 300)):
        contents = {
            "args": None, "cfg": {"task": {"_name": "translation"}}, "model": state_of(updates),
            "optimizer_history": [{"criterion_name": "c", "lr_scheduler_state": {"best": 1.0}, "num_updates": updates}],
            "extra_state": {"train_iterator": {"epoch": 2}, "ema": state_of(1)},
            "last_optimizer_state": {"state": {0: torch.ones(2)}},
        }  # fmt: skip
        torch.save(contents, run / name)
    for name in ("checkpoint_last.pt", "checkpoint.best_loss_3.45.pt"):
        torch.save(contents, run / name)
    out = tmp_path / "average.pt"
    said = command(capsys, "average", run, "--lawa=window=3", f"--out={out}")
    assert "left out: checkpoint.best_loss_3.45.pt ('best' in its name), checkpoint_last.pt" in said
    assert "made of 3 snapshots, steps 150, 200, 300" in said
    contents = torch.load(out)
    is_mean(contents["model"], [state_of(150), state_of(200), state_of(300)])
    assert contents["optimizer_history"][-1]["num_updates"] == 300
    assert contents["extra_state"] == {"train_iterator": {"epoch": 2}, "ema": {}}
    assert "last_optimizer_state" not in contents


def test_espnet_has_epochs_links_and_a_file_to_resume_from(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for epoch in (1, 2, 10):
        torch.save(state_of(epoch), run / f"{epoch}epoch.pth")
    (run / "latest.pth").symlink_to("10epoch.pth")
    (run / "valid.acc.best.pth").symlink_to("2epoch.pth")
    (run / "train.loss.pth").symlink_to("2epoch.pth")
    torch.save(state_of(0), run / "valid.acc.ave_2best.pth")
    torch.save({"model": state_of(10), "reporter": {}, "optimizers": []}, run / "checkpoint.pth")
    out = tmp_path / "average.pth"
    said = command(capsys, "average", run, "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, epochs 2, 10" in said
    for left_out in (
        "checkpoint.pth (to resume training from)", "latest.pth ('latest' in its name)",
        "train.loss.pth (the same file as 2epoch.pth)", "valid.acc.ave_2best.pth ('ave' in its name)",
    ):  # fmt: skip
        assert left_out in said
    is_mean(torch.load(out), [state_of(2), state_of(10)])
    files = [run / "1epoch.pth", run / "valid.acc.ave_2best.pth"]
    said = command(capsys, "average", *files, "--lawa=window=2", f"--out={out}")
    assert "valid.acc.ave_2best.pth: its epoch is not known, nor the steps of the others" in said
    command(capsys, "average", *[run / f"{epoch}epoch.pth" for epoch in (10, 1)], "--lawa=window=2", f"--out={out}")
    is_mean(torch.load(out), [state_of(1), state_of(10)])
    with pytest.raises(SnapshotError, match=r"10epoch\.pth is named twice"):
        Snapshots([run / "10epoch.pth", run / "10epoch.pth"])


# Names, types


class Wrapping(nn.Module):
    """All of whose weights are in a submodule that is really called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)


def test_a_submodule_called_module_keeps_its_name(tmp_path, capsys):
    for step in (1, 2):
        model = Wrapping()
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    out = tmp_path / "out" / "average.safetensors"
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    assert "names are as saved (module.weight, ...): --plain-names drops what wrappers add" in said
    from safetensors.torch import load_file

    model.load_state_dict(load_file(out))
    command(capsys, "average", tmp_path, "--lawa=window=2", "--plain-names", f"--out={out}")
    model.module.load_state_dict(load_file(out))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (torch.eye(3).to_sparse(), "step_2.pt: extra is a sparse_coo tensor, which cannot be averaged: save the model"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "extra is a quantized tensor, which cannot"),
        (torch.nn.Parameter(torch.empty(2, device="meta")), "extra is a meta tensor, which cannot be averaged"),
        ("text", "step_2.pt holds no state dict: extra in it is no tensor but a str"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_averaged_end_in_one_line(tmp_path, capsys, entry, says):
    for step in (2, 3):
        torch.save({**state_of(step), "extra": entry}, tmp_path / f"step_{step}.pt")
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'x.pt'}")
    assert says in said
    assert said.count("\n") == 1


def test_complex_weights_and_extra_state(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        state = {"w": torch.tensor([1.0 + 2j, 3j]) * step, "a._extra_state": {"seen": step}, "_extra_state": None}
        torch.save(state, tmp_path / "run" / f"step_{step}.pt")
    out = tmp_path / "average.pt"
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--memory-gb=1e-9")
    state = torch.load(out)
    assert torch.equal(state["w"], torch.tensor([1.0 + 2j, 3j]) * 1.5)
    assert state["a._extra_state"] == {"seen": 2}
    assert state.keys() == {"w", "a._extra_state", "_extra_state"}
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / 'a.safetensors'}")
    assert "left out of safetensors files: 2 entries of extra state, as a._extra_state" in said
    for step in (1, 2):
        torch.save({"w": torch.ones(2, dtype=torch.complex128)}, tmp_path / "run" / f"step_{step}.pt")
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / 'b.safetensors'}")
    assert said.endswith("safetensors has no type for w, torch.complex128\n")
    assert not (tmp_path / "b.safetensors").exists()


def test_classes_are_allowed_by_name_and_functions_never(tmp_path):
    torch.save({"model": state_of(1), "args": argparse.Namespace(a=1)}, tmp_path / "step_1.pt")
    with pytest.raises(SnapshotError, match=r"--allow-class=argparse\.Namespace"):
        Snapshots(tmp_path)
    assert Snapshots(tmp_path, ["argparse.Namespace"]).steps == [1]
    for name, says in (
        ("os.system", "that is no class, and is not allowed"), ("argparse.Nothing", "has no attribute"),
        ("no.such.module", "No module named"), ("Namespace", "give its full name, as in argparse.Namespace"),
    ):  # fmt: skip
        with pytest.raises(SnapshotError, match=says):
            Snapshots(tmp_path, [name])


@pytest.mark.parametrize(
    ("name", "step", "epoch", "expected"),
    [
        ("checkpoint_300", 300, None, (300, None)),
        ("anything.pt", 7, 2, (7, 2)),
        ("epoch7_step_200.pt", None, 7, (200, 7)),
        ("model-step=1200-loss=0.31.pt", None, None, (1200, None)),
        ("iter_64_of_run_2.pth", None, None, (64, None)),
        ("model-000100.safetensors", None, None, (100, None)),
        ("checkpoint_3_1000.pt", None, None, (1000, None)),
        ("epoch_12.pt", None, None, (None, 12)),
        ("12epoch.pth", None, None, (None, 12)),
        ("checkpoint-4.pth.tar", None, 4, (None, 4)),
        ("checkpoint-5.pth.tar", None, 4, (5, 4)),
        ("model.pt", None, 4, (None, 4)),
        ("model.pt", None, None, (None, None)),
        ("checkpoint-500", None, None, (500, None)),
    ],
)
def test_the_place_in_a_run_comes_from_the_file_or_its_name(tmp_path, name, step, epoch, expected):
    class Read(Source):
        def read(self, names):
            raise NotImplementedError

    source = Read(tmp_path / name)
    source.step, source.epoch = step, epoch
    assert place(source) == expected


def test_epochs_count_where_one_has_no_step(tmp_path):
    for name, contents in (("step_100.pt", {"epoch": 1}), ("epoch_2.pt", {})):
        torch.save({"model": state_of(1), **contents}, tmp_path / name)
    snapshots = Snapshots(tmp_path)
    assert (snapshots.unit, snapshots.steps) == ("epoch", [1, 2])
