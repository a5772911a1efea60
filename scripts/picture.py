"""Draw docs/averaging.png, which shows what averaging is, and docs/growing.png.

    python -m scripts.picture

Nothing in them is sketched. In the first one SGD at a constant learning rate goes down a valley of 40 weights with
noisy gradients. The library's LAWA averages what it visits. The second one has weights that the library gives, and runs
whose numbers are in docs/results/evidence/data.
"""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from scripts.start import start
from weight_averaging.interrupts import importing

if TYPE_CHECKING:
    import numpy as np
    import torch

DOCS = Path(__file__).parents[1] / "docs"
TARGET, GROWING, DATA = DOCS / "averaging.png", DOCS / "growing", DOCS / "results" / "evidence" / "data"
WEIGHTS = 40
SHOWN = [0, -1]  # the two weights on the map
UPDATES, INTERVAL, WINDOW, RATE, NOISE = 160, 4, 8, 0.12, 2.2


def curvature() -> "torch.Tensor":
    """The second derivative of the loss by each weight, (WEIGHTS,)."""
    import torch

    return torch.linspace(0.5, 3.0, WEIGHTS)


def trained(seed: int = 3) -> "dict[str, np.ndarray]":
    """Train with noisy gradients, and average with LAWA.

    Returns:
        `raw` and `average`: the weights after each update, (updates, 40); NaN where there is no average yet.
    """
    import numpy as np
    import torch

    from weight_averaging import LAWA

    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(WEIGHTS, 1, bias=False)
    weights = model.weight.data[0]
    weights.fill_(-3.0)
    lawa = LAWA(model, interval=INTERVAL, window=WINDOW)
    raw, average = (np.full((UPDATES, WEIGHTS), np.nan) for _ in range(2))
    for step in range(1, UPDATES + 1):
        weights -= RATE * (curvature() * weights + NOISE * torch.randn(WEIGHTS, generator=generator))
        lawa.update(step)
        raw[step - 1] = weights
        if lawa.ready:
            with lawa.averaged():
                average[step - 1] = model.weight.data[0]
    return {"raw": raw, "average": average}


def loss(weights: "np.ndarray") -> "np.ndarray":
    """Half the mean square distance from the bottom, weighted by the curvature: (..., 40) to (...)."""
    return 0.5 * (weights**2 * curvature().numpy()).mean(axis=-1)


def draw(target: Path = TARGET) -> None:
    """Draw both panels: the way of the weights, and the loss along it."""
    import numpy as np

    from analysis.figures.style import AVERAGES, GREY, PLAIN, plt

    way = trained()
    raw, average = way["raw"], way["average"]
    seen, mean = raw[:, SHOWN], average[-1, SHOWN]
    snapshots = seen[INTERVAL - 1 :: INTERVAL][-WINDOW:]
    figure, (map_, curves) = plt.subplots(1, 2, figsize=(8.6, 3.1))
    x, y = np.meshgrid(np.linspace(-3.3, 1.7, 200), np.linspace(-3.3, 1.7, 200))
    first, last = curvature()[SHOWN].tolist()
    map_.contour(x, y, np.sqrt(first * x**2 + last * y**2), levels=9, colors="0.87", linewidths=0.8)
    map_.plot(*seen.T, color=GREY, linewidth=0.8, label="weights during training")
    map_.plot(*snapshots.T, "o", color=AVERAGES[PLAIN], markersize=4, label=f"the latest {WINDOW} snapshots")
    map_.plot(*mean, "*", color=AVERAGES["lawa"], markersize=15, label="their mean: what is evaluated")
    map_.plot(0, 0, "+", color=AVERAGES["ema"], markersize=11, markeredgewidth=2, label="the best weights")
    map_.set(title="Two of the 40 weights", xlabel="first weight", ylabel="second weight")
    map_.grid(False)
    map_.legend(loc="lower right", handlelength=1.2)
    steps = np.arange(1, UPDATES + 1)
    curves.plot(steps, loss(raw), color=GREY, linewidth=1, label="latest weights")
    curves.plot(steps, loss(average), color=AVERAGES["lawa"], linewidth=2, label=f"mean of {WINDOW} snapshots")
    curves.set(title="Loss", xlabel="updates", ylabel="loss (lower is better)", ylim=(0, 1.4))
    curves.legend()
    figure.savefig(target, dpi=150)
    plt.close(figure)


def draw_growing(target: Path = GROWING) -> None:
    """The picture of docs/growing.md, of a run in which the growing average gains and one in which it lags."""
    from analysis.evidence.data import load
    from analysis.evidence.growing import SNAPSHOTS, picture
    from analysis.figures import style
    from submissions.recipe.schedules import warmup_cosine

    runs = load(DATA).of("A", "nadamw")
    rates = [warmup_cosine(step, SNAPSHOTS, SimpleNamespace(warmup_factor=0.02)) for step in range(SNAPSHOTS)]
    chosen = [runs[name][0] for name in ("mini_finewebedu_lm", "mini_criteo1tb")]
    style.save(picture(rates, chosen), target, kinds=("png",))


def run() -> None:
    with importing():
        import_module("torch")
        import_module("analysis.evidence.growing")
    draw()
    draw_growing()
    print(f"drawn: {TARGET}, {GROWING}")


if __name__ == "__main__":
    start(run)
