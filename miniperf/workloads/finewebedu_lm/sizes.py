"""What the decoder in PyTorch and that in JAX share; `PAPER` is the one of arXiv 2502.06761, Section 7."""

from dataclasses import dataclass

NORM_EPS = 1e-6
ROTARY_BASE = 500_000.0
INIT_STD = 0.02


@dataclass(frozen=True)
class Sizes:
    """`context`: the most tokens in a sequence; `width`: of the residual stream; `hidden`: of the MLP.

    Raises:
        ValueError: the width is not so many heads of an even width.
    """

    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x {self.heads} heads: rotary positions")

    @property
    def writing_std(self) -> float:
        """Of the matrices that write into the residual stream, two a layer, at the beginning."""
        return INIT_STD / (2 * self.layers) ** 0.5


PAPER = Sizes(vocabulary=50257, context=1024, width=768, layers=12, heads=12, hidden=2048)  # 123,551,232 parameters
