"""The parts of the speech workloads: texts, synthesis, front end, SpecAugment, masked batch norm, transcripts."""

import importlib.util
from itertools import pairwise
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from torch import nn

from miniperf.workloads.speech import data as speech
from miniperf.workloads.speech import pytorch as speech_pytorch
from miniperf.workloads.speech import synthesis, texts
from miniperf.workloads.speech.espeak import SAMPLE_RATE
from miniperf.workloads.speech.synthesis import Speaker


def fundamental(sound):
    """The frequency of the loudest pitch in Hz: the lag at which the sound is most like itself."""
    similarity = np.fft.irfft(np.abs(np.fft.rfft(sound, 2 * len(sound))) ** 2)
    lags = np.arange(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
    return SAMPLE_RATE / lags[similarity[lags].argmax()]


def test_the_engine_gives_the_same_samples_in_another_process():
    voices = [Speaker(f"en-us+{variant}", 50, 150) for variant in [*synthesis.VARIANTS, *synthesis.VARIANTS]]
    sounds, again = (synthesis.speak(len(voices) * ["all people"], voices) for _ in range(2))
    assert all(np.array_equal(sound, other) for sound, other in zip(sounds, again, strict=True))
    first, second = np.split(np.arange(len(sounds)), 2)  # but not in one process, which is why a list has its own
    assert not all(np.array_equal(sounds[i], sounds[j]) for i, j in zip(first, second, strict=True))


def test_words_are_pronounced_not_spelled():
    voice = Speaker("en-us+m3", 50, 150)
    sounds = {word: synthesis.speak([word], [voice])[0] for word in ("two", "too", "tow")}
    assert np.array_equal(sounds["two"], sounds["too"])
    assert not np.array_equal(sounds["two"], sounds["tow"])


def test_speakers_differ_in_pitch_rate_and_voice():
    speakers = [
        Speaker(f"en-us+{v}", pitch, rate) for v, pitch, rate in (("m3", 30, 120), ("m3", 70, 120), ("m3", 30, 160))
    ]
    low, high, fast = synthesis.speak(3 * ["all are in our country"], speakers)
    assert 60 < fundamental(low) < 0.8 * fundamental(high) < 320
    assert len(fast) < 0.85 * len(low)
    every = [Speaker(f"en-us+{variant}", 50, 140) for variant in synthesis.VARIANTS]
    sounds = synthesis.speak(len(every) * ["people"], every)
    assert all(sound.std() > 100 for sound in sounds)
    assert len({sound.tobytes() for sound in sounds}) == len(set(synthesis.VARIANTS)) == len(every)


def test_noise_is_as_loud_as_said(monkeypatch):
    monkeypatch.setattr(synthesis, "SNR_DB", (20.0, 20.0))
    sound = 300 * np.sin(np.arange(20_000))
    noisy = synthesis.with_noise(sound, np.random.RandomState(0))
    speech = sound / np.sqrt(np.mean(sound**2))
    assert np.mean((noisy - speech) ** 2) == pytest.approx(0.01, rel=0.05)


def test_what_the_engine_cannot_do_is_one_line(monkeypatch):
    with pytest.raises(RuntimeError, match=r"^eSpeak NG failed: ValueError: there is no voice en-us\+nobody$"):
        synthesis.speak(["people"], [Speaker("en-us+nobody", 50, 150)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"^the speech workloads need the package espeakng-loader: pip install espeakng-loader==0.2.4$"
    with pytest.raises(ModuleNotFoundError, match=message):
        synthesis.speak(["people"], [Speaker("en-us+m3", 50, 150)])


ADDRESSES = [
    "The people's will. We will, in all the states; be of the people",
    "We, the people of the United States",
    "The quick brown fox (jumps) over the lazy dog: the 2nd dog of all",
]


def test_runs_end_at_punctuation_and_at_rarer_words():
    found = [run for run in texts.runs(ADDRESSES[0], {"the", "will", "we", "in", "all", "of", "people"}) if run]
    assert found == [["the"], ["will"], ["we", "will"], ["in", "all", "the"], ["of", "the", "people"]]
    found = [run for run in texts.runs(ADDRESSES[2], {"the", "dog", "of"}) if run]
    assert found == [["the"], ["the"], ["dog"], ["the"], ["dog", "of"]]


def test_the_vocabulary_is_frequent_and_has_every_letter(monkeypatch):
    monkeypatch.setattr(texts, "VOCABULARY", 3)
    chosen = texts.frequent_words(ADDRESSES)
    assert {"the", "people", "of"} < chosen or {"the", "of", "all"} < chosen
    assert set("".join(chosen)) == set(ascii_lowercase)
    assert "s" not in chosen
    assert "nd" not in chosen


def few_addresses(monkeypatch):
    """40 of 249: read sooner, and enough for a few texts."""
    every = texts.speeches()
    monkeypatch.setattr(texts, "speeches", lambda: every[::6][:40])


def test_texts_are_in_the_addresses_of_their_split_and_nowhere_twice(monkeypatch):
    few_addresses(monkeypatch)
    counts = {"train": 300, "validation": 100, "test": 100}
    drawn = texts.draw(counts, np.random.RandomState(0))
    assert {split: len(of_split) for split, of_split in drawn.items()} == counts
    everything = [text for of_split in drawn.values() for text in of_split]
    assert len(set(everything)) == len(everything)
    assert {len(text.split()) for text in everything} == {texts.FEWEST, texts.MOST}
    assert max(map(len, everything)) <= texts.LONGEST
    addresses = [f"of {word} the {word} of" for word in ("aa", "bb", "cc", "dd")]
    monkeypatch.setattr(texts, "speeches", lambda: addresses)
    drawn = texts.draw({"train": 2, "validation": 2}, np.random.RandomState(0))
    words = [{word for text in of_split for word in text.split()} - {"of", "the"} for of_split in drawn.values()]
    assert not words[0] & words[1]
    with pytest.raises(ValueError, match=r"^the addresses have \d+ texts for train, fewer than 50$"):
        texts.draw({"train": 50, "validation": 50}, np.random.RandomState(0))


def test_a_tone_lights_the_mel_bin_of_its_frequency():
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (speech.LOWEST, speech.HIGHEST))
    centres = 700 * (10 ** (np.linspace(low, high, speech.BINS + 2)[1:-1] / 2595) - 1)
    seconds = np.arange(4000) / SAMPLE_RATE
    for bin_index, centre in enumerate(centres):
        spectrum = speech.log_mel(np.sin(2 * np.pi * centre * seconds))
        assert spectrum.shape == (1 + (4000 - speech.WINDOW) // speech.HOP, speech.BINS)
        assert (spectrum.argmax(axis=1) == bin_index).all(), f"{centre:.0f} Hz"


def test_the_mel_filters_leave_no_gap():
    frequency = np.fft.rfftfreq(speech.WINDOW, 1 / SAMPLE_RATE)
    inside = (frequency > speech.LOWEST) & (frequency < speech.HIGHEST)
    filters = speech.mel_filters()
    assert (filters.sum(axis=0)[inside] > 0).all()
    assert (filters.sum(axis=0)[~inside] == 0).all()
    assert (filters.max(axis=1) > 0.3).all()


def test_data_repeat_and_can_be_aligned(monkeypatch):
    few_addresses(monkeypatch)
    monkeypatch.setattr(speech, "SPLIT_SIZES", {"train": 64, "validation": 24, "test": 24})
    data, again = speech.generate(), speech.generate()
    for name, array in data.items():
        assert np.array_equal(array, again[name])
    valid = np.arange(speech.MAX_FRAMES) < data["frames"][:, None]
    assert (data["features"][~valid] == 0).all()
    train = data["features"][:64][valid[:64]]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-4)
    letters = data["letters"]
    equal = ((letters[:, 1:] == letters[:, :-1]) & (letters[:, 1:] > 0)).sum(axis=1)
    assert (data["letter_counts"] + equal <= speech.output_lengths(data["frames"])).all()
    assert len({tuple(row) for row in letters}) == len(letters)
    voices = [set(part) for part in np.split(data["voices"], [64, 88])]
    assert not voices[0] & voices[1]
    assert not voices[0] & voices[2]
    assert not voices[1] & voices[2]


def test_what_does_not_fit_is_left_out(monkeypatch):
    """Frames to an output, and frames at most, so that many texts are too long for one or the other."""
    monkeypatch.setattr(speech, "SUBSAMPLING", 7)
    monkeypatch.setattr(speech, "MAX_FRAMES", 90)
    monkeypatch.setattr(speech, "UTTERANCES_PER_SPEAKER", 3)
    monkeypatch.setattr(speech, "BLOCK", 7)
    given = ["all the", "congress has been", "we work", "been in subject", "to the people", "of it", "citizens all"]
    kept = list(speech.spoken(given, np.array(["m3"]), np.random.RandomState(0)))
    assert 0 < len(kept) < len(given)
    for text, _, spectrum in kept:
        assert text in given
        assert len(spectrum) <= 90
        assert -(-len(spectrum) // 7) >= len(text) + sum(a == b for a, b in pairwise(text))


def test_spec_augment_masks_what_it_says():
    torch.manual_seed(0)
    features = torch.ones(200, 80, speech.BINS)
    paddings = (torch.arange(80) >= torch.arange(40, 80).repeat(5)[:, None]).float()
    kept = speech_pytorch.spec_augment(features, paddings) > 0
    masked_bins, masked_frames = ~kept.any(dim=1), ~kept.any(dim=2)
    assert torch.equal(kept, ~(masked_bins[:, None, :] | masked_frames[:, :, None]))
    assert 1 <= masked_bins.sum(dim=1).max() <= speech.FREQUENCY_MASKS * speech.MAX_MASKED_BINS
    assert masked_bins.any(dim=0).all()  # every bin at times
    most = speech.TIME_MASKS * (speech.MAX_MASKED_SHARE * (1 - paddings).sum(dim=1)).round()
    assert (masked_frames.sum(dim=1) <= most).all()
    assert masked_frames.any()
    assert not (masked_frames & (paddings > 0)).any()


def test_masked_batch_norm_is_torchs_where_nothing_is_padded():
    torch.manual_seed(0)
    masked, plain = speech_pytorch.MaskedBatchNorm(6), nn.BatchNorm1d(6, momentum=0.04)
    for _ in range(3):
        x = 3 * torch.randn(4, 9, 6) + 1
        torch.testing.assert_close(masked(x, torch.zeros(4, 9)), plain(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(masked.running_mean, plain.running_mean)
    torch.testing.assert_close(masked.running_var, plain.running_var)
    assert not torch.equal(masked.running_mean, torch.zeros(6))
    masked.eval()
    plain.eval()
    torch.testing.assert_close(masked(x, torch.zeros(4, 9)), plain(x.transpose(1, 2)).transpose(1, 2))


def test_masked_batch_norm_sees_valid_frames_only():
    torch.manual_seed(0)
    x, paddings = torch.randn(2, 5, 3), torch.tensor([[0.0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    one, other = speech_pytorch.MaskedBatchNorm(3), speech_pytorch.MaskedBatchNorm(3)
    result = one(x, paddings)
    x[0, 3:], x[1, 4:] = 100.0, float("nan")
    assert torch.equal(other(x, paddings), result)
    assert torch.equal(one.running_var, other.running_var)
    assert (result[0, 3:] == 0).all()
    valid = result[paddings == 0]
    torch.testing.assert_close(valid.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("reference", "transcript", "errors"),
    [
        ("red fish", "red fish", 0),
        ("red fish", "red dish", 1),
        ("red fish", "redfish", 2),
        ("red fish", "", 2),
        ("red fish", "fish", 1),
        ("red fish", "a red big fish", 2),
        ("a b c d", "b c d e", 2),
        ("one", "  one ", 0),
    ],
)
def test_word_errors(reference, transcript, errors):
    assert speech.word_errors(reference, transcript) == errors


def test_greedy_decoding_collapses_repeats_and_drops_blanks():
    paths = ["-bb-e-ee-", "hhe-l-llo", "a  -  b--"]
    logits = np.stack([np.eye(28)[[speech.SYMBOLS.index(symbol) for symbol in path]] for path in paths])
    paddings = np.zeros((3, 9))
    assert speech.greedy_decode(logits, paddings) == ["bee", "hello", "a  b"]
    paddings[:, 4:] = 1
    assert speech.greedy_decode(logits, paddings) == ["b", "he", "a "]
