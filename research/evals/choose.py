"""The table of evaluations, and those that a run's config chooses from it."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from research.evals.answers import Answers
from research.evals.bbq import BBQ
from research.evals.bold import Bold
from research.evals.briefs import Briefs
from research.evals.calibration import Calibration
from research.evals.choices import Choices
from research.evals.classified import Classified
from research.evals.code import Code
from research.evals.counterfactual import Counterfactual
from research.evals.crows_pairs import CrowsPairs
from research.evals.documents import Documents
from research.evals.entities import Entities
from research.evals.evaluation import Evaluation, RunData
from research.evals.generation import Generation
from research.evals.grounded import Grounded
from research.evals.harness import Harness
from research.evals.heldout import HeldOut
from research.evals.honest import Honest
from research.evals.infilling import Infilling
from research.evals.judge import Judge
from research.evals.media import Media
from research.evals.memorisation import Memorisation
from research.evals.needle import Needle
from research.evals.pairs import PairPerplexity
from research.evals.pictures import Pictures
from research.evals.pii import Pii
from research.evals.queries import Queries
from research.evals.ready import READY
from research.evals.refusal import Refusal
from research.evals.retrieval import Retrieval
from research.evals.rewarded import Rewarded
from research.evals.selfcheck import SelfCheck
from research.evals.semantic_entropy import SemanticEntropy
from research.evals.snowball import Snowball
from research.evals.stereoset import StereoSet
from research.evals.text_perplexity import TextPerplexity
from research.evals.toxicity import Toxicity
from research.evals.truthfulness import Truthfulness
from research.evals.winobias import WinoBias
from research.evals.winogender import Winogender
from research.experiment.fields import build, nearest

# One row an evaluation: its name in config.evals and its class.
EVALUATIONS: dict[str, type[Evaluation]] = {
    "heldout": HeldOut,
    "perplexity": TextPerplexity,
    "pairs": PairPerplexity,
    "pictures": Pictures,
    "media": Media,
    "rewards": Rewarded,
    "documents": Documents,
    "choices": Choices,
    "generation": Generation,
    "code": Code,
    "classification": Classified,
    "answers": Answers,
    "entities": Entities,
    "retrieval": Retrieval,
    "needle": Needle,
    "queries": Queries,
    "briefs": Briefs,
    "infilling": Infilling,
    "grounded": Grounded,
    "judge": Judge,
    "truthfulness": Truthfulness,
    "snowball": Snowball,
    "selfcheck": SelfCheck,
    "semantic_entropy": SemanticEntropy,
    "calibration": Calibration,
    "refusal": Refusal,
    "toxicity": Toxicity,
    "memorisation": Memorisation,
    "pii": Pii,
    "crows_pairs": CrowsPairs,
    "stereoset": StereoSet,
    "bbq": BBQ,
    "winobias": WinoBias,
    "winogender": Winogender,
    "bold": Bold,
    "honest": Honest,
    "counterfactual": Counterfactual,
    "harness": Harness,
}


def shorthand(name: str) -> tuple[str, dict[str, Any]]:
    """The name and first settings that "KIND:FILE" is short for; any other name is itself.

    >>> shorthand("counterfactual:data/own.jsonl")
    ('counterfactual_own', {'kind': 'counterfactual', 'data': 'data/own.jsonl'})
    """
    kind, colon, file = name.partition(":")
    if not colon or not file or kind not in EVALUATIONS:
        return name, {}
    return f"{kind}_{PurePath(file).stem}", {"kind": kind, "data": file}


def make_evaluations(
    settings: Mapping[str, Mapping[str, Any]], data: RunData
) -> dict[str, Evaluation]:
    """The evaluations of `config.evals`, by name.

    A name is a row of `EVALUATIONS` or of `READY`, which has data and settings of its own that the
    given ones change. With any other name the settings say under `kind` which row it is, so that
    two texts can be scored:

        config.evals.perplexity = {"text": "notes.txt"}
        config.evals.letters = {"kind": "perplexity", "text": "letters.txt", "window": 256}
        config.evals.boolq = {"limit": 200}

    The name "KIND:FILE" is short for the kind with that data.

    ValueError for an unknown evaluation or setting, and for one that does not fit the run.
    """
    evaluations = {}
    for given, values in settings.items():
        name, short = shorthand(given)
        where = f"config.evals.{name}"
        # Metrics are named EVALUATION/METRIC, so a slash in the name would make them ambiguous.
        if "/" in name or not isinstance(values, Mapping):
            raise ValueError(f"{where}={values!r} must be a name without a slash and its settings")
        # A copy, since `kind` is taken out and the config must stay as it is.
        fields = {**short, **values}
        kind = fields.pop("kind", name)
        if kind in READY:
            fields = {**READY[kind], **fields}
            kind = fields.pop("kind")
        if kind not in EVALUATIONS:
            raise ValueError(
                f"{where}: no evaluation {kind!r}; {nearest(str(kind), {**EVALUATIONS, **READY})}"
            )
        # `build` refuses what the dataclass has no field for, `make` what does not fit the run.
        evaluation = EVALUATIONS[kind]
        try:
            evaluations[name] = evaluation.make(build(evaluation.config, fields, where), data)
        except ValueError as error:
            # `build` names the field already; errors of `make` know nothing of the config.
            line = str(error)
            raise ValueError(line if line.startswith(where) else f"{where}: {line}") from None
    return evaluations
