"""Makes quantized_packages.npz: small matrices quantized by the packages themselves, with the
values that they read back.

    python tests/interop/quantized_packages.py    # with compressed-tensors 0.20, mlx[cpu] 0.32
"""

import json
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
    codes, scales = mx.quantize(w, 32, 4, mode="mxfp4")
    values = mx.dequantize(codes, scales, None, 32, 4, mode="mxfp4").astype(mx.float32)
    settings = {"quant_method": "mlx", "group_size": 32, "bits": 4, "mode": "mxfp4"}
    keep("mlx mxfp4", settings, {"weight": codes, "scales": scales}, values)


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


if __name__ == "__main__":
    mlx()
    compressed()
    np.savez_compressed(Path(__file__).with_name("quantized_packages.npz"), **FOUND)
