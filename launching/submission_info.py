"""What the benchmark's repository is told of a submission: `submission_info.yml` beside it, and the pull request.

A workflow there reads the fields from the pull request's text, the first block that starts with ```yaml, and writes
them to `submissions/<ruleset>_tuning/<submission_folder>/submission_info.yml` when it is merged. What goes wrong on
that way, in silence mostly, is refused here (mlcommons/submissions_algorithms of June 2026: `.github/`).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from launching.check_code import Finding
from weight_averaging.errors import UsageError

NAME = "submission_info.yml"
SPACE = "tuning_search_space.json"  # beside it, under external tuning
FIELDS = (
    "submission_name", "submission_folder", "authors", "affiliations", "version", "ruleset", "framework", "description",
)  # fmt: skip
REQUIRED = ("submission_name", "submission_folder", "authors", "ruleset")  # by the workflow
FOLDERS = {"external": "external_tuning", "self-tuning": "self_tuning"}  # by ruleset
FRAMEWORKS = ("PyTorch", "JAX")
UNFIT = r"[#\n$`\\]"  # for a value
START, END = "```yaml\n", "\n```"


def text(fields: dict[str, str]) -> str:
    """The fields in YAML, one line each. UsageError, naming the flag of scripts.bundle, for one that cannot be."""
    for name, value in fields.items():
        for message in problems(name, value):
            raise UsageError(f"--{name.removeprefix('submission_').replace('folder', 'name')}: {message}")
    return "".join(f"{name}: {json.dumps(fields[name], ensure_ascii=False)}\n" for name in FIELDS)


def pull_request(fields: dict[str, str]) -> str:
    """Title and text of the pull request, with what its template asks for."""
    return (
        f"Title: [submission] {fields['submission_name']}\n\n# New Submission\n\n## Submission Information\n\n"
        f"{START}{text(fields).rstrip()}{END}\n\n## Evidence for the Submission's Performance\n\n## Comments\n"
    )


def check(path: Path) -> list[Finding]:
    """All findings in a submission_info.yml, or in the text of a pull request, by line."""
    try:
        whole = path.read_text()
    except OSError as error:
        return [Finding(path, 0, f"cannot be read: {error.strerror}")]
    start, end = 0, len(whole)
    in_request = path.suffix not in (".yml", ".yaml")
    if in_request:
        start = whole.find(START) + len(START)
        end = whole.find(END, start)
        if start < len(START) or end < 0:
            return [Finding(path, 1, "there is no block that starts with ```yaml and ends with ```")]
    first = whole.count("\n", 0, start) + 1
    lines = whole[start:end].splitlines()
    if in_request:  # the workflow cuts comments off, also in quotes, and takes the lines' indentation away
        lines = [line.split("#")[0].strip() for line in lines]
    try:
        fields = yaml.safe_load("\n".join(lines))
    except yaml.MarkedYAMLError as error:
        line = first + (error.problem_mark.line if error.problem_mark else 0)
        return [Finding(path, line, f"not YAML as it is read there: {error.problem}")]
    if not isinstance(fields, dict):
        return [Finding(path, first, f"must have the fields {', '.join(FIELDS)}")]
    found = list(_findings(fields, lines))
    named, folder = fields.get("submission_folder"), path.parent.name
    if not in_request and named not in (None, folder):
        found.append((_line_of("submission_folder", lines), f"submission_folder: this is {folder}, not {named}"))
    if not in_request:
        space, ruleset = (path.parent / SPACE).is_file(), fields.get("ruleset")
        if ruleset == "external" and not space:
            found.append((_line_of("ruleset", lines), f"ruleset: external tuning needs {SPACE}, which is not there"))
        if ruleset == "self-tuning" and space:
            found.append((_line_of("ruleset", lines), f"ruleset: a self-tuning submission has no {SPACE}: remove it"))
    return sorted(Finding(path, first + line, message) for line, message in found)


def _line_of(name: str, lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if line.startswith(f"{name}:")), 0)


def _findings(fields: dict[str, Any], lines: list[str]) -> Iterator[tuple[int, str]]:
    """By line, from 0."""
    for name in REQUIRED:
        if name not in fields:
            yield 0, f"{name} is missing"
    for name, value in fields.items():
        line = _line_of(name, lines)
        if name not in FIELDS:
            yield line, f"{name} is not one of {', '.join(FIELDS)}"
        else:
            yield from ((line, f"{name}: {message}") for message in problems(name, value))


def problems(name: str, value: Any) -> Iterator[str]:
    """What is wrong with the value of a field, a line each."""
    if not isinstance(value, str):
        yield f"write it in quotes: {value!r} is read as a {type(value).__name__}"
        return
    if name in REQUIRED and not value.strip():
        yield "must not be empty"
    if bad := re.search(UNFIT, value):
        yield f"give one line without {bad[0]!r}, which the workflow cuts or the shell expands; this is {value!r}"
    if name == "submission_folder" and not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        yield f"give the folder's own name, of small letters, digits and _, without those above it; not {value!r}"
    if name == "ruleset" and value not in FOLDERS:
        yield f"must be one of {', '.join(FOLDERS)}, not {value!r}: all else is taken for self-tuning"
    if name == "framework" and value not in FRAMEWORKS:
        yield f"must be one of {', '.join(FRAMEWORKS)}, not {value!r}"
