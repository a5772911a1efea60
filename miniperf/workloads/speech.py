"""What mini_librispeech_conformer and mini_librispeech_deepspeech share: short spoken utterances and CTC.

Data: utterances of two or three words from a lexicon of common ones, synthesised (see speech_synthesis.py). No two
utterances have the same words, and each split has its own speakers. Log-mel features are computed once, normalised by
the training set's mean and deviation of each bin as officially, and kept. The targets are the letters; the metric is
the word error rate of the greedy transcript.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split
from miniperf.workloads.speech_synthesis import SAMPLE_RATE, WORDS, Speaker, synthesise

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


# Parts of the models.


def spec_augment(features: Tensor, paddings: Tensor) -> Tensor:
    """Bands of bins and stretches of frames set to the mean, drawn for each utterance from torch's generator.

    The draws are shares of an utterance's own length, so that padding does not change them."""
    batch, length, bins = features.shape
    kept = torch.ones_like(features, dtype=torch.bool)
    bin_index, frame_index = torch.arange(bins), torch.arange(length)
    lengths = (1 - paddings).sum(dim=1)
    for _ in range(FREQUENCY_MASKS):
        width = torch.randint(0, MAX_MASKED_BINS + 1, (batch, 1))
        start = (torch.rand(batch, 1) * (bins - width + 1)).floor()
        kept &= ~((bin_index >= start) & (bin_index < start + width))[:, None, :]
    for _ in range(TIME_MASKS):
        width = (torch.rand(batch) * MAX_MASKED_SHARE * lengths)[:, None].round()
        start = (torch.rand(batch, 1) * (lengths[:, None] - width + 1)).floor()
        kept &= ~((frame_index >= start) & (frame_index < start + width))[:, :, None]
    return features * kept


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the frames that are not padding; the others become 0."""

    # The official momentum of .001 averages over 1.3 % of the Conformer's 76,000 steps; this does so over 2,000.
    def __init__(self, features: int) -> None:
        super().__init__(features, momentum=0.04)

    def forward(self, inputs: Tensor, paddings: Tensor) -> Tensor:  # type: ignore[override]
        """inputs: [batch, frames, features]; paddings: [batch, frames], 1 for padding."""
        valid = paddings < 0.5
        outputs = torch.zeros_like(inputs)
        outputs[valid] = super().forward(inputs[valid])
        return outputs


class Subsampling(nn.Module):
    """Two convolutions of stride 2 over frames and bins, then a projection to `width`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.linear = nn.Linear(channels * output_lengths(BINS), width)

    def forward(self, features: Tensor, paddings: Tensor, dropout_rate: float) -> tuple[Tensor, Tensor]:
        """features: [batch, frames, BINS], SpecAugment's masks upon them in training. Returns [batch, outputs, width]
        and the outputs' paddings."""
        if self.training:
            features = spec_augment(features, paddings)
        x = features[:, None]
        for conv in (self.conv1, self.conv2):
            paddings = paddings[:, ::2]
            x = F.relu(conv(x)) * (1 - paddings)[:, None, :, None]  # else the bias would leak out of the padding
        x = self.linear(x.transpose(1, 2).flatten(2))
        return F.dropout(x, dropout_rate, self.training), paddings


# Transcripts.


def greedy_decode(logits: Tensor, paddings: Tensor) -> list[str]:
    """The most likely symbol of each output, repeats collapsed and blanks removed, as text."""
    best = logits.argmax(dim=-1)
    lengths = (1 - paddings).sum(dim=1).long().tolist()
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


class MiniSpeechWorkload(MiniWorkload):
    """Subclasses give the model, which maps features, paddings and a dropout rate to logits and their paddings."""

    batch_size = 16
    target_metric_name = "wer"
    higher_is_better = False
    loss_type = spec.LossType.CTC_LOSS
    eval_batch_size = 200
    max_eval_train_examples = 200

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("speech_v1", generate)
        del arrays["speakers"]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        bounds = np.cumsum([0, *SPLIT_SIZES.values()])
        return {
            name: {key: tensor[start:stop] for key, tensor in tensors.items()}
            for name, start, stop in zip(SPLIT_SIZES, bounds[:-1], bounds[1:], strict=True)
        }

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        inputs, input_paddings = _cut(rows["features"], rows["frames"])
        targets, target_paddings = _cut(rows["letters"], rows["letter_counts"])
        return {
            "inputs": (inputs, input_paddings),
            "targets": (targets, target_paddings),
            "weights": rows["weights"],
        }

    def forward(self, model: nn.Module, batch: dict[str, Any], dropout_rate: float) -> tuple[Tensor, Tensor]:
        return model(*batch["inputs"], dropout_rate)

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("output.")

    def loss_fn(
        self,
        label_batch: Any,
        logits_batch: Any,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """CTC, summed over utterances. `n_valid_examples` is the number of their letters, by which the official loss
        is divided too as long as it is given no mask, as in official training. Labels are not smoothed."""
        del label_smoothing
        targets, target_paddings = label_batch
        logits, logit_paddings = logits_batch
        output_counts, letter_counts = ((1 - p).sum(dim=1).long() for p in (logit_paddings, target_paddings))
        losses = F.ctc_loss(
            logits.log_softmax(dim=-1).transpose(0, 1),
            targets.long(),
            output_counts.clamp(min=1),  # an example that is all padding: finite, and weighted 0
            letter_counts,
            blank=BLANK,
            reduction="none",
        )
        if mask_batch is not None:
            losses = torch.where(mask_batch > 0, losses * mask_batch, 0.0)
            letter_counts = letter_counts * (mask_batch > 0)
        return {
            "summed": losses.sum(),
            "n_valid_examples": letter_counts.sum().clamp(min=1).to(losses),
            "per_example": losses,
        }

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        loss = self.loss_fn(batch["targets"], logits, batch["weights"])
        targets, target_paddings = batch["targets"]
        errors = words = 0
        for target, padding, transcript, weight in zip(
            targets, target_paddings, greedy_decode(*logits), batch["weights"], strict=True
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


def _cut(rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Rows cut to the longest of them, and their paddings: [rows, longest], 1 behind the end of a row, else 0."""
    longest = int(lengths.max())
    return rows[:, :longest], (torch.arange(longest) >= lengths[:, None]).float()
