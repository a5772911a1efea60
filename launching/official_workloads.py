"""What the official workloads need to be started: data, flags, budgets.

Figures of algoperf at b21be29b, the commit of the published runs on 4 x A100 since 2026.
"""

from dataclasses import dataclass, replace

from weight_averaging.errors import UsageError

SETUP_SCRIPT = "dataset/dataset_setup.py"  # of the harness's own repository


@dataclass(frozen=True, kw_only=True)
class OfficialWorkload:
    """One of the harness's base workloads; its variants (`criteo1tb_embed_init`) need the same.

    Attributes:
        folder: of the data, below the root that holds one folder a data set.
        contents: what must be in it; patterns of pathlib.
        setup: flags that make the harness's data set-up fetch it; {root} is the root.
        step_hint: updates that the baseline makes in the budget, about.
        a100_seconds: of the time budget on 4 x A100, the benchmark's machine since 2026.
        v100_seconds: of the earlier budget on 8 x V100 (2c90454); None where that harness lacks the workload.
        parameters: of the model.
        compile: whether the harness can put the model through torch.compile.
        flags: further ones; {data} is the folder.
    """

    folder: str
    contents: tuple[str, ...]
    setup: str
    step_hint: int
    a100_seconds: int
    v100_seconds: int | None
    parameters: int
    compile: bool = False
    flags: tuple[str, ...] = ()

    def setup_command(self, root: str) -> str:
        return f"python {SETUP_SCRIPT} --data_dir={{root}} {self.setup}".format(root=root)


def _imagenet(step_hint: int, a100_seconds: int, v100_seconds: int, parameters: int) -> OfficialWorkload:
    return OfficialWorkload(
        folder="imagenet/pytorch",
        contents=("train/n*", "val/n*", "imagenet_v2/matched-frequency/3.0.0"),
        setup="--imagenet --framework=pytorch --temp_dir={root}/tmp --imagenet_train_url=URL --imagenet_val_url=URL",
        step_hint=step_hint,
        a100_seconds=a100_seconds,
        v100_seconds=v100_seconds,
        parameters=parameters,
        compile=True,
        flags=("--imagenet_v2_data_dir={data}",),
    )


def _librispeech(step_hint: int, a100_seconds: int, v100_seconds: int, parameters: int) -> OfficialWorkload:
    splits = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean")
    return OfficialWorkload(
        folder="librispeech",
        contents=("spm_model.vocab", *(f"{split}.csv" for split in splits), *splits),
        setup="--librispeech --temp_dir={root}/tmp",
        step_hint=step_hint,
        a100_seconds=a100_seconds,
        v100_seconds=v100_seconds,
        parameters=parameters,
        flags=("--librispeech_tokenizer_vocab_path={data}/spm_model.vocab",),
    )


WORKLOADS = {
    "criteo1tb": OfficialWorkload(
        folder="criteo1tb",
        contents=("day_0_*", "day_22_*", "day_23_*"),
        setup="--criteo1tb --temp_dir={root}/tmp",
        step_hint=10_666,
        a100_seconds=8_915,
        v100_seconds=7_703,
        parameters=539_267_457,
    ),
    "fastmri": OfficialWorkload(
        folder="fastmri",
        contents=("knee_singlecoil_train/*.h5", "knee_singlecoil_val/*.h5"),
        setup="--fastmri --fastmri_knee_singlecoil_{{train,val,test}}_url=URL",
        step_hint=18_094,
        a100_seconds=2_745,
        v100_seconds=4_430,
        parameters=7_756_097,
        compile=True,
    ),
    "finewebedu_lm": OfficialWorkload(
        folder="fineweb_edu_10B",
        contents=("train/snapshot.metadata", "val/snapshot.metadata"),
        setup="--finewebedu --temp_dir={root}/tmp",
        step_hint=72_000,
        a100_seconds=31_967,
        v100_seconds=None,
        parameters=252_815_372,
        compile=True,
    ),
    "imagenet_resnet": _imagenet(195_999, 49_918, 66_159, 25_557_032),
    "imagenet_vit": _imagenet(167_999, 64_292, 69_768, 22_122_472),
    "librispeech_conformer": _librispeech(76_000, 43_680, 58_015, 32_321_792),
    "librispeech_deepspeech": _librispeech(38_400, 36_949, 44_405, 18_393_600),
    "mnist": OfficialWorkload(
        folder="MNIST",
        contents=("mnist/3.0.1",),
        setup="--mnist",
        step_hint=7_813,
        a100_seconds=60,
        v100_seconds=60,
        parameters=101_770,
        compile=True,
    ),
    "ogbg": OfficialWorkload(
        folder="ogbg",
        contents=("ogbg_molpcba/0.1.3",),
        setup="--ogbg",
        step_hint=52_000,
        a100_seconds=11_303,
        v100_seconds=12_011,
        parameters=3_554_176,
    ),
    "wmt": OfficialWorkload(
        folder="wmt",
        contents=("wmt14_translate/de-en/1.0.0", "wmt17_translate/de-en/1.0.0", "wmt_sentencepiece_model"),
        setup="--wmt",
        step_hint=120_000,
        a100_seconds=16_114,
        v100_seconds=43_336,
        parameters=133_521_408,
        compile=True,
    ),
}
# The workloads of the paper, which are those of miniperf's miniatures.
SEVEN = (
    "criteo1tb", "fastmri", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "ogbg", "wmt",
)  # fmt: skip


def needs_of(name: str, framework: str) -> OfficialWorkload:
    """What a workload or variant needs in "pytorch" or "jax". UsageError if there is none of this name."""
    needs = WORKLOADS[base_name(name)]
    if framework == "pytorch" or not needs.folder.startswith("imagenet"):
        return needs
    return replace(
        needs,
        folder=f"imagenet/{framework}",
        contents=("imagenet2012/5.1.0", "imagenet_v2/matched-frequency/3.0.0"),
        setup=needs.setup.replace("--framework=pytorch", f"--framework={framework}"),
    )


def base_name(name: str) -> str:
    """The base workload of a variant. UsageError if there is none."""
    found = [base for base in WORKLOADS if name == base or name.startswith(f"{base}_")]
    if not found:
        raise UsageError(f"--workload={name} is unknown to the official harness; it has {', '.join(WORKLOADS)}")
    return max(found, key=len)
