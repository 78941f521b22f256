"""What `research.compress` is asked for, as it is spelt: METHOD:AMOUNT, such as "wanda:2:4"."""

import difflib
import re
from dataclasses import dataclass

from research.compress.masks import Pruning
from research.compress.methods import METHODS
from research.compress.prune import PRUNERS, UNCALIBRATED
from research.weights.formats import FORMATS

QUANTIZERS = ("rtn", *METHODS)
SPELLINGS = (
    "magnitude|wanda|ria|sparsegpt:SHARE or N:M, with :FORMAT where the rest is rounded too; "
    "depth:LAYERS, width:SHARE, gptq|awq|smoothquant|rtn:FORMAT"
)


@dataclass(frozen=True)
class Recipe:
    """One compression of the matrices of a model's layers.

    method   a row of `PRUNERS` or of `METHODS`, "rtn", "depth" or "width"
    pruning  what a pruner removes, and the format of what it keeps
    layers   how many layers depth removes
    share    the share of channels and groups of heads that width keeps
    format   of a quantization
    """

    method: str
    pruning: Pruning | None = None
    layers: int = 0
    share: float = 1.0
    format: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether it looks at texts."""
        return self.method not in ("rtn", *UNCALIBRATED)

    @property
    def rounds(self) -> str:
        """The format that matrices are rounded to, "" for none."""
        return self.format or (self.pruning.format if self.pruning else "")


def parse(spelling: str) -> Recipe:
    """The recipe of a spelling. ValueError with what there is, and the nearest name.

    >>> parse("sparsegpt:2:4:int4").pruning
    Pruning(share=0.0, pattern=(2, 4), format='int4')
    >>> parse("depth:4").layers
    4
    """
    method, _, amount = spelling.partition(":")
    known = (*PRUNERS, *QUANTIZERS, "depth", "width")
    if method not in known:
        near = difflib.get_close_matches(method, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"recipe {spelling!r}: {method!r} is none of {SPELLINGS}{meant}")
    try:
        if method == "depth":
            return Recipe(method, layers=_whole(amount))
        if method == "width":
            return Recipe(method, share=_share(amount))
        if method in PRUNERS:
            return Recipe(method, pruning=_pruning(amount))
        return Recipe(method, format=_format(amount))
    except ValueError as error:
        raise ValueError(f"recipe {spelling!r}: {error}; spell it as {SPELLINGS}") from None


def _pruning(amount: str) -> Pruning:
    if found := re.fullmatch(r"(\d+):(\d+)(?::(.+))?", amount):
        pattern = int(found[1]), int(found[2])
        return Pruning(pattern=pattern, format=_format(found[3]) if found[3] else "")
    share, _, format = amount.partition(":")
    return Pruning(_share(share), format=_format(format) if format else "")


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{text!r} is no number of layers of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no share, such as 0.5") from None
    if not 0 <= share <= 1:
        raise ValueError(f"the share {text} does not lie in 0 to 1")
    return share


def _format(text: str) -> str:
    if text not in FORMATS:
        near = difflib.get_close_matches(text, FORMATS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{text!r} is no format of {', '.join(FORMATS)}{meant}")
    return text
