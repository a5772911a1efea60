"""What goes wrong, or against the rules, in the code of a submission: found by reading it, not by running it."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launching.official_workloads import WORKLOADS

FUNCTIONS = ("init_optimizer_state", "update_params", "data_selection", "get_batch_size")
BY_KEYWORD = {
    "workload", "current_param_container", "current_params_types", "model_state", "hyperparameters", "loss_type",
    "optimizer_state", "eval_results", "global_step", "rng",
}  # fmt: skip
KEYWORDS = {"update_params": BY_KEYWORD | {"batch"}, "prepare_for_eval": BY_KEYWORD}
POSITIONAL = {"init_optimizer_state": 5, "data_selection": 8}
BATCH_SIZES = ("get_batch_size", "get_eval_batch_size")
STATELESS_CALLS = {
    "dict", "list", "set", "tuple", "deque", "int", "float", "bool", "str", "tensor", "zeros", "ones", "empty",
    "zeros_like", "ones_like", "empty_like", "clone", "detach", "cpu", "deepcopy",
}  # fmt: skip
# What the harness installs; everything else must be relative or in requirements.txt.
INSTALLED = {"torch", "numpy", "absl", "algoperf", "jax", "jaxlib", "flax", "optax", "chex", "tensorflow", "scipy"}


@dataclass(frozen=True, order=True)
class Finding:
    """One thing to mend."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def check(submission: Path) -> list[Finding]:
    """All findings in a submission's module and the modules it imports relatively, by file and line."""
    findings: set[Finding] = set()
    waiting, seen = [submission.resolve()], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            tree = ast.parse(path.read_text())
        except (OSError, SyntaxError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            findings.add(Finding(path, getattr(error, "lineno", 0) or 0, f"cannot be read: {why}"))
            continue
        found = [*_imports(tree), *_workload_names(tree), *_environment(tree), *_states(tree), *_signatures(tree)]
        if path == submission.resolve():
            found += _missing(tree)
        findings.update(Finding(path, line, text) for line, text in found)
        waiting += _relative_imports(path, tree)
    return sorted(findings)


def _missing(tree: ast.Module) -> Iterator[tuple[int, str]]:
    bound = {name for node in tree.body for name in _stored(node)}
    bound |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    bound |= {alias.asname or alias.name for node in imports for alias in node.names}
    for name in FUNCTIONS:
        if name not in bound:
            yield 1, f"the function {name} is missing"
    for node in tree.body:
        if "get_eval_batch_size" in (getattr(node, "name", None), *_stored(node)):
            yield node.lineno, "get_eval_batch_size: the rules forbid to change it"


def _stored(tree: ast.AST) -> list[str]:
    """The names that are assigned to."""
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _signatures(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):  # no methods of these names
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args) if a.arg not in ("self", "cls")]
        keywords = {*names, *[a.arg for a in arguments.kwonlyargs]}
        lacking = sorted(KEYWORDS.get(function.name, set()) - keywords)
        if lacking and arguments.kwarg is None:
            yield function.lineno, f"{function.name} is called by keyword and does not take {', '.join(lacking)}"
        if function.name == "update_params" and "train_state" not in keywords and arguments.kwarg is None:
            yield function.lineno, "update_params does not take train_state, which the harness's own tests pass to it"
        count = POSITIONAL.get(function.name)
        if count is not None and len(names) != count and arguments.vararg is None:
            yield function.lineno, f"{function.name} is called with {count} arguments and takes {len(names)}"
        if function.name == "get_batch_size" and not _raises_value_error(function):
            yield function.lineno, "get_batch_size raises no ValueError for an unknown name: the harness tries variants"


def _raises_value_error(function: ast.FunctionDef) -> bool:
    """Or leaves the whole of it to another function."""
    if any(isinstance(node, ast.Raise) and "ValueError" in ast.unparse(node) for node in ast.walk(function)):
        return True
    last = function.body[-1]
    return isinstance(last, ast.Return) and isinstance(last.value, ast.Call)


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for_types: set[ast.AST] = set()  # nobody imports these when it runs
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for_types.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.split(".")[0] not in INSTALLED | set(sys.stdlib_module_names):
                yield node.lineno, f"`{name}` is imported by an absolute name: only the harness's packages are there"


def _workload_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Workloads' names may decide about the batch size and about nothing else."""
    allowed: set[ast.AST] = set()
    for function in _functions(tree):
        if function.name in BATCH_SIZES:
            allowed.update(ast.walk(function))
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    for statement in tree.body:  # tables that only those functions read
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            names = _stored(statement)
            if all(load in allowed for load in loads if load.id in names):
                allowed.update(ast.walk(statement))
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if node in allowed or node in docstrings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if any(text == name or text.startswith(f"{name}_") for name in WORKLOADS):
                yield node.lineno, f"{text!r}: only the batch size may depend on the workload's name"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("type", "isinstance"):
            if node.args and ast.unparse(node.args[0]) == "workload":
                yield node.lineno, "the workload's type: nothing may depend on the workload's identity"
        elif isinstance(node, ast.Attribute) and node.attr == "__class__" and ast.unparse(node.value) == "workload":
            yield node.lineno, "the workload's class: nothing may depend on the workload's identity"


def _environment(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            if ast.unparse(node.value) == "os.environ":
                yield node.lineno, "environment variables must not be changed"
        elif isinstance(node, ast.Call):
            calls = ("os.putenv", "os.environ.update", "os.environ.setdefault", "os.environ.pop")
            if ast.unparse(node.func) in calls:
                yield node.lineno, "environment variables must not be changed"


def _states(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Entries of the optimizer state that visibly have no state_dict."""
    for function in _functions(tree):
        entries: list[tuple[ast.expr | None, ast.expr]] = []
        # Elsewhere `state` is another: an optimizer's of one parameter, which it saves itself.
        names = (
            {"optimizer_state", "state"} if function.name in {*FUNCTIONS, "prepare_for_eval"} else {"optimizer_state"}
        )
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Subscript) and ast.unparse(target.value) in names:
                        entries.append((target.slice, node.value or target))
            literal = node.value if isinstance(node, ast.Return | ast.Assign | ast.AnnAssign) else None
            if function.name == "init_optimizer_state" and isinstance(literal, ast.Dict):
                entries += list(zip(literal.keys, literal.values, strict=True))
        for key, value in entries:
            if _stateless(value):
                name = ast.unparse(key) if key is not None else "**"
                yield value.lineno, f"optimizer_state[{name}] has no state_dict: it is not saved, and a resume crashes"


def _stateless(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        function = value.func
        return (function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)) in STATELESS_CALLS
    literals = ast.Constant | ast.Dict | ast.List | ast.Tuple | ast.Set | ast.ListComp | ast.DictComp | ast.BinOp
    return isinstance(value, literals)


def _relative_imports(path: Path, tree: ast.Module) -> list[Path]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for candidate in (base, *[base / alias.name for alias in node.names]):
                found += [file for file in (candidate.with_suffix(".py"), candidate / "__init__.py") if file.is_file()]
    return found
