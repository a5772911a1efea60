"""A training step with averaging over the same step without.

    python -m benchmarks.training_step

The ratio is 1 + (time in the averager's update) / (time in the rest of the step), so that noise of the step itself,
which is larger than what averaging takes, falls out. What averaging costs the rest of the step by what it does to the
caches is not in it.

The paper's language model of 124 million parameters, where at an interval of 64 one update in 64 collects; and on a CPU
the submissions lawa and ema on the miniature workloads, over whole intervals, in processor time of one thread.

    python -m benchmarks.training_step --parallel=fsdp2 --ranks=2

A residual network of 2.1 million weights over gloo processes of one thread. Turns of 64 steps without averaging, with a
LAWA and with an EMA of an interval of 64 alternate. `run` is the median ratio of a turn to the one without, `in update`
that of all its time to the time outside of `update`, and bytes are those held on the rank that has most.
"""

import argparse
import statistics
import time
from collections import namedtuple
from typing import Any

import torch

from benchmarks import parallel_step
from benchmarks.timing import device, machine, synchronize
from miniperf import random_utils, submission, workloads
from miniperf.workloads.finewebedu_lm.model import Decoder, token_losses
from miniperf.workloads.finewebedu_lm.sizes import PAPER, Sizes
from weight_averaging.torch import EMA, LAWA, Averager

TURN = 64
BASE = {"learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.01, "warmup_factor": 0.05}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lawa, interval 64": ("lawa", {"averaging_interval": 64, "averaging_window": 20}),
    "ema, interval 64": ("ema", {"averaging_interval": 64, "averaging_decay": 0.9}),
    "ema, interval 1": ("ema", {"averaging_interval": 1, "averaging_decay": 0.99}),
}


class Training:
    """One submission on one miniature workload; by its name in submissions/pytorch, or by the path of its file."""

    def __init__(
        self, workload_name: str, submission_name: str, averaging: dict[str, Any], base: dict[str, Any] = BASE
    ) -> None:
        self.workload = workloads.make(workload_name)
        is_path = submission_name.endswith(".py")
        self.module = submission.load(
            submission_name if is_path else f"submissions/pytorch/{submission_name}/submission.py"
        )
        values = {**base, **averaging}
        self.hyperparameters = namedtuple("Hyperparameters", values)(**values)
        keys = random_utils.split(random_utils.key_from_seed(0), 3)
        torch.manual_seed(0)
        batch_size = submission.batch_size(self.module, workload_name, self.workload)
        self.queue = self.workload._build_input_queue(keys[0], "train", "", batch_size)
        self.model, self.model_state = self.workload.init_model_fn(keys[1])
        self.state = self.module.init_optimizer_state(
            self.workload, self.model, self.model_state, self.hyperparameters, keys[2]
        )
        self.step = 101  # beyond the steps whose losses are all logged

    def update(self, batch: Any) -> None:
        """One training step."""
        self.state, self.model, self.model_state = self.module.update_params(batch=batch, **self._given())
        self.step += 1

    def _given(self) -> dict[str, Any]:
        """What both functions of a submission are given."""
        return {
            "workload": self.workload,
            "current_param_container": self.model,
            "current_params_types": self.workload.model_params_types,
            "model_state": self.model_state,
            "hyperparameters": self.hyperparameters,
            "loss_type": self.workload.loss_type,
            "optimizer_state": self.state,
            "eval_results": [],
            "global_step": self.step,
            "rng": (0, self.step),
        }

    def prepare(self) -> None:
        """For an evaluation."""
        self.state, self.model, self.model_state = self.module.prepare_for_eval(**self._given())

    def turn(self) -> float:
        """The ratio over a turn, without drawing the batches."""
        batches = [next(self.queue) for _ in range(TURN)]
        averager, spent = self.state["averager"], 0.0
        update = averager.update

        def timed(step: int) -> bool:
            nonlocal spent
            begin = time.process_time()
            collected: bool = update(step)
            spent += time.process_time() - begin
            return collected

        averager.update = timed
        start = time.process_time()
        for batch in batches:
            self.update(batch)
        total = time.process_time() - start
        averager.update = update
        return total / (total - spent)


def miniature(name: str, rounds: int) -> dict[str, float]:
    """For each variant the median ratio over its turns."""
    ratios = {}
    for variant, arguments in VARIANTS.items():
        training = Training(name, *arguments)
        training.turn()  # warms up
        ratios[variant] = statistics.median(training.turn() for _ in range(rounds))
    return ratios


def language_model(steps: int, batch: int, length: int, window: int, sizes: Sizes) -> tuple[float, dict[str, float]]:
    """Tokens a second of a step without averaging, and ratios of a step with averaging to it."""
    torch.manual_seed(0)
    model = Decoder(sizes).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-12, fused=True)
    averagers: dict[str, tuple[Averager, int]] = {
        "lawa, interval 64": (LAWA(model, interval=1, window=window), 64),
        "ema, interval 64": (EMA(model, decay=0.9), 64),
        "ema, interval 1": (EMA(model, decay=0.99), 1),
    }
    plain: list[float] = []
    spent: dict[str, list[float]] = {name: [] for name in averagers}
    for step in range(1, steps + 1):
        tokens = torch.randint(sizes.vocabulary, (batch, length + 1), device=device())
        synchronize()
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            logits = model(tokens[:, :-1])
        token_losses(logits.float(), tokens[:, 1:]).mean().backward()
        optimizer.step()
        synchronize()
        plain.append(time.perf_counter() - start)
        for name, (averager, _) in averagers.items():
            start = time.perf_counter()
            averager.update(step)
            synchronize()
            spent[name].append(time.perf_counter() - start)
    kept = slice(window + 1, None)  # by then every vector has been touched
    seconds = statistics.median(plain[kept])
    ratios = {
        name: 1 + statistics.median(spent[name][kept]) / every / seconds for name, (_, every) in averagers.items()
    }
    return batch * length / seconds, ratios


def parallel(kind: str, ranks: int, rounds: int) -> None:
    """Prints the table of one kind."""
    print(f"{machine()}; {rounds} rounds of {parallel_step.INTERVAL} steps\n")
    print(
        "| parallelism | ranks | averaging | ms a step | run | in update | MB a rank |\n|---|---|---|---|---|---|---|"
    )
    for name, step, run, inside, held in parallel_step.measure(kind, ranks, rounds):
        print(f"| {kind} | {ranks} | {name} | {step:.1f} | {run:.3f} | {inside:.4f} | {held / 1e6:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of 64 updates on each workload (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="steps of the language model (default: 12)")
    parser.add_argument("--window", type=int, default=20, help="of its LAWA, half a GB a snapshot (default: 20)")
    parser.add_argument("--batch", type=int, default=1, help="sequences a step (default: 1)")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence (default: 256)")
    parser.add_argument("--parallel", choices=parallel_step.KINDS, help="over several processes instead")
    parser.add_argument("--ranks", type=int, help="of them; fsdp2_tensor takes 4 (default: 2)")
    arguments = parser.parse_args()
    if arguments.ranks is not None and not arguments.parallel:
        parser.error(f"--ranks={arguments.ranks} goes with --parallel={'|'.join(parallel_step.KINDS)}")
    if arguments.parallel:
        arguments.ranks = 2 if arguments.ranks is None else arguments.ranks
        if arguments.ranks < 2:
            parser.error(f"--ranks must be 2 or more, not {arguments.ranks}")
        if arguments.parallel == "fsdp2_tensor" and (arguments.ranks < 4 or arguments.ranks % 2):
            parser.error(f"fsdp2_tensor takes 4 ranks, or a higher even number, not {arguments.ranks}")
        parallel(arguments.parallel, arguments.ranks, arguments.rounds)
        return
    print(f"{machine()}\n")
    print("| workload | " + " | ".join(VARIANTS) + " |\n|" + "---|" * (len(VARIANTS) + 1))

    def row(name: str, values: dict[str, float]) -> None:
        print(f"| {name} | " + " | ".join(f"{values[variant]:.5g}" for variant in VARIANTS) + " |", flush=True)

    steps, batch, length, window = arguments.steps, arguments.batch, arguments.length, arguments.window
    speed, ratios = language_model(steps + window + 1, batch, length, window, PAPER)
    row(f"finewebedu_lm_124m, {batch} x {length} tokens", ratios)
    row(f"the same in tokens a second; {speed:.0f} without averaging", {name: speed / r for name, r in ratios.items()})
    if device().type == "cpu":
        torch.set_num_threads(1)
        for name in sorted(workloads.WORKLOADS):
            row(name, miniature(name, arguments.rounds))


if __name__ == "__main__":
    main()
