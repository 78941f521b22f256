"""The scaling law of a sweep's runs: fitted without the largest size, whose loss it then predicts.

The sweep is a ladder of sizes and of training tokens, such as configs/ablations/scaling.py; every
run that is done is a point. N is the number of weights that multiply a token, embeddings left out
(`research.training.flops.matmul_parameters`), since a small model is mostly embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.experiment.config import from_json
from research.files import read_json, write_json
from research.sweep.ledger import Ledger
from research.sweep.plan import read_plan
from research.sweep.scaling_law import Law, fit
from research.training.flops import matmul_parameters

FILE = "scaling.json"


@dataclass(frozen=True)
class Run:
    """A point of the law: weights, training tokens, and the measured loss."""

    parameters: int
    tokens: float
    loss: float


def write_law(ledger: Ledger) -> dict[str, Any]:
    """Fits the law to the runs of a ledger, writes `scaling.json`, which the report shows, and
    returns its values."""
    values = predicted(points(ledger))
    write_json(ledger.folder / FILE, values)
    return values


def points(ledger: Ledger) -> list[Run]:
    """A point for each run that is done, by the plan's first metric."""
    plan, records = read_plan(ledger), ledger.records()
    metric, found = next(iter(plan.metrics)), []
    for key in plan.cells:
        record = records.get(key, {})
        if record.get("state") == "done":
            model = from_json(read_json(ledger.cell(key) / "config.json")).model
            found.append(Run(matmul_parameters(model), record["tokens"], record["metrics"][metric]))
    return found


def predicted(runs: Sequence[Run]) -> dict[str, Any]:
    """The values of `scaling.json`: the law without the largest size, its prediction for each of
    that size's numbers of tokens, and what was measured there. ValueError for too few runs."""
    largest = max((run.parameters for run in runs), default=0)
    known = [run for run in runs if run.parameters < largest]
    law = fit(*_columns(known))
    heldout = []
    for tokens in sorted({run.tokens for run in runs if run.parameters == largest}):
        losses = [r.loss for r in runs if (r.parameters, r.tokens) == (largest, tokens)]
        mean = sum(losses) / len(losses)
        guess = law.loss(largest, tokens)
        low, high = law.interval(largest, tokens)
        heldout.append(
            {
                "parameters": largest,
                "tokens": tokens,
                "predicted": guess,
                "low": low,
                "high": high,
                "measured": mean,
                "runs": len(losses),
                "error": guess / mean - 1,
            }
        )
    return {
        "constants": law.constants,
        "intervals": law.intervals,
        "heldout": heldout,
        "runs": [[run.parameters, run.tokens, run.loss] for run in runs],
        "curves": _curves(law, runs),
    }


def sentences(values: Mapping[str, Any]) -> list[str]:
    """A `scaling.json` in words."""
    constants = ", ".join(
        f"{name} {value:.4g} ({values['intervals'][name][0]:.4g} to "
        f"{values['intervals'][name][1]:.4g})"
        for name, value in values["constants"].items()
    )
    lines = [f"L(N, D) = E + A / N^alpha + B / D^beta with {constants}: 90% for all five together"]
    for one in values["heldout"]:
        lines.append(
            f"{one['parameters']:,} weights on {one['tokens']:,.0f} tokens, left out of the fit: "
            f"predicted {one['predicted']:.4f} ({one['low']:.4f} to {one['high']:.4f}), measured "
            f"{one['measured']:.4f}: {one['error']:+.2%}"
        )
    return lines


def _columns(runs: Sequence[Run]) -> tuple[list[float], list[float], list[float]]:
    return [r.parameters for r in runs], [r.tokens for r in runs], [r.loss for r in runs]


def _curves(law: Law, runs: Sequence[Run]) -> dict[str, list[list[float]]]:
    """[N, L] pairs of the law by tokens, over the sizes of the runs."""
    sizes = sorted({run.parameters for run in runs})
    return {
        f"{tokens:.0f}": [[size, law.loss(size, tokens)] for size in sizes]
        for tokens in sorted({run.tokens for run in runs})
    }
