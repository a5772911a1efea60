"""The memory that an average takes until it is written, in every form of checkpoint.

    python -m benchmarks.offline_memory
    python -m benchmarks.offline_memory --against=/tmp/before     # another working tree, in the same rounds

For each form three checkpoints of `--megabytes` are written, in tensors of 10 MB, and averaged by the command within
`--memory-gb`. Told is by how much the process grew, less what it takes for a model of a few weights: its own memory,
which no file backs, and all its resident pages, with those of mapped files that the system takes back when it needs
room. Folders are removed as soon as they are measured.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.timing import machine

WIDTH, ROWS = 1000, 2500  # of a tensor of 10 MB in float32
State = dict[str, Tensor]
# The command, and what the system says that it took at most.
COMMAND = """
import pathlib, sys
from weight_averaging import cli
cli.main(sys.argv[1:])
print(*[line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line])
"""


def state_of(step: int, megabytes: int) -> State:
    rows = ROWS if megabytes else 2
    return {f"layers.{i}.weight": torch.full((rows, WIDTH), float(step + i)) for i in range(max(megabytes // 10, 1))}


def bin_folder(path: Path, state: State) -> None:
    path.mkdir()
    torch.save(state, path / "pytorch_model.bin")
    (path / "config.json").write_text("{}")


def safetensors_folder(path: Path, state: State) -> None:
    path.mkdir()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}")


def stable_baselines(path: Path, state: State) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps({"num_timesteps": int(path.stem.split("_")[1])}))
        with file.open("policy.pth", "w", force_zip64=True) as part:
            torch.save(state, part)


def module(path: Path, state: State) -> None:
    whole = torch.nn.Module()
    for name, value in state.items():
        whole.register_buffer(name.replace(".", "_"), value)
    torch.save({"model": whole, "step": int(path.stem.split("_")[1])}, path)


def msgpack(path: Path, state: State) -> None:
    from flax import serialization

    path.write_bytes(serialization.to_bytes({"params": {name: value.numpy() for name, value in state.items()}}))


def equinox(path: Path, state: State) -> None:
    import numpy as np

    with open(path, "wb") as file:
        for value in state.values():
            np.save(file, value.numpy())


def sharded(path: Path, state: State) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": state}, checkpoint_id=path)


def orbax(path: Path, state: State) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), {"params": {name: value.numpy() for name, value in state.items()}})


# Name, ending of a checkpoint, and what writes one.
FORMS: dict[str, tuple[str, str, Callable[[Path, State], None]]] = {
    "safetensors": ("`.safetensors`", ".safetensors", lambda path, state: save_file(state, path)),
    "safetensors_folder": ("folder of Hugging Face, safetensors", "", safetensors_folder),
    "bin_folder": ("folder of Hugging Face, `.bin`", "", bin_folder),
    "pt": ("`.pt`", ".pt", lambda path, state: torch.save({"model": state}, path)),
    "zip": ("`.zip` of stable-baselines3", ".zip", stable_baselines),
    "module": ("whole module in `.pt`", ".pt", module),
    "sharded": ("folder of torch.distributed.checkpoint", "", sharded),
    "msgpack": ("Flax's `.msgpack`", ".msgpack", msgpack),
    "equinox": ("`.eqx` of Equinox", ".eqx", equinox),
    "orbax": ("folder of Orbax", "", orbax),
}


def peaks(tree: Path, run: Path, out: Path, memory: float) -> tuple[int, int, float]:
    """Bytes of its own and resident bytes that the command took at most, and its seconds."""
    command = [sys.executable, "-c", COMMAND, "average", str(run), "--lawa=window=3", f"--out={out}"]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command.append(f"--memory-gb={memory}")
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=said, stderr=subprocess.STDOUT)
        own = 0
        while process.poll() is None:
            with contextlib.suppress(OSError):  # it has just ended
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                kinds = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Rss")}
                own = max(own, kinds.get("RssAnon", 0) + kinds.get("RssShmem", 0))
            time.sleep(0.003)
        said.seek(0)
        lines = said.read().splitlines()
        if process.returncode or not lines[-1].startswith("VmHWM"):
            raise SystemExit("\n".join(lines))
    return own, int(lines[-1].split()[1]) << 10, time.perf_counter() - start


def measure(tree: Path, folder: Path, form: str, megabytes: int, memory: float) -> tuple[int, int, float]:
    """What a model of this size takes more than one of a few weights."""
    _, ending, write = FORMS[form]
    base = (0, 0, 0.0)
    for size in (0, megabytes):
        run = folder / f"run_{size}"
        if not run.exists():
            run.mkdir()
            for step in (1, 2, 3):
                write(run / f"step_{step}{ending}", state_of(step, size))
        out = folder / f"average{ending}"
        found = peaks(tree, run, out, memory)
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        if size == 0:
            base = found
    return found[0] - base[0], found[1] - base[1], found[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of a checkpoint, in tens (default: 400)")
    parser.add_argument("--memory-gb", type=float, default=0.1, help="of the command (default: 0.1)")
    parser.add_argument("--forms", default=",".join(FORMS), help="which (default: all)")
    parser.add_argument("--against", type=Path, default=None, help="another working tree of this project")
    parser.add_argument("--folder", default=None, help="where to put them (default: the temporary folder)")
    arguments = parser.parse_args()
    chosen = arguments.forms.split(",")
    if unknown := [form for form in chosen if form not in FORMS]:
        parser.error(f"--forms={','.join(unknown)}: there are {','.join(FORMS)}")
    if arguments.megabytes < 10:
        parser.error(f"--megabytes={arguments.megabytes}: give 10 or more")
    warnings.simplefilter("ignore")
    here = Path(__file__).parents[1]
    trees = [here, *([arguments.against.absolute()] if arguments.against else [])]
    print(f"{machine()}; 3 checkpoints of {arguments.megabytes} MB, --memory-gb={arguments.memory_gb:g}\n")
    before = " before: its own, MB | resident, MB | s |" if arguments.against else ""
    print(f"| form | its own, MB | resident, MB | s |{before}\n|---|---|---|---|{'---|---|---|' if before else ''}")
    for form in chosen:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            found = [measure(tree, Path(name), form, arguments.megabytes, arguments.memory_gb) for tree in trees]
        cells = [f"{own / 1e6:.0f} | {resident / 1e6:.0f} | {seconds:.1f}" for own, resident, seconds in found]
        print(f"| {FORMS[form][0]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
