"""Small data sets in the layouts that the harness's input pipelines read, made once and told apart from real ones.

python -m launching.rehearsal.data ROOT FOLDER ...      folders as launching/official_workloads.py has them
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from weight_averaging.errors import UsageError

MANIFEST = "rehearsal.json"
VERSION = 1  # of what the makers write
GIGABYTES = 1.0  # of all sets together, and then some
# By the folders that launching/official_workloads.py names.
SETS = (
    "MNIST", "criteo1tb", "fastmri", "fineweb_edu_10B", "imagenet/jax", "imagenet/pytorch", "librispeech", "ogbg",
    "wmt",
)  # fmt: skip


def prepare(root: Path, name: str, python: str, environment: dict[str, str]) -> bool:
    """Make a data set where it is not there yet. Returns whether it had to be made.

    It is made beside its place and then moved there, so that a kill leaves nothing half made.

    Args:
        root: holds one folder a data set.
        name: one of SETS.
        python: an interpreter that has the harness and what its data sets are written with.
        environment: of that process.

    Raises:
        UsageError: the folder holds something that no rehearsal made, the disk is full, or the making failed.
    """
    from launching.local_jobs import end_with_parent  # what makes the data needs no pandas

    folder, unfinished = root / name, root / f".{name.replace('/', '_')}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    if folder.exists():
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} holds data that no rehearsal made: give another --data_dir for the small ones")
        if _whole(folder, name):
            return False
        # Of another version, of another set, or somebody removed files. In one step: a part of it would be refused.
        os.replace(folder, unfinished)
        shutil.rmtree(unfinished)
    try:
        there = next(path for path in (root, *root.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UsageError(f"--data_dir={root}: {there} is no folder")
        free = shutil.disk_usage(there).free / 1e9
        if free < GIGABYTES:
            raise UsageError(f"--data_dir={root}: {free:.1f} GB free, the small data sets want {GIGABYTES:.0f} GB")
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [python, "-m", "launching.rehearsal.data", str(unfinished), name]
        made = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, preexec_fn=end_with_parent
        )
        if made.returncode:
            said = (made.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise UsageError(f"the small data set {name} could not be written below {root}: {said}")
        write_manifest(unfinished, name)
        os.replace(unfinished, folder)
    except OSError as error:
        raise UsageError(f"--data_dir={root}: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def write_manifest(folder: Path, name: str) -> None:
    made = {"version": VERSION, "set": name, "files": _sizes(folder)}
    (folder / MANIFEST).write_text(json.dumps(made, indent=0))


def _whole(folder: Path, name: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError:
        return False
    of_this = manifest.get("version") == VERSION and manifest.get("set", name) == name
    return of_this and manifest.get("files") == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file, but of the manifest."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def make(name: str, folder: Path) -> None:
    """Write the set of this name into a new folder. Needs the harness's environment."""
    from launching.rehearsal.data import language, pictures, tables

    folder.mkdir(parents=True)
    makers = {
        "MNIST": pictures.mnist,
        "criteo1tb": tables.criteo1tb,
        "fastmri": pictures.fastmri,
        "fineweb_edu_10B": language.fineweb,
        "imagenet/jax": pictures.imagenet_jax,
        "imagenet/pytorch": pictures.imagenet_pytorch,
        "librispeech": language.librispeech,
        "ogbg": tables.ogbg,
        "wmt": language.wmt,
    }
    makers[name](folder)
