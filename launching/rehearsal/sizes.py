"""How much of a workload a rehearsal takes: enough for every part of a run, little enough for two cores."""

from dataclasses import asdict, dataclass, field
from typing import Any

from launching.official_workloads import base_name

# The submissions here cover 1 % of training: at this step hint three updates, so that a window fills within a run.
STEP_HINT = 300


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a rehearsal on one device; batches and examples are multiplied by the number of devices.

    Attributes:
        batch: examples of an update.
        eval_batch: examples that an evaluation takes at a time.
        examples: of each split of an evaluation; there are as many at least.
        train_examples: what the workload takes for the number of training examples, where that is a number of files;
            None: what it says.
        variant: of the workload, where the whole one wants more memory than a small machine has.
        attributes: of the workload's class, where the model itself is cut on a CPU.
        translated: tokens of a translation on a CPU; None: as many as the harness asks for.
        updates: of the run. After each the harness evaluates and writes a checkpoint.
        killed_after: the update whose checkpoint the run is killed after.
        seconds: that each of the two parts of a run is given.
    """

    batch: int
    eval_batch: int
    examples: int
    train_examples: int | None = None
    variant: str | None = None
    attributes: dict[str, int] = field(default_factory=dict)
    translated: int | None = None
    updates: int = 6
    killed_after: int = 4
    seconds: int = 1800


IMAGES = Size(batch=4, eval_batch=4, examples=4, train_examples=1024)
SPEECH = Size(batch=2, eval_batch=2, examples=2)
SMALL_LM = {"_emb_dim": 64, "_n_heads": 2, "_n_layers": 2, "_mlp_dim": 256}
SIZES = {
    "criteo1tb": Size(batch=2048, eval_batch=1024, examples=2048, variant="criteo1tb_test"),
    "fastmri": Size(batch=2, eval_batch=4, examples=4),
    "finewebedu_lm": Size(batch=1, eval_batch=1, examples=1, attributes=SMALL_LM),
    "imagenet_resnet": IMAGES,
    "imagenet_vit": IMAGES,
    "librispeech_conformer": SPEECH,
    "librispeech_deepspeech": SPEECH,
    "mnist": Size(batch=16, eval_batch=10_000, examples=10_000),  # the pipeline asserts the official numbers
    "ogbg": Size(batch=16, eval_batch=64, examples=128),
    "wmt": Size(batch=2, eval_batch=1, examples=1, translated=16, seconds=7200),  # by beam search, 256 tokens upstream
}


def size_of(workload: str) -> Size:
    """Of a workload or variant. UsageError if there is none of this name."""
    return SIZES[base_name(workload)]


def settings(workload: str, devices: int, on_cpu: bool, full_batch: bool, halvings: int = 0) -> dict[str, Any]:
    """The size as stage.py reads it; what is None is left as the harness has it.

    Args:
        halvings: of a full batch.
    """
    size = size_of(workload)
    values = asdict(size)
    for name in ("batch", "eval_batch", "examples"):
        values[name] *= devices if base_name(workload) != "mnist" or name == "batch" else 1
    if full_batch:
        values |= {"batch": None, "eval_batch": None}
    if not on_cpu:  # all is as it is wherever there is a device for it
        values |= {"attributes": {}, "translated": None}
    return {**values, "step_hint": STEP_HINT, "halvings": halvings}


def rehearsed_name(workload: str, on_cpu: bool) -> str:
    """The variant that takes the place of a workload on a CPU."""
    variant = size_of(workload).variant
    return variant if on_cpu and variant and workload == base_name(workload) else workload
