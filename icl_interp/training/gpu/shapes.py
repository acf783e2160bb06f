"""What is fixed when a kernel is compiled: sizes of registers and of shared memory, and which branches there are."""

from __future__ import annotations

import math
from typing import NamedTuple

from icl_interp.config import ModelConfig
from icl_interp.errors import ConfigError
from icl_interp.records import TrainConfig
from icl_interp.tasks import MultiTaskRegression
from icl_interp.training.compiled.attention import KINDS, LINEAR, SOFTMAX
from icl_interp.training.compiled.weights import ADAM, ADAMW, SGD

THREADS = 256  # of a block, at most
FEWEST = 32  # a warp
REGISTERS = 128  # of a thread, with which two blocks of 256 fit on a multiprocessor
# How many floats a thread has of its heads where these have to be asked for: with fewer it takes no more anyway, with
# more most would be spilled, and a block had better have a multiprocessor to itself.
CROWDED = range(48, 97)
SHARED = 48 * 1024  # bytes of shared memory that a block may have without asking
OPTIMIZERS = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}


class Shape(NamedTuple):
    """Of runs that one kernel trains; all else may differ between them."""

    heads: int
    dim: int
    outputs: int
    width: int  # d_head
    kind: int  # of activation, compiled.attention.KINDS
    optimizer: int
    plain: bool  # x ~ N(0, I)
    shared: bool  # the normals of β are the same for all outputs
    given: bool  # prompts are not drawn, but given
    threads: int  # of a block

    @property
    def model(self) -> int:
        """Columns of a prompt."""
        return self.dim + self.outputs

    @property
    def parameters(self) -> int:
        """Weights of a run: W_Q of all heads, then W_K, W_V, W_O."""
        return 4 * self.heads * self.model * self.width

    @property
    def has_slopes(self) -> bool:
        """Whether f′ is another function than f, so that Σf′z is a sum of its own."""
        return self.kind not in (SOFTMAX, LINEAR)

    @property
    def registers(self) -> int | None:
        """What a thread may have at most; None for all there are."""
        floats = self.heads * (self.model * (2 + self.outputs + self.has_slopes) + 2)
        return REGISTERS if floats in CROWDED else None

    @property
    def entries(self) -> int:
        """What is added up over the batch, of a head: gradients of KQ (model × dim), OV (outputs × model), and loss."""
        return self.model * self.dim + self.outputs * self.model + 1

    @property
    def rows(self) -> int:
        """What each thread leaves of one head: its side of KQ's gradient, OV's gradient, the loss, and x_q."""
        return self.model + self.outputs * self.model + 1 + self.dim

    @property
    def parts(self) -> int:
        """Into which the batch is divided, to be added up side by side."""
        return max(1, self.threads // self.entries)

    @property
    def bytes(self) -> int:
        """Of shared memory."""
        folded = self.heads * (self.entries - 1)
        return 4 * (folded + self.heads * self.entries + self.rows * (self.threads + 1) + self.entries * self.parts + 2)


def shape_for(config: TrainConfig) -> Shape:
    """The shape of a config's kernel.

    Raises:
        ConfigError: as for `shape_of`.
    """
    task = config.task
    plain = getattr(task, "covariance", None) is None and getattr(task, "centred", True)
    shared = isinstance(task, MultiTaskRegression) and task.shared_signal
    return shape_of(config.model, config.batch_size, config.optimizer, plain=plain, shared=shared)


def shape_of(
    model: ModelConfig,
    batch: int,
    optimizer: str = "sgd",
    *,
    plain: bool = True,
    shared: bool = False,
    given: bool = False,
) -> Shape:
    """The shape of a kernel, with as many threads as there are prompts and room.

    Raises:
        ConfigError: a gradient that finds no room in shared memory.
    """
    sizes = model.n_heads, model.dim, model.n_outputs, model.head_width
    kinds = KINDS[model.activation], OPTIMIZERS[optimizer], plain, shared, given
    threads = max(FEWEST, min(THREADS, 2 ** math.ceil(math.log2(batch))))
    while (shape := Shape(*sizes, *kinds, threads)).bytes > SHARED:
        if threads == FEWEST:
            raise ConfigError(f"its gradient takes {shape.bytes:,} of the {SHARED:,} bytes that a block shares")
        threads //= 2
    return shape
