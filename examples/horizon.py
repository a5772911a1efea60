"""How long should the average have been? Every horizon from the checkpoints of one run, as a table and a figure.

    python examples/horizon.py runs/mine          # the folder of examples/own_run.py; needs matplotlib too

Averages over the latest 1 (the raw weights), 2, 5, 10, ... checkpoints, as of a quarter, half and all of training, are
made in one pass over the files and evaluated on held-out data. For a model of yours, import its `make_model` and
`held_out_loss` instead. Choose on data that the final test does not use.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt
from own_run import held_out_loss, make_model

from weight_averaging import offline

WINDOWS = (1, 2, 5, 10, 20, 50)
COLOURS = ("#E69F00", "#009E73", "#0072B2")  # told apart with any colour vision

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="folder of the checkpoints, which are evenly spaced")
folder = parser.parse_args().folder

try:
    snapshots = offline.Snapshots(folder)
except ValueError as error:  # no folder, or nothing in it
    parser.error(str(error))
every, total = snapshots.steps[0], snapshots.steps[-1]
places = [total * quarters // 4 // every * every for quarters in (1, 2, 4)]
wanted = [(offline.LAWA(window=window), step) for window in WINDOWS for step in places if window * every <= step]
plan = offline.Plan(wanted, snapshots.steps)
model, losses = make_model(), {}
for result in plan.run(snapshots.stream(plan.needed)):  # each file is read once, whatever the number of averages
    model.load_state_dict(result.state)
    losses[result.average.window, result.step] = held_out_loss(model)

print("horizon   " + "  ".join(f"update {step:5}" for step in places))
for window in WINDOWS:
    row = [f"{losses[window, step]:12.4f}" if (window, step) in losses else 12 * " " for step in places]
    print(f"{'raw' if window == 1 else f'{window * every / total:.1%}':<10}" + "  ".join(row))

figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
for step, colour in zip(places, COLOURS):
    points = [(window * every / total, losses[window, step]) for window in WINDOWS[1:] if (window, step) in losses]
    axes.plot(*zip(*points), marker="o", color=colour, label=f"average, update {step}")
    axes.axhline(losses[1, step], color=colour, linestyle="--", label=f"raw weights, update {step}")
axes.set(xscale="log", xlabel="horizon: share of training in the average")
axes.set_ylabel("loss on held-out data (lower is better)")
axes.set_xticks([window * every / total for window in WINDOWS[1:]], [f"{w * every / total:.0%}" for w in WINDOWS[1:]])
axes.minorticks_off()
figure.legend(loc="outside upper center", ncols=2, frameon=False)
figure.savefig(folder / "horizon.png", dpi=150)
print(f"drawn into {folder / 'horizon.png'}")
