"""Checkpoints of open_clip, stable-baselines3 and Ultralytics from short runs, averaged and loaded back by them."""

import pytest
import torch

from tests.support.forms import command, is_mean
from tests.weight_averaging.offline.libraries.test_of_pytorch import kept

pytestmark = pytest.mark.trainers
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("distributed", [False, True])
def test_open_clip(tmp_path, capsys, distributed):
    """What its train.main saves after an epoch; names begin with `module.` after distributed training."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    from open_clip.factory import load_checkpoint

    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    states = []
    (tmp_path / "run").mkdir()
    for epoch in (1, 2, 3):
        images, texts, scale = model(torch.randn(2, 3, 16, 16), torch.randint(32, (2, 8)))
        (images @ texts.T * scale).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        states.append(kept(model))
        state = {("module." if distributed else "") + name: value for name, value in kept(model).items()}
        saved = {"epoch": epoch, "name": "tiny", "state_dict": state, "optimizer": optimizer.state_dict()}
        torch.save(saved, tmp_path / "run" / f"epoch_{epoch}.pt")
    for name in ("average.pt", "average.safetensors"):
        out = tmp_path / name
        said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--plain-names")
        assert "made of 2 snapshots, epochs 2, 3" in said
        fresh = open_clip.CLIP(**CLIP)
        load_checkpoint(fresh, str(out))
        is_mean(fresh.state_dict(), states[1:])


@pytest.mark.parametrize(("algorithm", "kept_too"), [("PPO", "policy.optimizer.pth"), ("DQN", "policy.optimizer.pth"),
    ("SAC", "pytorch_variables.pth")])  # fmt: skip
def test_stable_baselines3(tmp_path, capsys, algorithm, kept_too):
    library = pytest.importorskip("stable_baselines3", exc_type=ImportError)
    from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

    states = []

    class Remember(BaseCallback):
        def _on_step(self):
            if self.n_calls % 16 == 0:
                states.append(kept(self.model.policy))
            return True

    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1} if algorithm == "PPO" else {"learning_starts": 4}
    made = getattr(library, algorithm)
    environment = "Pendulum-v1" if algorithm == "SAC" else "CartPole-v1"
    model = made("MlpPolicy", environment, device="cpu", policy_kwargs={"net_arch": [4]}, **settings)
    model.learn(48, callback=[Remember(), CheckpointCallback(16, str(tmp_path / "run"), verbose=0)])
    out = tmp_path / "mean.zip"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "steps are from num_timesteps in it" in said
    assert "made of 2 snapshots, steps 32, 48" in said
    assert kept_too in said.partition("an average keeps ")[2].partition(" of the latest")[0]
    loaded = made.load(out, device="cpu")
    is_mean(loaded.policy.state_dict(), states[1:])
    assert loaded.num_timesteps == 48
    assert "mean.zip is (an average already, lawa" in command(capsys, "inspect", tmp_path)
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / 'policy.pt'}")
    is_mean(torch.load(tmp_path / "policy.pt"), states[1:])


def test_ultralytics(tmp_path, capsys, monkeypatch):
    """What its trainer saves (`save_model`): the EMA as a whole module in float16, and no raw weights."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    ultralytics = pytest.importorskip("ultralytics", exc_type=ImportError)
    from types import SimpleNamespace

    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.torch_utils import ModelEMA

    torch.manual_seed(0)
    model = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    ema = ModelEMA(model)
    states = []
    for epoch in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        ema.update(model)
        folder = tmp_path / "weights"
        trainer = SimpleNamespace(
            epoch=epoch, best_fitness=0.5, fitness=0.4, ema=ema, optimizer=optimizer,
            scaler=torch.amp.GradScaler("cpu"), stopper=SimpleNamespace(best_fitness=0.5, best_epoch=0),
            args=SimpleNamespace(model="yolo11n.yaml", task="detect"), metrics={"fitness": 0.4}, save_period=1,
            wdir=folder, last=folder / "last.pt", best=folder / "best.pt", read_results_csv=dict, model=model,
        )  # fmt: skip
        BaseTrainer.save_model(trainer)
        states.append({name: value.half() for name, value in kept(ema.ema).items()})
    out = tmp_path / "average.pt"
    said = command(capsys, "average", tmp_path / "weights", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 2, 3" in said
    assert f'load: YOLO("{out}")' in said
    loaded = ultralytics.YOLO(str(out))
    expected = [{name: value.float() if value.is_floating_point() else value for name, value in state.items()}
                for state in states[1:]]  # fmt: skip
    found = loaded.model.state_dict()
    assert found.keys() == expected[-1].keys()
    for name, value in found.items():
        mean = torch.stack([state[name].double() for state in expected]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=2**-10, atol=2**-20)
