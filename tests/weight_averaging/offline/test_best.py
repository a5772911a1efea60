"""The mean of the best checkpoints by a metric: where metrics are from, which are better, what is refused."""

import json
import math
import tempfile
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from torch import nn

from tests.support.forms import command
from weight_averaging import offline
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents.scores import scores_of

VALUES = {100: 0.9, 200: 0.2, 300: 0.5, 400: 0.1, 500: 0.7}  # by step; weights are the step


def saved(folder, contents_of, name="step_{step}.pt", values=VALUES):
    folder.mkdir(exist_ok=True)
    for step, value in values.items():
        state = {"w": torch.full((3,), float(step)), "count": torch.tensor(step)}
        torch.save(contents_of(step, state, value), folder / name.format(step=step, value=value))
    return folder


def with_key(key: str):
    """What a checkpoint with its metric there, dots leading further in, holds."""

    def contents(step, state, value):
        for part in reversed(key.split(".")):
            value = {part: value}
        return {"model": state, "global_step": step, **value}

    return contents


def weight(path) -> float:
    contents = torch.load(path, weights_only=False)
    return contents.get("model", contents)["w"][0].item()


@pytest.mark.parametrize(
    ("saver", "name", "metric", "where"),
    [
        (with_key("val_loss"), "step_{step}.pt", "val_loss", "val_loss in it"),
        (with_key("extra_state.val_loss"), "c{step}.pt", "val_loss", "extra_state.val_loss in it"),  # fairseq's
        (with_key("logs.eval.loss"), "step_{step}.pt", "logs.eval.loss", "logs.eval.loss in it"),
        (with_key("loss"), "step_{step}.pt", "loss", "loss in it"),
        (lambda step, state, value: state, "{step}_val_loss={value}.pt", "val_loss", "the number after 'val_loss' in"),
        (lambda step, state, value: state, "step{step}.loss_{value}.pt", "loss", "the number after 'loss' in its name"),
        (lambda step, state, value: state, "best_step={step}_loss={value}.pt", "loss", "the number after 'loss' in"),
        (
            lambda step, state, value: {"model": state, "loss": np.float64(value), "global_step": step},
            "step_{step}.pt", "loss", "loss in it",
        ),
        (
            lambda step, state, value: {"model": state, "loss": torch.tensor(value), "global_step": step},
            "step_{step}.pt", "loss", "loss in it",
        ),
    ],
)  # fmt: skip
def test_the_best_by_a_metric_in_checkpoints_or_names(tmp_path, capsys, saver, name, metric, where):
    run = saved(tmp_path / "run", saver, name)
    said = command(capsys, "average", run, "--best=2", f"--metric={metric}", f"--out={tmp_path / 'out.pt'}")
    assert f"{metric} is {where}" in said
    assert "lower is better, as its name says" in said
    assert "the best 2 of 5: steps 400 (0.1), 200 (0.2)" in said
    assert f"mean of the best 2 by {metric} as of step 400, made of 2 snapshots, steps 200, 400" in said
    assert weight(tmp_path / "out.pt") == 300.0
    command(
        capsys, "average", run, "--best=3", f"--metric={metric}", "--mode=max", f"--out={tmp_path / 'high.safetensors'}"
    )
    from safetensors.torch import load_file

    assert load_file(tmp_path / "high.safetensors")["w"][0].item() == 300.0  # 100, 500, 300
    assert load_file(tmp_path / "high.safetensors")["count"].item() == 500  # the latest of these
    if "_{value}" not in name:  # inspect lists what stands after an equals sign
        assert metric in command(capsys, "inspect", run).splitlines()[-2]


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.1, 0.2, 1e-7, 3.5, math.inf, math.nan]), min_size=2, max_size=6),
    higher=st.booleans(),
    data=st.data(),
)
def test_the_order_is_that_of_values_and_the_later_of_equal_ones(values, higher, data):
    finite = {step: value for step, value in enumerate(values, start=1) if math.isfinite(value)}
    order = sorted(finite, reverse=True)
    order.sort(key=lambda step: finite[step], reverse=higher)  # stable
    with tempfile.TemporaryDirectory() as folder:
        run = saved(Path(folder) / "run", with_key("acc"), values=dict(enumerate(values, start=1)))
        count = data.draw(st.integers(1, len(values)))
        mode = "max" if higher else "min"
        if len(set(map(str, values))) == 1 or count > len(finite):
            with pytest.raises(SnapshotError, match=r"in all|are asked for"):
                offline.best(offline.Snapshots(run), count, "acc", mode)
            return
        found = offline.best(offline.Snapshots(run), count, "acc", mode)
        assert list(found.values) == order[:count]
        assert found.steps == sorted(order[:count])
        plan = offline.Plan([(found.average, found.steps[-1])], found.steps)
        (result,) = plan.run(found.snapshots.stream(plan.needed))
        assert result.state["w"][0].item() == pytest.approx(sum(order[:count]) / count)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3, unique=True),
    shown=st.sampled_from(["", ".4f", "e", "E"]),
    joined=st.sampled_from(["acc={}", "acc_{}", "acc:{}", "acc-{}", "acc{}", "acc={}-val_acc=7", "val_acc=7-acc={}"]),
    ended=st.sampled_from([".pt", "-v1.pt", "_b2.pt"]),
)
def test_the_number_in_a_name_is_the_one_that_was_written_there(values, shown, joined, ended):
    texts = {step: format(value, shown) for step, value in enumerate(values, start=1)}
    wanted = {step: float(text) for step, text in texts.items()}
    with tempfile.TemporaryDirectory() as folder:
        for step, text in texts.items():
            torch.save({"w": torch.ones(1)}, Path(folder) / f"step_{step}-{joined.format(text)}{ended}")
        if len(set(wanted.values())) > 1:
            assert offline.best(offline.Snapshots(folder), 3, "acc").values == wanted


@pytest.mark.parametrize("text", ["-0.5", "=-0.5", "=+0.5", "=.5", "--0.5"])
def test_a_hyphen_after_a_name_is_no_sign(tmp_path, text):
    for step, one in enumerate([text, text.replace("5", "25")], start=1):
        torch.save({"w": torch.ones(1)}, tmp_path / f"step_{step}-acc{one}.pt")
    sign = -1 if text in ("=-0.5", "--0.5") else 1
    found = offline.best(offline.Snapshots(tmp_path), 2, "acc")
    assert found.values == {1: sign * 0.5, 2: sign * 0.25}


def test_a_number_with_a_comma_is_none(tmp_path):
    for step in (1, 2):
        torch.save({"w": torch.ones(1)}, tmp_path / f"step_{step}-acc={step},5.pt")
    with pytest.raises(SnapshotError, match="has no number called acc"):
        offline.best(offline.Snapshots(tmp_path), 1, "acc")


def test_safetensors_hold_metrics_in_their_metadata(tmp_path):
    for step, value in VALUES.items():
        save_file({"w": torch.ones(2)}, tmp_path / f"step_{step}.safetensors", {"acc": str(value), "by": "me"})
    found = offline.best(offline.Snapshots(tmp_path), 1, "acc")
    assert found.steps == [100]
    assert found.rule == "acc is acc in its metadata; higher is better, as its name says"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--best=2", "--metric=bleu"], "step_100.pt has no number called bleu: it has loss, score"),
        (["--best=2", "--metric=score"], "whether lower or higher values of score are better is not known"),
        (["--best=2", "--metric=best_loss"], "best_loss is the best value so far, not that of each checkpoint"),
        (["--best=9", "--metric=loss"], "the best 9 are asked for, and there are 5 checkpoints"),
        (["--best=0", "--metric=loss"], "--best=0 must be a number of checkpoints > 0"),
        (["--best=2"], "--best needs a metric: --metric val_loss"),
        (["--metric=loss", "--lawa=window=2"], "--metric goes with --best N"),
        (["--best=2", "--metric=loss", "--lawa=window=2"], "--best is an average of its own"),
        (["--best=2", "--metric=loss", "--at=300"], "--best is an average of its own"),
        (["--best=2", "--metric=constant"], "constant is 7 in all 5 checkpoints"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(tmp_path, capsys, flags, says):
    def contents(step, state, value):
        about = {"loss": value, "score": value, "best_loss": min(value, 0.5), "constant": 7, "on": True}
        return {"model": state, "global_step": step, **about}

    run = saved(tmp_path / "run", contents)
    said = command(capsys, "average", run, *flags, f"--out={tmp_path / 'out.pt'}")
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says in said
    assert not (tmp_path / "out.pt").exists()


def test_a_negated_loss_must_be_said_to_be_one(tmp_path):
    """ignite's users give `-loss` as the score, and call it loss."""
    run = saved(tmp_path / "run", with_key("loss"), values={step: -value for step, value in VALUES.items()})
    with pytest.raises(SnapshotError, match="since values of it are negative"):
        offline.best(offline.Snapshots(run), 2, "loss")
    assert offline.best(offline.Snapshots(run), 2, "loss", "max").steps == [200, 400]


def test_one_without_the_metric_and_two_of_one_name(tmp_path):
    run = saved(tmp_path / "run", with_key("val.loss"))
    torch.save({"model": {"w": torch.ones(3), "count": torch.tensor(6)}, "global_step": 600}, run / "step_600.pt")
    with pytest.raises(SnapshotError, match=r"step_600.pt has no number called loss: it has none at all"):
        offline.best(offline.Snapshots(run), 2, "loss")
    (run / "step_600.pt").unlink()
    for step in VALUES:
        contents = torch.load(run / f"step_{step}.pt") | {"train": {"loss": 1.0 / step}}
        torch.save(contents, run / f"step_{step}.pt")
    with pytest.raises(SnapshotError, match="has 2 numbers called loss: say which"):
        offline.best(offline.Snapshots(run), 2, "loss")
    assert offline.best(offline.Snapshots(run), 1, "train.loss").steps == [500]
    assert offline.best(offline.Snapshots(run), 1, "val.loss").steps == [400]


def test_what_is_no_number_is_none_of_them(tmp_path):
    about = {
        "loss": 10**400, "acc": torch.ones(2), "f1": True, "wer": None, "cer": torch.empty(1, device="meta"),
        "auc": 1 + 2j, "inner": {}, "list": [1.0], "text": "0.5", "r2": np.array("x"),
        "fine": np.float32(0.5),
    }  # fmt: skip
    about["inner"]["circle"] = about
    assert list(scores_of(about, tmp_path)) == ["fine"]


# What trainers write


def test_lightnings_modelcheckpoint_says_the_values_and_the_mode(tmp_path, capsys):
    lightning = pytest.importorskip("lightning")
    scores = [3.0, 1.0, 2.0, 4.0]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def training_step(self, batch, index):
            return self.net(batch[0]).pow(2).mean()

        def on_train_epoch_end(self) -> None:
            self.log("quality", scores[self.current_epoch])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "run", "{epoch}", "quality", mode="max", save_top_k=-1, save_last=True
    )
    data = torch.utils.data.TensorDataset(torch.randn(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Module(), torch.utils.data.DataLoader(data, batch_size=2))  # fmt: skip
    out = tmp_path / "best.ckpt"
    said = command(capsys, "average", tmp_path / "run", "--best=2", "--metric=quality", f"--out={out}")
    assert "quality is what Lightning's ModelCheckpoint has in it; higher is better, as Lightning has it" in said
    assert "the best 2 of 4: steps 8 (4), 2 (3)" in said
    states = [torch.load(tmp_path / "run" / f"epoch={epoch}.ckpt")["state_dict"] for epoch in (0, 3)]
    for name, value in torch.load(out)["state_dict"].items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    # Another callback's file has the score of an earlier one in it, and is not taken for it.
    (tmp_path / "run" / "epoch=1.ckpt").rename(tmp_path / "run" / "other-step=4.ckpt")
    said = command(capsys, "average", tmp_path / "run", "--best=2", "--metric=quality", f"--out={tmp_path / 'x.ckpt'}")
    assert "other-step=4.ckpt has no number called quality" in said


def test_the_log_of_a_trainer_at_the_checkpoints_own_step(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        vocab_size=30,
    )  # fmt: skip
    torch.manual_seed(0)
    data = [{"input_ids": torch.arange(4) + i, "labels": torch.arange(4) + i} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), max_steps=6, save_steps=2, eval_steps=1, eval_strategy="steps", report_to=[],
        per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True, learning_rate=1e-2, logging_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(
            transformers.LlamaForCausalLM(config), arguments, train_dataset=data, eval_dataset=data[:2],
            data_collator=transformers.default_data_collator,
        ).train()  # fmt: skip
    capsys.readouterr()
    history = json.loads((tmp_path / "run/checkpoint-6/trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = sorted((2, 4, 6), key=losses.get)[:2]
    said = command(
        capsys, "average", tmp_path / "run", "--best=2", "--metric=eval_loss", f"--out={tmp_path / 'average'}"
    )
    assert "eval_loss is log_history in its trainer_state.json, at its own step; lower is better" in said
    assert f"made of 2 snapshots, steps {min(best)}, {max(best)}" in said
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "average")
