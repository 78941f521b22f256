"""Whether a recipe fits hardware that is not here, by compiling its train step with that hardware's
own compiler.

As a command:

    python -m research.fit --config=configs/finetune.py:model=llama3_8b,method=qlora \\
      --target=h100:1 --json

In Python `compile_step(config, "h100:1")` returns the `jax.stages.Compiled` step itself.
"""

from research.fit.compile import compile_step

__all__ = ["compile_step"]
