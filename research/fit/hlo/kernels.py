"""The hand-written kernels of a compiled module, by name."""

import re

from research.fit.hlo.module import Module
from research.scopes import SCOPES

# How programs call Pallas's kernels on TPU, those of its two backends for GPU, and cuDNN.
_TARGETS = re.compile(
    r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton|mosaic_gpu\w*|__cudnn\w*)'
)
_ANONYMOUS = ("anonymous", "batched_body")  # names of kernels that their authors did not name
_BODY = "body"  # that of JAX's grouped products, which our scope around it names


def kernels(module: Module) -> list[str]:
    """Names of the kernels that a module calls, each once and sorted. A kernel without a name of
    its own goes by that of its call, such as "mosaic_gpu_v2"."""
    names = set()
    for computation in module.computations.values():
        for op in computation.instructions.values():
            call = _TARGETS.search(op.attributes) if op.opcode == "custom-call" else None
            if call is not None:
                names.add(_name(op.name, op.op_name, call[1]))
    return sorted(names)


def _name(instruction: str, op_name: str, call: str) -> str:
    """The kernel's name: of its scope on a GPU, of its instruction on a TPU."""
    if call == "tpu_custom_call":
        return re.sub(r"\.\d+$", "", instruction)
    path = [part for part in op_name.split("/") if part != _BODY]
    words = re.findall(r"\w+", path[-2]) if len(path) > 1 else []
    # "vmap(jit(mha))" is the kernel mha under two transformations.
    return words[-1] if words and words[-1] not in (*_ANONYMOUS, *SCOPES) else call
