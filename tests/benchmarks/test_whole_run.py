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

    def compare(folder, names, seeds, file):
        found.append(((folder / whole_run.path_of(whole_run.BASELINE)).read_text(), file.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_run, "compare", compare)
    monkeypatch.setattr("sys.argv", ["whole_run", "--baseline=theirs.py", "--out=out"])
    with pytest.raises(KeyboardInterrupt):
        whole_run.main()
    assert found == [("mine = 1", tmp_path / "out")]
