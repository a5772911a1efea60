"""The parts of the speech workloads: synthesis, front end, SpecAugment, masked batch norm, transcripts."""

import numpy as np
import pytest
import torch
from torch import nn

from miniperf.workloads.speech import data as speech
from miniperf.workloads.speech import pytorch as speech_pytorch
from miniperf.workloads.speech import synthesis


def test_vowels_have_their_formants(monkeypatch):
    monkeypatch.setattr(synthesis, "FORMANT_JITTER", 0.0)
    monkeypatch.setattr(synthesis, "SNR_DB", (60.0, 60.0))
    speaker = synthesis.Speaker(tract=1.0, pitch=100.0, rate=1.0)
    frequency = np.fft.rfftfreq(1024, 1 / synthesis.SAMPLE_RATE)
    for vowel in "aeiou":
        waveform = synthesis.synthesise(8 * vowel, speaker, np.random.RandomState(0))
        assert np.mean(waveform**2) == pytest.approx(1.0, rel=1e-3)
        frames = np.lib.stride_tricks.sliding_window_view(waveform[1000:-1000], 1024)[::256]
        power = (np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2).mean(axis=0)
        _, second, third = synthesis.PHONES[vowel].formants
        for formant, valley in ((second, (second + third) / 2), (third, (second + third) / 2)):
            near, between = (power[np.abs(frequency - centre) < 110].mean() for centre in (formant, valley))
            assert near > 1.5 * between, f"{vowel} has no formant at {formant} Hz"


def test_a_tone_lights_the_mel_bin_of_its_frequency():
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (speech.LOWEST, speech.HIGHEST))
    centres = 700 * (10 ** (np.linspace(low, high, speech.BINS + 2)[1:-1] / 2595) - 1)
    seconds = np.arange(4000) / synthesis.SAMPLE_RATE
    for bin_index, centre in enumerate(centres):
        spectrum = speech.log_mel(np.sin(2 * np.pi * centre * seconds))
        assert spectrum.shape == (1 + (4000 - speech.WINDOW) // speech.HOP, speech.BINS)
        assert (spectrum.argmax(axis=1) == bin_index).all(), f"{centre:.0f} Hz"


def test_the_mel_filters_leave_no_gap():
    frequency = np.fft.rfftfreq(speech.WINDOW, 1 / synthesis.SAMPLE_RATE)
    inside = (frequency > speech.LOWEST) & (frequency < speech.HIGHEST)
    filters = speech.mel_filters()
    assert (filters.sum(axis=0)[inside] > 0).all()
    assert (filters.sum(axis=0)[~inside] == 0).all()
    assert (filters.max(axis=1) > 0.3).all()


def test_data_repeat_and_can_be_aligned(monkeypatch):
    monkeypatch.setattr(speech, "SPLIT_SIZES", {"train": 64, "validation": 24, "test": 24})
    data, again = speech.generate(), speech.generate()
    for name, array in data.items():
        assert np.array_equal(array, again[name])
    valid = np.arange(speech.MAX_FRAMES) < data["frames"][:, None]
    assert (data["features"][~valid] == 0).all()
    train = data["features"][:64][valid[:64]]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-4)
    check_texts(data)
    voices = [set(part) for part in np.split(data["speakers"], [64, 88])]
    assert not voices[0] & voices[1]
    assert not voices[0] & voices[2]
    assert not voices[1] & voices[2]


def test_utterances_differ_and_can_be_aligned_where_that_is_rare(monkeypatch):
    """252 texts for 100 utterances, and five frames to an output: drawn blindly, many would repeat or be too short."""
    monkeypatch.setattr(speech, "SPLIT_SIZES", {"train": 80, "validation": 10, "test": 10})
    monkeypatch.setattr(speech, "WORDS", ["bee", "egg", "hill", "zoo", "jazz", "tree"])
    monkeypatch.setattr(speech, "SUBSAMPLING", 5)
    check_texts(speech.generate())


def check_texts(data):
    letters = data["letters"]
    equal = ((letters[:, 1:] == letters[:, :-1]) & (letters[:, 1:] > 0)).sum(axis=1)
    assert (data["letter_counts"] + equal <= speech.output_lengths(data["frames"])).all()
    assert len({tuple(row) for row in letters}) == len(letters)


def test_every_letter_is_in_the_lexicon_and_has_a_sound():
    assert {letter for word in synthesis.WORDS for letter in word} == set(speech.SYMBOLS[2:])
    assert set(synthesis.PHONES) == set(speech.SYMBOLS[1:])
    assert len(set(synthesis.WORDS)) == len(synthesis.WORDS)


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
