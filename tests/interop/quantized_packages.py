"""Makes quantized_packages.npz: small matrices quantized by the packages themselves, with the
values that they read back.

    python tests/interop/quantized_packages.py [mlx] [compressed] [float4] [gptq] [awq]

with compressed-tensors 0.20, mlx[cpu] 0.32, and the folders of auto-gptq 0.7.1 and autoawq 0.2.9 in
PYTHONPATH. Of the last two single files are imported: the rest wants older releases of others.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np

ROWS, COLUMNS, GROUP = 16, 96, 32
FOUND: dict[str, np.ndarray] = {}


def keep(name, settings, tensors, values):
    FOUND[f"{name}/settings"] = np.array(json.dumps(settings))
    FOUND[f"{name}/values"] = np.asarray(values, np.float32)
    FOUND.update({f"{name}/{part}": np.asarray(x) for part, x in tensors.items()})


def mlx():
    import mlx.core as mx

    w = mx.array(np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float16))
    for bits in (2, 3, 4, 5, 6, 8):
        codes, scales, biases = mx.quantize(w, GROUP, bits)
        # In float32, whose products and sums of float16 are exact or rounded once.
        wide = [x.astype(mx.float32) for x in (scales, biases)]
        values = mx.dequantize(codes, *wide, GROUP, bits)
        tensors = {"weight": codes, "scales": scales, "biases": biases}
        settings = {"quant_method": "mlx", "group_size": GROUP, "bits": bits}
        keep(f"mlx {bits}", settings, tensors, values)
    # A group of zeros and one of tiny values among them: scales at both ends.
    wide = np.random.default_rng(4).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    wide[0, :32], wide[1, :32] = 0, wide[1, :32] * 2.0**-60
    for mode, (bits, group) in {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}.items():
        codes, scales = mx.quantize(w if mode == "mxfp4" else mx.array(wide), group, bits, mode)
        values = mx.dequantize(codes, scales, None, group, bits, mode).astype(mx.float32)
        settings = {"quant_method": "mlx", "group_size": group, "bits": bits, "mode": mode}
        keep(f"mlx {mode}", settings, {"weight": codes, "scales": scales}, values)


def compressed():
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    w = torch.from_numpy(np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(np.float32))
    cases = {
        "pack 4": ("pack-quantized", dict(num_bits=4, strategy="group", group_size=GROUP)),
        "pack 4 asym": (
            "pack-quantized",
            dict(num_bits=4, strategy="group", group_size=GROUP, symmetric=False),
        ),
        "pack 3 asym": (
            "pack-quantized",
            dict(num_bits=3, strategy="group", group_size=GROUP, symmetric=False),
        ),
        "pack 8": ("pack-quantized", dict(num_bits=8, strategy="channel")),
        "int8": ("int-quantized", dict(num_bits=8, strategy="channel")),
        "fp8": ("float-quantized", dict(num_bits=8, type="float", strategy="channel")),
        "fp8 tensor": ("float-quantized", dict(num_bits=8, type="float", strategy="tensor")),
    }
    for name, (format, fields) in cases.items():
        arguments = QuantizationArgs(**fields)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        width = {"group": GROUP, "channel": COLUMNS}.get(fields["strategy"], 0)
        runs = w.reshape(ROWS, -1, width) if width else w.reshape(1, 1, -1)
        scale, zero = calculate_qparams(runs.amin(-1), runs.amax(-1), arguments)
        scale = scale if width else scale.reshape(1)
        state = {"weight": w, "weight_scale": scale, "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(format)
        tensors = compressor.compress(state, scheme)
        values = compressor.decompress(dict(tensors), scheme)["weight"]
        group = {"targets": ["Linear"], "weights": json.loads(arguments.model_dump_json())}
        settings = {
            "quant_method": "compressed-tensors",
            "format": format,
            "config_groups": {"group_0": group},
        }
        plain = {
            part: x.view(torch.uint8).numpy() if x.dtype == torch.float8_e4m3fn else x.numpy()
            for part, x in tensors.items()
        }
        keep(name, settings, plain, values)


def float4():
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    w = torch.from_numpy(np.random.default_rng(5).normal(size=(ROWS, COLUMNS)).astype(np.float32))
    for name, group in {"nvfp4": 16, "mxfp4": 32}.items():
        largest = w.reshape(ROWS, -1, group).abs().amax(-1)
        # A power of two, for the package reads in bfloat16.
        overall = torch.tensor([512.0])
        scale = (largest / 6 * overall).to(torch.float8_e4m3fn).float()
        state = {"weight": w, "weight_scale": scale, "weight_global_scale": overall}
        if name == "mxfp4":
            state = {"weight": w, "weight_scale": 2 ** torch.floor(torch.log2(largest / 4))}
        arguments = QuantizationArgs(
            num_bits=4,
            type="float",
            strategy="tensor_group" if name == "nvfp4" else "group",
            group_size=group,
            scale_dtype=torch.float8_e4m3fn if name == "nvfp4" else torch.uint8,
        )
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        compressor = BaseCompressor.get_value_from_registry(f"{name}-pack-quantized")
        tensors = compressor.compress(state, scheme)
        values = compressor.decompress(dict(tensors), scheme)["weight"].float()
        settings = {
            "quant_method": "compressed-tensors",
            "format": f"{name}-pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
        }
        plain = {
            part: x.view(torch.uint8).numpy() if x.dtype == torch.float8_e4m3fn else x.numpy()
            for part, x in tensors.items()
        }
        keep(f"{name} packed", settings, plain, values)


def bare(*names):
    """Makes these packages importable without what their __init__ imports."""
    for name in names:
        spec = importlib.util.find_spec(name.split(".")[0])
        inside = Path(spec.submodule_search_locations[0]).joinpath(*name.split(".")[1:])
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__, package.__spec__ = [str(inside)], spec


def chosen(rng, bits, groups, count, outputs):
    """(values [O, I] that 16-bit scales and integer zero points hold exactly but for roundings,
    scales, zeros [O, n]): what a method has decided on when it packs."""
    import torch

    zero = rng.integers(1, 2**bits, (outputs, count))
    scale = rng.uniform(0.01, 0.1, zero.shape).astype(np.float16)
    codes = rng.integers(0, 2**bits, (outputs, len(groups)))
    w = (codes - zero[:, groups]) * scale[:, groups].astype(np.float32)
    return (torch.from_numpy(x.astype(np.float32)) for x in (w, scale, zero))


def gptq():
    import torch

    bare("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    # Its 3-bit packing and its zero points want multiples of 32 outputs.
    outputs, rng = 32, np.random.default_rng(2)
    for name, bits in {"2": 2, "3": 3, "4": 4, "4 act order": 4, "8": 8}.items():
        groups = np.arange(COLUMNS) // GROUP
        groups = rng.permutation(groups) if "order" in name else groups
        w, scale, zero = chosen(rng, bits, groups, COLUMNS // GROUP, outputs)
        linear = torch.nn.Linear(COLUMNS, outputs, bias=False)
        linear.weight.data = w
        layer = QuantLinear(bits, GROUP, COLUMNS, outputs, False, weight_dtype=torch.float32)
        layer.pack(linear, scale, zero, torch.from_numpy(groups.astype(np.int32)))
        tensors = {part: getattr(layer, part) for part in ("qweight", "qzeros", "scales", "g_idx")}
        tensors["scales"] = tensors["scales"].half()
        settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": False}
        # What a layer makes of the identity are its weights.
        keep(f"auto-gptq {name}", settings, tensors, layer(torch.eye(COLUMNS)).T)


def awq():
    import torch

    bare("awq", "awq.modules", "awq.modules.linear", "awq.utils")
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.utils.packing_utils import dequantize_gemm

    outputs, rng = 32, np.random.default_rng(3)
    groups = np.arange(COLUMNS) // GROUP
    for version, kind in {"gemm": WQLinear_GEMM, "gemv": WQLinear_GEMV}.items():
        w, scale, zero = chosen(rng, 4, groups, COLUMNS // GROUP, outputs)
        linear = torch.nn.Linear(COLUMNS, outputs, bias=False)
        linear.weight.data = w
        sides = [x.T.contiguous() if version == "gemm" else x for x in (scale, zero)]
        layer = kind.from_linear(linear, 4, GROUP, False, *sides)
        tensors = {part: getattr(layer, part) for part in ("qweight", "qzeros", "scales")}
        settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": version}
        # The second has no reader but its kernels: the values are those that it was given.
        parts = (tensors[part] for part in ("qweight", "qzeros"))
        values = w
        if version == "gemm":
            values = dequantize_gemm(*parts, tensors["scales"].float(), 4, GROUP).T
        keep(f"autoawq {version}", settings, tensors, values)


MAKERS = {"mlx": mlx, "compressed": compressed, "float4": float4, "gptq": gptq, "awq": awq}

if __name__ == "__main__":
    file = Path(__file__).with_name("quantized_packages.npz")
    earlier = dict(np.load(file)) if file.exists() else {}
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name]()
    np.savez_compressed(file, **{**earlier, **FOUND})
