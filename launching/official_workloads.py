"""What the official workloads need to be started: data, flags, budgets.

Figures of algoperf at 2c90454; those of finewebedu_lm, and the budgets on A100s, of its main branch of 2026.
"""

from dataclasses import dataclass, replace

from weight_averaging.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OfficialWorkload:
    """One of the harness's base workloads; its variants (`criteo1tb_embed_init`) need the same.

    Attributes:
        folder: of the data, below the root that holds one folder a data set.
        contents: what must be in it; patterns of pathlib.
        setup: flags that make the harness's data set-up fetch it; {root} is the root.
        step_hint: updates that the baseline makes in the budget, about.
        v100_seconds: of the time budget on 8 x V100, which is that of 2c90454; None where that lacks the workload.
        a100_seconds: of the time budget on 4 x A100, the benchmark's machine since 2026; None where it is not scored.
        parameters: of the model.
        compile: whether the harness can put the model through torch.compile.
        flags: further ones; {data} is the folder.
        setup_script: of the harness's own repository.
        since: where it came from, if 2c90454 lacks it.
    """

    folder: str
    contents: tuple[str, ...]
    setup: str
    step_hint: int
    v100_seconds: int | None
    a100_seconds: int | None
    parameters: int
    compile: bool = False
    flags: tuple[str, ...] = ()
    setup_script: str = "datasets/dataset_setup.py"
    since: str = ""

    def setup_command(self, root: str) -> str:
        return f"python {self.setup_script} --data_dir={{root}} {self.setup}".format(root=root)


def _imagenet(step_hint: int, v100_seconds: int, a100_seconds: int, parameters: int, compile: bool) -> OfficialWorkload:
    return OfficialWorkload(
        folder="imagenet/pytorch",
        contents=("train/n*", "val/n*", "imagenet_v2/matched-frequency/3.0.0"),
        setup="--imagenet --framework=pytorch --temp_dir={root}/tmp --imagenet_train_url=URL --imagenet_val_url=URL",
        step_hint=step_hint,
        v100_seconds=v100_seconds,
        a100_seconds=a100_seconds,
        parameters=parameters,
        compile=compile,
        flags=("--imagenet_v2_data_dir={data}",),
    )


def _librispeech(step_hint: int, v100_seconds: int, a100_seconds: int, parameters: int) -> OfficialWorkload:
    splits = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean")
    return OfficialWorkload(
        folder="librispeech",
        contents=("spm_model.vocab", *(f"{split}.csv" for split in splits), *splits),
        setup="--librispeech --temp_dir={root}/tmp",
        step_hint=step_hint,
        v100_seconds=v100_seconds,
        a100_seconds=a100_seconds,
        parameters=parameters,
        flags=("--librispeech_tokenizer_vocab_path={data}/spm_model.vocab",),
    )


WORKLOADS = {
    "criteo1tb": OfficialWorkload(
        folder="criteo1tb",
        contents=("day_0_*", "day_22_*", "day_23_*"),
        setup="--criteo1tb --temp_dir={root}/tmp",
        step_hint=10_666,
        v100_seconds=7_703,
        a100_seconds=8_915,
        parameters=539_267_457,
    ),
    "fastmri": OfficialWorkload(
        folder="fastmri",
        contents=("knee_singlecoil_train/*.h5", "knee_singlecoil_val/*.h5"),
        setup="--fastmri --fastmri_knee_singlecoil_{{train,val,test}}_url=URL",
        step_hint=18_094,
        v100_seconds=4_430,
        a100_seconds=2_745,
        parameters=7_756_097,
        compile=True,
    ),
    "finewebedu_lm": OfficialWorkload(
        folder="fineweb_edu_10B",
        contents=("train", "val"),
        setup="--finewebedu --temp_dir={root}/tmp",
        step_hint=72_000,
        v100_seconds=None,
        a100_seconds=31_967,
        parameters=252_815_372,
        compile=True,
        setup_script="dataset/dataset_setup.py",
        since="the main branch of 2026 (pull request 904); the published runs on 4 x A100 have commit b21be29b",
    ),
    "imagenet_resnet": _imagenet(195_999, 66_159, 49_918, 25_557_032, compile=True),
    "imagenet_vit": _imagenet(167_999, 69_768, 64_292, 22_122_472, compile=False),
    "librispeech_conformer": _librispeech(76_000, 58_015, 43_680, 32_321_792),
    "librispeech_deepspeech": _librispeech(38_400, 44_405, 36_949, 18_393_600),
    "mnist": OfficialWorkload(
        folder="MNIST",
        contents=("mnist/3.0.1",),
        setup="--mnist",
        step_hint=7_813,
        v100_seconds=60,
        a100_seconds=None,
        parameters=101_770,
        compile=True,
    ),
    "ogbg": OfficialWorkload(
        folder="ogbg",
        contents=("ogbg_molpcba/0.1.3",),
        setup="--ogbg",
        step_hint=52_000,
        v100_seconds=12_011,
        a100_seconds=11_303,
        parameters=3_554_176,
    ),
    "wmt": OfficialWorkload(
        folder="wmt",
        contents=("wmt14_translate/de-en/1.0.0", "wmt17_translate/de-en/1.0.0", "wmt_sentencepiece_model"),
        setup="--wmt",
        step_hint=120_000,
        v100_seconds=43_336,
        a100_seconds=16_114,
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
