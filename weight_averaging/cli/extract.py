"""the average that an averager holds in a checkpoint, as a state dict of its own

CHECKPOINT is a file of torch.save with the `state_dict()` of an averager anywhere in it. The averaged tensors are
written under the model's names and in its types. The rest of the model (frozen parameters, other buffers) is added
where the checkpoint has the model's state dict beside. Of an `Averages` state, --average says which one: one of the
lines that are printed without it.
"""

import argparse
from pathlib import Path

from weight_averaging.cli.common import add_reading, parents_made
from weight_averaging.placement import size
from weight_averaging.words import counted

EXAMPLES = """\
for example:
  weight-averaging extract checkpoint.pt --out ema.safetensors
      the one average that checkpoint.pt holds
  weight-averaging extract checkpoint.pt --average "lawa window=20 interval=64" --out lawa.pt
      one of several
  weight-averaging extract last.ckpt --out average.safetensors --allow-class argparse.Namespace
      of a Lightning checkpoint with hyperparameters of a class that is allowed by name
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="file of torch.save")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .safetensors or .pt")
    parser.add_argument("--overwrite", action="store_true", help="write over what is there already")
    parser.set_defaults(written=lambda: None)
    parser.add_argument("--average", help="which average of an Averages state")
    add_reading(parser)


def run(args: argparse.Namespace) -> None:
    from weight_averaging.offline.extract import extract
    from weight_averaging.offline.writing.outputs import check_path, state_dict_loading, state_dict_writer

    check_path(args.out, overwrite=args.overwrite)
    result = extract(args.checkpoint, args.average, args.allow_class)
    kind = args.average or "of an averager's state"
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in result.items()}
    with (
        parents_made([args.out]),
        state_dict_writer(args.out, layout, {"format": "pt", "average": kind}, args.overwrite) as file,
    ):
        for name, tensor in result.items():
            file.write_part(name, 0, tensor)
    args.written()
    elements = sum(tensor.numel() for tensor in result.values())
    print(f"{args.out}: {counted(len(result), 'tensor')}, {elements:,} elements, {size(args.out.stat().st_size)}")
    print(f"load: {state_dict_loading(args.out)}")
