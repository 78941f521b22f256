"""Whether a recipe fits hardware that is not here, by compiling its train step with that hardware's
own compiler.

python -m research.fit --config=configs/finetune.py:model=llama3_8b,method=qlora --target=h100:1
--json from research.fit import compile_step
"""

from research.fit.compile import compile_step

__all__ = ["compile_step"]
