"""What mini_librispeech_conformer and mini_librispeech_deepspeech share: short spoken utterances and CTC.

Data: utterances of two or three words from a lexicon of common ones, synthesised (see synthesis.py). No two
utterances have the same words, and each split has its own speakers. Log-mel features are computed once, normalised by
the training set's mean and deviation of each bin as officially, and kept. The targets are the letters; the metric is
the word error rate of the greedy transcript.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split
from miniperf.workloads.speech.synthesis import SAMPLE_RATE, WORDS, Speaker, synthesise

SPLIT_SIZES = {"train": 4000, "validation": 600, "test": 600}
UTTERANCES_PER_SPEAKER = 20
SYMBOLS = "- abcdefghijklmnopqrstuvwxyz"  # by index; the first is CTC's blank
BLANK = 0

WINDOW, HOP, BINS = 256, 128, 24  # samples, samples, mel bins: a frame is 16 ms
LOWEST, HIGHEST = 60.0, SAMPLE_RATE / 2  # Hz
MAX_FRAMES = 120
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


def generate() -> dict[str, np.ndarray]:
    """All splits: features [utterances, MAX_FRAMES, BINS], letters [utterances, longest], their lengths, speakers."""
    rng = np.random.RandomState(0)
    total = sum(SPLIT_SIZES.values())
    texts: list[str] = []
    features = np.zeros((total, MAX_FRAMES, BINS), np.float32)
    frames = np.zeros(total, np.int64)
    speakers = np.concatenate(
        [100_000 * part + np.arange(size) // UTTERANCES_PER_SPEAKER for part, size in enumerate(SPLIT_SIZES.values())]
    )
    voices = {speaker: Speaker.draw(rng) for speaker in np.unique(speakers)}
    used: set[str] = set()
    while len(texts) < total:
        text = " ".join(rng.choice(WORDS, size=rng.randint(2, 4)))
        if text in used:
            continue
        row = len(texts)
        spectrum = log_mel(synthesise(text, voices[speakers[row]], rng))
        # CTC needs an output for each letter and one between two that are equal.
        needed = len(text) + sum(a == b for a, b in pairwise(text))
        if len(spectrum) > MAX_FRAMES or output_lengths(len(spectrum)) < needed:
            continue
        used.add(text)
        texts.append(text)
        features[row, : len(spectrum)], frames[row] = spectrum, len(spectrum)
    letter_counts = np.array([len(text) for text in texts])
    letters = np.zeros((total, letter_counts.max()), np.int64)
    for row, text in enumerate(texts):
        letters[row, : len(text)] = [SYMBOLS.index(letter) for letter in text]
    valid = np.arange(MAX_FRAMES) < frames[:, None]
    train = features[: SPLIT_SIZES["train"]][valid[: SPLIT_SIZES["train"]]]
    features = np.where(valid[:, :, None], (features - train.mean(axis=0)) / train.std(axis=0), 0.0)
    return {
        "features": features.astype(np.float32),
        "frames": frames,
        "letters": letters,
        "letter_counts": letter_counts,
        "speakers": speakers,
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
    target_metric_name = "wer"
    higher_is_better = False
    loss_type = spec.LossType.CTC_LOSS
    eval_batch_size = 200
    max_eval_train_examples = 200
    cut_to_longest = True  # batches; else they are as long as the longest utterance there is

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("speech_v1", generate)
        del arrays["speakers"]
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
