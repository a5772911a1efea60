"""Means from cumulative sums, and lengths of an EMA chosen after training, against direct computation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging.averages import SnapshotError
from weight_averaging.offline import LAWA, Plan, Power
from weight_averaging.offline.passes import posthoc
from weight_averaging.offline.passes.cumulative import Sums, write_sums
from weight_averaging.offline.passes.posthoc import Fit, Profile, exponent, fit


def walk(count: int, interval: int = 1) -> dict[int, dict[str, torch.Tensor]]:
    """Weights along a noisy decay, as training has them."""
    torch.manual_seed(0)
    end, weights, snapshots = torch.randn(50), torch.randn(50) * 3, {}
    for step in range(1, count + 1):
        weights = weights + 0.02 * (end - weights) + 0.05 * torch.randn(50)
        snapshots[step * interval] = {"w": weights.clone(), "n": torch.tensor(step)}
    return snapshots


def test_any_range_from_two_sums(tmp_path):
    snapshots = walk(40, 10)
    assert write_sums(snapshots.items(), tmp_path) == list(snapshots)
    sums = Sums(tmp_path)
    for after in (0, 10, 155, 390):
        for until in (400, 205, after + 10):
            inside = [state["w"].double() for step, state in snapshots.items() if after < step <= until]
            if inside:
                direct = torch.stack(inside).mean(0).float()
                torch.testing.assert_close(sums.mean(after, until)["w"], direct, rtol=2**-23, atol=1e-7)
    (lawa,) = Plan([(LAWA(window=7), 400)], list(snapshots)).run(snapshots.items())
    torch.testing.assert_close(sums.mean(330, 400)["w"], lawa.state["w"], rtol=7 * 2**-23, atol=7 * 2**-23)
    with pytest.raises(SnapshotError, match="no snapshot after step 400 and up to 500"):
        sums.mean(400, 500)
    with pytest.raises(SnapshotError, match="holds no sums"):
        Sums(tmp_path / "none")


def test_sums_that_are_missing_or_changed_are_not_read(tmp_path):
    snapshots = walk(6)

    def stopped():
        yield from list(snapshots.items())[:4]
        raise KeyboardInterrupt

    write_sums(snapshots.items(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_sums(stopped(), tmp_path)
    with pytest.raises(SnapshotError, match="holds no sums, or not all"):
        Sums(tmp_path)
    write_sums(snapshots.items(), tmp_path)
    sums, path = Sums(tmp_path), tmp_path / "sum_00000004.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    sums.mean(2, 6)
    for _ in range(2):
        with pytest.raises(SnapshotError, match=r"sum_00000004\.safetensors is not as it was written"):
            sums.mean(2, 4)
    path.unlink()
    with pytest.raises(SnapshotError, match=r"sum_00000004\.safetensors is not as it was written, or gone"):
        sums.mean(4, 6)


def test_a_small_mean_after_a_large_sum_keeps_its_digits(tmp_path):
    snapshots = {step: {"w": torch.full((3,), 1e4 if step <= 50 else 1e-2)} for step in range(1, 61)}
    write_sums(snapshots.items(), tmp_path)
    torch.testing.assert_close(Sums(tmp_path).mean(50, 60)["w"], torch.full((3,), 1e-2), rtol=1e-6, atol=0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.28))
def test_exponents_give_the_length_asked_for(length):
    gamma = exponent(length)
    points = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = points**gamma
    density /= density.sum()
    mean = (points * density).sum()
    assert float((((points - mean) ** 2) * density).sum().sqrt()) == pytest.approx(length, rel=1e-3)


def test_a_stored_average_is_fitted_by_itself():
    stored = [Profile(16.97, 1000), Profile(6.94, 1000), Profile(6.94, 500)]
    result = fit(stored, stored[1])
    assert result.coefficients == pytest.approx((0, 1, 0), abs=1e-6)
    assert result.error < 1e-6


def test_the_predicted_error_is_that_of_the_profiles():
    """Against densities on a fine grid, and their numerical least squares."""
    stored, wanted = [Profile(16.97, 1000), Profile(6.94, 1000), Profile(6.94, 700)], Profile(11.0, 1000)
    points = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400

    def density(profile):
        inside = (profile.gamma + 1) * points**profile.gamma / profile.step ** (profile.gamma + 1)
        return torch.where(points <= profile.step, inside, 0.0)

    columns, target = torch.stack([density(profile) for profile in stored], 1), density(wanted)
    solution = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
    error = float((columns @ solution - target).norm() / target.norm())
    result = fit(stored, wanted)
    assert result.error == pytest.approx(error, rel=1e-3)
    assert result.coefficients == pytest.approx(solution.tolist(), rel=1e-3)


def test_lengths_between_come_out_near_the_real_ones():
    """Averages of two profiles, stored a few times along the run, give those of lengths between them."""
    snapshots = walk(400)
    ends = range(50, 401, 50)
    stored = [Profile(gamma, end) for gamma in (exponent(0.05), exponent(0.1)) for end in ends]
    wanted = [(Power(gamma=profile.gamma), profile.step) for profile in stored]
    results = {(r.average.gamma, r.step): r.state for r in Plan(wanted, list(snapshots)).run(snapshots.items())}
    states = [results[profile.gamma, profile.step] for profile in stored]
    for length in (0.05, 0.06, 0.075, 0.09, 0.1):
        gamma = exponent(length)
        result = fit(stored, Profile(gamma, 400))
        (real,) = Plan([(Power(gamma=gamma), 400)], list(snapshots)).run(snapshots.items())
        made = result.combine(states)
        spread = torch.stack([snapshots[s]["w"] - real.state["w"] for s in range(200, 401)]).std()
        distance = float((made["w"] - real.state["w"]).square().mean().sqrt() / spread)
        assert result.error < 0.03
        assert distance < 2 * result.error + 0.02  # 0.02: snapshots are discrete, densities are not
        assert made["n"].item() == 400
    far = fit(stored, Profile(exponent(0.01), 400))
    assert far.error > 0.3  # much shorter than all that is stored: told, not hidden


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ([], "at least one"),
        ([Profile(1.0, 10), Profile(1.0, 10)], "twice"),
        ([Profile(1.0, 10), Profile(1.0, 30)], "of step 30 is later than the wanted one, of step 20"),
    ],
)
def test_fits_that_cannot_be_are_refused(stored, says):
    with pytest.raises(ValueError, match=says):
        fit(stored, Profile(2.0, 20))


def test_combining_needs_a_state_for_each_coefficient():
    with pytest.raises(ValueError):
        Fit((0.5, 0.5), 0.0).combine([{"w": torch.ones(1)}])
    assert math.isclose(Fit((0.5, 0.5), 0.0).combine([{"w": torch.ones(1)}] * 2)["w"].item(), 1.0)


def test_the_name_of_0_2_0_is_there_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"posthoc\.Track is called Profile now"):
        assert posthoc.Track is Profile
    with pytest.raises(AttributeError, match="has no attribute 'Tracks'"):
        _ = posthoc.Tracks
