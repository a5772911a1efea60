"""The runs of the evidence: averages along training, stopped and continued, and which run comes next."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from launching.evidence import plan, records, runs
from launching.evidence.averages import FollowsRate, averages
from miniperf.tracking.pytorch import TrackedSubmission, TrackedWorkload
from submissions.recipe import schedules
from tests.support import commands
from weight_averaging.errors import UsageError

EVERY = {"lawa_1": 1, "lawa_8": 1, "ema_4": 2, "growing_15": 1, "follows_rate_15": 1}


def small(**changes) -> plan.Variant:
    """100 updates of images, or so."""
    given = {"part": "A", "name": "nadamw", "submission": "nadamw", "seeds": 2, "length": 1 / 30, "evaluations": 10,
             "search_spaces": "tuning_search_spaces/miniperf", "workloads": ["mini_imagenet_vit"], "every": EVERY,
             "test_every": 5}  # fmt: skip
    return plan.Variant(**{**given, **changes})


def one(variant: plan.Variant, seed: int = 0) -> plan.Run:
    return plan.Run(variant, "mini_imagenet_vit", seed, 0.005)


def without_seconds(run: plan.Run, out: Path) -> str:
    return records.table(run.path(out)).drop(columns="seconds").to_csv()


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    run = one(small())
    runs.make(run, tmp_path / "whole")
    evaluate = TrackedWorkload.eval_model
    asked = []

    def stopping(self, *arguments):
        asked.append(arguments[-1])
        if len(asked) in (6, 11):  # after checkpoints, in the midst of what is between two of them
            raise KeyboardInterrupt
        return evaluate(self, *arguments)

    monkeypatch.setattr(TrackedWorkload, "eval_model", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            runs.make(run, tmp_path / "broken")
        assert not run.finished(tmp_path / "broken")
    runs.make(run, tmp_path / "broken")
    assert len(asked) > len(set(asked)) == 11  # evaluations done again, and none left out
    assert without_seconds(run, tmp_path / "broken") == without_seconds(run, tmp_path / "whole")
    assert not run.path(tmp_path / "broken").exists()  # no checkpoint is left


def test_training_is_that_of_the_submission_alone(tmp_path):
    with_averages, alone = one(small()), one(small(name="alone", every={}))
    runs.make(with_averages, tmp_path)
    runs.make(alone, tmp_path)
    raw = records.table(alone.path(tmp_path))[["step", "validation", "test"]]
    pd.testing.assert_frame_equal(records.table(with_averages.path(tmp_path))[["step", "validation", "test"]], raw)
    assert list(raw["step"]) == [1, *range(10, 101, 10)]
    assert list(raw.loc[raw["test"].notna(), "step"]) == [50, 100]


def test_averages_are_those_of_the_weights_in_float64(tmp_path, monkeypatch):
    seen: list[torch.Tensor] = []
    found: dict[str, tuple[int, torch.Tensor]] = {}
    update, evaluate = TrackedSubmission.update_params, TrackedWorkload.eval_model

    def flat(model) -> torch.Tensor:
        return torch.cat([p.detach().double().ravel() for p in model.parameters()])

    def watched_update(self, **arguments):
        result = update(self, **arguments)
        seen.append(flat(result[1]))
        return result

    def watched_evaluate(self, batch_size, model, *arguments):
        for name in self._submission._described:
            with self._submission.averaged(name, model, arguments[0]) as averaged:
                if averaged is not None:
                    found[name] = (arguments[-1], flat(model))
        return evaluate(self, batch_size, model, *arguments)

    monkeypatch.setattr(TrackedSubmission, "update_params", watched_update)
    monkeypatch.setattr(TrackedWorkload, "eval_model", watched_evaluate)
    every = {**EVERY, "lawa_16": 1}
    run = one(small(length=1 / 15, every=every))
    runs.make(run, tmp_path)
    about = records.about(run.path(tmp_path))
    described = averages(200, 20, about["schedule"], about["hyperparameters"])
    assert described["lawa_16"].interval == 2  # of others it is 1
    assert set(found) == set(every)
    for name, (step, average) in found.items():
        assert step == 200
        members = described[name].members(range(1, 201), step)
        weights = described[name].coefficients(len(members))
        exact = sum(weight * seen[member - 1] for weight, member in zip(weights, members, strict=True))
        assert float((average - exact).abs().max()) < 1e-6, name
    assert described["lawa_8"].coefficients(16) == [1 / 16] * 16


@pytest.mark.parametrize(("schedule", "steps"), [("warmup_cosine", 3000), ("warmup_constant", 1500)])
def test_the_share_follows_the_root_of_the_rate(schedule, steps):
    settings = {"warmup_factor": 0.02, "learning_rate": 0.005}
    average = averages(steps, steps // 100, schedule, settings)["follows_rate_15"]
    assert isinstance(average, FollowsRate)
    assert average.interval is not None
    rate = getattr(schedules, schedule)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        step = round(share * steps)
        members = np.array(average.members(range(1, steps + 1), step))
        weights = np.array(average.coefficients(len(members)))
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        wanted = 0.075 * step * math.sqrt(max(0.0, rate(step - 1, steps, SimpleNamespace(**settings))))
        assert weights @ (step - members) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    if schedule == "warmup_constant":  # as old as the average of a constant share
        members = np.array(average.members(range(1, steps + 1), steps))
        power = averages(steps, steps // 100, schedule, settings)["growing_15"]
        ages = [np.array(a.coefficients(len(members))) @ (steps - members) for a in (average, power)]
        assert ages[0] == pytest.approx(ages[1], rel=0.02)


def finish(run: plan.Run, out: Path, final: float) -> None:
    run.path(out).parent.mkdir(parents=True, exist_ok=True)
    metrics = {"validation/accuracy": final, "accumulated_submission_time": 1.0}
    records.write(run.path(out), [(100, metrics)], "accuracy", {"submission_seconds": 1, "evaluation_seconds": 1})


def test_a_rate_is_searched_until_it_is_inside(tmp_path):
    variant = small(rates=[1, 0.5])
    accuracy = {0.005: 0.7, 0.0025: 0.8, 0.00125: 0.85, 0.000625: float("nan")}
    for expected in ({0.005, 0.0025}, {0.00125}, {0.000625}):  # on down while the lowest is best
        waiting = list(plan.todo([variant], tmp_path))
        assert {run.rate for run in waiting} == expected
        assert all(run.search and run.seed == 0 for run in waiting)
        for run in waiting:
            finish(run, tmp_path, accuracy[run.rate])
    chosen = list(plan.todo([variant], tmp_path))
    assert [(run.rate, run.seed, run.search, run.at_edge) for run in chosen] == [
        (0.00125, 0, False, False), (0.00125, 1, False, False)
    ]  # fmt: skip
    for run in chosen:
        finish(run, tmp_path, 0.9)
    assert not list(plan.todo([variant], tmp_path))


def test_a_search_without_end_says_that_it_stopped_at_an_edge(tmp_path):
    variant = small(rates=[1, 0.5], seeds=1)
    for _ in range(20):
        waiting = list(plan.todo([variant], tmp_path))
        if not waiting[0].search:
            break
        for run in waiting:
            finish(run, tmp_path, 1 - run.rate)  # the lower, the better
    assert [(run.rate, run.at_edge) for run in waiting] == [(0.005 / 64, True)]


def test_a_hopeless_rate_gives_way_to_the_best_of_three(tmp_path):
    path = tmp_path / "plan.yaml"
    levels = {"mini_imagenet_vit": 0.8, "mini_criteo1tb": 0.46}
    run = {"name": "a", "submission": "board/a", "seeds": 2, "workloads": list(levels), "learning_rate": 0.1}
    rescue = {"hopeless": levels, "best_of": [1, 3, 0.333]}
    path.write_text(yaml.safe_dump({"defaults": {}, "parts": {"P": {"runs": [{**run, **rescue}]}}}))
    both = plan.load(path)["P"]

    def waiting(workload, seeds=2):
        runs = plan.todo(both, tmp_path, only=[workload], seeds=seeds)
        return [(one.variant.name, one.seed, one.rate, one.search) for one in runs]

    (first,) = plan.todo(both, tmp_path, only=["mini_criteo1tb"], seeds=1)
    finish(first, tmp_path, 0.45)  # a loss: good enough, so its other seeds come
    assert waiting("mini_criteo1tb") == [("a", 1, 0.1, False)]

    (first,) = plan.todo(both, tmp_path, only=["mini_imagenet_vit"], seeds=1)
    finish(first, tmp_path, 0.7)  # an accuracy
    rates = sorted(plan.todo(both, tmp_path, only=["mini_imagenet_vit"]), key=lambda one: one.rate)
    assert [(one.rate, one.search) for one in rates] == [(0.0333, True), (0.1, True), (0.3, True)]
    assert len(plan.count(both, tmp_path, ["mini_imagenet_vit"])) == 3
    for one, final in zip(rates, (0.6, 0.7, 0.75), strict=True):
        finish(one, tmp_path, final)
    assert waiting("mini_imagenet_vit", seeds=1) == [("a_other_rate", 0, 0.3, False)]  # and nothing beyond the three
    (other,) = plan.todo(both, tmp_path, only=["mini_imagenet_vit"], seeds=1)
    finish(other, tmp_path, 0.75)  # hopeless too
    assert waiting("mini_imagenet_vit") == []
    finish(other, tmp_path, 0.85)
    assert waiting("mini_imagenet_vit") == [("a_other_rate", 1, 0.3, False)]


def test_runs_come_seed_by_seed_and_workload_by_workload(tmp_path):
    both = [small(workloads="all", name="a"), small(workloads=["mini_ogbg"], name="b", seeds=1)]
    order = [(run.seed, run.workload, run.variant.name) for run in plan.todo(both, tmp_path)]
    assert order == sorted(order)
    assert len(order) == 17
    few = list(plan.todo(both, tmp_path, only=["mini_ogbg"], seeds=1))
    assert [(run.workload, run.variant.name) for run in few] == [("mini_ogbg", "a"), ("mini_ogbg", "b")]


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    run = one(small())
    with runs.claimed(run, tmp_path) as mine:
        assert mine
        with runs.claimed(run, tmp_path) as again:
            assert not again
    finish(run, tmp_path, 0.5)
    with runs.claimed(run, tmp_path) as mine:
        assert not mine


def test_the_plan_of_the_rules_can_be_read():
    parts = plan.load(Path("comparisons/evidence/plan.yaml"))
    assert list(parts) == ["A", "B", "C", "D", "E", "F"]
    known = set(averages(3000, 30, "warmup_cosine", {"warmup_factor": 0.02}))
    assert len(known) == 14
    for variant in (one for name, part in parts.items() if name != "D" for one in part):
        assert set(variant.every) in (known, set(), known - {"follows_rate_15"})
    of_schedules = {"growing_15": 1, "lawa_4": 1, "follows_rate_15": 2}
    assert [variant.every for variant in parts["D"]] == [of_schedules] * 5
    assert {variant.seeds for variant in parts["A"]} == {10}
    rules = {"cosine_to_0.1", "cosine_to_0.25", "wsd_0.1", "wsd_0.2", "inverse_sqrt"}  # constant, and to 0: in A
    assert {variant.name for variant in parts["D"]} == rules
    assert parts["D"][-1].submission == "nadamw_inverse_sqrt"


def test_a_run_by_the_root_of_the_updates_tracks_its_averages(tmp_path):
    variant = {"submission": "nadamw_inverse_sqrt", "length": 1 / 50, "every": {"growing_15": 1, "follows_rate_15": 1}}
    run = one(small(**variant, evaluations=4))
    runs.make(run, tmp_path)
    assert records.about(run.path(tmp_path))["schedule"] == "warmup_inverse_sqrt"
    table = records.table(run.path(tmp_path))
    assert {"validation@growing_15", "validation@follows_rate_15"} <= set(table)
    assert table["validation@follows_rate_15"].iloc[1:].notna().all()  # the first is after one update


def test_a_plan_that_cannot_be_is_refused_in_one_line(tmp_path):
    path = tmp_path / "plan.yaml"
    run = {"name": "a", "submission": "nadamw", "seeds": 1, "search_spaces": "tuning_search_spaces/miniperf"}
    for change, said in (
        ({"lenght": 3}, "unknown lenght"), ({"submission": "nadam"}, "'nadam' is unknown"), ({}, None)
    ):  # fmt: skip
        path.write_text(yaml.safe_dump({"defaults": {}, "parts": {"A": {"runs": [{**run, **change}]}}}))
        if said is None:
            assert len(plan.load(path)["A"]) == 1
            continue
        with pytest.raises(UsageError, match=said) as error:
            plan.load(path)
        assert "\n" not in str(error.value)


def test_the_command_runs_the_plan_and_says_how_far_it_is(tmp_path):
    path, out = tmp_path / "plan.yaml", tmp_path / "runs"
    variant = {"name": "a", "submission": "nadamw", "seeds": 2, "search_spaces": "tuning_search_spaces/miniperf"}
    shape = {"workloads": ["mini_imagenet_vit"], "length": 0.01, "evaluations": 3, "every": {"lawa_4": 1}}
    path.write_text(yaml.safe_dump({"defaults": shape, "parts": {"A": {"runs": [variant]}}}))
    asked = [f"--plan={path}", f"--out={out}"]
    listed = commands.run("evidence", *asked, "--list").stdout
    assert listed.splitlines()[0] == "part A: 0 of 2 runs, no estimate yet"
    assert not list(out.rglob("*.csv"))
    done = commands.run("evidence", *asked, "--jobs=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "part A: 2 of 2 runs, all done"
    assert len(list(out.rglob("seed_*.csv"))) == 2
    assert done.stdout.count("begins") == 2
    wrong = commands.run("evidence", *asked, "--part=Z")
    assert (wrong.returncode, wrong.stderr) == (2, f"error: --part=Z is not in {path}; it has A\n")
    wrong = commands.run("evidence", *asked, "--variants=b")
    assert (wrong.returncode, wrong.stderr) == (2, "error: --variants=b is in none of these parts; they have a\n")
    wrong = commands.run("evidence", *asked, "--workloads=mini_wmt")
    said = "error: --workloads=mini_wmt is not run in part A; choose from mini_imagenet_vit\n"
    assert (wrong.returncode, wrong.stderr) == (2, said)
