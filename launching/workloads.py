"""What the official PyTorch workloads need to be started: data, flags, budget. Figures of algoperf at 2c90454."""

from dataclasses import dataclass

from miniperf.errors import UsageError

SETUP = "python datasets/dataset_setup.py --data_dir={root}"  # from the harness's own repository


@dataclass(frozen=True)
class OfficialWorkload:
    """One of the harness's base workloads; its variants (`criteo1tb_embed_init`) need the same.

    Attributes:
        folder: of the data, below the root that holds one folder a data set.
        contents: what must be in it; patterns of pathlib.
        setup: flags that make `dataset_setup.py` fetch it.
        seconds: of the time budget, on the benchmark's own machine.
        parameters: of the model.
        compile: whether the harness can put the model through torch.compile.
        flags: further ones; {data} is the folder.
    """

    folder: str
    contents: tuple[str, ...]
    setup: str
    seconds: int
    parameters: int
    compile: bool = False
    flags: tuple[str, ...] = ()

    def setup_command(self, root: str) -> str:
        return f"{SETUP} {self.setup}".format(root=root)


_IMAGENET = (
    "imagenet/pytorch",
    ("train/n*", "val/n*", "imagenet_v2/matched-frequency/3.0.0"),
    "--imagenet --framework=pytorch --temp_dir={root}/tmp --imagenet_train_url=URL --imagenet_val_url=URL",
)
_LIBRISPEECH = (
    "librispeech",
    (
        "spm_model.vocab", "train-clean-100.csv", "train-clean-360.csv", "train-other-500.csv", "dev-clean.csv",
        "dev-other.csv", "test-clean.csv", "train-clean-100", "train-clean-360", "train-other-500", "dev-clean",
        "dev-other", "test-clean",
    ),
    "--librispeech --temp_dir={root}/tmp",
)  # fmt: skip
_V2 = ("--imagenet_v2_data_dir={data}",)
_TOKENIZER = ("--librispeech_tokenizer_vocab_path={data}/spm_model.vocab",)

WORKLOADS = {
    "criteo1tb": OfficialWorkload(
        "criteo1tb", ("day_0_*", "day_22_*", "day_23_*"), "--criteo1tb --temp_dir={root}/tmp", 7703, 539_267_457
    ),
    "fastmri": OfficialWorkload(
        "fastmri",
        ("knee_singlecoil_train/*.h5", "knee_singlecoil_val/*.h5"),
        "--fastmri --fastmri_knee_singlecoil_{{train,val,test}}_url=URL",
        4430,
        7_756_097,
        compile=True,
    ),
    "imagenet_resnet": OfficialWorkload(*_IMAGENET, 66_159, 25_557_032, compile=True, flags=_V2),
    "imagenet_vit": OfficialWorkload(*_IMAGENET, 69_768, 22_122_472, flags=_V2),
    "librispeech_conformer": OfficialWorkload(*_LIBRISPEECH, 58_015, 32_321_792, flags=_TOKENIZER),
    "librispeech_deepspeech": OfficialWorkload(*_LIBRISPEECH, 44_405, 18_393_600, flags=_TOKENIZER),
    "mnist": OfficialWorkload("MNIST", ("mnist/3.0.1",), "--mnist", 60, 101_770, compile=True),
    "ogbg": OfficialWorkload("ogbg", ("ogbg_molpcba/0.1.3",), "--ogbg", 12_011, 3_554_176),
    "wmt": OfficialWorkload(
        "wmt",
        ("wmt14_translate/de-en/1.0.0", "wmt17_translate/de-en/1.0.0", "wmt_sentencepiece_model"),
        "--wmt",
        43_336,
        133_521_408,
        compile=True,
    ),
}
SEVEN = (
    "criteo1tb", "fastmri", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "ogbg", "wmt",
)  # fmt: skip


def base_name(name: str) -> str:
    """The base workload of a variant. UsageError if there is none."""
    found = [base for base in WORKLOADS if name == base or name.startswith(f"{base}_")]
    if not found:
        raise UsageError(f"--workload={name} is unknown to the official harness; it has {', '.join(WORKLOADS)}")
    return max(found, key=len)
