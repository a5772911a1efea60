"""Checkpoints that Lightning and transformers write here, averaged, and loaded back by what wrote them."""

import argparse
import json
import warnings

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import Snapshots

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
    import transformers

    as_saved = {"dtype" if transformers.__version__ >= "5" else "torch_dtype": "auto"}  # 4 loads float32 unless asked
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **as_saved).state_dict()


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
    assert said.endswith(f"error: {out} is there already: name a new folder, or add --overwrite\n")
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
