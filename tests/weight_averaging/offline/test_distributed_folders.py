"""Folders of torch.distributed.checkpoint, and models by their keys, in these and in files."""

import pickle
import warnings

import pytest
import torch
from safetensors.torch import load_file

from tests.support.forms import command, is_mean, state_of
from weight_averaging.offline import Snapshots


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
