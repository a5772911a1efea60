"""Checkpoints as other trainers write them, and what is in them: names, types, pickles, the order of files.

timm, fairseq and ESPnet are not installed: the files have the keys and names that their savers give
(timm/utils/checkpoint_saver.py, fairseq/checkpoint_utils.py and espnet2/train/trainer.py in their repositories).
"""

import argparse
import os
import pathlib

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean, state_of
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import Snapshots
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.reading.order import numbered

# timm, fairseq, ESPnet


def ema_of(epoch):
    return state_of(20 + epoch)


def test_timm_counts_epochs_from_0(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    args = argparse.Namespace(model="resnet18")
    for epoch in range(3):
        contents = {
            "epoch": epoch, "arch": "resnet18", "state_dict": state_of(epoch), "version": 2, "args": args,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "state_dict_ema": ema_of(epoch),
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
    # timm's loader takes the EMA where there is one, as its avg_checkpoints.py does.
    is_mean(contents["state_dict_ema"], [ema_of(1), ema_of(2)])
    assert contents.keys() == {"arch", "args", "epoch", "state_dict", "state_dict_ema", "version"}
    assert "averaged too, each on its own: state_dict_ema (" in said
    assert "not in the average: optimizer\n" in said


def test_fairseq_has_updates_within_and_epochs_in_names(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name, updates in (("checkpoint1.pt", 150), ("checkpoint_2_200.pt", 200), ("checkpoint2.pt", 300)):
        contents = {
            "args": None, "cfg": {"task": {"_name": "translation"}}, "model": state_of(updates),
            "optimizer_history": [{"criterion_name": "c", "lr_scheduler_state": {"best": 1.0}, "num_updates": updates}],
            "extra_state": {"train_iterator": {"epoch": 2}, "ema": state_of(updates + 1)},
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
    assert contents["extra_state"]["train_iterator"] == {"epoch": 2}
    is_mean(contents["extra_state"]["ema"], [state_of(updates + 1) for updates in (150, 200, 300)])
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
    assert "valid.acc.ave_2best.pth: its epoch is not known, and that of 1 other is" in said
    files = [run / f"{epoch}epoch.pth" for epoch in (10, 1)]
    command(capsys, "average", *files, "--lawa=window=2", f"--out={out}", "--overwrite")
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
    command(capsys, "average", tmp_path, "--lawa=window=2", "--plain-names", f"--out={out}", "--overwrite")
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
    assert (
        "left out of files that are a state dict of tensors alone: 2 entries of extra state, as a._extra_state" in said
    )
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


class Read(Source):
    def __init__(self, path, **counters):
        super().__init__(path)
        self.counters = counters

    def read(self, names):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "counters", "expected"),
    [
        ("checkpoint_300", {"global_step": 300}, ("step", 300)),
        ("anything.pt", {"global_step": 7, "epoch": 2}, ("step", 7)),
        ("epoch7_step_200.pt", {"epoch": 7}, ("step", 200)),
        ("model-step=1200-loss=0.31.pt", {}, ("step", 1200)),
        ("iter_64_of_run_2.pth", {}, ("step", 64)),
        ("model-000100.safetensors", {}, ("step", 100)),
        ("checkpoint_3_1000.pt", {}, ("step", 1000)),
        ("epoch_12.pt", {}, ("epoch", 12)),
        ("12epoch.pth", {}, ("epoch", 12)),
        ("checkpoint-4.pth.tar", {"epoch": 4}, ("epoch", 4)),
        ("checkpoint-1000.pth.tar", {"epoch": 4}, ("step", 1000)),
        ("model.pt", {"epoch": 4}, ("epoch", 4)),
        ("checkpoint-500", {}, ("step", 500)),
        ("ep3-ba800-rank0.pt", {}, ("step", 800)),
        ("top_model_3_acc=0.8000.pt", {}, ("step", 3)),
        ("top_model_3_acc=80.pt", {}, ("step", 3)),
        ("model_7_loss_0.31.pt", {}, ("step", 7)),
        ("deep_5.pt", {}, ("step", 5)),
        ("deep_0.pt", {}, ("step", 1)),
        ("sweep3_100.pt", {}, ("step", 100)),
        ("runv2_30-v1.pt", {}, ("step", 30)),
        ("step-000002/lit_model.pth", {}, ("step", 2)),
        ("checkpoint-20/unet", {}, ("step", 20)),
        ("epoch_4/weights.pt", {}, ("epoch", 4)),
        ("run3/model_8.pt", {}, ("step", 8)),
        ("iter_2/model_8.pt", {}, ("step", 2)),
    ],
)
def test_the_place_in_a_run_comes_from_the_file_or_its_name(tmp_path, name, counters, expected):
    source = Read(tmp_path / name, **counters)
    unit, numbers, _ = numbered([source])
    assert (unit, numbers[source.path]) == expected


def places(*files) -> tuple[str, list[int], str]:
    sources = [Read(pathlib.Path(name), **counters) for name, counters in files]
    unit, numbers, rule = numbered(sources)
    return unit, [numbers[source.path] for source in sources], rule


def test_one_rule_for_all_files_of_a_run():
    assert places(("a_1.pt", {}), ("a_2.pt", {})) == ("step", [1, 2], "the number in its name")
    # Numbers that are the same in all are none.
    assert places(("a_1_seed_42.pt", {}), ("a_2_seed_42.pt", {}))[1] == [1, 2]
    assert places(("a_1.pt", {"step": 0}), ("a_2.pt", {"step": 0}))[1] == [1, 2]
    assert places(("a_1.pt", {"step": 0, "iteration": 9}), ("b.pt", {"step": 0, "iteration": 19}))[1] == [9, 19]
    # From 0: one more each, where numbers count checkpoints and not updates.
    assert places(("a_0.pt", {}), ("a_1.pt", {}))[1] == [1, 2]
    assert places(("a_0.pt", {}), ("a_100.pt", {}))[1] == [0, 100]
    assert places(("step_0.pt", {}), ("step_1.pt", {}))[1] == [0, 1]
    # What differs by file is told.
    unit, numbers, rule = places(("step_5.pt", {}), ("b.pt", {"global_step": 9}))
    assert (unit, numbers) == ("step", [5, 9])
    assert rule == "the number after 'step' in its name (1 of 2); global_step in it (1 of 2)"
    # A score that has no decimal point.
    with pytest.raises(SnapshotError, match=r"m_1_91\.pt: its name has 2 numbers, .* by --step-from name:1"):
        places(("m_1_91.pt", {}), ("m_2_85.pt", {}))
    with pytest.raises(SnapshotError, match=r"b\.pt: its step is not known, and that of 2 others is; put it into"):
        places(("step_1.pt", {}), ("b.pt", {}), ("step_2.pt", {}))


def test_the_step_is_taken_from_where_it_is_asked_for(tmp_path, capsys):
    for number, score in ((1, 91), (2, 85)):
        contents = {"model": state_of(number), "run": {"done": torch.tensor(10 * number)}}
        torch.save(contents, tmp_path / f"m_{number}_{score}.pt")
    for place, steps in (("name:1", "1, 2"), ("run.done", "10, 20"), ("name", "85, 91"), ("name:-2", "1, 2")):
        said = command(capsys, "inspect", tmp_path, f"--step-from={place}")
        assert f"checkpoints: 2, steps {steps}, " in said
    assert "number -2 in its name" in said
    files = [tmp_path / "m_2_85.pt", tmp_path / "m_1_91.pt"]
    out = tmp_path / "out" / "average.pt"
    command(capsys, "average", *files, "--step-from=order", "--lawa=window=1", f"--out={out}")
    is_mean(torch.load(out)["model"], [state_of(1)])
    for place in ("name:3", "folder:9", "missing", "name:0"):
        said = command(capsys, "inspect", tmp_path, f"--step-from={place}")
        assert said.endswith(f"has no number at --step-from={place}\n")


def test_epochs_count_where_one_has_no_step(tmp_path):
    for name, contents in (("step_100.pt", {"epoch": 1}), ("epoch_2.pt", {})):
        torch.save({"model": state_of(1), **contents}, tmp_path / name)
    snapshots = Snapshots(tmp_path)
    assert (snapshots.unit, snapshots.steps) == ("epoch", [1, 2])


def test_files_of_before_torch_1_6_may_run_no_code_either(tmp_path):
    (tmp_path / "ran").mkdir()

    class Removes:
        def __reduce__(self):
            return os.rmdir, (str(tmp_path / "ran"),)

    torch.save({"w": torch.ones(2), "rest": Removes()}, tmp_path / "a_1.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(SnapshotError, match=r"a_1.pt is refused: unpickling it would call \w+.rmdir, which may run"):
        Snapshots(tmp_path).state(1)
    assert (tmp_path / "ran").is_dir()
