"""mini_librispeech_deepspeech: the utterances of `workloads.speech`; its schedule and its targets."""

from miniperf.workloads.speech.data import SpeechData


class DeepSpeechData(SpeechData):
    step_hint = 1500
    validation_target_value = 0.14300
    test_target_value = 0.14264
