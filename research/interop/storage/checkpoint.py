"""An opened checkpoint of any format: the model's config, parameters that are read slice by slice,
and companion files such as the tokenizer's."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from research import tree
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.data.tokenizers.tokenizer import UnknownTokenizer
from research.infer.sentences import SentenceSettings
from research.interop.storage import generation
from research.interop.storage.parameter import Codes, Parameter
from research.interop.storage.place import place_all, place_quantized
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import Spec
from research.weights.matrices import count_stacked
from research.weights.quantized import is_quantized

Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """The result of `open_checkpoint`; a context manager that closes the files.

    source      the folder or file
    format      name of the format, such as "run" for our own
    config      shape of the model
    parameters  by path of our tree; quantized ones are read dense
    special     special tokens' ids by their names in a config.json (eos_token_id: one or several)
    files       the tokenizer's and other companions of a complete folder, as paths or content
    unused      why each tensor that is not a parameter is not needed, by name
    original    `original(params)` yields (tensor name, read it, build it from `params`) to certify
                a round trip. None for our own format
    quantized   True if the storage has fewer bits than `dtype`
    stored_as   the quantized format with its numbers, for people; "" where nothing is said of it
    codes       the parameters that are quantized in storage, to be read as leaves
    model_type  of Hugging Face's config.json, "" in other formats
    labels      names of a classifier's classes where the file itself has them, else empty
    """

    source: Path
    format: str
    config: ModelConfig
    parameters: Mapping[str, Parameter]
    special: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    original: Callable[[Mapping[str, Parameter]], Iterator[tuple[str, Read, Read]]] | None = None
    quantized: bool = False
    tokenizer_folder: Path | None = None
    close: Callable[[], None] = lambda: None
    codes: Mapping[str, Codes] = field(default_factory=dict)
    model_type: str = ""
    stored_as: str = ""
    labels: tuple[str, ...] = ()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, None without one and, with a warning, without its reader."""
        if self.tokenizer_folder is not None:
            try:
                return load_tokenizer(self.tokenizer_folder)
            except UnknownTokenizer as error:
                logging.warning("%s; the weights are read without it", error)
                return None
        contents = {
            name: content for name, content in self.files.items() if isinstance(content, bytes)
        }
        if not contents:
            return None
        # Tokenizers are loaded from folders only; GGUF files and packages have theirs as content.
        with tempfile.TemporaryDirectory() as folder:
            for name, content in contents.items():
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                (Path(folder) / name).write_bytes(content)
            return load_tokenizer(folder)

    @cached_property
    def begins_texts(self) -> bool:
        """True if a text follows a begin-of-text token: as tokenizer_config.json says, else as
        tokenizer.json does it, and never for Marian's translators. True without any of these,
        which is how our own runs train."""
        if self.tokenizer is not None and self.tokenizer.kind == "marian":
            return False
        # Two files may say it; the explicit setting goes before the post-processor.
        says = self._settings("tokenizer_config.json").get("add_bos_token")
        whole = self._content("tokenizer.json") or self._converted_tokenizer()
        if isinstance(says, bool) or whole is None or self.format == "run":
            return says is not False
        # The post-processor of tokenizer.json may add the token; encoding a letter shows it.
        ids = tokenizers.Tokenizer.from_str(whole).encode("a", add_special_tokens=True).ids
        return ids[:1] == [self.tokenizer.bos_id]

    def _converted_tokenizer(self) -> str | None:
        """The tokenizer.json that the files of an older kind were made into; None without one."""
        content = self.tokenizer.files.get("tokenizer.json") if self.tokenizer else None
        return None if content is None else content.decode()

    def portable_tokenizer(self) -> dict[str, bytes]:
        """The contents of a tokenizer.json and its settings where the checkpoint has a tokenizer of
        an older kind, whose files say nothing without its config.json; {} otherwise."""
        if any(name in self.files for name in ("tokenizer.json", "tokenizer.model")):
            return {}
        return dict(self.tokenizer.files) if self.tokenizer else {}

    @cached_property
    def sentence_settings(self) -> SentenceSettings:
        """How a text becomes one vector, by sentence-transformers' files; by default the mean over
        tokens, normalized. ValueError for a kind of pooling that we do not have."""
        pooling = self._settings("1_Pooling/config.json")
        chosen = [
            name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True
        ]
        # The kinds that `research.infer.sentences` computes.
        names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if len(chosen) > 1 or not set(chosen) <= set(names):
            raise ValueError(
                f"{self.source} pools by {', '.join(chosen)}; there are {', '.join(names)}"
            )
        modules = self._content("modules.json")
        # A sentence model may have been trained on shorter texts than its positions allow.
        limit = self._settings("sentence_bert_config.json").get("max_seq_length")
        return SentenceSettings(
            names[chosen[0]] if chosen else "mean",
            # modules.json lists the steps; normalization is one that a model may lack.
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
        """The JSON object in a companion file, {} if there is no such file. ValueError for a file
        with anything else."""
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
        """The parameters that a tree of ShapeDtypeStructs names, in these types, each read directly
        onto its sharding.

        Where the tree has a `Quantized` of ShapeDtypeStructs, slices are quantized one by one as
        they are read, so that no whole weight is ever dense. ValueError for a parameter that the
        checkpoint lacks or has in another shape. Other parameters are not read.
        """
        # All is checked before the first byte is read: reading may take minutes.
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
        # Type, sharding and format of each parameter are those of `abstract`.
        plain = {path: leaf for path, leaf in wanted.items() if not is_quantized(leaf)}
        arrays = place_all(self.parameters, plain) | {
            path: place_quantized(
                self.parameters[path], leaf, specs[path].inputs, self.codes.get(path)
            )
            for path, leaf in wanted.items()
            if is_quantized(leaf)
        }
        structure = jax.tree.structure(abstract, is_leaf=is_quantized)
        return jax.tree.unflatten(structure, [arrays[path] for path in wanted])


def specs_by_path(c: ModelConfig) -> dict[str, Spec]:
    """The spec of every parameter of a model, by path."""
    return tree.paths(Model(c).specs())


def stacked_axes(spec: Spec) -> int:
    """Number of leading axes that number layers and experts."""
    return count_stacked(spec.axes)
