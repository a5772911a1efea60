"""Folders of DeepSpeed's ZeRO as its ranks save them: cut here as DeepSpeed cuts, and put together by the command."""

import enum
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.forms import command, is_mean, state_of
from weight_averaging.offline.forms.deepspeed import ZeroFolder
from weight_averaging.offline.reading import Snapshots


class Stage(enum.IntEnum):
    """Stands for DeepSpeed's enum: a class that the reader must not need."""

    ONE, TWO, THREE = 1, 2, 3


class Scaler:
    """The same of the loss scaler beside it."""


def write(folder, state, ranks, stage, groups=1, buffers=(), frozen=(), shared=None, padding=0, step=1):
    """Write a folder of float32 `state` cut for these ranks, with a copy in bfloat16."""
    folder.mkdir(parents=True)
    names = [name for name in state if name not in (*buffers, *frozen) and name not in (shared or {})]
    sizes = [{name: state[name].shape for name in names[number::groups]} for number in range(groups)]
    optimizers = [{"zero_stage": Stage(stage), "partition_count": [ranks] * groups if stage < 3 else ranks,
                   "loss_scaler": Scaler()} for _ in range(ranks)]  # fmt: skip
    models = [{"module": {n: v.bfloat16() if v.is_floating_point() else v for n, v in state.items()},
               "buffer_names": list(buffers), "param_shapes": sizes, "shared_params": shared or {},
               "frozen_param_shapes": {name: state[name].shape for name in frozen} or None,
               "frozen_param_fragments": {name: state[name] for name in frozen} or None, "global_steps": step,
               "ds_version": "0.19.8"} for _ in range(ranks)]  # fmt: skip
    for shapes in sizes:
        if stage < 3:
            parts = [torch.cat([state[name].reshape(-1), torch.full((padding,), 7.0)]) for name in shapes]
            flat = torch.cat(parts) if parts else torch.empty(0)
            flat = torch.cat([flat, torch.zeros(-len(flat) % (2 * ranks))])
            cut = list(flat.chunk(ranks))
        else:
            cut = [[] for _ in range(ranks)]
            for name in shapes:
                for rank, part in enumerate(in_parts(state[name], ranks)):
                    cut[rank].append(part)
            cut = [torch.cat(parts) if parts else torch.empty(0) for parts in cut]
        for rank, part in enumerate(cut):
            key = "single_partition_of_fp32_groups" if stage < 3 else "fp32_flat_groups"
            optimizers[rank].setdefault(key, []).append(part.clone())
            if padding and stage < 3:
                optimizers[rank].setdefault("param_alignment_paddings", []).append([padding] * len(shapes))
    for rank in range(ranks):
        if stage == 3:
            for name in names + list(frozen):
                models[rank]["module"][name] = torch.empty(0, dtype=torch.bfloat16)
            models[rank]["frozen_param_fragments"] = {
                name: in_parts(state[name], ranks)[rank].clone() for name in frozen
            }
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(models[rank], folder / f"{prefix}mp_rank_00_model_states.pt")
        saved = {"optimizer_state_dict": optimizers[rank], "ds_version": "0.19.8"}
        torch.save(saved, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def in_parts(value, ranks):
    flat = value.reshape(-1)
    size = math.ceil(len(flat) / ranks)
    return torch.cat([flat, torch.zeros(size * ranks - len(flat))]).chunk(ranks) if size else [flat] * ranks


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=6), ranks=st.integers(1, 11),
    stage=st.sampled_from([1, 2, 3]), groups=st.integers(1, 2), padding=st.integers(0, 3), frozen=st.booleans(),
)  # fmt: skip
def test_any_cut_comes_together(tmp_path_factory, shapes, ranks, stage, groups, padding, frozen):
    folder = tmp_path_factory.mktemp("run") / "global_step1"
    state = {f"w{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    state |= {"a.mean": torch.randn(3), "a.count": torch.tensor(5), "last": state["w0"]}
    fixed = ("fixed",) if frozen else ()
    if frozen:
        state["fixed"] = torch.randn(3, 3)
    write(folder, state, ranks, stage, groups, ("a.mean", "a.count"), fixed, {"last": "w0"}, padding)
    source = ZeroFolder(folder)
    found = source.read(list(source.layout))
    assert list(found) == list(state)
    for name, value in state.items():
        expected = value.bfloat16().float() if name == "a.mean" else value
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
    assert source.frozen == set(fixed)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_float32_weights_are_averaged(tmp_path, capsys, stage):
    states = [state_of(seed) for seed in (1, 2, 3)]
    for step, state in enumerate(states, start=1):
        write(tmp_path / "run" / f"global_step{step}", state, 2, stage, step=step)
    (tmp_path / "run" / "latest").write_text("global_step3")
    out = tmp_path / "average.pt"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 2, 3" in said
    assert "averaged are the float32 weights of the optimizer, not their copy in bfloat16" in said
    is_mean(torch.load(out), states[1:])
    files = sorted((tmp_path / "run").glob("global_step*/*_model_states.pt"))[:: 2 if stage == 3 else 1]
    said = command(capsys, "average", *files, "--lawa=window=2", f"--out={tmp_path / 'copy.pt'}")
    if stage == 3:
        assert "has no elements, as where DeepSpeed's ZeRO-3 has the weights elsewhere: name its folder instead" in said
    else:
        assert f"name the folder instead, as {files[0].parent}" in said


def test_what_does_not_come_together_is_one_line(tmp_path, capsys):
    for name in ("lacking", "tensor", "expert", "short"):
        write(tmp_path / name / "global_step1", state_of(1), 2, 2)
    (tmp_path / "lacking/global_step1/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    (tmp_path / "tensor/global_step1/mp_rank_01_model_states.pt").write_bytes(b"")
    (tmp_path / "expert/global_step1/layer_0_expert_0_mp_rank_00_model_states.pt").write_bytes(b"")
    short = tmp_path / "short/global_step1/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    short.write_bytes(short.read_bytes()[:-400])
    for name, says in (("lacking", "is of 2 ranks, and has the optimizer's files of 1"), ("tensor", "is of tensor"),
                       ("expert", "has layers or experts apart"), ("short", "is damaged")):  # fmt: skip
        said = command(capsys, "inspect", tmp_path / name)
        assert said.startswith(f"error: {tmp_path / name / 'global_step1'}")
        assert says in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_learning_rates_are_those_of_the_optimizer_inside(tmp_path, stage):
    """As DeepSpeed nests it; of an elastic checkpoint there is none."""
    for step in (1, 2):
        folder = tmp_path / f"global_step{step}"
        write(folder, state_of(step), 2, stage, step=step)
        for file in folder.glob("*_optim_states.pt") if step == 1 else ():
            saved = torch.load(file, weights_only=False)
            name = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
            groups = [{"lr": 0.5, "params": [0]}, {"lr": 0.75, "params": [1]}]
            saved["optimizer_state_dict"][name] = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": groups}
            torch.save(saved, file)
    assert Snapshots(tmp_path).learning_rates == {1: 0.75}
