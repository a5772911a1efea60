"""torchvision and torchaudio for GPUs beside torch for CPUs: what they compiled does not load, and no test needs it.

Libraries import them all the same. It stands here, where pytest loads it before any test is collected: the process that
only hands tests to workers collects none, but imports what their warnings name.
"""

import importlib.util
import sys
import types

_OPERATORS = []  # kept alive: an operator goes with its library


def _declare_operators() -> None:
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _OPERATORS.append(torch.library.Library("torchvision", "DEF"))
        _OPERATORS[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _leave_out_torchaudio() -> None:
    import torch

    if torch.cuda.is_available():
        return
    without = types.ModuleType("torchaudio._extension")
    without._IS_TORCHAUDIO_EXT_AVAILABLE = without._IS_ALIGN_AVAILABLE = False
    without.fail_if_no_align = lambda function: function
    sys.modules["torchaudio._extension"] = without


if importlib.util.find_spec("torchvision") is not None:
    _declare_operators()
if importlib.util.find_spec("torchaudio") is not None:
    _leave_out_torchaudio()
