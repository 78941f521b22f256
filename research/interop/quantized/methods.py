"""The table of other programs' quantized folders, by what their config.json says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.files import read_json
from research.interop.quantized.awq import open_awq
from research.interop.quantized.compressed_tensors import open_compressed
from research.interop.quantized.floats import open_floats
from research.interop.quantized.gptq import open_gptq
from research.interop.quantized.matrix import Opened
from research.interop.quantized.mlx import is_mlx, open_mlx
from research.interop.storage.tensors import Tensors

# By quant_method; MLX has none.
METHODS: dict[str, Callable[[Mapping[str, Any], Tensors], Opened]] = {
    "gptq": open_gptq,
    "awq": open_awq,
    "compressed-tensors": open_compressed,
    "fp8": open_floats,
    "fbgemm_fp8": open_floats,
    "mlx": open_mlx,
}
# Where releases from before there was a quantization_config kept it, with the method.
_OLDER = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def read_settings(folder: Path, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization_config of a folder whose config.json has these values, with its
    quant_method; None for an unquantized one."""
    if is_mlx(values.get("quantization")):
        return {**values["quantization"], "quant_method": "mlx"}
    found = values.get("quantization_config")
    if found:
        return found if isinstance(found, dict) else {"quant_method": found}
    for name, method in _OLDER.items():
        if (folder / name).is_file() and isinstance(older := read_json(folder / name), dict):
            return {"quant_method": method, **older}
    return None


def open_method(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The quantized matrices of a folder. ValueError for a method that is none of `METHODS` and for
    a folder without a quantized matrix."""
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"config.json has quantization_config with quant_method={method!r}; supported are "
            f"bitsandbytes, {', '.join(METHODS)}: take one of these, or the unquantized model"
        )
    return METHODS[method](settings, tensors)
