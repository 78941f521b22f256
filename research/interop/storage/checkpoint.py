"""A checkpoint of any format, opened: its model, its parameters to be read slice by slice, and the
files that go with it."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from research import tree
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.infer.sentences import SentenceSettings
from research.interop.storage import generation
from research.interop.storage.shards import Shards
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import Spec
from research.weights.matrices import count_stacked
from research.weights.quantized import Quantized, is_quantized, quantize_array

Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Parameter:
    """One parameter in storage. `read` takes an index over its first `stack` axes, those of layers
    and experts, and gives that slice; no more than it is read."""

    shape: tuple[int, ...]
    dtype: str
    stack: int
    read: Callable[[tuple[int, ...]], np.ndarray]

    def indices(self) -> Iterator[tuple[int, ...]]:
        """All that `read` takes, in order."""
        return np.ndindex(*self.shape[: self.stack])


@dataclass(frozen=True)
class Codes:
    """A parameter that the storage holds quantized. `forms` says of each slice how, None for plain
    numbers; `read` gives a slice that is quantized as a leaf of numpy arrays. Slices of one form
    can be stacked."""

    forms: Mapping[tuple[int, ...], Any]
    read: Callable[[tuple[int, ...]], Any]


@dataclass(frozen=True)
class Checkpoint:
    """What `open_checkpoint` gives. `parameters` are by path of our tree. `special` has ids by the
    names of a config.json (eos_token_id: one or several), `files` the tokenizer's and others that a
    complete folder has, as paths or content. `codes` has those that are quantized in storage once
    more, as leaves: `parameters` gives them dense. `unused` says of each tensor that is no
    parameter why it is not needed, and `original` gives the tensors of another format as they would
    be with other parameters in their place: name, what reads it there, what makes it so."""

    source: Path
    format: str
    config: ModelConfig
    parameters: Mapping[str, Parameter]
    special: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    original: Callable[[Mapping[str, Parameter]], Iterator[tuple[str, Read, Read]]] | None = None
    quantized: bool = False  # whether the storage has fewer bits than `dtype`
    tokenizer_folder: Path | None = None
    close: Callable[[], None] = lambda: None
    codes: Mapping[str, Codes] = field(default_factory=dict)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies in the checkpoint, None where there is none."""
        if self.tokenizer_folder is not None:
            return load_tokenizer(self.tokenizer_folder)
        made = {name: content for name, content in self.files.items() if isinstance(content, bytes)}
        if not made:
            return None
        with tempfile.TemporaryDirectory() as folder:
            for name, content in made.items():
                (Path(folder) / name).write_bytes(content)
            return load_tokenizer(folder)

    @cached_property
    def begins_texts(self) -> bool:
        """Whether texts go behind the token that begins one: as tokenizer_config.json says, else as
        tokenizer.json does it.

        True without either: our own runs train so.
        """
        says = self._settings("tokenizer_config.json").get("add_bos_token")
        whole = self._content("tokenizer.json")
        if isinstance(says, bool) or whole is None or self.format == "run":
            return says is not False
        ids = tokenizers.Tokenizer.from_str(whole).encode("a", add_special_tokens=True).ids
        return ids[:1] == [self.tokenizer.bos_id]

    @cached_property
    def sentence_settings(self) -> SentenceSettings:
        """How a text becomes one vector, by sentence-transformers' files. ValueError for a pooling
        that is not there."""
        pooling = self._settings("1_Pooling/config.json")
        chosen = [
            name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True
        ]
        names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if len(chosen) > 1 or not set(chosen) <= set(names):
            raise ValueError(
                f"{self.source} pools by {', '.join(chosen)}; there are {', '.join(names)}"
            )
        modules = self._content("modules.json")
        limit = self._settings("sentence_bert_config.json").get("max_seq_length")
        return SentenceSettings(
            names[chosen[0]] if chosen else "mean",
            modules is None or ".Normalize" in modules,
            limit or self.config.max_length,
        )

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The values of generation_config.json, {} where there is none."""
        return self._settings(generation.FILE)

    @cached_property
    def sampling(self) -> dict[str, float]:
        """The fields of a `SamplingConfig` that the checkpoint recommends, such as {"temperature":
        0.6, "top_p": 0.9}; {} where it recommends none."""
        return generation.read_sampling(self.generation, self.source)

    def _settings(self, name: str) -> dict[str, Any]:
        """A companion's JSON object, empty where there is no such file. ValueError for anything
        else in it."""
        try:
            values = json.loads(self._content(name) or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name} of {self.source} is not JSON ({error}); restore it from the source"
            ) from None
        if not isinstance(values, dict):
            raise ValueError(
                f"{name} of {self.source} is no JSON object; restore it from the source"
            )
        return values

    def _content(self, name: str) -> str | None:
        file = self.files.get(name)
        if file is None:
            return None
        return file.decode() if isinstance(file, bytes) else file.read_text(encoding="utf-8")

    def restore(self, abstract: tree.Tree) -> tree.Tree:
        """The parameters of a tree of ShapeDtypeStructs, in their types and each read straight onto
        its sharding.

        Those that are `Quantized` there are quantized on the way, slice by slice, so that no whole
        weight is ever dense. ValueError for one that the checkpoint lacks or has in another shape.
        Others it has are left where they are.
        """
        wanted, specs = tree.paths(abstract, is_quantized), specs_by_path(self.config)
        for path, leaf in wanted.items():
            if path not in self.parameters:
                raise ValueError(
                    f"{self.source} has no {path}; it holds "
                    f"{', '.join(list(self.parameters)[:5])}, ..."
                )
            if self.parameters[path].shape != leaf.shape:
                raise ValueError(
                    f"{self.source}: {path} is {self.parameters[path].shape}, the model wants "
                    f"{leaf.shape}"
                )
        arrays = [
            place_quantized(self.parameters[path], leaf, specs[path].inputs, self.codes.get(path))
            if is_quantized(leaf)
            else place(self.parameters[path], leaf)
            for path, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract, is_leaf=is_quantized), arrays)


def place(parameter: Parameter, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The parameter as an array of this type on this sharding; each slice is read once and only
    where it is wanted."""
    shards = Shards(leaf)
    for index in parameter.indices():
        if shards.wants(index):
            shards.put(index, parameter.read(index))
    return shards.array()


def place_quantized(
    parameter: Parameter, leaf: Quantized, inputs: int, codes: Codes | None = None
) -> Quantized:
    """The parameter quantized as `leaf`, whose arrays are ShapeDtypeStructs, on their shardings;
    `inputs` as a spec has it.

    One slice at a time is dense, none where `codes` has it in this form already. ValueError for
    groups that do not divide the inputs.
    """
    parts, structure = jax.tree.flatten(leaf)
    shards = [Shards(part) for part in parts]
    for index in parameter.indices():
        if any(one.wants(index) for one in shards):
            made = _stored(codes, index, leaf, parameter.stack)
            if made is None:
                w = jnp.asarray(parameter.read(index).astype(np.float32))
                made = quantize_array(w, leaf.format, inputs=inputs, group=leaf.group)
            for one, values in zip(shards, jax.tree.leaves(made), strict=True):
                one.put(index, np.asarray(values))
    return jax.tree.unflatten(structure, [one.array() for one in shards])


def _stored(
    codes: Codes | None, index: tuple[int, ...], leaf: Quantized, stack: int
) -> Quantized | None:
    """A slice that is stored in the form of a leaf, None where it is not."""
    if codes is None or codes.forms[index] is None:
        return None
    made = codes.read(index)
    same = jax.tree.structure(made) == jax.tree.structure(leaf)
    shapes = [part.shape for part in jax.tree.leaves(made)] == [
        part.shape[stack:] for part in jax.tree.leaves(leaf)
    ]
    return made if same and shapes else None


def specs_by_path(c: ModelConfig) -> dict[str, Spec]:
    """Shape and axes of every parameter of a model."""
    return tree.paths(Model(c).specs())


def stacked_axes(spec: Spec) -> int:
    """How many leading axes are those of layers and experts."""
    return count_stacked(spec.axes)
