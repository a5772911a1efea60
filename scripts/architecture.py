"""Draw the rooms of this repository and who imports whom, from the imports themselves.

    python -m scripts.architecture

writes docs/architecture.svg and the table in docs/architecture.md. A test compares both with the imports, and refuses
a circle and an arrow that points up.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from scripts.start import start

ROOT = Path(__file__).parents[1]
TOP = ("weight_averaging", "submissions", "miniperf", "analysis", "launching", "scripts")
# Rooms within a package; what is in none of them belongs to the package.
INNER = {
    "weight_averaging": ("averages", "torch", "jax", "offline", "trainers", "cli"),
    "weight_averaging.torch": ("tracks", "model", "memory"),
    "weight_averaging.offline": ("reading", "passes", "writing", "forms"),
    "analysis": ("reading", "targets", "measures", "figures", "report", "comparisons"),
    "submissions": ("recipe",),
    "miniperf": ("workloads", "frameworks"),
}
PAGE, PICTURE = ROOT / "docs/architecture.md", ROOT / "docs/architecture.svg"

Edges = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    found = {}
    for top in TOP:
        for path in sorted((root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """The innermost room of a module."""
    room = module.partition(".")[0]
    while inner := next((name for name in INNER.get(room, ()) if f"{module}.".startswith(f"{room}.{name}.")), None):
        room = f"{room}.{inner}"
    return room


def imports(module: str, path: Path, known: dict[str, Path], at_load: bool = False) -> Iterator[str]:
    """The modules of this repository that a module imports.

    Args:
        at_load: leave out what is imported inside functions. What only type checkers import never counts.
    """
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if types or inside:
            skipped.update(ast.walk(node))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in known and name != module)


def module_edges(at_load: bool = False) -> Edges:
    known = modules()
    return {name: set(imports(name, path, known, at_load)) for name, path in known.items()}


def room_edges() -> Edges:
    """For each room those that it imports from; what rooms share with the one that holds them is left out."""
    edges: Edges = defaultdict(set)
    for module, used in module_edges().items():
        room = room_of(module)
        edges[room] |= {other for other in map(room_of, used) if not _is_within(room, other)}
    return {room: edges[room] for room in sorted(edges)}


def _is_within(room: str, other: str) -> bool:
    """Whether one of two rooms holds the other, or both are one."""
    return f"{room}.".startswith(f"{other}.") or f"{other}.".startswith(f"{room}.")


def circle(edges: Edges) -> list[str]:
    """Names that import each other in a circle, the first one at both ends; empty if there is none."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(edges.get(name, ())):
                if found := search(other, [*way, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := search(name, []))), [])


def table(edges: Edges) -> str:
    """Each room with those that it imports from, in Markdown."""
    lines = ["| room | imports from |", "|---|---|"]
    for room, used in edges.items():
        lines.append(f"| `{room.replace('.', '/')}` | {', '.join(f'`{u}`'.replace('.', '/') for u in sorted(used))} |")
    return "\n".join(lines)


def with_table(page: str, edges: Edges) -> str:
    """The page with its table made anew."""
    return re.sub(r"(?<=<!-- rooms -->\n).*?(?=\n<!-- end -->)", lambda _: table(edges), page, flags=re.S)


def levels(edges: Edges) -> dict[str, int]:
    """How high a room stands: above all that it imports from, and in one band with its package."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((of(other) for other in edges[room]), default=-1)
        return height[room]

    for room in edges:
        of(room)
    return height


def nearest(edges: Edges) -> Edges:
    """Without arrows that a longer way shows already."""

    def reached(room: str) -> set[str]:
        return edges[room].union(*(reached(other) for other in edges[room]))

    return {room: {u for u in used if not any(u in reached(o) for o in used)} for room, used in edges.items()}


def label(room: str) -> str:
    package, _, rest = room.partition(".")
    return f"{package}\n{rest.replace('.', '/')}" if rest else package


def draw(edges: Edges) -> None:
    """Write the picture. Boxes stand above what they import from; colours are packages."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "architecture", "svg.fonttype": "path"}
    from matplotlib import pyplot as plt

    height = levels(edges)
    rows: dict[int, list[str]] = defaultdict(list)
    for room, level in height.items():
        rows[level].append(room)
    colours = dict(zip(TOP, ("#cfe3f5", "#fde2c8", "#d9efd3", "#f5d6dc", "#e6dcf2", "#e8e8e8")))
    figure, axes = plt.subplots(figsize=(12, 1.15 * len(rows)))
    places = {}
    for level, rooms in rows.items():
        rooms.sort(key=lambda room: (TOP.index(room.partition(".")[0]), room))
        widths = [max(map(len, label(room).splitlines())) + 4 for room in rooms]
        total = sum(widths)
        for number, room in enumerate(rooms):
            places[room] = ((sum(widths[:number]) + widths[number] / 2) / total, level)
    for room, used in nearest(edges).items():
        for other in used:
            axes.annotate(
                "", xy=(places[other][0], places[other][1] + 0.28), xytext=(places[room][0], places[room][1] - 0.28),
                arrowprops={"arrowstyle": "-|>", "color": "#777777", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}, zorder=1,
            )  # fmt: skip
    for room, (x, y) in places.items():
        top = room.partition(".")[0]
        box = {"boxstyle": "round,pad=0.4", "facecolor": colours[top], "edgecolor": "#555555"}
        axes.text(x, y, label(room), ha="center", va="center", fontsize=9, bbox=box, zorder=2)
    axes.set(xlim=(0, 1), ylim=(-0.4, len(rows) - 0.5))
    axes.axis("off")
    axes.set_title("An arrow points from who imports to what is imported", fontsize=10)
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None, "Description": table(edges)})


def main() -> None:
    edges = room_edges()
    if found := circle(edges):
        raise SystemExit(f"error: a circle: {' -> '.join(found)}")
    PAGE.write_text(with_table(PAGE.read_text(), edges))
    draw(edges)
    print(f"{PAGE.relative_to(ROOT)}, {PICTURE.relative_to(ROOT)}: {len(edges)} rooms")


if __name__ == "__main__":
    start(main)
