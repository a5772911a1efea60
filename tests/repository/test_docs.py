"""The tests that pages name are there; the reference has all that is public."""

import importlib
import inspect
import re
from typing import Any

from tests.support import ROOT

TRAINERS = {"Lightning", "Hugging Face's Trainer", "accelerate's own loop", "torchtitan"}
KINDS = ("DDP", "FSDP1", "FSDP2", "HSDP", "tensor parallel", "DeepSpeed", "pipeline", "experts")


def reference() -> dict[Any, bool]:
    """Each class, function and number that has an entry: whether what it inherits is in the entry too."""
    found = {}
    for page in sorted((ROOT / "docs/reference").glob("*.md")):
        for kind, path, options in re.findall(r"\.\. auto(\w+):: (\S+)\n((?: +:.*\n)*)", page.read_text()):
            whole = ":inherited-members:" in options
            if kind != "module":
                module, _, name = path.rpartition(".")
                names = {name: getattr(importlib.import_module(module), name)}
            else:
                module = importlib.import_module(path)
                left_out = re.findall(r"[\w.]+", "".join(re.findall(r":exclude-members:(.*)", options)))
                names = {
                    name: thing
                    for name, thing in vars(module).items()
                    if name in getattr(module, "__all__", ()) or getattr(thing, "__module__", None) == path
                    if not name.startswith("_") and name not in left_out
                }
            found |= {
                thing if inspect.isclass(thing) or inspect.isfunction(thing) else name: whole
                for name, thing in names.items()
            }
    return found


def public(kind: type) -> list[str]:
    """Methods and properties of a class itself that have a docstring, which the site shows."""
    plain = {name: getattr(thing, "__func__", thing) for name, thing in vars(kind).items() if not name.startswith("_")}
    return [
        name
        for name, thing in plain.items()
        if (inspect.isfunction(thing) or isinstance(thing, property)) and thing.__doc__
    ]


def test_every_name_that_pages_import_has_an_entry_in_the_reference():
    there = reference()
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    names = {
        (module, name)
        for page in pages
        for module, line in re.findall(r"from (weight_averaging[\w.]*) import ([^#\n`]*)", page.read_text())
        for name in re.findall(r"\w+", line.strip(". "))
        if name[0] != "_"
    }
    assert len(names) > 20
    for module, name in sorted(names):
        thing = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
        known = thing if inspect.isclass(thing) or inspect.isfunction(thing) else name
        assert inspect.ismodule(thing) or known in there, f"{module}.{name}: add it to docs/reference"


def test_every_public_method_has_an_entry_in_the_reference():
    """Also one that a class inherits from another that has no entry."""
    there = reference()
    classes = [thing for thing in there if inspect.isclass(thing)]
    assert len(classes) > 20
    for kind in classes:
        for parent in kind.__mro__[1:]:
            if parent.__module__.startswith("weight_averaging.") and public(parent):
                known = (
                    there[kind]
                    or parent in there
                    or any(there.get(other) and issubclass(other, parent) for other in kind.__mro__)
                )
                assert known, f"{kind.__name__} inherits {public(parent)} of {parent.__name__}, which has no entry"


def test_the_tests_that_the_docs_name_are_there():
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for page in sorted((ROOT / "docs").glob("*.md")):
        named = re.findall(r"`(test_\w+)`", page.read_text())
        assert not (missing := sorted(set(named) - there)), (page.name, missing)
    assert len(re.findall(r"`(test_\w+)`", (ROOT / "docs/models.md").read_text())) > 40


def test_every_row_of_parallelism_names_a_test_or_says_why_not():
    text = (ROOT / "docs/engine.md").read_text()
    rows = [
        line.strip("| ").split(" | ")
        for head in ("| parallelism | averages | test |", "| trainer | with | test, or why not |")
        for line in text.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    ]
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"`test_\w+`|refused|not tried|the same$|the tests there$", row[-1]), row
    told: dict[str, str] = {}
    for trainer, kinds, *_ in (row for row in rows if row[0] in TRAINERS):
        told[trainer] = f"{told.get(trainer, '')} {kinds}"
    assert told.keys() == TRAINERS
    for trainer, kinds in told.items():
        assert not (missing := [kind for kind in KINDS if kind not in kinds]), (trainer, missing)


def test_no_words_follow_a_comment_on_its_line():
    """A Markdown comment ends with its line: words after it there are shown as they stand, cut off from the rest."""
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert not (cut := re.findall(r"-->[ \t]*\S.*", page.read_text())), (page.name, cut)


def explained(kind: Any) -> str:
    """The docstring, those of base classes, and those of what it says to see."""
    classes = kind.__mro__ if inspect.isclass(kind) else (kind,)
    text = " ".join(own for one in classes if (own := inspect.getdoc(one)) and one.__module__.startswith("weight_"))
    around = vars(importlib.import_module(kind.__module__))
    seen = [around[name] for name in re.findall(r"see `(\w+)`|and `(\w+)`", text) for name in name if name in around]
    fields = [around[name] for name in re.findall(r"fields of `?(\w+)", text) if name in around]
    return " ".join([text, *(inspect.getdoc(one) or "" for one in seen + fields)])


def test_every_argument_is_in_a_docstring():
    """In that of its function, of its class, or of what these say to see. A trainer says what its hooks are given."""
    missing = []
    for kind in reference():
        if not callable(kind) or (inspect.isclass(kind) and issubclass(kind, Exception | dict)):
            continue
        for name in ["", *(public(kind) if inspect.isclass(kind) else [])]:
            function = getattr(kind, name) if name else kind
            of_trainers = "trainers" in kind.__module__ and re.match("on_|setup|teardown", name)
            if of_trainers or not callable(function) or not function.__module__.startswith("weight_averaging"):
                continue
            text = explained(kind) + explained(function)
            arguments = set(inspect.signature(function).parameters) - {"self", "args", "kwargs", "options"}
            missing += [f"{function.__qualname__}: {one}" for one in arguments if not re.search(rf"\b{one}\b", text)]
    assert not missing
