"""Spoken utterances: the synthesiser eSpeak NG reads real English, by many speakers, over background noise.

The engine comes in the package `espeakng-loader`. It is free software under the GPL, version 3. So it runs in a process
of its own (see espeak.py), from where the package put it. Nothing of it is copied here. It knows English pronunciation
by rule and dictionary: "two" and "too" sound alike, "have" and "government" do not share their e.

A speaker is one of the engine's English voice variants at a pitch and a rate of their own.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miniperf.data_packages import folder_of
from miniperf.workloads.speech import espeak

PACKAGE = "espeakng-loader==0.2.4"
LANGUAGE = "en-us"
PITCHES, RATES = (30, 70), (120, 160)  # of the engine's 0 to 99; words a minute
SNR_DB = (15.0, 35.0)  # of the background noise, uniform

# The engine's variants that sound like a person: no robot or whisper, and the first three formants, which make the
# vowels, within -15 and +25 % of the default voice's.
VARIANTS = """
    Alex Andrea Denis Diogo Gene Gene2 Henrique Hugo Mario Mike Nguyen adam anika announcer antonio benjamin
    ed edward f1 f2 f5 grandpa iven iven2 iven3 iven4 john m1 m2 m3 m4 m6 m7 m8 max michel miguel pablo paul
    pedro quincy rob robert sandro steph steph2 steph3 victor
""".split()  # noqa: SIM905 (a list of 48 strings is no easier to read)


class Speaker(NamedTuple):
    voice: str  # as the engine names it
    pitch: int
    rate: int  # words a minute

    @classmethod
    def draw(cls, variant: str, rng: np.random.RandomState) -> "Speaker":
        return cls(f"{LANGUAGE}+{variant}", int(rng.randint(*PITCHES)), int(rng.randint(*RATES)))


def engine_folder() -> Path:
    """Where the package keeps the engine. ModuleNotFoundError if it is not installed."""
    return folder_of("espeakng_loader", "the speech workloads need", PACKAGE)


def speak(texts: Sequence[str], speakers: Sequence[Speaker]) -> list[np.ndarray]:
    """Each text by its speaker, [samples] at espeak.SAMPLE_RATE; the same samples at every call with the same lists.

    Raises:
        ModuleNotFoundError: the package is not installed.
        RuntimeError: the engine failed; with what it said last.
    """
    lines = [json.dumps([text, *speaker]) for text, speaker in zip(texts, speakers, strict=True)]
    command = [sys.executable, espeak.__file__, str(engine_folder())]
    result = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=False)
    if result.returncode:
        said = result.stderr.decode(errors="replace").splitlines() or [f"exit status {result.returncode}"]
        raise RuntimeError(f"eSpeak NG failed: {said[-1]}")
    sounds, start = [], 0
    for _ in texts:
        count = int.from_bytes(result.stdout[start : start + 4], "little")
        sounds.append(np.frombuffer(result.stdout, "<i2", count, start + 4).astype(np.float64))
        start += 4 + 2 * count
    return sounds


def with_noise(sound: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """The sound scaled to unit power, over white noise."""
    speech = sound / np.sqrt(np.mean(sound**2))
    return speech + 10 ** (-rng.uniform(*SNR_DB) / 20) * rng.standard_normal(len(speech))
