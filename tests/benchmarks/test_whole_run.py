"""The benchmark of whole runs: its ratios, and the parts of an update."""

import pandas as pd
import pytest

from benchmarks import whole_run
from benchmarks.training_step import Training

NAN = float("nan")


def test_ratios_are_of_pairs_with_the_same_seed_and_misses_are_told():
    rows = [
        ("w", 0, whole_run.BASELINE, 100, 10.0), ("w", 1, whole_run.BASELINE, 200, 40.0),
        ("w", 0, "nadamw", 100, 8.0), ("w", 1, "nadamw", 200, 20.0),
        ("w", 0, "lawa", 80, 8.0), ("w", 1, "lawa", NAN, NAN),
        ("w", 0, "ema", NAN, NAN), ("w", 1, "ema", NAN, NAN),
    ]  # fmt: skip
    text = whole_run.report(pd.DataFrame(rows, columns=["workload", "seed", "submission", "updates", "seconds"]))
    assert "| w, seconds | 150, 25.0 | 0.63 (0.50 to 0.80) | 0.80 (0.80 to 0.80), 1 missed | missed |" in text
    assert "| w, updates | | 1.00 (1.00 to 1.00) | 0.80 (0.80 to 0.80), 1 missed | missed |" in text


def test_late_targets_are_what_the_baseline_with_the_seed_has_reached_by_then():
    """Of a metric that is better lower, which the baseline last improves at 80 % of its run."""
    rows = []
    for name, seed, values in (
        (whole_run.BASELINE, 0, [5, 4, 3, 2, 2]), ("nadamw", 0, [5, 3, 3, 2, 1]), ("lawa", 0, [4, 2, 2, 1, 1]),
        ("ema", 0, [5, 5, 5, 5, 5]), ("ema_growing", 0, [5, 4, 2, 2, 2]),
        (whole_run.BASELINE, 1, [9, 8, 7, 6, 5]), ("lawa", 1, [9, 8, 6, 5, 4]),
    ):  # fmt: skip
        rows += [("mini_fastmri", seed, name, 20 * at, 2.0 * at, -v) for at, v in enumerate(values, start=1)]
    curves = pd.DataFrame(rows, columns=["workload", "seed", "submission", "updates", "seconds", "value"])
    table = whole_run.late(curves, 0.6).set_index(["seed", "submission"])
    assert table.loc[0, "updates"].to_dict() == pytest.approx(
        {whole_run.BASELINE: 60, "nadamw": 40, "lawa": 40, "ema": NAN, "ema_growing": 60}, nan_ok=True
    )
    table = whole_run.late(curves, 1.0).set_index(["seed", "submission"])
    assert table.loc[1, "updates"].to_dict() == {whole_run.BASELINE: 100, "lawa": 80}
    assert table.loc[(1, "lawa"), "seconds"] == 8.0
    index = pd.MultiIndex.from_product([["mini_fastmri"], list(whole_run.VARIANTS)])
    parts = pd.DataFrame(1.0, columns=list(whole_run.PARTS), index=index)
    parts.loc["mini_fastmri", "lawa"] = 1.5
    text = whole_run.late_report(curves[curves["seed"] == 0], [1.0], parts)
    assert "| mini_fastmri, 100 % of training | 80 | 1.00 (1.00 to 1.00); 1.00 (1.00 to 1.00) |" in text
    assert "0.50 (0.50 to 0.50); 0.75 (0.75 to 0.75) | missed; missed | 0.75 (" in text


def test_the_parts_of_an_update_add_up_and_nothing_stays_patched(monkeypatch):
    monkeypatch.setattr(whole_run, "TURN", 3)
    base = whole_run.point("mini_ogbg", "ema")
    training = Training("mini_ogbg", "ema", {}, base=base)
    step = training.state["optimizer"].step
    parts = whole_run.parts_of(training)
    assert set(parts) == set(whole_run.PARTS)
    assert all(value >= 0 for value in parts.values())
    assert all(parts[name] > 0 for name in ("forward and loss", "backward", "optimizer", "averaging"))
    assert training.state["optimizer"].step is step
    assert "model_fn" not in vars(training.workload)
    assert "update" not in vars(training.state["averager"])


def test_a_wrong_baseline_or_workload_is_one_line(capsys, monkeypatch, tmp_path):
    for flags, says in (
        (["--baseline=no.py"], "--baseline=no.py is no file: name pytorch_nadamw_full_budget.py of a checkout"),
        ([f"--baseline={__file__}", "--workloads=nope"], "--workload=nope is unknown; choose from mini_"),
        ([f"--baseline={__file__}", "--seeds=0"], "--seeds and --rounds must be >= 1"),
        ([f"--baseline={__file__}", "--places=.8,2"], "--places=.8,2 must be above 0 and at most 1"),
        ([f"--baseline={__file__}", "--places=late"], "--places=late: could not convert string to float: 'late'"),
    ):
        monkeypatch.setattr("sys.argv", ["whole_run", *flags, f"--out={tmp_path / 'out'}"])
        with pytest.raises(SystemExit):
            whole_run.main()
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_baseline_by_a_relative_path_is_found_in_the_working_folder(monkeypatch, tmp_path):
    (tmp_path / "theirs.py").write_text("mine = 1")
    monkeypatch.chdir(tmp_path)
    found = []

    def compare(folder, names, seeds, file, to_the_end):
        found.append(((folder / whole_run.path_of(whole_run.BASELINE)).read_text(), file.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_run, "compare", compare)
    monkeypatch.setattr("sys.argv", ["whole_run", "--baseline=theirs.py", "--out=out"])
    with pytest.raises(KeyboardInterrupt):
        whole_run.main()
    assert found == [("mine = 1", tmp_path / "out")]
