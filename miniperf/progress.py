"""What is seen of a run in the terminal."""

from typing import Any, Self

from tqdm import tqdm


class Progress:
    """A bar with loss, learning rate, last validation metric and time left; lines where there is no terminal; and
    nothing if it is not `shown`."""

    def __init__(
        self, workload: Any, name: str, steps: int | None, step: int, eval_results: list[Any], shown: bool = True
    ) -> None:
        self._shown = shown
        self._metric = f"validation/{workload.target_metric_name}"
        self._target = workload.validation_target_value
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            disable=None if shown else True,
            dynamic_ncols=True,
            mininterval=0.5,
            desc=name,
        )
        self._validation = eval_results[-1][1][self._metric] if eval_results else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()  # also after Ctrl-C, before anything else is said

    def after_update(self, step: int, latest: dict[str, float], learning_rate: float | None) -> None:
        """`latest`: the last training metrics that were logged."""
        if not self._bar.disable and step % 20 == 0:
            fields = [f"loss {latest['loss']:.4f}"] if "loss" in latest else []
            if learning_rate is not None:
                fields.append(f"lr {learning_rate:.2e}")
            if self._validation is not None:
                fields.append(f"{self._metric} {self._validation:.4f} (target {self._target:g})")
            self._bar.set_postfix_str(", ".join(fields), refresh=False)
        self._bar.update()

    def after_evaluation(self, step: int, result: dict[str, float]) -> None:
        self._validation = result[self._metric]
        if self._bar.disable and self._shown:
            seconds = result["score"]
            value = f"{self._metric} {self._validation:.5f}  (target {self._target:g})"
            print(f"step {step:>6} {seconds:8.1f} s  {value}", flush=True)
