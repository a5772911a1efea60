"""What libraries write in folders of their own and in zips, imitated where they are not installed.

The layouts are those that `libraries/` checks with the libraries themselves.
"""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.forms import command, is_mean, state_of

ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}


def test_litgpt(tmp_path, capsys):
    states = [state_of(seed) for seed in (1, 2, 3)]
    for number, name in ((1, "step-00000001"), (2, "step-00000002"), (3, "step-00000003"), (3, "final")):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        contents = {"model": states[number - 1], "optimizer": ADAM, "iter_num": 8 * number, "step_count": number}
        torch.save(contents, folder / "lit_model.pth")
        (folder / "model_config.yaml").write_text("name: tiny")
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "steps are from step_count in it" in said
    assert "left out: final (of the same step as step-00000003)" in said
    found = torch.load(out / "lit_model.pth")
    assert found.keys() == {"model", "iter_num", "step_count"}
    is_mean(found["model"], states[1:])
    assert (out / "model_config.yaml").read_text() == "name: tiny"
    assert "average (an average already" not in command(capsys, "inspect", out)
    assert "holds no snapshot but what is left out" in command(capsys, "inspect", tmp_path)


@pytest.mark.parametrize("ending", ["lora", "adapter_v2"])
def test_litgpts_adapters(tmp_path, capsys, ending):
    states = [{"lm_head.scale": torch.randn(3)} for _ in range(3)]
    for number, state in enumerate(states, start=1):
        folder = tmp_path / "run" / f"step-{number:06d}"
        folder.mkdir(parents=True)
        torch.save({"model": state}, folder / f"lit_model.pth.{ending}")
    out = tmp_path / "average"
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    is_mean(torch.load(out / f"lit_model.pth.{ending}")["model"], states[1:])


def test_speechbrain(tmp_path, capsys):
    """Its times of day are no steps, and its recovery asks for every part."""
    states = [(state_of(seed), {"mean": torch.randn(3)}) for seed in (1, 2, 3)]
    for number, (model, other) in enumerate(states, start=1):
        folder = tmp_path / "save" / f"CKPT+2026-01-31+0{number}-{9 - number}0-00+00"
        folder.mkdir(parents=True)
        (folder / "CKPT.yaml").write_text(f"end-of-epoch: true\nunixtime: {1e9 + number}\n")
        (folder / "brain.ckpt").write_text(f"avg_train_loss: 0.5\noptimizer_step: {8 * number}\nstep: {16 * number}\n")
        (folder / "counter.ckpt").write_text(str(number))
        for name, contents in (("model", model), ("encoder", other), ("optimizer", ADAM), ("noam", {"n_steps": 3})):
            torch.save(contents, folder / f"{name}.ckpt")
    out = tmp_path / "out" / "CKPT+average"
    said = command(capsys, "average", tmp_path / "save", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 16, 24" in said
    assert "an average keeps noam.ckpt, optimizer.ckpt of the latest" in said
    names = {"CKPT.yaml", *(f"{name}.ckpt" for name in ("brain", "counter", "model", "encoder", "optimizer", "noam"))}
    assert {path.name for path in out.iterdir()} == names
    is_mean(torch.load(out / "model.ckpt"), [model for model, _ in states[1:]])
    is_mean(torch.load(out / "encoder.ckpt"), [other for _, other in states[1:]])
    one = tmp_path / "encoder.pt"
    command(capsys, "average", tmp_path / "save", "--lawa=window=2", f"--out={one}", "--key=encoder.ckpt")
    is_mean(torch.load(one), [other for _, other in states[1:]])
    for folder in (tmp_path / "save").iterdir():
        (folder / "brain.ckpt").unlink()
        (folder / "counter.ckpt").unlink()
    assert "say where it is by --step-from" in command(capsys, "inspect", tmp_path / "save")


def zipped(path, state, steps):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps({"num_timesteps": steps, "policy_class": {":serialized:": "gASV"}}))
        for name, contents in (("policy", state), ("policy.optimizer", ADAM), ("pytorch_variables", {})):
            with file.open(f"{name}.pth", "w", force_zip64=True) as part:
                torch.save(contents, part)


def test_stable_baselines3(tmp_path, capsys):
    states = [state_of(seed) for seed in (1, 2, 3)]
    (tmp_path / "run").mkdir()
    for number, state in enumerate(states, start=1):
        zipped(tmp_path / "run" / f"rl_model_{100 * number}_steps.zip", state, 100 * number)
    with zipfile.ZipFile(tmp_path / "run" / "notes.zip", "w") as file:
        file.writestr("a.txt", "no model")
    out = tmp_path / "mean.zip"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 200, 300" in said
    assert "an average keeps policy.optimizer.pth of the latest" in said
    with zipfile.ZipFile(out) as file:
        assert file.testzip() is None
        with file.open("policy.pth") as part:
            is_mean(torch.load(part), states[1:])
        assert json.loads(file.read("data"))["num_timesteps"] == 300
        assert "policy.optimizer.pth" in file.namelist()
    path = tmp_path / "run" / "rl_model_300_steps.zip"
    data = bytearray(path.read_bytes())
    at = data.find(states[2]["0.weight"].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--overwrite")
    assert said.startswith(f"error: {path}, a model of stable-baselines3, is damaged")
    assert said.count("\n") == 1
    assert at > 0


def test_steps_of_stable_baselines3_are_in_its_files(tmp_path, capsys):
    for number in (1, 2):
        zipped(tmp_path / f"ppo_{number}.zip", state_of(number), 100 * number)
    assert "checkpoints: 2, steps 100, 200" in command(capsys, "inspect", tmp_path)


def test_models_beside_the_policy_of_stable_baselines3_are_chosen_by_their_key(tmp_path, capsys):
    for step in (1, 2):
        path = tmp_path / "run" / f"ppo_{step}.zip"
        path.parent.mkdir(exist_ok=True)
        zipped(path, state_of(step), step)
        with zipfile.ZipFile(path, "a") as file, file.open("actor.pth", "w", force_zip64=True) as part:
            torch.save(state_of(10 + step), part)
    out = tmp_path / "mean.zip"
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", "--exclude=actor:*", f"--out={out}")
    with zipfile.ZipFile(out) as file:
        with file.open("policy.pth") as part:
            is_mean(torch.load(part), [state_of(1), state_of(2)])
        with file.open("actor.pth") as part:
            is_mean(torch.load(part), [state_of(12)])


def test_open_clip(tmp_path, capsys):
    states = [state_of(seed) for seed in (1, 2, 3)]
    for epoch, state in enumerate(states, start=1):
        named = {f"module.{name}": value for name, value in state.items()}
        contents = {"epoch": epoch, "name": "run", "state_dict": named, "optimizer": ADAM}
        torch.save(contents, tmp_path / f"epoch_{epoch}.pt")
    out = tmp_path / "out" / "average.pt"
    command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    found = torch.load(out)
    assert found.keys() == {"epoch", "name", "state_dict"}
    is_mean({name.removeprefix("module."): value for name, value in found["state_dict"].items()}, states[1:])


def test_diffusers(tmp_path, capsys):
    """A UNet and its EMA in folders below a checkpoint, beside an optimizer."""
    states = [(state_of(seed), state_of(seed + 9)) for seed in (1, 2, 3)]
    for number, pair in enumerate(states, start=1):
        for name, state in zip(("unet", "unet_ema"), pair):
            folder = tmp_path / "run" / f"checkpoint-{100 * number}" / name
            folder.mkdir(parents=True)
            save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        torch.save(ADAM, folder.parent / "optimizer.bin")
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 200, 300" in said
    assert f'load: diffusers.UNet2DConditionModel.from_pretrained("{out}", subfolder="unet")' in said
    for number, name in enumerate(("unet", "unet_ema")):
        is_mean(load_file(out / name / "diffusion_pytorch_model.safetensors"), [pair[number] for pair in states[1:]])
    assert not (out / "optimizer.bin").exists()


def test_peft(tmp_path, capsys):
    a, b = torch.randn(2, 4), torch.randn(4, 2)
    of = "base_model.model.q.lora"
    states = [{f"{of}_A.weight": a + 1e-3 * number, f"{of}_B.weight": b} for number in range(3)]
    for number, state in enumerate(states, start=1):
        folder = tmp_path / "run" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert f'load: peft.PeftModel.from_pretrained(base_model, "{out}")' in said
    is_mean(load_file(out / "adapter_model.safetensors"), states[1:])
    assert (out / "adapter_config.json").exists()


def test_keras_is_called_by_its_name(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "epoch_1.keras", "w") as file:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            file.writestr(name, b"")
    (tmp_path / "epoch_1.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    for path, what in (("epoch_1.keras", "a model of Keras"), ("epoch_1.weights.h5", "an HDF5 file, as Keras")):
        for where in (tmp_path, tmp_path / path):
            said = command(capsys, "inspect", where)
            assert said.startswith(f"error: {tmp_path / path} is {what}")
            assert said.count("\n") == 1
        (tmp_path / path).unlink()


def test_of_a_model_beside_the_one_that_its_key_asks_for_nothing_is_copied(tmp_path, capsys):
    """As diffusers has the model and its average in folders below one checkpoint."""
    for step in (1, 2):
        for place, name in enumerate(("unet", "unet_ema")):
            folder = tmp_path / "run" / f"checkpoint-{step}" / name
            folder.mkdir(parents=True)
            save_file(state_of(10 * place + step), folder / "diffusion_pytorch_model.safetensors")
            (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        (folder.parent / "notes.txt").write_text("copied")
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--key=unet_ema")
    assert "unet/diffusion_pytorch_model.safetensors (not asked for)" in said
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "notes.txt", "unet_ema/config.json", "unet_ema/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    is_mean(load_file(out / "unet_ema" / "diffusion_pytorch_model.safetensors"), [state_of(11), state_of(12)])
