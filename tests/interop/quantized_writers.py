"""Quantized folders as other programs write them, made here by their specifications: numpy alone,
with no code of the readers. Each writer gives the tensors of one matrix and its values."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.interop import golden

LAYERS = r"layers.*proj\.weight"


def stream(codes, bits):
    """Codes [..., n] as int32 words, one stream of bits with the first code lowest."""
    bitwise = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    data = np.packbits(bitwise.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")
    missing = -data.shape[-1] % 4
    data = np.pad(data, [(0, 0)] * (data.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(data).view(np.int32)


def values_of(codes, scale, zero, groups):
    """(code - zero) * scale for [O, I] codes and [O, n] scales, float32."""
    exact = (codes - zero[:, groups].astype(np.float64)) * scale[:, groups].astype(np.float64)
    return exact.astype(np.float32)


def gptq(rng, rows, columns, bits=4, group=16, version="gptq", sym=True, order=False):
    count = -(-columns // group)
    codes = rng.integers(0, 2**bits, (rows, columns))
    scale = rng.uniform(0.01, 0.1, (rows, count)).astype(np.float16)
    middle = 2 ** (bits - 1)
    zero = rng.integers(1, 2**bits, (rows, count))
    zero = np.full((rows, count), middle) if sym else zero
    groups = np.arange(columns) // group
    groups = rng.permutation(groups) if order else groups
    tensors = {
        "qweight": np.ascontiguousarray(stream(codes, bits).T),
        "qzeros": stream((zero - (version == "gptq")).T, bits),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": groups.astype(np.int32),
    }
    return tensors, values_of(codes, scale, zero, groups)


def awq(rng, rows, columns, group=16):
    codes = rng.integers(0, 16, (rows, columns))
    zero = rng.integers(0, 16, (rows, columns // group))
    scale = rng.uniform(0.01, 0.1, zero.shape).astype(np.float16)

    def words(x_OI):
        eights = x_OI.T.reshape(x_OI.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return stream(eights.reshape(x_OI.shape[1], -1), 4)

    tensors = {"qweight": words(codes), "qzeros": words(zero)}
    tensors["scales"] = np.ascontiguousarray(scale.T)
    return tensors, values_of(codes, scale, zero, np.arange(columns) // group)


def awq_gemv(rng, rows, columns, group=16):
    """The groups are filled up to four words, as AutoAWQ fills those of 32."""
    codes = rng.integers(0, 16, (rows, columns))
    zero = rng.integers(0, 16, (rows, columns // group))
    scale = rng.uniform(0.01, 0.1, zero.shape).astype(np.float16)
    more = [(0, 0), (0, -zero.shape[1] % 32)]
    tensors = {"qweight": stream(codes, 4), "qzeros": stream(np.pad(zero, more), 4)}
    tensors["scales"] = np.pad(scale, more)
    return tensors, values_of(codes, scale, zero, np.arange(columns) // group)


def packed(rng, rows, columns, bits=4, group=16, sym=True):
    count = -(-columns // group)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns))
    zero = np.zeros((rows, count)) if sym else rng.integers(-3, 2, (rows, count))
    scale = rng.uniform(0.01, 0.1, (rows, count)).astype(ml_dtypes.bfloat16)
    tensors = {
        "weight_packed": stream(codes + 2 ** (bits - 1), bits),
        "weight_scale": scale,
        "weight_shape": np.array([rows, columns], np.int64),
    }
    if not sym:
        words = stream((zero + 2 ** (bits - 1)).T.astype(int), bits)
        tensors["weight_zero_point"] = np.ascontiguousarray(words.T)
    return tensors, values_of(codes, scale, zero, np.arange(columns) // group)


def scaled(rng, rows, columns, dtype="float8_e4m3fn", block=None, name="weight_scale", zero=False):
    if dtype == "int8":
        codes = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    else:
        codes = rng.normal(size=(rows, columns)).astype(getattr(ml_dtypes, dtype))
    height, width = block or (rows, columns)
    scale = rng.uniform(0.01, 0.1, (-(-rows // height), -(-columns // width))).astype(np.float32)
    spread = scale[np.arange(rows)[:, None] // height, np.arange(columns) // width]
    tensors = {"weight": codes, name: scale if block else scale.reshape(1)}
    tensors["input_scale"] = np.ones(1, np.float32)
    values = codes.astype(np.float32)
    if zero:
        points = rng.integers(-9, 9, scale.shape).astype(np.int8)
        tensors["weight_zero_point"] = points
        values = values - points[np.arange(rows)[:, None] // height, np.arange(columns) // width]
    return tensors, values * spread


def mlx(rng, rows, columns, bits=4, group=16):
    codes = rng.integers(0, 2**bits, (rows, columns))
    scale, bias = (rng.normal(size=(rows, columns // group)).astype(np.float16) for _ in range(2))
    groups = np.arange(columns) // group
    exact = codes * scale[:, groups].astype(np.float64) + bias[:, groups]
    tensors = {"weight": stream(codes, bits).view(np.uint32), "scales": scale, "biases": bias}
    return tensors, exact.astype(np.float32)


def mlx_floats(rng, rows, columns, bits=4, group=16, exponents=False):
    """The modes of MLX whose codes are e2m1 or, with 8 bits, e4m3, and whose scales are exponents
    or e4m3."""
    kind = {4: "float4_e2m1fn", 8: "float8_e4m3fn"}[bits]
    size = (rows, columns // group)
    values = rng.normal(size=(rows, columns)).astype(getattr(ml_dtypes, kind))
    scale_type = ml_dtypes.float8_e8m0fnu if exponents else ml_dtypes.float8_e4m3fn
    scale = rng.uniform(0.01, 0.1, size).astype(scale_type)
    spread = scale.astype(np.float32)[:, np.arange(columns) // group]
    codes = values.view(np.uint8)
    tensors = {"weight": stream(codes, bits).view(np.uint32), "scales": scale.view(np.uint8)}
    return tensors, values.astype(np.float32) * spread


def packed_floats(rng, rows, columns, group=16):
    """compressed-tensors' nvfp4."""
    made, values = mlx_floats(rng, rows, columns, group=group)
    overall = np.float32(384.0)
    scale = made["scales"].view(ml_dtypes.float8_e4m3fn)
    codes = (values / scale.astype(np.float32)[:, np.arange(columns) // group]).astype(np.float32)
    tensors = {
        "weight_packed": made["weight"].view(np.uint8),
        "weight_scale": scale,
        "weight_global_scale": overall.reshape(1),
        "input_global_scale": np.ones(1, np.float32),
    }
    spread = (scale.astype(np.float32) / overall)[:, np.arange(columns) // group]
    return tensors, codes * spread


def write(folder, model, settings, make, chosen):
    """A folder of a golden `model` whose matrices that `chosen(name)` takes are quantized by
    `make(rng, rows, columns)`; returns their values by name."""
    rng, tensors, values = np.random.default_rng(0), {}, {}
    for name, x in golden.tensors(model).items():
        if not chosen(name):
            tensors[name] = x
            continue
        parts, values[name] = make(rng, *x.shape)
        module = name.removesuffix("weight")
        tensors |= {module + part: array for part, array in parts.items()}
    config = json.loads(str(golden.golden(model)["config"])) | settings
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return values
