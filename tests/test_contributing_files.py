"""Additions that change files of the package, as CONTRIBUTING.md says: made in a copy of it, where
the files that they touch are counted, and used there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODELS, FAMILIES = "research/models", "research/interop/huggingface/families"

# By file: (text that is there, the text for it) as often as needed, or all of a new file.
Changes = dict[str, tuple[tuple[str, str], ...] | str]

Z_LOSS: Changes = {
    f"{MODELS}/config.py": (
        (
            'router_loss: float = setting(0.0, EXPERTS, weighs="router_balance")',
            'router_loss: float = setting(0.0, EXPERTS, weighs="router_balance")\n'
            '    router_z_loss: float = setting(0.0, EXPERTS, weighs="router_z")',
        ),
    ),
    # ST-MoE's router z-loss (arXiv:2202.08906, eq. 5).
    f"{MODELS}/mixture.py": (
        (
            'return y_BTD, {"router_balance": ',
            "squares_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))\n"
            "    z = jnp.sum(squares_BT * counted_BT) / jnp.maximum(jnp.sum(counted_BT), 1)\n"
            '    return y_BTD, {"router_z": z, "router_balance": ',
        ),
    ),
}
# An imagined relative of Mistral: every n-th layer sees half of the window.
NARROW: Changes = {
    f"{MODELS}/config.py": (
        (
            "unrotated_every: int = setting(0, ROTARY, PERIODIC)",
            "unrotated_every: int = setting(0, ROTARY, PERIODIC)\n"
            "    narrow_every: int = setting(0, WINDOWED)",
        ),
    ),
    f"{MODELS}/kinds.py": (
        (
            '"global": KindRule(lambda c: c.global_every, lambda c: 0, _rates),',
            '"global": KindRule(lambda c: c.global_every, lambda c: 0, _rates),\n'
            '    "narrow": KindRule(lambda c: c.narrow_every, lambda c: c.window // 2, _rates),',
        ),
    ),
    f"{FAMILIES}/narrow.py": """
from dataclasses import replace

from research.interop.huggingface.families import llama

def read_config(values, names):
    config = llama.read_config({**values, "model_type": "mistral"}, names)
    return replace(config, narrow_every=values["narrow_layer_interval"])

def write_config(c):
    own = {"model_type": "narrow", "architectures": ["NarrowForCausalLM"]}
    plain = llama.write_config(replace(c, narrow_every=0))
    return {**plain, **own, "narrow_layer_interval": c.narrow_every}

def serves(c):
    return c.narrow_every > 0 and llama.serves(replace(c, narrow_every=0))

FAMILY = replace(
    llama.FAMILY, model_types=("narrow",), serves=serves,
    read_config=read_config, write_config=write_config,
)
""",
    f"{FAMILIES}/table.py": (
        ("    modernbert,\n", "    modernbert,\n    narrow,\n"),
        ('"marian": marian.FAMILY,', '"marian": marian.FAMILY,\n    "narrow": narrow.FAMILY,'),
    ),
}

USE_Z_LOSS = """
import jax, numpy as np
from research.fit.compile import abstract_batch, objective_without_data
from research.interop.huggingface.families.table import describe
from research.models.config import ModelConfig
from research.run.program import make_program
from tests.fields import tiny

sizes = {"model.experts": 4, "model.router_loss": 0.25, "model.router_z_loss": 0.5}
e = tiny(sizes)
program = make_program(e, objective_without_data(e), jax.devices()[:1])
batch = {name: np.ones(x.shape, x.dtype) for name, x in abstract_batch(program).items()}
with jax.set_mesh(program.mesh):
    state = program.init()
    router = np.asarray(state.trainable["layers"]["mlp"]["router"])
    for _ in range(3):  # the learning rate of the first is 0
        state, metrics = program.train_step(state, batch)
got = {name: float(value) for name, value in metrics.items()}
extra = 0.25 * got["router_balance"] + 0.5 * got["router_z"]
np.testing.assert_allclose(got["loss"] - got["nll"], extra, rtol=1e-5)
# Small logits: the logarithm of the sum over 4 experts is near that of 4.
np.testing.assert_allclose(got["router_z"], np.log(4) ** 2, rtol=0.2)
assert (np.asarray(state.trainable["layers"]["mlp"]["router"]) != router).any()
describe(e.model)  # it is exported without
try:
    ModelConfig(router_z_loss=0.5)
except ValueError as error:
    assert "changes nothing in this model; set model.experts" in str(error)
"""
USE_NARROW = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from research.interop.convert import convert
from research.interop.load import load
from research.models.kinds import layer_pattern
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES

folder = Path(sys.argv[1])
plain = replace(FAMILIES["llama2_7b"], vocab_size=320, layers=3, window=8)
config = replace(plain, narrow_every=2)
assert layer_pattern(config) == ("local", "narrow")
save_checkpoint(folder / "ours", config)
convert(folder / "ours", folder / "theirs", "hf")
assert '"NarrowForCausalLM"' in (folder / "theirs/config.json").read_text()
ours, theirs = load(folder / "ours"), load(folder / "theirs")
assert theirs.config.narrow_every == 2
ids = np.arange(12)[None]
np.testing.assert_array_equal(ours.logits(ids), theirs.logits(ids))
save_checkpoint(folder / "wide", plain)
assert (ours.logits(ids) != load(folder / "wide").logits(ids)).any()
for unused in ({"window": 0}, {"narrow_every": -1}):
    try:
        replace(config, **unused)
        raise SystemExit(f"{unused} was accepted")
    except ValueError as error:
        assert "narrow_every" in str(error), error
"""


def add(package: Path, changes: Changes) -> None:
    """Writes the changes into the copy."""
    for name, change in changes.items():
        file = package / name
        if isinstance(change, str):
            file.write_text(change)
            continue
        text = file.read_text()
        for there, instead in change:
            assert text.count(there) == 1, f"{name} has no line with {there!r}"
            text = text.replace(there, instead)
        file.write_text(text)


def use(package: Path, program: str, *arguments: str) -> None:
    """Runs a program with the copy for its package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, *arguments]  # which looks for modules here first
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_layer_loss_is_two_files_and_a_family_with_a_new_kind_of_layer_four(tmp_path):
    assert len(Z_LOSS) <= 2 and len(NARROW) <= 4
    package = tmp_path / "copy"
    shutil.copytree(ROOT / "research", package / "research")  # with its compiled modules
    add(package, Z_LOSS)
    add(package, NARROW)
    # One process for both, since it starts and compiles for longer than it computes.
    use(package, USE_Z_LOSS + USE_NARROW, str(tmp_path))
