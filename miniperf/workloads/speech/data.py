"""What mini_librispeech_conformer and mini_librispeech_deepspeech share: short spoken utterances and CTC.

Data: two or three words in a row from real addresses (texts.py), spoken by the synthesiser eSpeak NG (synthesis.py).
No two utterances have the same words; each split has its own addresses, its own voices and its own speakers. Log-mel
features are computed once, normalised by the training set's mean and deviation of each bin as officially, and kept. The
targets are the letters; the metric is the word error rate of the greedy transcript.

What a small model learns in a minute of one core sets the measure. With the 300 most frequent words, spoken faster and
over more noise, the LSTMs had 61 % wrong after 2,400 updates (40 seconds). With 60 words, spoken slowly and clearly,
they have 13 to 14 % wrong after 1,500 updates (25 seconds).
"""

import math
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split
from miniperf.workloads.speech.espeak import SAMPLE_RATE
from miniperf.workloads.speech.synthesis import VARIANTS, Speaker, speak, with_noise
from miniperf.workloads.speech.texts import draw

SPLIT_SIZES = {"train": 6000, "validation": 400, "test": 250}
VARIANT_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}  # of the engine's voices
SPARE = 1.1  # texts to an utterance: some do not fit
UTTERANCES_PER_SPEAKER = 20
BLOCK = 500  # utterances, spoken by one process of the engine
SYMBOLS = "- abcdefghijklmnopqrstuvwxyz"  # by index; the first is CTC's blank
BLANK = 0

WINDOW, HOP, BINS = 512, 221, 24  # samples, samples, mel bins: a frame every 10 ms
LOWEST, HIGHEST = 60.0, 8000.0  # Hz
MAX_FRAMES = 150
SUBSAMPLING = 4  # frames to an output of the models

# SpecAugment (Park et al. 2019), with fewer and narrower masks than officially: utterances are short and bins few.
FREQUENCY_MASKS, MAX_MASKED_BINS = 2, 5
TIME_MASKS, MAX_MASKED_SHARE = 2, 0.1


# The front end.


def mel_filters() -> np.ndarray:
    """Triangles, evenly spaced on the mel scale from LOWEST to HIGHEST Hz: [BINS, WINDOW // 2 + 1]."""
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(low, high, BINS + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(0, np.minimum((frequency - left) / (centre - left), (right - frequency) / (right - centre)))


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log energies in mel bins, [frames, BINS], of samples [samples]; a frame is WINDOW samples, every HOP samples."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    return np.log(power @ mel_filters().T + 1e-6)


def output_lengths(frames: Any) -> Any:
    """How many outputs a model with conv subsampling has for so many frames."""
    return -(-frames // SUBSAMPLING)


def spoken(texts: list[str], variants: np.ndarray, rng: np.random.RandomState) -> Iterator[tuple[str, str, np.ndarray]]:
    """The texts that fit, each with the voice that spoke it and its log-mel spectrum.

    One that fits is no longer than MAX_FRAMES, and the models have enough outputs for it to be aligned. CTC needs one
    for each letter, and one between two equal ones.
    """
    count = -(-len(texts) // UTTERANCES_PER_SPEAKER)
    speakers = [Speaker.draw(variant, rng) for variant in rng.choice(variants, count)]
    voices = [speaker for speaker in speakers for _ in range(UTTERANCES_PER_SPEAKER)][: len(texts)]
    for start in range(0, len(texts), BLOCK):
        part = slice(start, start + BLOCK)
        for text, speaker, sound in zip(texts[part], voices[part], speak(texts[part], voices[part]), strict=True):
            spectrum = log_mel(with_noise(sound, rng))
            needed = len(text) + sum(a == b for a, b in pairwise(text))
            if len(spectrum) <= MAX_FRAMES and output_lengths(len(spectrum)) >= needed:
                yield text, speaker.voice, spectrum


def generate() -> dict[str, np.ndarray]:
    """All splits, one behind the other: features [utterances, MAX_FRAMES, BINS], letters [utterances, longest], the
    lengths of both, and the voices [utterances]."""
    rng = np.random.RandomState(0)
    texts = draw({split: math.ceil(SPARE * size) for split, size in SPLIT_SIZES.items()}, rng)
    shares = np.cumsum(list(VARIANT_SHARES.values()))[:-1]
    variants = np.split(rng.permutation(VARIANTS), np.round(shares * len(VARIANTS)).astype(int))
    kept: list[tuple[str, str, np.ndarray]] = []
    total = sum(SPLIT_SIZES.values())
    with tqdm(total=total, desc="speaking", unit="utterance", disable=None, leave=False) as bar:
        for (split, size), own in zip(SPLIT_SIZES.items(), variants, strict=True):
            before = len(kept)
            for utterance in islice(spoken(texts[split], own, rng), size):
                kept.append(utterance)
                bar.update()
            if len(kept) < before + size:
                raise RuntimeError(f"{len(kept) - before} utterances for {split} fit, fewer than {size}")
    frames = np.array([len(spectrum) for _, _, spectrum in kept])
    letter_counts = np.array([len(text) for text, _, _ in kept])
    features = np.zeros((total, MAX_FRAMES, BINS), np.float32)
    letters = np.zeros((total, letter_counts.max()), np.int64)
    for row, (text, _, spectrum) in enumerate(kept):
        features[row, : len(spectrum)] = spectrum
        letters[row, : len(text)] = [SYMBOLS.index(letter) for letter in text]
    valid = np.arange(MAX_FRAMES) < frames[:, None]
    train = features[: SPLIT_SIZES["train"]][valid[: SPLIT_SIZES["train"]]].astype(np.float64)
    features = np.where(valid[:, :, None], (features - train.mean(axis=0)) / train.std(axis=0), 0.0)
    return {
        "features": features.astype(np.float32),
        "frames": frames,
        "letters": letters,
        "letter_counts": letter_counts,
        "voices": np.array([voice for _, voice, _ in kept]),
    }


# Transcripts.


def greedy_decode(logits: np.ndarray, paddings: np.ndarray) -> list[str]:
    """The most likely symbol of each output, repeats collapsed and blanks removed, as text."""
    best = logits.argmax(axis=-1)
    lengths = (1 - paddings).sum(axis=1).astype(int).tolist()
    texts = []
    for row, length in zip(best.tolist(), lengths, strict=True):
        changes = [symbol for i, symbol in enumerate(row[:length]) if i == 0 or symbol != row[i - 1]]
        texts.append("".join(SYMBOLS[symbol] for symbol in changes if symbol != BLANK))
    return texts


def word_errors(reference: str, transcript: str) -> int:
    """The least number of words to substitute, insert or delete to turn one text into the other (Levenshtein)."""
    expected, found = reference.split(), transcript.split()
    distances = list(range(len(found) + 1))
    for i, word in enumerate(expected, start=1):
        diagonal, distances[0] = distances[0], i
        for j, other in enumerate(found, start=1):
            substituted = diagonal + (word != other)
            diagonal = distances[j]
            distances[j] = min(substituted, distances[j] + 1, distances[j - 1] + 1)
    return distances[-1]


class SpeechData(MiniWorkload):
    batch_size = 16
    target_share = 0.89  # of both big twins
    target_metric_name = "wer"
    higher_is_better = False
    loss_type = spec.LossType.CTC_LOSS
    eval_batch_size = 100  # on one core a quarter to two fifths faster than 250
    max_eval_train_examples = 50
    cut_to_longest = True  # batches; else they are as long as the longest utterance there is

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("speech_2", generate)
        del arrays["voices"]
        bounds = np.cumsum([0, *SPLIT_SIZES.values()])
        return {
            name: {key: array[start:stop] for key, array in arrays.items()}
            for name, start, stop in zip(SPLIT_SIZES, bounds[:-1], bounds[1:], strict=True)
        }

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        inputs, input_paddings = self._cut(rows["features"], rows["frames"])
        targets, target_paddings = self._cut(rows["letters"], rows["letter_counts"])
        return {
            "inputs": (inputs, input_paddings),
            "targets": (targets, target_paddings),
            "weights": rows["weights"],
        }

    def evaluate_batch(self, model: Any, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        loss = self.losses(batch, logits)
        targets, target_paddings = map(np.asarray, batch["targets"])
        transcripts = greedy_decode(*map(np.asarray, logits))
        errors = words = 0
        for target, padding, transcript, weight in zip(
            targets, target_paddings, transcripts, np.asarray(batch["weights"]), strict=True
        ):
            if weight > 0:
                reference = "".join(SYMBOLS[letter] for letter in target[padding == 0].tolist())
                errors += word_errors(reference, transcript)
                words += len(reference.split())
        letters = float(loss["n_valid_examples"])
        return {"loss": float(loss["summed"]), "letters": letters, "errors": errors, "words": words}

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        return {"wer": total["errors"] / total["words"], "ctc_loss": total["loss"] / total["letters"]}

    def _cut(self, rows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows, cut to the longest of them, and their paddings: [rows, length], 1 behind the end of a row, else 0."""
        longest = int(lengths.max()) if self.cut_to_longest else rows.shape[1]
        return rows[:, :longest], (np.arange(longest) >= lengths[:, None]).astype(np.float32)
