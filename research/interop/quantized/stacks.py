"""The tensors of MLX's models that are laid out otherwise than transformers' classes have them,
under the names of the latter. In a folder of mlx_lm.convert, quantized or not,

    P.switch_mlp.M.PART              [E, ...]  holds a matrix of all experts: P.experts.e.M.PART
    P.self_attn.embed_q.PART         [N, c, u] and
    P.self_attn.unembed_out.PART     [N, v, c] are the parts of DeepSeek's kv_b_proj.weight
    P.mlp.experts.{gate,up}_proj.PART  [E, F, D] are gpt-oss's gate_up_proj, whose rows alternate

where PART is weight, scales, biases (of the groups) or bias (of the layer).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from research.interop.storage.tensors import Tensor, Tensors

_PARTS = r"(?P<part>weight|scales|biases)"
_EXPERTS = re.compile(rf"(?P<layer>.*)\.switch_mlp\.(?P<matrix>\w+)\.{_PARTS}")
# One matrix a head, or one an expert of gpt-oss: read one by one, and joined when they are dense.
_JOINED = re.compile(
    r"(?P<stack>.*\.(?:self_attn\.(?:embed_q|unembed_out)|mlp\.experts\.(?:gate|up|down)_proj))"
    rf"\.{_PARTS}"
)
_OSS_BIAS = re.compile(r"(.*\.mlp\.experts)\.gate_proj\.bias")
_OSS_SCALES = re.compile(r"(.*\.mlp\.experts)\.(gate|down)_proj\.scales")
# Mixtral's own names of an expert's matrices.
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_OF_MIXTRAL = ".block_sparse_moe"

Make = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Arranged:
    """Tensors of which some are made of others when they are read."""

    names: Mapping[str, Tensor]
    _tensors: Tensors = field(repr=False)
    _made: Mapping[str, Make] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """The whole tensor."""
        return self._made[name]() if name in self._made else self._tensors.read(name)


def unstacked(tensors: Any) -> Tensors:
    """The tensors of a folder (`SafeTensors`) with one matrix in each, as far as MLX has several in
    one; themselves where there is nothing to do."""
    names, made = dict(tensors.names), dict[str, Make]()
    for old, new, tensor, make in [*_packed(tensors), *_rows(tensors)]:
        for name in old:
            names.pop(name, None)
        names[new], made[new] = tensor, make
    return Arranged(names, tensors, made) if made else tensors


def stack_of(module: str) -> str:
    """The name in the file of the module that a matrix of `unstacked` lies in."""
    for ours, theirs in _MIXTRAL.items():
        module = re.sub(rf"(\.block_sparse_moe\.experts\.\d+)\.{theirs}$", rf"\1.{ours}", module)
    module = re.sub(r"\.experts\.\d+\.(\w+)$", r".switch_mlp.\1", module)
    return re.sub(r"\.(embed_q|unembed_out|(?:gate|up|down)_proj)\.\d+$", r".\1", module)


def _rows(tensors: Any) -> Iterator[tuple[tuple[str, ...], str, Tensor, Make]]:
    """(names that go, name that comes, tensor, how it is made) of stacks, row by row."""
    packed = {match[0] for match in map(_OSS_SCALES.fullmatch, tensors.names) if match}
    packed = {name for name in packed if _is_mxfp4(tensors, name)}
    for name, tensor in tensors.names.items():
        if len(tensor.shape) != 3:
            continue
        if found := _EXPERTS.fullmatch(name):
            matrix = found["matrix"]
            if found["layer"].endswith(_OF_MIXTRAL):
                matrix = _MIXTRAL.get(matrix, matrix)
            form = f"{found['layer']}.experts.{{}}.{matrix}.{found['part']}"
        elif (found := _JOINED.fullmatch(name)) and not _is_packed(found["stack"], packed):
            form = f"{found['stack']}.{{}}.{found['part']}"
        else:
            continue
        one = Tensor(tensor.shape[1:], tensor.dtype)
        for row in range(tensor.shape[0]):
            yield (name,), form.format(row), one, partial(tensors.read_row, name, (row,))


def _is_packed(stack: str, packed: set[str]) -> bool:
    # The up-projection goes with the gate.
    return f"{stack.replace('.up_proj', '.gate_proj')}.scales" in packed


def _is_mxfp4(tensors: Tensors, scales: str) -> bool:
    """True for exponents of groups of 32 codes of 4 bits; MLX's other modes with scales of 8 bits
    have other numbers of words to a scale."""
    weight = tensors.names.get(f"{scales.removesuffix('.scales')}.weight")
    one = tensors.names[scales]
    return one.dtype == "uint8" and weight is not None and weight.shape[-1] == 4 * one.shape[-1]


def _packed(tensors: Any) -> Iterator[tuple[tuple[str, ...], str, Tensor, Make]]:
    """As `_rows` of gpt-oss's experts in MXFP4, which are its published tensors, and of its biases
    whatever the matrices are in."""
    names = tensors.names
    for name in list(names):
        if (found := _OSS_BIAS.fullmatch(name)) and f"{found[1]}.up_proj.bias" in names:
            halves = (name, f"{found[1]}.up_proj.bias")
            E, F = names[name].shape
            both = Tensor((E, 2 * F), names[name].dtype)
            yield halves, f"{found[1]}.gate_up_proj_bias", both, _alternating(tensors, halves)
            down = f"{found[1]}.down_proj.bias"
            yield (down,), f"{found[1]}.down_proj_bias", names[down], partial(tensors.read, down)
        found = _OSS_SCALES.fullmatch(name)
        if not found or not _is_mxfp4(tensors, name):
            continue
        several = ("gate_proj", "up_proj") if found[2] == "gate" else ("down_proj",)
        target = f"{found[1]}.{'gate_up_proj' if found[2] == 'gate' else 'down_proj'}"
        E, F, g = names[name].shape
        scales = tuple(f"{found[1]}.{one}.scales" for one in several)
        weights = tuple(f"{found[1]}.{one}.weight" for one in several)
        rows = F * len(several)
        whole = Tensor((E, rows, g), "uint8")
        yield scales, f"{target}_scales", whole, _alternating(tensors, scales)
        blocks = Tensor((E, rows, g, 16), "uint8")
        yield weights, f"{target}_blocks", blocks, _alternating(tensors, weights, (g, 16))


def _alternating(tensors: Tensors, names: tuple[str, ...], bytes_: tuple[int, ...] = ()) -> Make:
    """What reads tensors [E, F, ...] whose rows alternate in one [E, n F, ...]; with `bytes_` words
    of 32 bits as bytes of this shape."""

    def _make() -> np.ndarray:
        read = [np.ascontiguousarray(tensors.read(name)) for name in names]
        if bytes_:
            read = [x.view(np.uint8).reshape(*x.shape[:2], *bytes_) for x in read]
        both = np.stack(read, axis=2)
        return both.reshape(both.shape[0], -1, *both.shape[3:])

    return _make


def joined(tensors: Tensors) -> Tensors:
    """The tensors with those of `unstacked` that make one of transformers' classes joined to it;
    themselves where there is nothing to do. Quantized matrices are dense by now."""
    stacks: dict[str, list[str]] = {}
    for name in tensors.names:
        if found := re.fullmatch(r"(.*)\.(\d+)\.weight", name):
            if _JOINED.fullmatch(f"{found[1]}.weight"):
                stacks.setdefault(found[1], []).append(name)
    names, made = dict(tensors.names), dict[str, Make]()
    for stack, parts in stacks.items():
        layer, _, kind = stack.rpartition(".")
        other = {"embed_q": "unembed_out", "gate_proj": "up_proj"}.get(kind)
        if kind in ("unembed_out", "up_proj"):
            continue
        pairs = list(zip(parts, stacks[f"{layer}.{other}"])) if other else [(p,) for p in parts]
        for name in (name for pair in pairs for name in pair):
            del names[name]
        new = {"embed_q": "kv_b_proj.weight", "gate_proj": "gate_up_proj"}.get(kind, kind)
        shapes = [tensors.names[name].shape for name in pairs[0]]
        names[f"{layer}.{new}"] = Tensor(
            _SHAPES[kind](len(pairs), *shapes), _common(tensors, pairs)
        )
        made[f"{layer}.{new}"] = partial(_MAKES[kind], tensors, pairs)
    return Arranged(names, tensors, made) if made else tensors


def _common(tensors: Tensors, pairs: list[tuple[str, ...]]) -> str:
    types = {tensors.names[name].dtype for name in pairs[0]}
    return next(iter(types)) if len(types) == 1 else "float32"


def _keys_values(tensors: Tensors, pairs: list[tuple[str, ...]]) -> np.ndarray:
    """kv_b_proj.weight [N (u + v), c] of [c, u] and [v, c] of each head."""
    heads = [(tensors.read(keys).T, tensors.read(values)) for keys, values in pairs]
    return np.concatenate([part for head in heads for part in head])


def _gates(tensors: Tensors, pairs: list[tuple[str, ...]]) -> np.ndarray:
    """gate_up_proj [E, D, (F 2)] of [F, D] twice of each expert."""
    experts = [np.stack([tensors.read(name).T for name in pair], axis=-1) for pair in pairs]
    return np.stack([x.reshape(len(x), -1) for x in experts])


def _turned(tensors: Tensors, pairs: list[tuple[str, ...]]) -> np.ndarray:
    """down_proj [E, F, D] of [D, F] of each expert."""
    return np.stack([tensors.read(name).T for (name,) in pairs])


_MAKES = {"embed_q": _keys_values, "gate_proj": _gates, "down_proj": _turned}
_SHAPES: dict[str, Callable[..., tuple[int, ...]]] = {
    "embed_q": lambda n, keys, values: (n * (keys[1] + values[0]), keys[0]),
    "gate_proj": lambda n, gate, up: (n, gate[1], gate[0] + up[0]),
    "down_proj": lambda n, down: (n, down[1], down[0]),
}
