"""What models that read images have in common in Hugging Face's names: an encoder in SigLIP's or
CLIP's form, and a decoder of another family whose tensors and config.json are a part of theirs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families.fields import activation, integer, number
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.image_config import FORMS, ImageConfig

# transformers' names of activations, where encoders of images have them.
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu_quick": "quick_gelu", "gelu": "gelu"}
# What a config.json leaves out has the defaults of transformers' class.
_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_SIZES |= {"num_attention_heads": 12, "image_size": 224}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "siglip_vision_model": {**_SIZES, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh"},
    "clip_vision_model": {**_SIZES, "patch_size": 32, "hidden_act": "quick_gelu"},
}
_IDEFICS = {**_DEFAULTS["siglip_vision_model"], "hidden_size": 1152, "num_attention_heads": 16}
_DEFAULTS |= {
    name: {**_IDEFICS, "patch_size": 32} for name in ("idefics3_vision", "smolvlm_vision")
}
# Where the patches' positions may stand, as a buffer that early releases saved.
UNUSED = ((r".*\.position_ids", "the numbers from 0 on"),)
HEAD = (r"vision_tower\.head\..*", "pools images, which the decoder does not read")
# Names in which transformers 4.52 and later hold what files call otherwise.
RENAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
)


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The section of config.json with this name. ValueError where it is no object."""
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"config.json has {name}={found!r}; wanted an object")
    return found


def read_encoder(values: Mapping[str, Any], kind: str, form: str) -> dict[str, Any]:
    """The fields of `ImageConfig` in the section "vision_config", of an encoder of this type unless
    it names another. ValueError for an encoder that is not of the form."""
    said = section(values, "vision_config")
    if (found := said.get("model_type", kind)) != kind:
        raise ValueError(
            f"config.json has vision_config.model_type={found!r}; {kind} is supported here"
        )
    said = {**_DEFAULTS[kind], **said}
    check_form(said, "vision_config", form)
    if (colours := integer(said, "num_channels", 3)) != 3:
        raise ValueError(f"config.json has vision_config.num_channels={colours}; 3 are supported")
    return {
        "form": form,
        "layers": integer(said, "num_hidden_layers"),
        "size": integer(said, "image_size"),
        "patch": integer(said, "patch_size"),
        "d_model": integer(said, "hidden_size"),
        "heads": integer(said, "num_attention_heads"),
        "d_ff": integer(said, "intermediate_size"),
    }


def check_form(said: Mapping[str, Any], where: str, form: str) -> None:
    """ValueError for a section of config.json whose layers are not those of a form."""
    for name, got, wanted in (
        ("hidden_act", _activation(said, form), FORMS[form].activation),
        (
            "layer_norm_eps",
            number(said, "layer_norm_eps", FORMS[form].norm_eps),
            FORMS[form].norm_eps,
        ),
    ):
        if got != wanted:
            raise ValueError(
                f"config.json has {where}.{name}={said[name]!r}; a model in the form of {form} has "
                f"{_ACTIVATIONS.get(wanted, wanted)}"
            )


def write_form(form: str) -> dict[str, Any]:
    """What `check_form` reads."""
    act = _ACTIVATIONS[FORMS[form].activation]
    return {"hidden_act": act, "layer_norm_eps": FORMS[form].norm_eps}


def _activation(said: Mapping[str, Any], form: str) -> str:
    # No decoder has it.
    if said.get("hidden_act") == "quick_gelu":
        return "gelu_quick"
    plain = FORMS[form].activation
    return plain if "hidden_act" not in said else activation(said, "hidden_act", "gelu")


def write_encoder(c: ImageConfig, kind: str) -> dict[str, Any]:
    """The section "vision_config" of config.json, the inverse of `read_encoder`."""
    return {
        "model_type": kind,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "image_size": c.size,
        "patch_size": c.patch,
        "num_channels": 3,
        **write_form(c.form),
        "attention_dropout": 0.0,
    }


def encoder_rules(c: ImageConfig, prefix: str, ours: str = "image") -> list[Rule]:
    """The tensors of SigLIP's and CLIP's encoders, whose names begin with `prefix`."""
    form, layer, stack = c.features, f"{prefix}encoder.layers.{{layer}}", f"{ours}/layers"
    embeddings = f"{prefix}embeddings"
    rules = [
        Rule(
            f"{embeddings}.patch_embedding.weight",
            f"{ours}/patch/kernel",
            "id 3 ip iq -> (ip iq 3) id",
        ),
        Rule(f"{embeddings}.position_embedding.weight", f"{ours}/positions", "it id -> it id"),
        *_norm(f"{prefix}post_layernorm", f"{ours}/final_norm"),
    ]
    if form.patch_bias:
        rules.append(Rule(f"{embeddings}.patch_embedding.bias", f"{ours}/patch/bias", "id -> id"))
    if form.class_token:
        rules.append(Rule(f"{embeddings}.class_embedding", f"{ours}/class", "id -> 1 id"))
    if form.input_norm:
        # Misspelt in every release.
        rules += _norm(f"{prefix}pre_layrnorm", f"{ours}/input_norm")
    return [*rules, *layer_rules(layer, stack, dict(zip(_LETTERS, _LETTERS)))]


def layer_rules(layer: str, stack: str, letters: Mapping[str, str]) -> list[Rule]:
    """The tensors of the layers of SigLIP's and CLIP's encoders, of images or, with other letters,
    of texts."""

    def _rule(name: str, path: str, pattern: str) -> Rule:
        spelt = re.sub(r"i[dnhf]\b", lambda found: letters[found[0]], pattern)
        return Rule(f"{layer}.{name}", f"{stack}/{path}", spelt)

    rules = [
        _rule(f"layer_norm{n}.{theirs}", f"{norm}/{ours}", "id -> id")
        for n, norm in ((1, "attention_norm"), (2, "mlp_norm"))
        for theirs, ours in _NORM
    ]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value")):
        tensor, path = f"self_attn.{theirs}_proj", f"attention/{name}"
        rules.append(_rule(f"{tensor}.weight", path, "(in ih) id -> id in ih"))
        rules.append(_rule(f"{tensor}.bias", f"{path}_bias", "(in ih) -> in ih"))
    return [
        *rules,
        _rule("self_attn.out_proj.weight", "attention/out", "id (in ih) -> in ih id"),
        _rule("self_attn.out_proj.bias", "attention/out_bias", "id -> id"),
        _rule("mlp.fc1.weight", "mlp/up", "if id -> id if"),
        _rule("mlp.fc1.bias", "mlp/up_bias", "if -> if"),
        _rule("mlp.fc2.weight", "mlp/down", "id if -> if id"),
        _rule("mlp.fc2.bias", "mlp/down_bias", "id -> id"),
    ]


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.{w}", f"{path}/{p}", "id -> id") for w, p in _NORM]


_NORM = (("weight", "scale"), ("bias", "bias"))
_LETTERS = ("id", "in", "ih", "if")


def read_decoder(
    family: Family, values: Mapping[str, Any], defaults: Mapping[str, Any], tied: bool
) -> ModelConfig:
    """The decoder in the section "text_config", one of `family`'s; the defaults stand for what it
    leaves out. `tied` is what the class takes for a file that does not say it."""
    said = {**defaults, **section(values, "text_config")}
    if said["model_type"] not in family.model_types:
        raise ValueError(
            f"config.json has text_config.model_type={said['model_type']!r}; there are "
            f"{', '.join(family.model_types)}"
        )
    # The whole model's word counts; the section has a default that nobody reads.
    said["tie_word_embeddings"] = values.get("tie_word_embeddings", tied)
    return family.read_config(said, set())


def decoder_rules(rules: Sequence[Rule], body: str, head: str) -> list[Rule]:
    """The decoder's tensors where the whole model has them: "model." is `body`, "lm_head." is
    `head`."""

    def _renamed(name: str) -> str:
        return name.replace("model.", body, 1) if name.startswith("model.") else head + name

    return [replace(rule, name=_renamed(rule.name)) for rule in rules]


def text_of(c: ModelConfig) -> ModelConfig:
    """The decoder alone, without what makes its soft tokens."""
    return replace(c, image=ImageConfig())
