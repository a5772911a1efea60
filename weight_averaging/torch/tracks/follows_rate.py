"""An exponential average whose weights depend on the learning rate."""

from collections.abc import Mapping
from typing import Any

from weight_averaging.averages import FollowsRate
from weight_averaging.averages.follows_rate import tell_of_unknown_top
from weight_averaging.torch.tracks.exponential import ExponentialTrack


class RateTrack(ExponentialTrack):
    """The track of `averages.FollowsRate`. Attributes: rates: what its `enter` takes as `before`."""

    def __init__(self, *arguments: Any, average: FollowsRate) -> None:
        super().__init__(*arguments, average=average)
        self._follows = average
        self.rates = self._rates_before = average.begins_with

    def _weight(self, number: int) -> float:
        return self._entering(number)[0]

    def _entering(self, number: int) -> tuple[float, tuple[float, float]]:
        assert self.learning_rate is not None  # `Averager.update` sees to that
        return self._follows.enter(number, self.learning_rate, self.rates)

    def taken(self, step: int) -> None:
        rates = self._entering(self.count + 1)[1]
        super().taken(step)
        self._rates_before, self.rates = self.rates, rates

    def drop(self) -> None:
        super().drop()
        self.rates = self._rates_before

    def further(self) -> dict[str, Any]:
        return {"rates": list(self.rates)}

    def set_further(self, saved: Mapping[str, Any]) -> None:
        if "rates" not in saved and self.count:
            tell_of_unknown_top(self._follows)
        half, top = saved.get("rates", self._follows.begins_with)
        self.rates = self._rates_before = float(half), float(top)
