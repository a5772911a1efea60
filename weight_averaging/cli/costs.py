"""What averaging costs, on paper: bytes and seconds from sizes and bandwidths. Pure Python.

A rank has n weights (all, or those of its shard), with d bytes each in the model. A window has L snapshots. Averages
are float32 (4 bytes). Bandwidths count bytes read and bytes written.

    device memory     EMA 4 n; window 4 n (L + 1), one spare for a snapshot not known to be finite yet
                      averages on the host: 4 n, from which snapshots travel
                      during an evaluation the raw weights too: + d n (a window on the host needs no more, of float32)
    host memory       window 4 n (L + 1); EMA 8 n, the average and the snapshot that arrives
    an update         device bytes: EMA 12 n, snapshot 8 n, check for NaN and infinity 6 n (a read at two thirds of the
                      bandwidth); of a model that is not float32 + 2 n (d + 4), cast block by block, twice
                      to the host 4 n, beside training as long as it ends before the next snapshot is due
                      to disk d n, for whose copy to the host training waits; the writing goes on beside it
    a swap            copies of raw weights out and back and of the average in, 8 n each; mean of a window on the device
                      12 n L, partial sums included, on the host 4 n L read there and 4 n to the device

Replicas (DDP) hold one average for all, on the first rank, where it is a window or on the host. Every rank of a sharded
model (FSDP2, tensor parallel) holds its shard's, and nothing is gathered. Under ZeRO-1 and -2 a model of fewer than 32
bits is averaged from its float32 masters. DeepSpeed gathers them on each of the g ranks that share them:

    a snapshot      device memory + 4 n for that long; over the network 8 n (g - 1) / g (an all-reduce), for an EMA
                    twice, since it is known before that all are finite; training waits
    a swap          one such all-reduce, to compare them with the model
    a whole file    each rank of s that share a copy: d n s (s - 1) / s over the network, and d n s to the host

Launches and the work of the processor are not counted: of small models they are what an
update costs. How near this comes to what was measured: docs/scale.md.
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lawa", "ema"]
Place = Literal["device", "host", "disk"]
BYTES = {"float32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2, "fp32": 4, "float64": 8}


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        params: weights of the whole model.
        dtype_bytes: of a weight of the model, 4 for float32.
        ranks: processes, one a device.
        shards: ranks that share one copy of the weights (FSDP2); 1: each has all (DDP).
        zero: stage of ZeRO; 1 and 2 as DeepSpeed has them, 3 shards over all ranks that tensor parallelism leaves.
        tensor_parallel: ranks that share each layer's weights; each of them has its own `shards` besides.
        window: snapshots of a LAWA.
        interval: updates between snapshots.
        step_seconds: of an update without averaging.
    Raises:
        ValueError: in one line, for a value that cannot be.
    """

    params: float
    dtype_bytes: int = 4
    ranks: int = 1
    shards: int = 1
    zero: int = 0
    tensor_parallel: int = 1
    window: int = 20
    interval: int = 64
    step_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("params", "dtype_bytes", "ranks", "shards", "tensor_parallel", "window", "interval"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 1, not {getattr(self, name):g}")
        if not 0 < self.step_seconds < math.inf:
            raise ValueError(f"step_seconds must be > 0, not {self.step_seconds:g}")
        if self.zero not in (0, 1, 2, 3):
            raise ValueError(f"zero must be 0, 1, 2 or 3, not {self.zero}")
        if self.ranks % self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel must divide ranks: {self.ranks} ranks are no multiple of {self.tensor_parallel}"
            )
        if self.alike % self.shards:
            of = f" (of {self.ranks}, by tensor_parallel)" if self.tensor_parallel > 1 else ""
            raise ValueError(
                f"shards must divide ranks: {self.alike} ranks{of} are no multiple of {self.shards} shards"
            )
        if self.zero in (1, 2) and self.shards > 1:
            raise ValueError(
                f"zero={self.zero} leaves the weights whole on each rank: give shards, or zero=3, or neither"
            )

    @property
    def alike(self) -> int:
        """Ranks that tensor parallelism leaves: that have, or share, the same part of each layer."""
        return self.ranks // self.tensor_parallel

    @property
    def parts(self) -> int:
        """Ranks that have one copy of the weights together."""
        return self.tensor_parallel * (self.alike if self.zero == 3 and self.shards == 1 else self.shards)

    @property
    def weights(self) -> float:
        """On a rank."""
        return self.params / self.parts

    @property
    def gathered(self) -> float:
        """Bytes of float32 masters that DeepSpeed gathers on a rank at each use."""
        return 4 * self.weights if self.zero in (1, 2) and self.dtype_bytes < 4 else 0.0


@dataclass(frozen=True)
class Machine:
    """What one node has. Bandwidths in GB/s (1e9 bytes), counting bytes read and bytes written.

    Args:
        ranks_per_node: devices of it.
        device_gb: memory of each that training leaves free.
        host_gb: memory of the node that is free.
        device_gbs, host_gbs: of the memories, the host's for all its ranks together.
        pcie_gbs: from a device to the host, each on its own.
        disk_gbs: of what snapshots are written to, for the node.
        network_gbs: of what each rank receives from others.
    Raises:
        ValueError: in one line, for a value that cannot be.
    """

    ranks_per_node: int = 8
    device_gb: float = 10.0
    host_gb: float = 500.0
    device_gbs: float = 2900.0
    host_gbs: float = 48.0
    pcie_gbs: float = 25.0
    disk_gbs: float = 1.0
    network_gbs: float = 25.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0, not {value:g}")


@dataclass(frozen=True)
class Cost:
    """Of one average in one place. Bytes; seconds.

    Attributes:
        device: on the rank that has most, beside training; `evaluation`: while the average is in the model.
        host: on a node; `disk`: of all snapshots that the window needs.
        traffic: a snapshot, to the host or the disk, of the rank that has most; `gathered`: to it from other ranks.
        update: of the device for one snapshot; `exposed`: beyond that, where training waits for a copy.
        share: of a step, on average.
        swap: in and out.
        limit: what does not fit, and what to change; empty if all does.
    """

    device: float
    evaluation: float
    host: float
    disk: float
    traffic: float
    gathered: float
    update: float
    exposed: float
    share: float
    swap: float
    limit: str


def cost(kind: Kind, place: Place, run: Run, machine: Machine) -> Cost:
    """What a LAWA or an EMA costs with its averages on the device or the host, or made from snapshots on disk."""
    n, d, length = run.weights, run.dtype_bytes, run.window
    on_node = min(run.ranks, machine.ranks_per_node)
    by_owner = run.parts == 1 and (kind == "lawa" or place == "host")
    holders = 1 if by_owner else on_node  # ranks of a node that hold something
    cast = 0 if d == 4 or run.gathered else 2 * n * (d + 4)
    device_rate, link = machine.device_gbs * 1e9, machine.pcie_gbs * 1e9
    device = host = disk = traffic = exposed = 0.0
    copies = 24 * n / device_rate
    if place == "device":
        device = 4 * n * (length + 1) if kind == "lawa" else 4 * n
        evaluation = device + d * n
        update = ((8 if kind == "lawa" else 12) + 6) * n + cast
        swap = copies + (12 * n * length / device_rate if kind == "lawa" else 0)
    elif place == "host":
        device = 4 * n
        evaluation = device if d == 4 else device + d * n
        host = holders * (4 * n * (length + 1) if kind == "lawa" else 8 * n)
        update = (8 + 6) * n + cast
        traffic = 4 * n
        read = 4 * n * length if kind == "lawa" else 4 * n
        swap = copies + holders * read / (machine.host_gbs * 1e9) + 4 * n / link
    else:  # of the model's own weights; training waits for a copy in host memory, and a thread writes that
        evaluation = update = swap = 0.0
        writers = on_node if run.parts > 1 else 1
        host, disk, traffic = writers * d * n, run.params * d * length, d * n
        exposed, link = traffic / link, machine.disk_gbs * 1e9 / writers
    gathered = 0.0
    if run.gathered and place != "disk":
        once = 2 * run.gathered * (run.alike - 1) / run.alike
        gathered = once if kind == "lawa" else 2 * once
        exposed += gathered / (machine.network_gbs * 1e9)
        swap += once / (machine.network_gbs * 1e9)
        device += run.gathered
        evaluation = max(evaluation, device)
    seconds = update / device_rate
    until_next = run.interval * run.step_seconds
    late = max(0.0, traffic / link - until_next)  # before the next one is due
    exposed += late
    limit = _limit(kind, place, device, evaluation, host, run, machine)
    if late and not limit:
        longer = math.ceil(traffic / link / run.step_seconds)
        limit = f"a copy takes {traffic / link:.3g} s, longer than {run.interval} updates; {longer} would hide it"
    return Cost(
        device,
        evaluation,
        host,
        disk,
        traffic,
        gathered,
        seconds,
        exposed,
        (seconds + exposed) / until_next,
        swap,
        limit,
    )


def _limit(kind: Kind, place: Place, device: float, evaluation: float, host: float, run: Run, machine: Machine) -> str:
    if evaluation > machine.device_gb * 1e9:
        when = "training" if device > machine.device_gb * 1e9 else "an evaluation"
        need, have = (device if when == "training" else evaluation) / 1e9, machine.device_gb
        less = "put it on the host" if place == "device" else "shard the model" if run.parts == 1 else "more shards"
        return f"device memory in {when}: {need:.3g} of {have:.3g} GB; {less}"
    if host > machine.host_gb * 1e9:
        less = "take fewer snapshots, or average from disk" if kind == "lawa" else "average from disk"
        return f"host memory: {host / 1e9:.3g} of {machine.host_gb:.3g} GB a node; {less}"
    return ""


def whole_file(run: Run, machine: Machine) -> float:
    """Seconds until the whole average has come to the first rank, tensor by tensor, before it is written."""
    size = run.params * run.dtype_bytes
    return size * (run.parts - 1) / run.parts / (machine.network_gbs * 1e9) + size / (machine.pcie_gbs * 1e9)


def places(run: Run, machine: Machine) -> dict[tuple[Kind, Place], Cost]:
    """All of them; an EMA of snapshots on disk would need those of the whole run."""
    pairs: list[tuple[Kind, Place]] = [
        ("lawa", "device"), ("lawa", "host"), ("lawa", "disk"), ("ema", "device"), ("ema", "host"),
    ]  # fmt: skip
    return {pair: cost(*pair, run, machine) for pair in pairs}
