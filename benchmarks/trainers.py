"""A training run under Lightning and under Hugging Face's Trainer, with averaging over the same run without.

    python -m benchmarks.trainers

A GPT-2 of 6.3 million parameters, 4 x 32 tokens a batch, on one thread; no evaluations. Runs of all variants are taken
in turns and timed in processor time from the first update to the last. `run` is the median over the turns of the ratio
to the run without averaging in the same turn. `in hooks` is 1 + (time in the callback's hooks) / (time in the rest of
its run), from which the noise of training falls out.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from benchmarks.timing import machine
from weight_averaging.torch import EMA, LAWA
from weight_averaging.trainers.lightning import WeightAveraging as InLightning
from weight_averaging.trainers.transformers import WeightAveraging as InTrainer

INTERVAL = 64
MAKERS: dict[str, Callable[..., Any]] = {
    "LAWA, interval 64, window 20": partial(LAWA, interval=INTERVAL, window=20),
    "EMA, interval 64": partial(EMA, decay=0.9, interval=INTERVAL),
    "EMA, interval 1": partial(EMA, decay=0.999),
}
THEIRS = {
    "Lightning's EMAWeightAveraging, every 64": {"decay": 0.9, "update_every_n_steps": INTERVAL},
    "Lightning's EMAWeightAveraging, every step": {"decay": 0.999},
}


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=6000, n_positions=64, n_embd=256, n_layer=6, n_head=4))


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(6000, (count, 32), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


class Clock:
    """Processor time of a run from its second update on, and the part of it spent in the hooks of a callback."""

    def __init__(self) -> None:
        self.begun = self.ended = self.inside = 0.0

    def tick(self) -> None:
        self.ended = time.process_time()
        self.begun = self.begun or self.ended

    def watch(self, averaging: Any, hook: str) -> None:
        inner = getattr(averaging, hook)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = inner(*args, **kwargs)
            self.inside += time.process_time() - start if self.begun else 0.0
            return result

        setattr(averaging, hook, timed)

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def in_hooks(self) -> float:
        return self.seconds / (self.seconds - self.inside)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = model()

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        return self.model(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


def in_lightning(averaging: Callback | None, updates: int) -> Clock:
    clock = Clock()

    class Ticking(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    if averaging is not None:
        clock.watch(averaging, "on_train_batch_end")
    trainer = pl.Trainer(
        max_steps=updates, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*([averaging] if averaging else []), Ticking()],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(rows(4 * updates), batch_size=4))
    return clock


def in_trainer(make: Callable[..., Any] | None, updates: int) -> Clock:
    clock = Clock()

    class Ticking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=updates, per_device_train_batch_size=4, save_strategy="no", logging_strategy="no",
            report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, learning_rate=1e-4,
        )  # fmt: skip
        trainer = Trainer(model(), arguments, train_dataset=rows(4 * updates))
        if make is not None:
            averaging = InTrainer(make)
            clock.watch(averaging, "on_step_end")
            averaging.attach(trainer)
        trainer.add_callback(Ticking())
        trainer.train()
    return clock


def variants(updates: int) -> dict[tuple[str, str], Callable[[], Clock]]:
    made: dict[tuple[str, str], Callable[[], Clock]] = {("Lightning", "none"): lambda: in_lightning(None, updates)}
    for name, make in MAKERS.items():
        made["Lightning", name] = lambda make=make: in_lightning(InLightning(make), updates)  # type: ignore[misc]
    for name, settings in THEIRS.items():
        made["Lightning", name] = lambda settings=settings: in_lightning(EMAWeightAveraging(**settings), updates)  # type: ignore[misc]
    made["Trainer", "none"] = lambda: in_trainer(None, updates)
    for name, make in MAKERS.items():
        made["Trainer", name] = lambda make=make: in_trainer(make, updates)  # type: ignore[misc]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of all variants (default: 3)")
    parser.add_argument("--updates", type=int, default=129, help="of a run; the first is not timed (default: 129)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    runs = variants(arguments.updates)
    clocks: dict[tuple[str, str], list[Clock]] = {key: [] for key in runs}
    for _ in range(arguments.rounds):
        for key, run in runs.items():
            clocks[key].append(run())
    print(f"{machine()}; {arguments.rounds} rounds of {arguments.updates} updates\n")
    print("| trainer | averaging | ms an update | run | in hooks |\n|---|---|---|---|---|")
    for (trainer, name), timed in clocks.items():
        base = clocks[trainer, "none"]
        ratio = statistics.median(mine.seconds / plain.seconds for mine, plain in zip(timed, base, strict=True))
        share = statistics.median(clock.in_hooks for clock in timed)
        each = 1e3 * statistics.median(clock.seconds for clock in timed) / (arguments.updates - 1)
        print(f"| {trainer} | {name} | {each:.1f} | {ratio:.3f} | {share:.4f} |", flush=True)


if __name__ == "__main__":
    main()
