"""Models that diffusers saves: in folders below a checkpoint, as its training scripts do, a variant, a pipeline."""

import pytest
import torch

from tests.support.forms import command, is_mean

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.trainers
STEPS = (100, 200, 300)


def model_of() -> torch.nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def train(save, steps=STEPS) -> tuple[list[dict], list[dict]]:
    """Train a UNet and an EMAModel of it; `save` is called after each step. The states of both."""
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    model = model_of()
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=diffusers.UNet2DModel, model_config=model.config)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    raw, averages = [], []
    for step in steps:
        model(torch.randn(2, 3, 8, 8), 3).sample.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        save(step, model, ema)
        raw.append(clone(model.state_dict()))
        averages.append(dict(zip(dict(model.named_parameters()), clone(dict(enumerate(ema.shadow_params))).values())))
    return raw, averages


def clone(state):
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.fixture
def run(tmp_path):
    """checkpoint-STEP/unet and unet_ema, as accelerate's hooks of the training scripts write them."""

    def save(step, model, ema):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        model.save_pretrained(folder / "unet")
        ema.save_pretrained(folder / "unet_ema")
        torch.save({"state": {}, "param_groups": []}, folder / "optimizer.bin")

    return tmp_path / "run", *train(save)


def test_unet_and_its_ema_below_the_checkpoints(run, tmp_path, capsys):
    from diffusers.training_utils import EMAModel

    folder, raw, averages = run
    out = tmp_path / "out"
    said = command(capsys, "average", folder, "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 200, 300" in said
    assert "averaged too, each on its own: unet_ema/diffusion_pytorch_model.safetensors" in said
    assert f'load: diffusers.UNet2DModel.from_pretrained("{out}", subfolder="unet")' in said
    is_mean(diffusers.UNet2DModel.from_pretrained(out, subfolder="unet").state_dict(), raw[1:])
    found = EMAModel.from_pretrained(out / "unet_ema", diffusers.UNet2DModel)
    is_mean(dict(zip(averages[0], found.shadow_params)), averages[1:])
    assert "checkpoints: 1, step 200" in command(capsys, "inspect", folder / "checkpoint-200")


def test_one_of_them_by_its_key(run, tmp_path, capsys):
    folder, _, averages = run
    out = tmp_path / "out"
    command(capsys, "average", folder, "--lawa=window=3", f"--out={out}", "--key=unet_ema")
    is_mean(dict(diffusers.UNet2DModel.from_pretrained(out / "unet_ema").named_parameters()), averages)
    assert sorted(path.name for path in out.iterdir()) == ["unet_ema"]
    command(capsys, "average", folder, "--lawa=window=3", f"--out={tmp_path / 'x.pt'}", "--key=unet_ema")
    is_mean(torch.load(tmp_path / "x.pt"), averages)
    said = command(capsys, "average", folder, "--lawa=window=3", f"--out={tmp_path / 'y.pt'}", "--key=vae")
    assert said.endswith("has no weights at --key=vae, the name of a folder or file in it\n")


@pytest.mark.parametrize("size", ["10GB", "10KB"])
def test_a_variant_in_half_precision(tmp_path, capsys, size):
    def save(step, model, ema):
        half = model_of()
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(tmp_path / "run" / f"checkpoint-{step}", variant="fp16", max_shard_size=size)

    raw, _ = train(save)
    out = tmp_path / "out"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=3", f"--out={out}")
    assert f'load: diffusers.UNet2DModel.from_pretrained("{out}", variant="fp16")' in said
    found = diffusers.UNet2DModel.from_pretrained(out, variant="fp16", torch_dtype=torch.float16).state_dict()
    halves = [{name: value.half() for name, value in state.items()} for state in raw]
    is_mean(found, halves)
    assert len(list(out.glob("*.safetensors"))) == (1 if size == "10GB" else 3)


def test_pipelines(tmp_path, capsys):
    def save(step, model, ema):
        pipeline = diffusers.DDPMPipeline(model, diffusers.DDPMScheduler())
        pipeline.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")

    raw, _ = train(save)
    out = tmp_path / "out"
    command(capsys, "average", tmp_path / "run", "--lawa=window=3", f"--out={out}")
    pipeline = diffusers.DDPMPipeline.from_pretrained(out)
    is_mean(pipeline.unet.state_dict(), raw)
    assert pipeline.scheduler.config.num_train_timesteps == 1000
