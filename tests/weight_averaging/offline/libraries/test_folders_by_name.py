"""Folders of litgpt and SpeechBrain, written by these libraries in short runs, averaged, and loaded back by them."""

import json

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean
from tests.weight_averaging.offline.libraries.test_of_pytorch import kept, net, step

pytestmark = pytest.mark.trainers


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with the files of a tokenizer that litgpt asks for."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "</s>": 3}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    config = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("pretraining", [True, False])
def test_litgpt(tmp_path, capsys, tokenizer, pretraining):
    """Its pretraining saves counters, and its fine-tuning the model alone in the end."""
    litgpt = pytest.importorskip("litgpt", exc_type=ImportError)
    import lightning
    from litgpt.utils import copy_config_files, save_config

    config = litgpt.Config(name="tiny", block_size=8, vocab_size=4, padded_vocab_size=4, n_layer=1, n_head=2, n_embd=8)
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model = fabric.setup_module(litgpt.GPT(config))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), 0.05))
    states = []
    for number in (1, 2, 3):
        for _ in range(4):  # batches of an update
            fabric.backward(model(torch.randint(4, (2, 8))).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        names = [f"step-{number:08d}"] if number < 3 or pretraining else []
        for name in [*names, *(["final"] if number == 3 else [])]:
            folder = tmp_path / "run" / name
            folder.mkdir(parents=True)
            state = {"model": model, "optimizer": optimizer, "iter_num": 4 * number, "step_count": number}
            fabric.save(folder / "lit_model.pth", state if pretraining else {"model": model})
            copy_config_files(tokenizer, folder)
            save_config(config, folder)
        states.append(kept(model))
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    made_of, final = ("2, 3", "of the same step as step-00000003") if pretraining else ("1, 2", "its step is not known")
    assert f"made of 2 snapshots, steps {made_of}\n" in said
    assert f"left out: final ({final})" in said
    assert f'load: litgpt.LLM.load("{out}")' in said
    counters = {"iter_num", "step_count"} if pretraining else set()
    assert torch.load(out / "lit_model.pth").keys() == {"model"} | counters
    loaded = litgpt.LLM.load(str(out)).model
    is_mean(loaded.state_dict(), states[1:] if pretraining else states[:2])


@pytest.mark.parametrize("with_brain", [True, False])
def test_speechbrain(tmp_path, capsys, with_brain):
    """All of its Checkpointer's objects, of which two are models."""
    pytest.importorskip("speechbrain", exc_type=ImportError)
    from speechbrain.utils.checkpoints import Checkpointer
    from speechbrain.utils.epoch_loop import EpochCounter

    torch.manual_seed(0)
    encoder, model = nn.Linear(3, 3), net()
    optimizer = torch.optim.Adam([*encoder.parameters(), *model.parameters()], 0.05)
    counter = EpochCounter(3)
    saved = {"encoder": encoder, "model": model, "optimizer": optimizer}
    saver = Checkpointer(tmp_path / "save", saved | ({"counter": counter} if with_brain else {}))
    states = []
    for _ in counter:
        step(nn.Sequential(encoder, model), optimizer, 4, 3)
        saver.save_checkpoint(meta={"loss": 1.0})
        states.append((kept(encoder), kept(model)))
    out = tmp_path / "averages" / "CKPT+average"
    more = () if with_brain else ("--step-from=order",)
    said = command(capsys, "average", tmp_path / "save", "--lawa=window=2", f"--out={out}", *more)
    assert f"made of 2 snapshots, {'epochs' if with_brain else 'steps'} 2, 3" in said
    assert "averaged too, each on its own: encoder.ckpt (2 tensors)" in said
    assert "an average keeps optimizer.ckpt of the latest: SpeechBrain's recovery asks for all parts" in said
    for one in (encoder, model):
        nn.init.zeros_(next(one.parameters()))
    assert Checkpointer(out.parent, saver.recoverables).recover_if_possible().path == out
    is_mean(encoder.state_dict(), [one for one, _ in states[1:]])
    is_mean(model.state_dict(), [one for _, one in states[1:]])
