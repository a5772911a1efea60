"""Whether models to merge have the same tokens, as far as tokenizers beside them say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.hugging_face import read_json
from weight_averaging.offline.remote import present

_FEW = 0.01  # of the tokens; fine-tuned models give reserved tokens other names


def check_tokens(paths: list[Path]) -> list[str]:
    """What is to be said about tokens that differ among folders of Hugging Face; nothing where none do.

    Args:
        paths: of the models, the one whose tokenizer the result has last.
    Raises:
        SnapshotError: more than a hundredth of the tokens are others at the same place: so are the rows of embeddings.
    """
    tokens = {path: found for path in paths if (found := _tokens(path))}
    if len(tokens) < 2:
        return []
    last = next(reversed(tokens))
    lines = []
    for path, own in list(tokens.items())[:-1]:
        both = [number for number in own if number in tokens[last]]
        unlike = sorted(number for number in both if own[number] != tokens[last][number])
        if not unlike:
            continue
        first = f"as {unlike[0]}, {own[unlike[0]]!r} and {tokens[last][unlike[0]]!r}"
        what = f"{path} and {last} have {len(unlike)} of {len(both)} tokens unlike, {first}"
        if len(unlike) > _FEW * len(both):
            raise SnapshotError(f"{what}: rows of their embeddings are of other tokens, and cannot be averaged")
        lines.append(f"{what}: their rows are averaged all the same")
    return lines


def _tokens(path: Path) -> Mapping[int, str]:
    """The tokens by their numbers; none where no tokenizer.json says."""
    file = path / "tokenizer.json"
    if not path.is_dir() or not file.is_file():
        return {}
    contents = read_json(present(file))
    model = contents.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found: dict[int, str] = {}
    if isinstance(vocabulary, dict):
        found = {number: token for token, number in vocabulary.items() if isinstance(number, int)}
    elif isinstance(vocabulary, list):  # of pairs: token and score
        found = {number: str(pair[0]) for number, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    added: Any = contents.get("added_tokens")
    for one in added if isinstance(added, list) else ():
        if isinstance(one, dict) and isinstance(one.get("id"), int) and isinstance(one.get("content"), str):
            found[one["id"]] = one["content"]
    return found
