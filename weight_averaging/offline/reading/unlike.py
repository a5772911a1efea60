"""Models to merge that are not quite alike: of other types, with more rows of a vocabulary, tied and untied.

- **Types**: a tensor is averaged and written in the widest, to which torch promotes them. bfloat16 and float16 are
  float32 together. Sums are in float32, or float64 where one is that.
- **Vocabularies**: tensors may differ in their number of rows alone, all by the same numbers, an embedding among them.
  That is refused unless it is said what to do. `smallest` takes the rows that all have. `largest` takes all rows. Those
  that not all have are the mean, by the same weights, of the models that have them.
- **Tokens**: tokenizers with other tokens at the same places are told, and refused where more than a hundredth are.
- **Tied heads**: where a model has no head (`lm_head.weight`) and others have, its one embedding that fits is its head.
  The merged model has a head of its own.

What goes beside the weights (config, tokenizer) is that of the last model that fits the result, which is put at the
end. It has all names, the rows of the result and, where configurations tell, an untied head. What differs is in `said`.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.hugging_face import HuggingFaceSource, read_json
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.layouts import Layout, check_alike
from weight_averaging.offline.reading.checksums import Checksums
from weight_averaging.offline.reading.snapshots import Snapshots, names_of
from weight_averaging.offline.reading.tokenizers import check_tokens

Vocabulary = Literal["smallest", "largest"]

_HEAD = re.compile(
    r"(?:.*\.)?(?:lm_head|output|output_projection|embed_out|proj_out|head|predictions\.decoder|decoder)\.weight"
)
_EMBEDDING = re.compile(r".*(emb|wte|shared|tok)", re.IGNORECASE)
_NO_EMBEDDING = re.compile(r".*(pos|wpe|type|patch|norm|\.ln)", re.IGNORECASE)


class Models(Snapshots):
    """Models in the order in which they count, "steps" 1, 2, .... See `Snapshots`.

    Args:
        paths: of the models.
        weights: of each; None: all count the same.
        vocabulary: what to do where their numbers of rows differ; None: refuse.
    Raises:
        SnapshotError: as of `Snapshots`; or they differ in more than types, rows and heads.

    Attributes:
        said: how they differ, and what is done, in lines.
        weights: of each model, in the order of `paths`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        allow: Collection[str] = (),
        *,
        weights: Sequence[float] | None = None,
        vocabulary: Vocabulary | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.said: list[str] = []
        self._weight_of = dict(zip(map(Path, paths), weights or [1 / max(len(paths), 1)] * len(paths)))
        self._vocabulary = vocabulary
        self._own_names: dict[Path, dict[str, str]] = {}  # of those to be fitted: by the common name that in the file
        self._fill: dict[str, dict[int, Tensor]] = {}  # rows to add, by the number of those there
        super().__init__(paths, allow, step_from="order", keys=keys)
        self.weights = [self._weight_of[path] for path in self.paths.values()]
        self.mapped = self.mapped and not self._own_names

    def _agree(self, sources: dict[Path, Source]) -> dict[Path, Source]:
        layouts = {path: dict(zip(names_of(source), source.layout.values())) for path, source in sources.items()}
        saved = {path: dict(zip(names_of(source), source.layout)) for path, source in sources.items()}
        untied = _untied(sources)
        names = dict.fromkeys(name for layout in layouts.values() for name in layout)
        whole = [path for path, layout in layouts.items() if len(layout) == len(names)]
        for path, layout in layouts.items():
            for name in names.keys() - layout.keys():
                embedding = _embedding_of(sources[path], layout, name, layouts) if whole else None
                if embedding is None:
                    _refuse(layouts)
                layout[name] = layout[embedding]
                saved[path][name] = saved[path][embedding]
                self.said.append(
                    f"{path} has no {name}: its {embedding} is its head too, and the result has both apart"
                )
        rows = self._rows(layouts)
        form = [path for path in whole if path in untied and rows.get(path, -1) == self._wanted(rows)]
        if not form:
            raise SnapshotError(
                "no one of the models has both the vocabulary and the untied head of the result, and so the right "
                "configuration: merge them with fewer differences first"
            )
        order = [*(path for path in sources if path != form[-1]), form[-1]]
        self.layout = {name: self._kind(name, layouts, rows) for name in layouts[form[-1]]}
        for path, layout in layouts.items():
            if any(layout[name] != kind for name, kind in self.layout.items()) or len(sources[path].layout) < len(
                names
            ):
                self._own_names[path] = saved[path]
        check_alike(dict.fromkeys(sources, self.layout))
        self._say(layouts, rows)
        if self._own_names and form[-1] != next(reversed(sources)):
            self.said.append(f"what is not weights (names, configuration, ...) is that of {form[-1]}")
        self.said += check_tokens(order)
        self._fill_rows(sources, layouts, saved, rows)
        return {path: sources[path] for path in order}

    def _rows(self, layouts: Mapping[Path, Layout]) -> dict[Path, int]:
        """The number of rows of each model where they differ; empty if they do not."""
        found: dict[Path, int] = {}
        differing = []
        for name in next(iter(layouts.values())):
            shapes = {path: layout[name][0] for path, layout in layouts.items()}
            if len(set(shapes.values())) == 1:
                continue
            own = {path: shape[0] if shape else -1 for path, shape in shapes.items()}
            if len({shape[1:] for shape in shapes.values()}) > 1 or (found and own != found):
                _refuse(layouts)
            found = own
            differing.append(name)
        if not found:
            return {}
        if not any(_is_embedding(name) for name in differing):
            _refuse(layouts)
        few, many = min(found, key=lambda path: found[path]), max(found, key=lambda path: found[path])
        if self._vocabulary is None:
            raise SnapshotError(
                f"{many} has {found[many]} rows of {differing[0]}, and {few} {found[few]}: of other vocabularies; if "
                "their first rows are of the same tokens, add --vocabulary smallest (the rows that all have) or largest"
            )
        return found

    def _wanted(self, rows: Mapping[Path, int]) -> int:
        return (min if self._vocabulary == "smallest" else max)(rows.values(), default=-1)

    def _kind(
        self, name: str, layouts: Mapping[Path, Layout], rows: Mapping[Path, int]
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of a tensor of the result."""
        kinds = [layout[name] for layout in layouts.values()]
        shape = kinds[0][0] if len({shape for shape, _ in kinds}) == 1 else (self._wanted(rows), *kinds[0][0][1:])
        widest = kinds[0][1]
        for _, dtype in kinds[1:]:
            if dtype != widest:
                if not (
                    dtype.is_floating_point and widest.is_floating_point and min(dtype.itemsize, widest.itemsize) > 1
                ):
                    _refuse(layouts)
                widest = torch.promote_types(widest, dtype)
        return shape, widest

    def _say(self, layouts: Mapping[Path, Layout], rows: Mapping[Path, int]) -> None:
        unlike: dict[str, list[str]] = {}
        for name, (_, widest) in self.layout.items():
            types = sorted({_shown(layout[name][1]) for layout in layouts.values()})
            if len(types) > 1:
                unlike.setdefault(f"{' and '.join(types)}: averaged and written as {_shown(widest)}", []).append(name)
        for what, names in unlike.items():
            self.said.append(f"{names[0]}{f' and {len(names) - 1} others are' if names[1:] else ' is'} of types {what}")
        if rows:
            cut = sorted(set(rows.values()))
            names = [name for name in self.layout if len({layout[name][0] for layout in layouts.values()}) > 1]
            done = (
                f"rows from {cut[0]} on are left out"
                if self._vocabulary == "smallest"
                else f"rows from {cut[0]} on are the mean of the models that have them"
            )
            self.said.append(f"{', '.join(names)}: {' and '.join(map(str, cut))} rows; {done}")

    def _fill_rows(
        self,
        sources: Mapping[Path, Source],
        layouts: Mapping[Path, Layout],
        saved: Mapping[Path, Mapping[str, str]],
        rows: Mapping[Path, int],
    ) -> None:
        """The rows that some models lack, in float64: with them the mean over all is that over those that have them."""
        if self._vocabulary != "largest" or not rows:
            return
        cuts = sorted(set(rows.values()))
        for name in self.layout:
            if len({layout[name][0] for layout in layouts.values()}) == 1:
                continue
            parts = []
            for start, stop in itertools.pairwise(cuts):
                having = [path for path in sources if rows[path] >= stop]
                total = sum(self._weight_of[path] for path in having)
                if total == 0:
                    raise SnapshotError(f"the weights of the models with rows {start} to {stop - 1} sum to 0")
                mean = torch.zeros(stop - start, *self.layout[name][0][1:], dtype=torch.float64)
                for path in having:
                    own = saved[path][name]
                    mean += sources[path].read([own])[own][start:stop].double() * (self._weight_of[path] / total)
                parts.append(mean)
            self._fill[name] = {cut: torch.cat(parts[index:]) for index, cut in enumerate(cuts[:-1])}

    def reader(self, step: int) -> Source:
        source = self.open(step)
        names = self._own_names.get(source.path)
        return source if names is None else _Fitted(source, names, self.layout, self._fill)


class _Fitted(Source):
    """A model with the names, shapes and types of the result."""

    form = "model"

    def __init__(
        self, source: Source, names: Mapping[str, str], layout: Layout, fill: Mapping[str, Mapping[int, Tensor]]
    ) -> None:
        super().__init__(source.path)
        self._source, self._names, self._fill = source, names, fill
        self.layout, self.others, self.own_names = layout, source.others, True

    def read(self, names: list[str]) -> dict[str, Tensor]:
        found = {}
        for name in names:
            own = self._names.get(name, name)
            tensor = self._source.read([own])[own]
            Checksums(self._source).see(own, tensor)
            found[name] = self._fitted(name, tensor) if name in self.layout else tensor
        return found

    def _fitted(self, name: str, tensor: Tensor) -> Tensor:
        shape, dtype = self.layout[name]
        tensor = tensor.to(dtype)
        if tensor.shape == shape:
            return tensor
        if tensor.shape[0] > shape[0]:
            return tensor[: shape[0]]
        return torch.cat([tensor, self._fill[name][tensor.shape[0]].to(dtype)])


def _refuse(layouts: Mapping[Path, Layout]) -> NoReturn:
    """SnapshotError that says how one of these, which are not alike, differs from the others."""
    check_alike(layouts)
    raise SnapshotError("the models are not alike")


def _is_embedding(name: str) -> bool:
    return bool(_EMBEDDING.match(name)) and not _NO_EMBEDDING.match(name)


def _embedding_of(source: Source, layout: Layout, head: str, layouts: Mapping[Path, Layout]) -> str | None:
    """The embedding that is the head of a model without one; None where that is not certain."""
    if not _HEAD.fullmatch(head) or _tied(source) is False:
        return None
    width = {other[head][0][1:] for other in layouts.values() if head in other}
    found = [n for n, (shape, _) in layout.items() if _is_embedding(n) and len(shape) == 2 and shape[1:] in width]
    return found[0] if len(found) == 1 else None


def _tied(source: Source) -> bool | None:
    """Whether a model's configuration says that its head is its embedding; None if it does not say."""
    config = source.path / "config.json"
    if not isinstance(source, HuggingFaceSource) or not config.is_file():
        return None
    tied = read_json(config).get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else None


def _untied(sources: Mapping[Path, Source]) -> set[Path]:
    """Those whose configuration fits an untied head, where another one's says otherwise; else all."""
    tied = {path: _tied(source) for path, source in sources.items()}
    heads = any(_HEAD.fullmatch(name) for source in sources.values() for name in names_of(source))
    different = heads and len({value is True for value in tied.values()}) > 1
    return {path for path, value in tied.items() if not different or value is not True}


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
