"""The encoder of images that a model may have, as a section of its config."""

from dataclasses import dataclass, fields

from research.models.config_checks import choice, setting
from research.models.part_checks import check_encoder


@dataclass(frozen=True)
class Form:
    """What vision transformers of one lineage have in common (arXiv:2010.11929).

    class_token   a learned token stands before the patches
    patch_bias    the projection of patches has a bias
    input_norm    a norm before the first layer
    activation    of the feed-forward layers
    norm_eps      of the layer norms
    layer_scale   what a branch adds is multiplied by a learned vector (arXiv:2103.17239)
    mean, std     of red, green and blue in 0..1, by which pixels are normalised
    """

    class_token: bool
    patch_bias: bool
    input_norm: bool
    activation: str
    norm_eps: float
    layer_scale: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_HALF = (0.5, 0.5, 0.5)
# Pixels as the released preprocessors of each lineage normalise them.
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FORMS: dict[str, Form] = {
    # arXiv:2303.15343, arXiv:2103.00020 and arXiv:2304.07193.
    "siglip": Form(False, True, False, "gelu_tanh", 1e-6, False, _HALF, _HALF),
    "clip": Form(True, False, True, "gelu_quick", 1e-5, False, *_CLIP),
    "dinov2": Form(True, True, False, "gelu", 1e-6, True, *_IMAGENET),
}

PROJECTORS = ("linear", "mlp", "shuffle", "pool", "class", "attend")
# Those that make one vector of an image, to be compared with that of a text.
POOLERS = ("class", "attend")
ATTENTIONS = ("causal", "block", "prefix")
_IN_TEXTS = ("read_before", "frames", "token", "attention")


@dataclass(frozen=True)
class ImageConfig:
    """A vision transformer and the projector that makes soft tokens of its states
    (`research.models.vit`, `research.models.projector`). Without layers there is none, and every
    other field must keep its default.

    `read_before` layers at the end are not run, and then neither is the last norm: LLaVA reads
    the states before the last layer (arXiv:2304.08485). `merge` is the side of the square of
    patches that one soft token is made of. `frames` images in a row become one block, the mean of
    their soft tokens: video pooled in time. `token` is the id of a soft token's place in a text.
    `attention` says what soft tokens see beside their past: nothing ("causal", LLaVA and SmolVLM),
    the tokens of their own image ("block", Gemma 3), or, with the text before an answer, all of it
    ("prefix", PaliGemma; arXiv:2407.07726, section 3.2).
    """

    form: str = choice(*FORMS)
    layers: int = 0
    size: int = setting(224, positive=True)  # pixels of a side
    patch: int = setting(14, positive=True)  # pixels of a patch's side
    d_model: int = setting(768, positive=True)
    heads: int = setting(12, positive=True)
    d_ff: int = setting(3072, positive=True)
    read_before: int = 0
    projector: str = choice(*PROJECTORS)
    merge: int = setting(1, positive=True)
    frames: int = setting(1, positive=True)
    token: int = 0
    attention: str = choice(*ATTENTIONS)

    def __post_init__(self):
        check_encoder("image", "images", self)
        if self.layers:
            self._check_shapes()

    def _check_shapes(self) -> None:
        for small, large in (("patch", "size"), ("heads", "d_model")):
            if getattr(self, large) % getattr(self, small):
                raise ValueError(
                    f"model.image.{large}={getattr(self, large)} must be a multiple of "
                    f"model.image.{small}={getattr(self, small)}"
                )
        if self.grid % self.merge:
            raise ValueError(
                f"model.image.merge={self.merge} must divide the {self.grid} patches of a side"
            )
        if self.merge > 1 and self.projector not in ("shuffle", "pool"):
            raise ValueError(
                f"model.image.merge={self.merge} is for the projectors shuffle and pool; set "
                "model.image.projector, or leave it at 1"
            )
        self._check_pooler()
        if self.read_before >= self.layers:
            raise ValueError(
                f"model.image.read_before={self.read_before} leaves none of "
                f"model.image.layers={self.layers}"
            )

    def _check_pooler(self) -> None:
        if self.projector == "class" and not self.features.class_token:
            raise ValueError(
                f"model.image.projector='class' reads a class token, which model.image.form="
                f"{self.form!r} has not; set another of the two"
            )
        if not self.pools:
            return
        for one in fields(self):
            if one.name in _IN_TEXTS and getattr(self, one.name) != one.default:
                raise ValueError(
                    f"model.image.{one.name} is for soft tokens, and model.image.projector="
                    f"{self.projector!r} makes a vector of an image; leave it at {one.default}"
                )

    @property
    def pools(self) -> bool:
        """True where an image is one vector beside texts, not tokens within them."""
        return self.projector in POOLERS

    @property
    def in_texts(self) -> bool:
        """True where texts have places of soft tokens."""
        return self.layers > 0 and not self.pools

    @property
    def features(self) -> Form:
        """What the form says of the layers."""
        return FORMS[self.form]

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.size // self.patch

    @property
    def tokens(self) -> int:
        """Soft tokens of an image, or of `frames` of them."""
        return 1 if self.pools else (self.grid // self.merge) ** 2
