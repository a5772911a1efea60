"""What the ways to an averager in JAX have in common: weights that are not finite, trees without one, settings."""

import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from weight_averaging import averages  # noqa: E402
from weight_averaging.jax import (  # noqa: E402
    averaging,
    averaging_for,
    choose_lawa,
    ema,
    ema_for_run,
    ema_growing,
    host_lawa,
    lawa,
    lawa_for_run,
)
from weight_averaging.jax.averager import ELSEWHERE  # noqa: E402

PARAMS = {"w": jnp.zeros(2)}
LAWA, EMA = averages.LAWA(interval=1, window=2), averages.EMA(decay=0.5, interval=1)
DOORS = {
    "averaging": lambda **options: averaging(LAWA, **options),
    "averaging of a recursion": lambda **options: averaging(EMA, **options),
    "averaging_for": lambda **options: averaging_for(PARAMS, LAWA, **options),
    "averaging_for a recursion": lambda **options: averaging_for(PARAMS, EMA, **options),
    "lawa": lambda **options: lawa(1, 2, **options),
    "host_lawa": lambda **options: host_lawa(1, 2, **options),
    "choose_lawa": lambda **options: choose_lawa(PARAMS, 1, 2, **options),
    "ema": lambda **options: ema(0.5, **options),
    "lawa_for_run": lambda **options: lawa_for_run(100, horizon=0.02, window=2, **options),
    "ema_for_run": lambda **options: ema_for_run(100, horizon=0.02, window=2, **options),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_weights_that_are_not_finite_are_refused_unless_asked_otherwise(door):
    for options, counts in [({}, (0, 1)), ({"check_finite": True}, (0, 1)), ({"check_finite": False}, (1, 0))]:
        averager = door(**options)
        state = averager.update(averager.init(PARAMS), {"w": jnp.array([1.0, jnp.nan])}, 1)
        assert (int(state.count), int(state.refused)) == counts


@pytest.mark.parametrize("average", [LAWA, EMA], ids=str)
def test_a_tree_without_a_weight_is_refused_before_there_is_an_averager(average):
    with pytest.raises(ValueError, match="there is nothing to average: the tree has no floating-point leaf"):
        averaging_for({"seen": jnp.int32(0)}, average)


@pytest.mark.parametrize("partial", [False, True])
def test_settings_are_those_given(partial):
    expected = {"averager": "LAWA", "interval": 3, "start": 5, "window": 4, "allow_partial": partial}
    options = {"start": 5, "allow_partial": partial}
    for averager in (lawa(3, 4, **options), host_lawa(3, 4, **options), choose_lawa(PARAMS, 3, 4, **options)):
        assert dict(averager.settings) == expected
    given = {"decay": 0.5, "horizon": None, "warmup": partial, "interval": 3, "start": 5}
    assert dict(ema(0.5, 3, 5, warmup=partial).settings) == {"averager": "EMA", **given}


def test_begun_late_an_average_is_of_what_came_since():
    for averager, expected in [(lawa(2, 2, 5, True), 7.0), (host_lawa(2, 2, 5, True), 7.0), (ema(0.5, 2, 5), 7.0)]:
        state = averager.init(PARAMS)
        for step in range(1, 9):
            params = {"w": jnp.full(2, float(step))}
            state = averager.update(state, params, step)
            assert bool(averager.ready(state)) == (step >= 6)
        assert averager.average(state, params)["w"].tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ema_for_run(100, decay=0.9), "ema_for_run has no argument decay; it takes total_updates, horizon, "),
        (lambda: lawa_for_run(100, interval=3), "lawa_for_run has no argument interval; it takes total_updates, "),
        (lambda: ema_growing(decay=0.9), "ema_growing has no argument decay; it takes share, interval, "),
        (lambda: ema(beta=0.9), "ema has no argument beta: did you mean decay?"),
        (lambda: lawa(update_every=3, window=2), "lawa has no argument update_every: did you mean interval?"),
        (lambda: averaging(LAWA, check_finit=True), "averaging has no argument check_finit: did you mean check_finite"),
        (
            lambda: averaging_for(PARAMS, EMA, device="host"),
            "averaging_for has no argument device: did you mean ",
        ),
        (lambda: choose_lawa(PARAMS, 1, 2, k=3), "choose_lawa has no argument k: did you mean window?"),
        (lambda: host_lawa(3), "host_lawa: missing a required argument: 'window'; it takes interval=, window=, "),
        (lambda: lawa(), "lawa: missing a required argument: 'interval'; it takes interval=, window=, start=, "),
    ],
)
def test_arguments_that_there_are_not_are_answered_in_one_line(call, said):
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_names_and_calls_of_other_libraries_are_answered_by_ours(door):
    averager = door()
    for name, hint in ELSEWHERE.items():
        assert not hasattr(averager, name)
        with pytest.raises(AttributeError) as missing:
            getattr(averager, name)
        assert str(missing.value).endswith(f"has no attribute '{name}': {hint} (docs/migrating.md)")
        if "(" in hint:  # names what there is
            assert callable(getattr(averager, hint.partition("(")[0]))
    with pytest.raises(TypeError, match=r"not callable: it is no model: average\(state, params\) returns"):
        averager(PARAMS)
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing_like_it'$"):
        _ = averager.nothing_like_it
