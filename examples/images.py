"""A small convolutional network on 8x8 digits, with its averages looked at while it trains.

    python examples/images.py          # half a minute; needs torch, scikit-learn and weight-averaging

The learning rate stays constant, where averaging gains most. Each line is an evaluation: the share of errors on the
digits held out, of the raw weights, of a LAWA and of an EMA over the same share of training.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from weight_averaging import EMA, LAWA

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--updates", type=int, default=1500, help="number of optimizer updates (default: 1500)")
updates = parser.parse_args().updates
if updates < 1:
    parser.error(f"--updates {updates}: there must be one or more")

torch.set_num_threads(1)  # tensors are small
digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
labels = torch.tensor(digits.target)[order]
train, held_out = slice(0, 1000), slice(1000, None)


def errors(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        wrong = model(images[held_out]).argmax(1) != labels[held_out]
    model.train()
    return wrong.float().mean().item()


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
averagers = {"LAWA": LAWA.for_run(model, updates), "EMA": EMA.for_run(model, updates)}  # 1: what to average

print("update   raw    " + "    ".join(averagers))
for step in range(1, updates + 1):
    rows = torch.randint(1000, (32,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[train][rows]), labels[train][rows]).backward()
    optimizer.step()
    for averager in averagers.values():
        averager.update(step)  # 2: after every optimizer step
    if step % max(1, updates // 10) == 0:
        found = [f"{errors(model):.3f}"]
        for averager in averagers.values():
            with averager.averaged():  # 3: evaluate the average
                found.append(f"{errors(model):.3f}")
        print(f"{step:6}   " + "   ".join(found))
