"""The commit of the hub that a run starts from: `config.init` without one names other files once
the model's page has changed."""

import re
from dataclasses import replace
from pathlib import Path

from research.downloads.hub import PREFIX, pinned
from research.experiment.config import Experiment
from research.interop.load import local_path
from research.run.resumed import read_config

_COMMIT = re.compile(r"@[0-9a-f]{40}$")


def pin_init(experiment: Experiment, workdir: Path) -> tuple[Experiment, list[str]]:
    """(the experiment with the commit of an init of the hub, lines for the log of the run). A run
    that `workdir` holds keeps the commit that it started from."""
    init = experiment.init
    if not init.startswith(PREFIX) or _COMMIT.search(init):
        return experiment, []
    before = _before(workdir)
    if before.partition("@")[0] == init.partition("@")[0]:
        return replace(experiment, init=before), []
    named = pinned(local_path(init)) or init
    return replace(experiment, init=named), [f"config.init={init} is {named}, for resumes too"]


def _before(workdir: Path) -> str:
    file = workdir / "config.json"
    return str(read_config(file).get("init", "")) if file.is_file() else ""
