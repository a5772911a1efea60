"""Global batch sizes of the official NadamW baseline: the one thing the rules let depend on a workload's name."""

BATCH_SIZES = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "finewebedu_lm": 64,
    "imagenet_resnet": 1024,
    "imagenet_resnet_silu": 512,
    "imagenet_resnet_gelu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "ogbg": 512,
    "wmt": 128,
    "mnist": 16,
}


def get_batch_size(workload_name: str) -> int:
    """The global batch size. A ValueError for an unknown name sends the harness to the base workload's."""
    if workload_name not in BATCH_SIZES:
        raise ValueError(f"no batch size for the workload {workload_name!r}; known are {', '.join(BATCH_SIZES)}")
    return BATCH_SIZES[workload_name]
