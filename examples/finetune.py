"""Fine-tune, keep checkpoints, and choose the average afterwards: one run of training, every window.

    python examples/finetune.py        # some seconds; needs torch, scikit-learn and weight-averaging

A network is trained on upright digits, then fine-tuned on a few hundred that are turned by 90 degrees, with a
checkpoint every 10 updates. Averages over the latest 2, 5, 10 and 20 checkpoints are made from the files and compared;
the longest reaches back to where fine-tuning had only begun, and shows it.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from weight_averaging import offline

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--updates", type=int, default=200, help="number of fine-tuning updates (default: 200)")
updates = parser.parse_args().updates
if updates < 1:
    parser.error(f"--updates {updates}: there must be one or more")

torch.set_num_threads(1)  # tensors are small
digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
upright = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
turned, labels = upright.rot90(1, (1, 2)), torch.tensor(digits.target)[order]

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(images: torch.Tensor, rows: slice, steps: int, learning_rate: float, folder: Path | None = None) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(1, steps + 1):
        batch = torch.randint(rows.start, rows.stop, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        if folder is not None and step % 10 == 0:
            torch.save(model.state_dict(), folder / f"step_{step}.pt")


def errors() -> float:
    with torch.no_grad():
        return (model(turned[1000:]).argmax(1) != labels[1000:]).float().mean().item()


train(upright, slice(0, 700), steps=800, learning_rate=1e-3)
print(f"before fine-tuning       {errors():.3f} of the turned digits are wrong")
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    train(turned, slice(700, 1000), updates, learning_rate=5e-3, folder=folder)
    print(f"the last checkpoint      {errors():.3f}")

    steps = sorted(int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.pt"))
    wanted = [(offline.LAWA(window=window), steps[-1]) for window in (2, 5, 10, 20) if window <= len(steps)]
    plan = offline.Plan(wanted, steps)
    files = ((step, torch.load(folder / f"step_{step}.pt", weights_only=True)) for step in plan.needed)
    for result in plan.run(files):  # every file is read once, whatever the number of averages
        model.load_state_dict(result.state)
        print(f"{result.average!s:<24} {errors():.3f}")
