"""One look for all figures: sizes fit for a paper's column, colours told apart with any colour vision."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

# Okabe and Ito's palette, its yellow left out: too pale for a line on white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
LINES = ("-", "--", ":", "-.")
GREY = "#B8B8B8"  # where there are too many lines to tell apart
MANY = 8
PLAIN = "plain"  # the latest weights
AVERAGES = {PLAIN: COLOURS[0], "lawa": COLOURS[6], "ema": COLOURS[4]}
_PLAIN_PARTS = {"nadamw", "adamw", "no", "decay"}
MARKERS = dict(zip(LINES, "os^v"))  # where there are points and no lines

logging.getLogger("fontTools").setLevel(logging.WARNING)  # else absl shows every glyph of a PDF
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "0.92",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.5,
        "savefig.dpi": 200,
        "text.parse_math": False,  # a $ in a submission's name is a $
        "pdf.fonttype": 42,  # text stays text: journals reject Type 3 fonts
        "figure.constrained_layout.use": True,
    }
)


def looks(names: Iterable[str], baseline: str | None = None) -> dict[str, tuple[str, str]]:
    """Colour and line style of each submission, the baseline first.

    A submission of this repository has the same colour on every page, by what it averages. Its line style is by the
    rest of its name. The baseline is black. The others take the colours that are left, then other line styles. They
    take them by name. If they are many, the first of `names` take the first colours.
    """
    given = list(dict.fromkeys(names))
    names = _by_name(given, baseline) if len(given) <= MANY else given
    bases = [name.split(",")[0] for name in names]
    # Points of a grid ("lawa, window=5") are told apart by the colours of others.
    own = {name: method for name, base in zip(names, bases) if bases.count(base) == 1 and (method := _method(base))}
    if baseline is not None and baseline not in own:
        own = {name: method for name, method in own.items() if method != PLAIN}
    rests = sorted({_rest(name) for name in own}, key=lambda rest: (len(rest), rest))
    found = {name: (AVERAGES[method], LINES[rests.index(_rest(name)) % len(LINES)]) for name, method in own.items()}
    if baseline in names and baseline not in own:
        found[baseline] = (COLOURS[0], LINES[0])
    taken = {colour for name, (colour, _) in found.items() if name in names[:MANY]}
    left = [colour for colour in COLOURS[1:] if colour not in taken]
    others = [name for name in names if name not in found]
    found |= {name: (left[i % len(left)], LINES[i // len(left) % len(LINES)]) for i, name in enumerate(others)}
    return {name: found[name] for name in names}


def _by_name(names: Iterable[str], baseline: str | None) -> list[str]:
    """The baseline, then the others by name, numbers in names by their size."""
    return sorted(
        names,
        key=lambda name: (name != baseline, [(float(part), "") if re.fullmatch(r"\d+(\.\d+)?", part) else (0.0, part)
                                             for part in re.split(r"(\d+(?:\.\d+)?)", name)]),
    )  # fmt: skip


def _method(base: str) -> str | None:
    """What a submission of this repository averages, by its name; None for others."""
    parts = set(base.split("_"))
    averages = [name for name in AVERAGES if name in parts]
    return averages[0] if averages else PLAIN if parts <= _PLAIN_PARTS else None


def _rest(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(",")[0].split("_") if part not in (*AVERAGES, "nadamw"))


def leaders(ranked: Sequence[str], baseline: str) -> list[str]:
    """The names to draw in colour: all, or of more than `MANY` the baseline and the first ones."""
    if len(ranked) <= MANY:
        return list(ranked)
    others = [name for name in ranked if name != baseline]
    return [baseline, *others[: len(COLOURS) - 1]]


def panels(count: int, size: tuple[float, float] = (3.4, 2.7), columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A grid of `count` panels of `size` inches each: up to four in a row, or three if that leaves fewer empty."""
    columns = columns or (count if count <= 4 else min((4, 3), key=lambda columns: -count % columns))
    rows = -(-count // columns)
    width = max(size[0] * columns, 5.0)
    figure, grid = plt.subplots(rows, columns, figsize=(width, size[1] * rows + 0.5), squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def log_ticks(axis: Axes, percent: bool = False) -> None:
    """A logarithmic horizontal axis with plain numbers at 1, 2 and 5 (or, if it is long, 3) times the powers of ten."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0, 3.0)))
    axis.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g} %" if percent else f"{x:.3g}")
    axis.xaxis.set_minor_locator(NullLocator())


def target_line(axis: Axes, target: float) -> None:
    """The dashed line of a validation target, in the legend."""
    axis.axhline(target, color="0.35", linestyle=(0, (4, 3)), linewidth=1, zorder=1, label="validation target")


def direction(lower: bool) -> str:
    """Which way is better, for the label of an axis."""
    return "lower is better" if lower else "higher is better"


def band_key(label: str) -> Patch:
    """The legend's entry of the bands around lines."""
    return Patch(facecolor="0.5", alpha=0.3, linewidth=0, label=label)


def mark_key(label: str, **look: Any) -> Line2D:
    """The legend's entry of a mark that several submissions have, each in its colour."""
    return Line2D([], [], linestyle="none", label=label, **{"color": "0.35", "markersize": 6, **look})


def legend_below(figure: Figure, axes: Iterable[Axes], order: Iterable[str] = (), keys: Iterable[Artist] = ()) -> None:
    """One legend for all panels, below them; labels in the given order come first, keys that no panel has last."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    handles |= {str(key.get_label()): key for key in keys}
    labels = [*(label for label in order if label in handles), *(label for label in handles if label not in order)]
    width = 0.7 + 0.065 * max(map(len, labels))  # inches, of the longest label with its line
    columns = max(1, min(len(labels), int(figure.get_figwidth() / width)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, rows - 2))  # `panels` has room for two
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=columns)


def runs_of_numbers(numbers: Sequence[int]) -> str:
    """Sorted numbers with neighbours joined: 1, 3-6, 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def save(figure: Figure, path: Path, kinds: Iterable[str] = ("png", "pdf")) -> list[Path]:
    """Write path.png and path.pdf, or the kinds asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.parent / f"{path.name}.{kind}" for kind in kinds]
    for target in written:
        # No date in the PDF: the same logs give the same file.
        figure.savefig(target, metadata={"CreationDate": None} if target.suffix == ".pdf" else None)
    plt.close(figure)
    return written
