"""The report: its tables and figures, its page in a real browser, and what it does with odd logs."""

import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tests.support import ROOT, synthetic_logs
from tests.support.commands import run
from tests.support.synthetic_logs import HIT, csv_of, official, write_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs)
    done = run("report", f"--runs={runs}")
    assert done.returncode == 0, done.stderr
    return runs / "report", done.stdout


def test_the_table_names_ratios_and_misses(made):
    text = made[1].split("Over all workloads")[0].split("By workload")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    lines = {tuple(row[:2]): dict(zip(rows[0], row)) for row in rows}
    # 1 - exp(-.05 n) >= 3/8 at n = 10 (study 0) and 9, less what is interpolated; at speed .09, 6 and 5.
    nadamw, ema = lines["toy", "nadamw"], lines["toy_two", "ema"]
    assert (nadamw["reached"], nadamw["steps to target"]) == ("2/2", "90 ± 6")
    (whole,) = [row.split("|") for row in made[1].splitlines() if row.startswith("| lawa ") and "sooner" in row]
    ratios = [float(lines[name, "lawa"]["steps / nadamw"]) for name in ("toy", "toy_two")]
    assert np.exp(np.log(ratios).mean()) == pytest.approx(float(whole[2]), abs=0.01)
    assert (ema["reached"], ema["steps / nadamw"]) == ("1/2", "-")


@pytest.mark.parametrize("name", ["learning_curves.png", "learning_curves.pdf", "speedup.png", "speedup.pdf"])
def test_figures_are_written(made, name):
    assert (made[0] / name).stat().st_size > 5000


def test_a_wrong_baseline_is_one_line(made):
    done = run("report", f"--runs={made[0].parent}", "--baseline=adam")
    assert done.returncode == 2
    assert done.stderr == "error: no run of the baseline 'adam'; choose --baseline from ema, lawa, nadamw\n"


def test_the_command_can_be_pasted(tmp_path):
    runs = tmp_path / "two words"
    synthetic_logs.write(runs, "one", [0.1, 0.6])
    assert run("report", f"--runs={runs}").returncode == 0
    page = (runs / "report/report.html").read_text()
    assert f"python -m scripts.report &#39;--runs={runs}&#39;" in page


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
    done = run("report", f"--runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "neither lawa nor nadamw reached a target: nothing to compare" in done.stderr
    assert "1.000" not in done.stdout
    assert not (tmp_path / "report/speedup.png").exists()
    *_, named, following = done.stdout.splitlines()
    assert following == f"next: open {tmp_path / 'report/report.html'} in a browser"
    named = named.split(": ", 1)[1].removesuffix(" (pictures also as .pdf), report.html")
    assert all((tmp_path / "report" / name).exists() for name in named.split(", "))


@pytest.mark.parametrize("unlike", ["official", "one evaluation", "other steps"])
def test_the_report_does_not_need_steps_in_common(tmp_path, unlike):
    for study in range(2):
        for i, name in enumerate(("baseline", "lawa")):
            if unlike == "official":
                folder = official(tmp_path, name, values=(0.5, 0.6, 0.7, 0.73 - 0.02 * study), study=study)
            else:
                folder = synthetic_logs.write(tmp_path, name, HIT, study=study)
            rows = csv_of(folder).read_text().splitlines()
            if unlike == "one evaluation" and study:
                rows = [rows[0], rows[-1]]
            shift = {"one evaluation": 0}.get(unlike, 3 * study + i)  # steps of their own
            cells = [row.split(",") for row in rows[1:]]
            moved = [",".join([row[0], str(int(row[1]) + shift), *row[2:]]) for row in cells]
            csv_of(folder).write_text("\n".join([rows[0], *moved]) + "\n")
    done = run("report", f"--runs={tmp_path}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "of training" in done.stdout
    assert np.isin(["report.html", "speedup.png"], os.listdir(tmp_path / "out")).all()


def test_the_report_of_an_archive_goes_beside_the_work(tmp_path):
    synthetic_logs.write(tmp_path / "in", "one", HIT)
    with tarfile.open(tmp_path / "logs.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "in", "in")
    command = [sys.executable, "-m", "scripts.report", f"--runs={tmp_path / 'logs.tar.xz'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs_report/report.html").exists()


def test_an_output_folder_that_cannot_be_is_one_line(tmp_path):
    synthetic_logs.write(tmp_path / "in", "one", HIT)
    (tmp_path / "file").write_text("")
    for script, flag in (("report", "runs"), ("score", "logs")):
        done = run(script, f"--{flag}={tmp_path / 'in'}", f"--out={tmp_path / 'file'}")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"error: --out={tmp_path / 'file'}: File exists; name another folder"
