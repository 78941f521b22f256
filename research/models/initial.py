"""Initialisers of weight matrices, for each scheme that a family of models uses."""

import math
from dataclasses import dataclass

from research.models.config import ModelConfig
from research.models.spec import Init, normal


@dataclass(frozen=True)
class Initial:
    """An initialiser for each role that a matrix has in a layer."""

    embedding: Init
    position: Init
    query: Init
    key: Init
    value: Init
    out: Init
    up: Init
    down: Init
    router: Init
    head: Init


def initial(c: ModelConfig) -> Initial:
    """The family's initialisers, by `c.init`.

    scaled   normal(init_std); out and down matrices, which add to the residual stream,
             init_std / sqrt(2 layers) (GPT-2, section 2.3)
    plain    normal(init_std) everywhere (BERT)
    xavier   std sqrt(2 / (fan in + fan out)), embeddings d_model^-0.5 (arXiv:1706.03762's
             released code)
    t5       variance 1 / fan in, for queries 1 / (fan in * head_size), embeddings init_std
             (arXiv:1910.10683's released code)
    """
    D, F, heads, H = c.d_model, c.d_ff, c.heads * c.head_size, c.head_size
    # Norms and biases are not here: they begin at 1 and 0 in every family.
    plain = normal(c.init_std)
    if c.init == "xavier":
        # Projections of attention are D x (N H), those of the feed-forward layer D x F.
        square, wide = normal(math.sqrt(2 / (D + heads))), normal(math.sqrt(2 / (D + F)))
        table = normal(D**-0.5)
        return Initial(table, table, square, square, square, square, wide, wide, wide, table)
    if c.init == "t5":
        # Matrices that read the residual stream, whose fan in is D.
        inward = normal(D**-0.5)
        return Initial(
            embedding=plain,
            position=normal(D**-0.5),
            # T5's scores are not divided by sqrt(H); its queries start smaller by that instead.
            query=normal((D * H) ** -0.5),
            key=inward,
            value=inward,
            out=normal(heads**-0.5),
            up=inward,
            down=normal(F**-0.5),
            router=inward,
            head=inward,
        )
    # 2 matrices a layer add to the residual stream; the division keeps the variance of their sum
    # independent of depth.
    residual = normal(c.init_std / math.sqrt(2 * c.layers)) if c.init == "scaled" else plain
    return Initial(plain, plain, plain, plain, plain, residual, plain, residual, plain, plain)
