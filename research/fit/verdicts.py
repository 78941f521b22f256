"""The README's table of verdicts, made again.

python -m research.fit.verdicts [--write=research/fit/README.md]

Compiles each recipe for its target, or recalls the answer, and prints a table in
Markdown; --write puts it between the marks `<!-- verdicts -->` and `<!-- /verdicts -->` of a file.
Ten minutes or more where nothing is cached.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from research import command
from research.files import write_text
from research.fit.answer import answer
from research.fit.report import GIB, Fit
from research.run.resolve import from_config
from research.shipped import config_file

WRITE = flags.DEFINE_string("write", None, "the file whose marked part is replaced by the table")
BEGIN, END = "<!-- verdicts -->", "<!-- /verdicts -->"


@dataclass(frozen=True)
class Recipe:
    """A shipped config with its argument and changes, and the target that it is asked about."""

    config: str
    arg: str
    target: str
    changes: tuple[tuple[str, str | int], ...] = ()

    @property
    def said(self) -> str:
        """As the flags of a command, without --target."""
        return " ".join(
            [f"{self.config}.py:{self.arg}", *(f"{path}={value}" for path, value in self.changes)]
        )


# The least batch at a usual length: whether the model fits such a card at all.
_ONE_ROW = (("data.sequence_length", 2048), ("data.batch_size", 1))
# What a run would choose by memory, set to what keeps least: what is compared is then one program.
_HEAD = (("execution.head_tokens", 512),)
_LEAST = (("execution.remat", "full"), *_HEAD)
_MOST = (("execution.remat", "none"), *_HEAD)
RECIPES = (
    Recipe("pretrain", "model=llama3_8b", "v5p:4x4x4", _LEAST),
    Recipe("pretrain", "model=llama3_8b", "v6e:16x16", _LEAST),
    Recipe("pretrain", "model=llama3_8b", "v5e:16x16", _LEAST),
    Recipe("pretrain", "model=llama3_8b", "h100:8", _LEAST),
    Recipe("pretrain", "model=llama3_70b", "v5p:8x8x8", _LEAST),
    Recipe("pretrain", "model=llama3_405b", "v5p:8x16x16", _LEAST),
    Recipe("pretrain", "model=mixtral_8x7b", "v5p:4x4x4", (("mesh", "expert:8,fsdp:-1"), *_LEAST)),
    Recipe("pretrain", "model=bert_base", "l4", _LEAST),
    Recipe("finetune", "model=llama3_8b,method=full", "h100:8", (("mesh", "fsdp:-1"), *_MOST)),
    Recipe("finetune", "model=llama3_8b,method=lora", "rtx4090", (*_ONE_ROW, *_MOST)),
    Recipe("finetune", "model=llama3_8b,method=qlora", "rtx4090", _ONE_ROW),
    Recipe("finetune", "model=llama3_70b,method=qlora", "h100:1", _ONE_ROW),
)


def ask(recipe: Recipe) -> Fit:
    """What fit says of a recipe."""
    # Configs are files beside the package and not modules of it.
    spec = importlib.util.spec_from_file_location(
        f"configs_{recipe.config}", config_file(recipe.config)
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(recipe.arg)
    config.update_from_flattened_dict(dict(recipe.changes))
    return answer(from_config(config), recipe.target)


def row(recipe: Recipe, fit: Fit) -> str:
    """A line of the table."""
    verdict = "fits" if fit.fits else "**does not fit**"
    cells = [
        f"`{recipe.said}`",
        f"`{recipe.target}`",
        f"{verdict}, {fit.total / GIB:.1f} of {fit.capacity / GIB:.1f} GiB",
    ]
    cells += [
        f"{value:.2f}" if value is not None else "-"
        for value in (fit.recompute_ratio, fit.collective_ratio)
    ]
    if fit.tokens_per_second:
        cells += [fit.roofline.bound, f"{fit.mfu:.0%}", f"{fit.tokens_per_second / fit.chips:,.0f}"]
    else:
        cells += ["-"] * 3
    return f"| {' | '.join(cells)} |"


def table(fits: list[tuple[Recipe, Fit]]) -> str:
    """All of them in Markdown. Ratios are of what is executed to three forward passes, and of
    collectives to the least."""
    head = (
        "recipe",
        "target",
        "a device",
        "recompute",
        "collectives",
        "bound by",
        "MFU at most",
        "tokens/s a chip at most",
    )
    rows = [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(row(recipe, fit) for recipe, fit in fits),
    ]
    return "\n".join(rows)


def replaced(text: str, new: str) -> str:
    """`text` with what is between the marks replaced. ValueError where they are not there."""
    pattern = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(
            f"the file has no part between {BEGIN} and {END}, each on a line of its own"
        )
    # A function, since a plain replacement would read backslashes in the table.
    return pattern.sub(lambda _: f"{new}\n", text)


def main(arguments: list[str]) -> int:
    """The command."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; the only flag is --write=FILE")
    new = table([(recipe, ask(recipe)) for recipe in RECIPES])
    print(new)
    if WRITE.value:
        file = Path(WRITE.value)
        write_text(file, replaced(file.read_text(), new))
    return command.DONE


if __name__ == "__main__":
    command.run(main)
