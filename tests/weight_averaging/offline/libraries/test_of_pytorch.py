"""Checkpoints that libraries for PyTorch write in short runs, averaged, and loaded back by those libraries."""

import argparse
import copy

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean

pytestmark = pytest.mark.trainers


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def kept(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def step(model, optimizer, *shape) -> None:
    output = model(torch.randn(*shape))
    output.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("with_ema", [False, True])
def test_timm(tmp_path, capsys, with_ema):
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model("test_vit", num_classes=3)
    ema = ModelEmaV3(model, decay=0.5) if with_ema else None
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    (tmp_path / "run").mkdir()
    args = argparse.Namespace(model="test_vit")
    saver = CheckpointSaver(model, optimizer, args, model_ema=ema, checkpoint_dir=str(tmp_path / "run"), max_history=9)
    allowed = ("--allow-class", "argparse.Namespace")
    raw, averages = [], []
    size = model.pretrained_cfg["input_size"]
    for epoch in range(3):
        step(model, optimizer, 2, *size)
        if ema is not None:
            ema.update(model)
            averages.append(kept(ema.module))
        saver.save_checkpoint(epoch, metric=0.5 + 0.1 * epoch)
        raw.append(kept(model))
    out = tmp_path / "average.pth.tar"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", *allowed)
    assert f'load: timm.create_model("test_vit", checkpoint_path="{out}")' in said
    # timm takes state_dict_ema where there is one.
    loaded = timm.create_model("test_vit", num_classes=3, checkpoint_path=str(out)).state_dict()
    is_mean(loaded, (averages or raw)[1:])
    is_mean(torch.load(out, weights_only=False)["state_dict"], raw[1:])
    if with_ema:
        out = tmp_path / "ema.safetensors"
        command(
            capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--key=state_dict_ema", *allowed
        )
        is_mean(timm.create_model("test_vit", num_classes=3, checkpoint_path=str(out)).state_dict(), averages[1:])


def test_accelerate_with_two_models(tmp_path, capsys):
    accelerate = pytest.importorskip("accelerate")
    configuration = accelerate.utils.ProjectConfiguration(str(tmp_path), automatic_checkpoint_naming=True)
    accelerator = accelerate.Accelerator(cpu=True, project_config=configuration)
    models = [net(), nn.Linear(2, 2)]
    optimizers = [torch.optim.Adam(model.parameters(), 0.05) for model in models]
    prepared = accelerator.prepare(*models, *optimizers)
    states = []
    for _ in range(3):
        step(prepared[0], prepared[2], 4, 3)
        step(prepared[1], prepared[3], 4, 2)
        accelerator.save_state()
        states.append([kept(accelerator.unwrap_model(model)) for model in prepared[:2]])
    out = tmp_path / "average"
    command(capsys, "average", tmp_path / "checkpoints", "--lawa=window=2", f"--out={out}")
    for number, (model, file) in enumerate(zip((net(), nn.Linear(2, 2)), ("model", "model_1"))):
        accelerate.load_checkpoint_in_model(model, str(out / f"{file}.safetensors"))
        is_mean(model.state_dict(), [both[number] for both in states[1:]])


def test_ignite(tmp_path, capsys):
    pytest.importorskip("ignite")
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    model, other = net(), net()
    optimizer = torch.optim.Adam([*model.parameters(), *other.parameters()], 0.05)
    states = []

    def update(engine, batch):
        step(model, optimizer, 4, 3)
        step(other, optimizer, 4, 3)

    trainer = Engine(update)
    objects = {"model": model, "other": other, "optimizer": optimizer, "trainer": trainer}
    for prefix, score in (("plain", None), ("top", "acc")):
        saver = Checkpoint(
            objects, DiskSaver(str(tmp_path / prefix), create_dir=True, require_empty=False), n_saved=None,
            score_name=score, score_function=score and (lambda engine: 1 / engine.state.epoch),
            global_step_transform=lambda engine, event: engine.state.epoch,
        )  # fmt: skip
        trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: states.append((kept(model), kept(other))))
    trainer.run([0, 1], max_epochs=3)
    for prefix in ("plain", "top"):
        out = tmp_path / f"{prefix}.pt"
        command(capsys, "average", tmp_path / prefix, "--lawa=window=2", f"--out={out}")
        loaded = {"model": net(), "other": net()}
        Checkpoint.load_objects(loaded, torch.load(out))
        for number, one in enumerate(loaded.values()):
            is_mean(one.state_dict(), [both[number] for both in states[1:]])


@pytest.mark.parametrize("safetensors", [False, True])
def test_skorch(tmp_path, capsys, safetensors):
    skorch = pytest.importorskip("skorch")
    states = []

    class Remember(skorch.callbacks.Callback):
        def on_epoch_end(self, net, **rest):
            states.append(kept(net.module_))

    kind = "safetensors" if safetensors else "pt"
    saver = skorch.callbacks.Checkpoint(
        monitor=None, f_params=f"params_{{last_epoch[epoch]}}.{kind}", f_history=None, f_criterion=None,
        dirname=str(tmp_path / "run"), use_safetensors=safetensors, f_optimizer=None if safetensors else "optimizer.pt",
    )  # fmt: skip
    made = skorch.NeuralNetRegressor(
        net, max_epochs=3, lr=0.05, verbose=0, train_split=None, callbacks=[Remember(), saver]
    ).fit(torch.randn(16, 3), torch.randn(16, 1))
    out = tmp_path / f"average.{kind}"
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    made.load_params(f_params=str(out), use_safetensors=safetensors)
    is_mean(made.module_.state_dict(), states[1:])


@pytest.mark.parametrize("with_opt", [False, True])
def test_fastai(tmp_path, capsys, with_opt):
    learner = pytest.importorskip("fastai.learner", exc_type=ImportError)
    from fastai.callback.core import Callback
    from fastai.callback.tracker import SaveModelCallback
    from fastai.data.core import DataLoaders

    states = []

    class Remember(Callback):
        def after_epoch(self):
            states.append(kept(self.model))

    data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
    loaders = DataLoaders.from_dsets(data, data, bs=4, device="cpu", num_workers=0)
    saver = SaveModelCallback(monitor="valid_loss", every_epoch=True, with_opt=with_opt)
    made = learner.Learner(loaders, net(), loss_func=nn.MSELoss(), path=tmp_path, cbs=[Remember(), saver])
    with made.no_logging(), made.no_bar():
        made.fit(3, 0.05)
    out = tmp_path / "models" / "average.pth"
    allowed = ("--allow-class", "fastcore.foundation.L") if with_opt else ()
    command(capsys, "average", tmp_path / "models", "--lawa=window=2", f"--out={out}", *allowed)
    made.load("average", with_opt=False)
    is_mean(made.model.state_dict(), states[1:])


def test_composer(tmp_path, capsys):
    composer = pytest.importorskip("composer", exc_type=ImportError)
    states = []

    class Model(composer.ComposerModel):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, batch):
            return self.net(batch[0])

        def loss(self, outputs, batch):
            return outputs.square().mean()

    class Remember(composer.Callback):
        def epoch_end(self, state, logger):
            states.append(kept(state.model))

    def trainer_of(**rest):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 3)), batch_size=4)
        model = Model()
        return composer.Trainer(
            model=model, train_dataloader=loader, optimizers=torch.optim.Adam(model.parameters(), 0.05), device="cpu",
            max_duration="3ep", progress_bar=False, **rest,
        )  # fmt: skip

    trainer_of(save_folder=str(tmp_path / "run"), save_interval="1ep", callbacks=[Remember()]).fit()
    files = sorted((tmp_path / "run").glob("ep*.pt"))
    out = tmp_path / "average.pt"
    said = command(capsys, "average", *files, "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots" in said
    is_mean(trainer_of(load_path=str(out), load_weights_only=True).state.model.state_dict(), states[1:])


def test_sentence_transformers(tmp_path, capsys):
    library = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = transformers.BertConfig(vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8)  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(
        tmp_path / "bert"
    )
    modules = library.models if hasattr(library, "models") else library.sentence_transformer.modules
    first = modules.Transformer(str(tmp_path / "bert"))
    model = library.SentenceTransformer(modules=[first, modules.Pooling(8), modules.Dense(8, 4)], device="cpu")
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    states = []
    for number in (1, 2, 3):
        embedded = model(
            model.preprocess(["a b", "b"]) if hasattr(model, "preprocess") else model.tokenize(["a b", "b"])
        )
        embedded["sentence_embedding"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.save(str(tmp_path / "run" / f"checkpoint-{number}"))
        states.append(kept(model))
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert f'load: sentence_transformers.SentenceTransformer("{out}")' in said
    is_mean(library.SentenceTransformer(str(out), device="cpu").state_dict(), states[1:])
    assert "checkpoints: 1, step 2" in command(capsys, "inspect", tmp_path / "run" / "checkpoint-2")


def test_peft(tmp_path, capsys):
    peft = pytest.importorskip("peft", exc_type=ImportError)
    import transformers

    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2)
    base = transformers.GPT2LMHeadModel(config)
    weights = kept(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False))
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    states = []
    for number in (1, 2, 3):
        tokens = torch.arange(8)[None]
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{number}")
        states.append(copy.deepcopy(peft.get_peft_model_state_dict(model)))
    out = tmp_path / "average"
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    fresh = transformers.GPT2LMHeadModel(config)
    fresh.load_state_dict(weights)
    is_mean(peft.get_peft_model_state_dict(peft.PeftModel.from_pretrained(fresh, out)), states[1:])
