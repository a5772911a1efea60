"""A run of one's own: three lines of averaging, and checkpoints from which every other average can be had afterwards.

    python examples/own_run.py runs/mine          # some seconds; needs torch, scikit-learn and weight-averaging

A small network on 8x8 digits, at a constant learning rate. Prints the loss on the digits held out, of the raw weights
and of their average, and leaves a checkpoint every 20 updates in the folder; examples/horizon.py goes on from there.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from weight_averaging import LAWA

torch.set_num_threads(1)  # tensors are small
digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]


def make_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))


def held_out_loss(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(images[1000:]), labels[1000:]).item()
    model.train()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder into which checkpoints are written")
    parser.add_argument("--updates", type=int, default=2000, help="number of optimizer updates (default: 2000)")
    args = parser.parse_args()
    if args.updates < 1:
        parser.error(f"--updates {args.updates}: there must be one or more")
    args.folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    lawa = LAWA.for_run(model, args.updates)  # 1: what to average, and how long
    print(lawa)
    for step in range(1, args.updates + 1):
        rows = torch.randint(1000, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        lawa.update(step)  # 2: after every optimizer update
        if step % 20 == 0:
            torch.save(model.state_dict(), args.folder / f"step_{step}.pt")
        if step % (args.updates // 5) == 0:
            raw = held_out_loss(model)
            with lawa.averaged():  # 3: evaluate, or save, the averaged model
                print(f"update {step:5}: loss {raw:.4f} raw, {held_out_loss(model):.4f} averaged")


if __name__ == "__main__":
    main()
