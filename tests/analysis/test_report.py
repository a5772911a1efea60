"""The report: its table, its figures, and its page in a real browser."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from analysis.figures import learning_curves, ratios, style
from analysis.measures import curves, results
from analysis.reading.logs import read
from tests.support import ROOT, synthetic_logs
from tests.support.warm_python import python


def write_runs(root):
    """Two workloads, three submissions, two studies; on the second workload `ema` misses the target once."""
    steps = np.arange(1, 21)
    for study in range(2):
        for name, speed in (("nadamw", 0.05), ("lawa", 0.09), ("ema", 0.08)):
            for workload, best in (("toy", 0.8), ("toy_two", 0.7)):
                missed = (name, workload, study) == ("ema", "toy_two", 1)
                values = (0.3 if missed else best) * (1 - np.exp(-speed * (1 + 0.1 * study) * steps))
                machine = {"system_hardware_info": {"cpu_model_name": "a fine machine"}}
                synthetic_logs.write(root, name, values, study=study, workload=workload, target=0.3, **machine)


def report(*flags):
    command = [python(), "-m", "scripts.report", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs)
    done = report(f"--runs={runs}")
    assert done.returncode == 0, done.stderr
    return runs / "report", done.stdout


def test_the_table_names_ratios_and_misses(made):
    text = made[1].split("Over all workloads")[0].split("By workload")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    lines = {tuple(row[:2]): dict(zip(rows[0], row)) for row in rows}
    # 1 - exp(-.05 n) >= 3/8 at n = 10 (study 0) and 9: 95 updates on average; at speed .09, 6 and 5.
    nadamw, lawa, ema = lines["toy", "nadamw"], lines["toy", "lawa"], lines["toy_two", "ema"]
    assert (nadamw["reached"], nadamw["steps to target"]) == ("2/2", "95 ± 7")
    assert lawa["steps / nadamw"] == f"{55 / 95:.2f}"
    assert (ema["reached"], ema["steps / nadamw"]) == ("1/2", "-")


@pytest.mark.parametrize("name", ["learning_curves.png", "learning_curves.pdf", "speedup.png", "speedup.pdf"])
def test_figures_are_written(made, name):
    assert (made[0] / name).stat().st_size > 5000


def test_a_wrong_baseline_is_one_line(made):
    done = report(f"--runs={made[0].parent}", "--baseline=adam")
    assert done.returncode == 2
    assert done.stderr == "error: no run of the baseline 'adam'; choose --baseline from ema, lawa, nadamw\n"


def test_the_command_can_be_pasted(tmp_path):
    runs = tmp_path / "two words"
    synthetic_logs.write(runs, "one", [0.1, 0.6])
    assert report(f"--runs={runs}").returncode == 0
    page = (runs / "report/report.html").read_text()
    assert f"python -m scripts.report &#39;--runs={runs}&#39;" in page


def test_miniature_runs_are_scored_by_steps_official_ones_by_seconds(tmp_path):
    synthetic_logs.write(tmp_path, "slow", [0.1, 0.6, 0.6], seconds_per_step=0.9)
    synthetic_logs.write(tmp_path, "late", [0.1, 0.2, 0.6])
    by_steps, by_seconds = results.of(read(tmp_path)), results.of(read(tmp_path), unit="seconds")
    assert list(by_steps.scores.index) == ["slow", "late"]
    assert list(by_seconds.scores.index) == ["late", "slow"]
    assert results.title(by_steps) == "the runs' own targets, over updates"


def test_learning_curves_mark_targets_and_misses(tmp_path):
    write_runs(tmp_path)
    found = results.of(read(tmp_path))
    figure = learning_curves.learning_curves(found.logs, found.targets, found.best, "nadamw", "steps")
    toy, two = figure.axes
    bars = {line.get_xdata()[0] for line in toy.lines if line.get_marker() == "|"}
    assert bars == {95.0, 55.0, 60.0}
    assert two.get_title() == "toy_two, target 0.3"
    assert [text.get_text() for text in two.texts] == ["in some studies: ema 1/2"]
    assert sum(line.get_marker() == "|" for line in two.lines) == len(toy.collections) - 1  # all but ema
    assert [line.get_label() for line in two.lines if line.get_linestyle() == "--"] == ["validation target"]
    assert len(toy.collections) == 3  # a band each


def test_of_many_who_miss_the_panel_tells_how_many_and_the_legend_gets_its_room(tmp_path):
    for value in range(12):
        for seed in range(2):
            values = [0.1, 0.9 if value == 0 or (value == 1 and seed) else 0.2]
            synthetic_logs.write(tmp_path, f"lawa_with_a_long_name_{value}", values, study=seed)
    synthetic_logs.write(tmp_path, "nadamw", [0.1, 0.9])
    found = results.of(read(tmp_path))
    figure = learning_curves.learning_curves(found.logs, found.targets, found.best, "nadamw", "steps")
    assert [text.get_text() for text in figure.axes[0].texts] == ["10 of 13 missed, 1 more in some studies"]
    figure.draw_without_rendering()
    legend, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert legend.y1 <= panel.y0
    assert panel.height > 200  # not squeezed


def test_speedups_show_bounds_as_hollow(tmp_path):
    write_runs(tmp_path)
    found = results.of(read(tmp_path))
    figure = ratios.speedups({"ema": found.ratios["ema"]}, "nadamw")
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, True, True]  # toy, toy_two, all


def test_a_band_of_curves_with_other_points():
    one = pd.DataFrame({"steps": [0.0, 10.0, 20.0], "value": [0.0, 1.0, 2.0]})
    two = pd.DataFrame({"steps": [0.0, 5.0, 15.0, 20.0], "value": [2.0, 2.0, 2.0, 2.0]})
    points, mean, low, high = curves.band([one, two], "steps")
    assert points.tolist() == [0, 5, 10, 15, 20]
    assert low.tolist() == [0, 0.5, 1, 1.5, 2]
    assert high.tolist() == [2] * 5
    assert mean.tolist() == [1, 1.25, 1.5, 1.75, 2]


def test_a_band_goes_on_while_half_of_the_runs_do():
    long = pd.DataFrame({"steps": [0.0, 10.0, 20.0], "value": [1.0, 1.0, 1.0]})
    short = long.iloc[:2].assign(value=3.0)
    assert curves.band([long, short, short.iloc[:0]], "steps")[1].tolist() == [2, 2, 1]
    assert curves.band([long, short, short], "steps")[0].tolist() == [0, 10]
    assert curves.band([short.iloc[:0]], "steps")[0].tolist() == []


def test_one_submission_that_diverged_does_not_flatten_the_others():
    good = pd.DataFrame({"steps": range(20), "value": np.linspace(0.3, 0.1, 20)})
    of_runs = {"a": good, "b": good, "c": good, "d": good.assign(value=1e6), "e": good.assign(value=np.nan)}
    best = pd.DataFrame({"submission": list(of_runs), "folder": list(of_runs)})
    low, high = curves.interesting_range(best, of_runs, lower=True, target=0.2)
    assert 0.05 < low < 0.1
    assert 0.25 < high < 1
    assert curves.interesting_range(best[-1:], of_runs, lower=True, target=0.15) == pytest.approx((0.1485, 0.1515))


def test_colours_of_many_submissions_are_told_apart():
    looks = style.looks([f"s{i}" for i in range(20)], "s0")
    assert looks["s0"] == ("#000000", "-")
    assert len(set(looks.values())) == 20


def test_a_submission_has_one_colour_on_every_page():
    alone = style.looks(["lawa", "nadamw"], "nadamw")
    among = style.looks(["other", "ema", "lawa_no_decay", "nadamw_no_decay", "lawa", "nadamw"], "nadamw")
    assert among["lawa"] == alone["lawa"]
    assert among["nadamw"] == alone["nadamw"] == ("#000000", "-")
    assert among["lawa_no_decay"] == (alone["lawa"][0], "--")
    assert among["nadamw_no_decay"] == ("#000000", "--")
    assert len(set(among.values())) == 6
    assert style.looks(["adamw", "adamw_lawa"], "adamw")["adamw_lawa"] == alone["lawa"]
    # The points of a grid are told apart.
    grid = style.looks(["nadamw", *(f"lawa, window={n}" for n in (5, 10, 20))], "nadamw")
    assert len({colour for colour, _ in grid.values()}) == 4
    # A baseline of other people is black, and nothing else is.
    foreign = style.looks(["prize", "adamw", "lawa"], "prize")
    assert [name for name, (colour, _) in foreign.items() if colour == "#000000"] == ["prize"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    quiet = ["background-networking", "component-update", "sync", "gpu", "quic"]
    for flag in ["headless", "no-sandbox", "no-first-run", "window-size=1500,2400", *(f"disable-{x}" for x in quiet)]:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


def open_page(browser, path, width=1500):
    from selenium.webdriver.support.wait import WebDriverWait

    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda page: page.execute_script("return document.body.dataset.ready"))


def test_the_page_in_a_browser(made, browser):
    open_page(browser, made[0] / "report.html")
    count = lambda selector: browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)  # noqa: E731
    click = lambda selector: browser.execute_script("document.querySelector(arguments[0]).click()", selector)  # noqa: E731
    text = lambda selector: browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)  # noqa: E731
    # Two charts, in each three lines with band and mark; 12 runs.
    traces = count("#charts .scatterlayer .trace")
    assert traces == 2 * 3 * 3
    assert count("#charts .scatterlayer .trace path.js-line") >= 6
    assert count("#profile .scatterlayer .trace") == 3
    assert count("#ratios .chart") == 3  # two workloads and all of them
    assert count("#runs tr.run") == count("#scores tbody tr") * 4 == 12
    assert browser.find_element("id", "count").text == "(12 of 12)"
    assert text("#scores tbody tr").startswith("lawa11.00002/2")  # rank, score and targets reached
    assert text("#times tbody tr:last-child") == "ema601 of 2 missed"  # the median on toy, and toy_two
    assert count("#leads tbody tr") == 4  # two submissions on two workloads
    assert text("#leads thead") == "SubmissionWorkload30%50%70%90%"
    assert "In some studies by ema (1 of 2)" in text("#charts .card:last-child p")

    click("#pick-submission input[value=ema]")
    assert count("#charts .scatterlayer .trace") == 2 * 2 * 3
    assert count("#runs tr.run") == 8
    assert count("#scores tbody tr") == count("#times tbody tr") == count("#profile .scatterlayer .trace") == 2
    assert "ema" not in text("#charts .card:last-child p")
    click("#pick-workload input[value=toy]")
    assert count("#charts .chart") == 1
    assert count("#ratios .chart") == 2
    assert count("#times thead th") == 2
    assert count("#runs tr.run") == 4
    assert browser.find_element("id", "chosen").text == "1 of 2 workloads, 2 of 3 submissions"
    click("#pick-workload button")  # all
    click("#pick-submission button")
    assert count("#charts .scatterlayer .trace") == traces

    labels = "return [...document.querySelectorAll('#charts .xtitle')].map(x => x.textContent)"
    assert browser.execute_script(labels) == ["updates", "updates"]
    click("#each")
    assert count("#charts .scatterlayer .trace") == 12
    click("#each")

    browser.execute_script(
        "Plotly.Fx.hover(document.querySelector('#charts .chart'), [{curveNumber: 1, pointNumber: 3}])"
    )
    assert "nadamw" in browser.execute_script("return document.querySelector('#charts .hoverlayer').textContent")

    assert text("#runs tbody").count("★") == 12  # one trial a study
    click("#runs tr.run")
    details = browser.find_element("class name", "details").text
    for expected in ("learning_rate\n0.01", "</script>", "a fine machine", "python -m scripts.run"):
        assert expected in details
    made_by = browser.find_element("css selector", "footer code").text
    assert made_by == f"python -m scripts.report --runs={made[0].parent}"
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    screenshot = ROOT / "build/report.png"
    screenshot.parent.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(screenshot))


def test_a_narrow_screen_scrolls_tables_not_the_page(made, browser):
    open_page(browser, made[0] / "report.html", width=420)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 420
    wide = "[...document.querySelectorAll('.card, .chart, p, h2')].filter(x => x.getBoundingClientRect().right > 420)"
    assert browser.execute_script(f"return {wide}.length") == 0


def test_the_page_needs_no_network(made):
    page = (made[0] / "report.html").read_text()
    own = re.sub(r'(?<=type="text/plain">)[A-Za-z0-9+/=]*', "", page)  # without plotly.js and data, which are packed
    assert len(own) < 40_000
    assert "http" not in own
    assert "<link" not in own
    assert "src=" not in own


def test_where_nobody_reached_a_target_nothing_is_compared(tmp_path):
    for name in ("nadamw", "lawa"):
        synthetic_logs.write(tmp_path, name, np.linspace(0, 0.2, 10), target=0.3)
    done = report(f"--runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "neither lawa nor nadamw reached a target: nothing to compare" in done.stderr
    assert "1.000" not in done.stdout
    assert not (tmp_path / "report/speedup.png").exists()
    *_, named, following = done.stdout.splitlines()
    assert following == f"next: open {tmp_path / 'report/report.html'} in a browser"
    named = named.split(": ", 1)[1].removesuffix(" (pictures also as .pdf), report.html")
    assert all((tmp_path / "report" / name).exists() for name in named.split(", "))
