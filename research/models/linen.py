"""The model as a Flax Linen module, for programs that are made of such modules.

module = Transformer(Model(PRESETS["gpt2"]))
variables = module.init(jax.random.key(0), batch)  # {"params": the tree that `Model` takes}
logits_BTV = module.apply(variables, batch)
"""

import jax
from flax import linen as nn

from research.models.model import Batch, Model, forward
from research.models.spec import initialize
from research.tree import Tree


class Transformer(nn.Module):
    """Declares the parameters of `model.specs()` and calls `forward`; has no submodules and no
    other variables."""

    model: Model

    @nn.compact
    def __call__(self, batch: Batch) -> jax.Array:
        """Logits float32 [B, T, V]; dropout where `apply` is given an rng of that name."""
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return forward(self.model, self._params(), batch, key)

    def _params(self) -> Tree:
        """The given variables, whatever types their leaves have; initial ones during `init`.

        `self.param` would compare shapes, and a weight stand-in need not have those of the array it
        stands for.
        """
        if not self.is_initializing():
            # All variables, also those of a prompt, which the model's specs do not have.
            return dict(self.variables["params"])
        specs = self.model.specs()
        params = initialize(self.make_rng("params"), specs, self.model.precision.param_dtype)
        # The key that `self.param` offers is not used: `initialize` has one for every path.
        return {name: self.param(name, lambda _, name=name: params[name]) for name in specs}
