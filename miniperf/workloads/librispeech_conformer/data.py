"""mini_librispeech_conformer: the utterances of `workloads.speech`; its schedule and its targets."""

from miniperf.workloads.speech.data import SpeechData


class ConformerData(SpeechData):
    step_hint = 1500
    validation_target_value = 0.28016
    test_target_value = 0.31318
