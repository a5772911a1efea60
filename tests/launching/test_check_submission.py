"""Every trap of the official harness that can be read off a submission or a search space is found, at its line."""

import json
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import check_code, check_space, submission_info

GOOD = '''
"""Trains on wmt and others."""
import torch

SIZES = {"wmt": 128}


class Scheduler:
    def state_dict(self):
        return {}


def get_batch_size(workload_name):
    if workload_name not in SIZES:
        raise ValueError(workload_name)
    return SIZES[workload_name]


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    return {"optimizer": torch.optim.SGD(model_params.parameters(), lr=1e-3), "scheduler": Scheduler()}


def update_params(workload, current_param_container, current_params_types, model_state, hyperparameters, batch,
                  loss_type, optimizer_state, eval_results, global_step, rng, train_state=None):
    return optimizer_state, current_param_container, model_state


def data_selection(workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters,
                   global_step, rng):
    return next(input_queue)
'''


def findings(tmp_path, code):
    path = tmp_path / "submission.py"
    path.write_text(textwrap.dedent(code))
    return [(finding.line, finding.text) for finding in check_code.check(path)]


def test_a_good_submission_passes(tmp_path):
    assert findings(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "marked", "words"),
    [
        ("def data_selection", "def choose_data", None, "the function data_selection is missing"),
        ("import torch\n", "import torch\nfrom my_library import x\n", "my_library", "absolute name"),
        ("import torch\n", "import torch\nimport submissions.api as api\n", "submissions.api", "absolute name"),
        ("eval_results, global_step, rng, ", "global_step, rng, ", "def update_params", "take eval_results"),
        (", train_state=None", "", "def update_params", "does not take train_state"),
        ("hyperparameters, rng):", "hyperparameters):", "def init_optimizer_state", "with 5 arguments and takes 4"),
        ("        raise ValueError(workload_name)", "        return 1", "def get_batch_size", "no ValueError"),
        ('"scheduler": Scheduler()}', '"average": [1.0]}', '"average"', "optimizer_state['average'] has no state_dict"),
        ('"scheduler": Scheduler()}', '"x": torch.zeros(3)}', '"x"', "has no state_dict"),
        (
            "    return optimizer_state, current",
            "    optimizer_state['n'] = 1\n    return optimizer_state, current",
            "['n']",
            "optimizer_state['n'] has no state_dict",
        ),
        (
            "    return optimizer_state, current",
            "    lr = 2 if 'ogbg' in str(workload) else 1\n    return optimizer_state, current",
            "'ogbg'",
            "only the batch size",
        ),
        (
            "    return optimizer_state, current",
            "    print(type(workload))\n    return optimizer_state, current",
            "type(workload)",
            "identity",
        ),
        (
            "    return optimizer_state, current",
            "    print(SIZES)\n    return optimizer_state, current",
            '{"wmt"',
            "only the batch size",
        ),
        ("import torch\n", "import os\nos.environ['A'] = 'b'\n", "os.environ", "environment variables"),
        (
            "def data_selection",
            "def get_eval_batch_size(n):\n    return 1\n\ndef data_selection",
            "eval_batch",
            "forbid",
        ),
        ("import torch", "import torch torch", "torch torch", "cannot be read"),
    ],
)
def test_a_trap_is_found_at_its_line(tmp_path, old, new, marked, words):
    code = GOOD.replace(old, new)
    assert code != GOOD
    lines = code.splitlines()
    line = 1 if marked is None else next(n for n, text in enumerate(lines, start=1) if marked in text)
    assert any(found == line and words in text for found, text in findings(tmp_path, code)), findings(tmp_path, code)


def test_the_state_of_a_parameter_is_not_the_state_of_the_submission(tmp_path):
    own = "\n\nclass Own(torch.optim.Optimizer):\n    def step(self):\n        state = self.state[p]\n"
    own += "        state['step'] = 0\n"
    assert findings(tmp_path, GOOD + own) == []
    inside = "    state = optimizer_state\n    state['n'] = 1\n    return optimizer_state, current"
    found = findings(tmp_path, GOOD.replace("    return optimizer_state, current", inside))
    assert [text for _, text in found if "optimizer_state['n'] has no state_dict" in text]


def test_an_import_for_types_alone_is_none(tmp_path):
    only = "import torch\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import my_library\n"
    assert findings(tmp_path, GOOD.replace("import torch\n", only, 1)) == []
    otherwise = only.replace("import my_library\n", "import torch\nelse:\n    import my_library\n")
    ((_, text),) = findings(tmp_path, GOOD.replace("import torch\n", otherwise, 1))
    assert "`my_library` is imported by an absolute name" in text


def test_modules_beside_the_submission_are_read_too(tmp_path):
    (tmp_path / "helper.py").write_text("import os\nos.putenv('A', 'b')\n")
    assert findings(tmp_path, "from .helper import *\n" + GOOD) == [(2, "environment variables must not be changed")]


def space_findings(tmp_path, space):
    path = tmp_path / "space.json"
    path.write_text(space if isinstance(space, str) else json.dumps(space, indent=1))
    return [(finding.line, finding.text) for finding in check_space.check(path)]


def test_a_good_list_passes(tmp_path):
    assert space_findings(tmp_path, [{"lr": 1.0}, {"lr": 2.0}]) == []


NAMES = st.sampled_from(["learning_rate", "min", "max", "scaling", "feasible_points", "beta2"])
RANGE, BAD = {"min": 1, "max": 2, "scaling": "linear"}, {"min": 3, "max": 2, "scaling": "linear"}


@given(
    names=st.lists(NAMES, min_size=1, unique=True), bad=st.integers(0, 5), indent=st.sampled_from([None, 1]),
    between=st.sampled_from([", ", ",\n", "\n,\n\n"]),
)  # fmt: skip
def test_a_range_is_found_at_the_line_of_its_name(tmp_path_factory, names, bad, indent, between):
    bad %= len(names)
    members = [f'"{n}" : {json.dumps(BAD if i == bad else RANGE, indent=indent)}' for i, n in enumerate(names)]
    text = "{" + between.join(members) + "}"
    line = ("{" + between.join([*members[:bad], ""])).count("\n") + 1
    found = space_findings(tmp_path_factory.mktemp("space"), text)
    assert [(at, said) for at, said in found if "min <= max" in said] == [
        (line, f"{names[bad]}: must have numbers with min <= max, not 3 and 2")
    ]


def test_a_point_that_is_there_already_is_named_with_its_line(tmp_path):
    text = '[\n{"a": 1},\n{"a": 2},\n3,\n{"a":\n2}, {"a": 1}]'
    found = [entry for entry in space_findings(tmp_path, text) if "again" in entry[1]]
    assert found == [
        (5, "point 4 is point 2 (line 3) again: a trial wasted"),
        (6, "point 5 is point 1 (line 2) again: a trial wasted"),
    ]


@pytest.mark.parametrize(
    ("space", "line", "words"),
    [
        ('{\n"lr": {"min": 1, "max": 2, "scaling": "Log"}}', 2, "silently taken for linear"),
        ('{\n\n"lr": {"feasible_points": 3}}', 3, "upstream crashes"),
        ('{"lr": {"min": 1, "max": 2}}', 1, "lacks scaling"),
        ('{"lr": {"min": 0, "max": 2, "scaling": "log"}}', 1, "needs min > 0"),
        ('{"lr": {"min": 3, "max": 2, "scaling": "linear"}}', 1, "min <= max"),
        ('{"lr": {"feasible_points": [3]}}', 1, "without a seed"),
        ('[{"lr": 1},\n{"momentum": 1}]', 2, "do not both have lr, momentum"),
        ('[{"lr": 1},\n {"lr": 2},\n {"lr": 1}]', 3, "again"),
        ("\n".join(["["] + [f'{{"lr": {n}}},' for n in range(5)] + ['{"lr": 5}]']), 7, "from here on never"),
        ('[{"a b": 1}]', 1, "cannot be the name"),
        ("[]", 1, "not empty"),
        ("[1,\n2", 2, "not JSON"),
    ],
)
def test_a_trap_of_a_search_space_is_found_at_its_line(tmp_path, space, line, words):
    found = space_findings(tmp_path, space)
    assert any(at == line and words in text for at, text in found), found


FIELDS = {
    "submission_name": "Mine: an average", "submission_folder": "mine", "authors": "A. Name, B. Náme",
    "affiliations": 'The "Place"', "version": "1.0", "ruleset": "external", "framework": "PyTorch",
    "description": "Averages.",
}  # fmt: skip


def info_findings(tmp_path, text, name="mine/submission_info.yml"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if "external" in text:
        (path.parent / submission_info.SPACE).touch()
    path.write_text(text)
    return [(finding.line, finding.text) for finding in submission_info.check(path)]


def test_what_is_written_has_nothing_to_mend(tmp_path):
    assert info_findings(tmp_path, submission_info.text(FIELDS)) == []
    assert info_findings(tmp_path, submission_info.pull_request(FIELDS), "pull_request.md") == []
    folded = submission_info.text(FIELDS).replace('"Averages."', ">-\n  Averages\n  weights.")
    assert info_findings(tmp_path, folded) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('version: "1.0"', "version: 1.0", 5, "version: write it in quotes: 1.0 is read as a float"),
        ('"external"', '"external_tuning"', 6, "ruleset: must be one of external, self-tuning"),
        ('"PyTorch"', '"pytorch"', 7, "framework: must be one of PyTorch, JAX, not 'pytorch'"),
        ('folder: "mine"', 'folder: "submissions/external_tuning/mine"', 2, "give the folder's own name"),
        ('folder: "mine"', 'folder: "other"', 2, "submission_folder: this is mine, not other"),
        ('"A. Name, B. Náme"', '""', 3, "authors: must not be empty"),
        ("authors:", "writers:", 3, "writers is not one of"),
        ("authors:", "writers:", 1, "authors is missing"),
        ('"Averages."', '"Costs $5."', 8, "description: give one line without '$'"),
        ('"Averages."', "Averages: all", 8, "not YAML"),
    ],
)
def test_a_trap_of_the_leaderboards_workflow_is_found_at_its_line(tmp_path, old, new, line, words):
    text = submission_info.text(FIELDS).replace(old, new)
    assert any(at == line and words in found for at, found in info_findings(tmp_path, text))


def test_a_search_space_is_beside_external_tuning_and_that_alone(tmp_path):
    text = submission_info.text({**FIELDS, "ruleset": "self-tuning"})
    assert info_findings(tmp_path, text) == []
    info_findings(tmp_path, submission_info.text(FIELDS))  # leaves a search space there
    assert info_findings(tmp_path, text) == [
        (6, "ruleset: a self-tuning submission has no tuning_search_space.json: remove it")
    ]
    (tmp_path / "mine" / submission_info.SPACE).unlink()
    (tmp_path / "mine" / "submission_info.yml").write_text(submission_info.text(FIELDS))
    (finding,) = submission_info.check(tmp_path / "mine" / "submission_info.yml")
    assert (finding.line, finding.text) == (
        6, "ruleset: external tuning needs tuning_search_space.json, which is not there"
    )  # fmt: skip


def test_the_block_of_a_pull_request_is_read_as_the_workflow_does(tmp_path):
    text = submission_info.pull_request(FIELDS)
    line = text.splitlines().index('version: "1.0"') + 1
    assert info_findings(tmp_path, text.replace("```yaml", "```"), "pull.md")[0][1].startswith("there is no block")
    assert info_findings(tmp_path, text.replace('"1.0"', '"1.0"  # of ours'), "pull.md") == []
    ((at, found),) = info_findings(tmp_path, text.replace('"1.0"', '"1#0"'), "pull.md")
    assert (at, found[:8]) == (line + 1, "not YAML")  # the quote that is cut off is missed in the next line
    folded = text.replace('"Averages."', ">-\n  Averages\n  weights.")
    assert "not YAML" in info_findings(tmp_path, folded, "pull.md")[0][1]
