"""Spoken utterances made by rule, a source-filter synthesiser in numpy: the recordings behind the speech workloads.

A word is spoken as it is spelled: each letter is a phone with three formants and a voiced or noisy source. Speakers
differ in the length of the vocal tract, which scales all formants, in pitch and in rate; durations are random,
neighbouring phones colour each other, and every recording has background noise. The vowels' formants are about those
of men in Peterson & Barney (1952); the other phones are caricatures of the English sounds.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SAMPLE_RATE = 8000  # Hz
HOP, WINDOW = 64, 256  # samples: between the instants at which the vocal tract is given, and filtered at a time
PAUSE_SECONDS = 0.06  # between words
SNR_DB = (0.0, 20.0)  # of the background noise, uniform
FORMANT_JITTER = 0.05  # of each phone spoken, relative, one standard deviation

WORDS = """
    also area army away baby back ball band bank base bath bear beat bell best bird blue boat body bone book box boy
    bus cake call calm camp card care cat chair city class clay coat cold cook copy corn cow crew cup dad dark data
    day deep desk dog door down draw dress drop dry duck dust early east easy edge egg exam eye face fact farm fast
    fire fish five flag floor fly food foot fox free frog full game gate gift girl give glass goat gold good green
    grow hair half hall hand hat heat help hill home hope horse hot hour house ice idea iron jacket jam jar job join
    judge jump just keep key kick kind king knee lake lamp law leaf leg lemon life light lion list long lunch map
    mask milk mind moon mouth movie music name neck nest next night nine nose oil open orange oven page paint paper
    park party path pen phone piano pink plan quack queen quick quiet quiz rain red rice ring river road roof room
    rose salt sand sea seven sheep ship shoe six skin sky sleep snow song soup spoon star stone sun table tail taxi
    tea ten tent three tiger time toy train tree two uncle under van vase view visit voice wall warm wash water wave
    week west wind wolf wood yard year yellow yes zebra zero zoo
""".split()  # noqa: SIM905 (a list of 240 strings is no easier to read)


class Phone(NamedTuple):
    """How a letter sounds. A stop holds its breath for `closure` of its duration, then bursts."""

    formants: tuple[float, float, float]  # Hz
    voiced: float  # amplitude of the pulses of the vocal folds
    noise: float  # amplitude of the turbulence
    closure: float = 0.0
    seconds: float = 0.09  # mean duration


PHONES = {
    "a": Phone((730, 1090, 2440), 1.0, 0.0, seconds=0.12),
    "e": Phone((530, 1840, 2480), 1.0, 0.0, seconds=0.12),
    "i": Phone((270, 2290, 3010), 1.0, 0.0, seconds=0.12),
    "o": Phone((570, 840, 2410), 1.0, 0.0, seconds=0.12),
    "u": Phone((300, 870, 2240), 1.0, 0.0, seconds=0.12),
    "y": Phone((290, 2050, 2700), 0.7, 0.0),
    "w": Phone((300, 650, 2200), 0.7, 0.0),
    "l": Phone((360, 1300, 2700), 0.6, 0.0),
    "r": Phone((420, 1200, 1600), 0.6, 0.0),
    "m": Phone((250, 1000, 2200), 0.4, 0.0),
    "n": Phone((250, 1500, 2500), 0.4, 0.0),
    "v": Phone((300, 1300, 2300), 0.3, 0.1),
    "z": Phone((280, 1700, 3600), 0.3, 0.3),
    "f": Phone((1100, 2300, 3400), 0.0, 0.3),
    "h": Phone((600, 1400, 2500), 0.0, 0.3),
    "s": Phone((2500, 3300, 3800), 0.0, 0.5),
    "c": Phone((1900, 2700, 3500), 0.0, 0.5),
    "x": Phone((1700, 3000, 3700), 0.0, 0.5, closure=0.5),
    "p": Phone((700, 1200, 2300), 0.0, 0.5, closure=0.6),
    "t": Phone((1800, 3000, 3700), 0.0, 0.5, closure=0.6),
    "k": Phone((1000, 1900, 2600), 0.0, 0.5, closure=0.6),
    "q": Phone((600, 1600, 2200), 0.0, 0.5, closure=0.6),
    "b": Phone((400, 900, 2200), 0.6, 0.2, closure=0.6),
    "d": Phone((400, 1700, 2700), 0.6, 0.2, closure=0.6),
    "g": Phone((350, 1300, 2000), 0.6, 0.2, closure=0.6),
    "j": Phone((300, 1900, 2900), 0.3, 0.4, closure=0.4),
    " ": Phone((500, 1500, 2500), 0.0, 0.0, seconds=PAUSE_SECONDS),
}


@dataclass(frozen=True)
class Speaker:
    tract: float  # factor of all formants
    pitch: float  # Hz
    rate: float  # factor of all durations

    @classmethod
    def draw(cls, rng: np.random.RandomState) -> "Speaker":
        return cls(rng.uniform(0.88, 1.15), rng.uniform(90.0, 240.0), rng.uniform(0.85, 1.2))


def synthesise(text: str, speaker: Speaker, rng: np.random.RandomState) -> np.ndarray:
    """A recording of `text` (letters and spaces), [samples] at SAMPLE_RATE, the speech itself with unit power."""
    formants, voiced, noise = _tracks(text, speaker, rng)
    samples = HOP * len(formants)
    instants, places = np.arange(len(formants)) * HOP, np.arange(samples)
    drift = np.interp(places, [0, samples], 1.0 + rng.uniform(-0.15, 0.15, size=2))  # of the pitch
    pulses = np.diff(np.floor(np.cumsum(speaker.pitch * drift) / SAMPLE_RATE), prepend=0.0)
    source = np.interp(places, instants, voiced) * pulses * (SAMPLE_RATE / speaker.pitch) ** 0.5  # of unit power
    source += np.interp(places, instants, noise) * rng.standard_normal(samples)
    speech = _filtered(source, _responses(formants))
    speech /= np.sqrt(np.mean(speech**2))
    background = 10 ** (-rng.uniform(*SNR_DB) / 20)
    return speech + background * rng.standard_normal(samples)


def _tracks(text: str, speaker: Speaker, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Formants [instants, 3], amplitudes of voice and of noise [instants]: each phone's own, smoothed in time."""
    pieces = []
    for letter in f" {text} ":
        phone = PHONES[letter]
        seconds = phone.seconds * speaker.rate * rng.lognormal(sigma=0.25)
        instants = max(2, round(seconds * SAMPLE_RATE / HOP))
        piece = np.empty((instants, 5))
        piece[:, :3] = np.array(phone.formants) * speaker.tract * (1 + FORMANT_JITTER * rng.standard_normal(3))
        piece[:, 3:] = phone.voiced, phone.noise
        piece[: round(phone.closure * instants), 3:] *= 0.1
        pieces.append(piece)
    tracks = np.concatenate(pieces)
    return _smooth(tracks[:, :3], 7), _smooth(tracks[:, 3:4], 3)[:, 0], _smooth(tracks[:, 4:], 3)[:, 0]


def _smooth(tracks: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` instants, an odd number: coarticulation."""
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=0).mean(axis=-1)


def _responses(formants: np.ndarray) -> np.ndarray:
    """The amplitude response of the vocal tract at every instant, [instants, frequencies of a window]."""
    frequency = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    centre = formants[:, :, None]
    half_width = 30.0 + 0.03 * centre  # Hz; higher formants are wider
    resonances = 1.0 / np.sqrt(1.0 + ((frequency - centre) / half_width) ** 2)
    return (resonances * np.array([1.0, 0.7, 0.5])[:, None]).sum(axis=1)


def _filtered(source: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """`source` filtered by a response that changes every HOP samples: spectra of windows, scaled and overlapped."""
    padded = np.pad(source, WINDOW // 2)
    starts = HOP * np.arange(len(responses))
    window = np.hanning(WINDOW + 1)[:-1]  # sums to a constant at this hop
    frames = padded[starts[:, None] + np.arange(WINDOW)] * window
    frames = np.fft.irfft(np.fft.rfft(frames) * responses, n=WINDOW)
    total = np.zeros(len(padded))
    for offset in range(0, WINDOW, HOP):
        part = frames[:, offset : offset + HOP].ravel()
        total[offset : offset + len(part)] += part
    return total[WINDOW // 2 : WINDOW // 2 + len(source)]
