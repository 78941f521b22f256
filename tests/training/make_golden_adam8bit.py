"""Writes golden_adam8bit.npz: three steps of bitsandbytes' AdamW8bit on a CPU. Needs torch and
bitsandbytes 0.50.2."""

from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch

rng = np.random.default_rng(0)
start = rng.standard_normal((24, 256), np.float32)
# Columns of very different sizes, so that blocks hold small values beside large ones.
gradients = rng.standard_normal((3, 24, 256), np.float32) * np.float32(10.0) ** rng.uniform(
    -2, 0, 256
).astype(np.float32)
w = torch.nn.Parameter(torch.from_numpy(start.copy()))
optimizer = bnb.optim.AdamW8bit([w], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
made = {"start": start, "gradients": gradients}
for step, g in enumerate(gradients):
    w.grad = torch.from_numpy(g.copy())
    optimizer.step()
    state = optimizer.state[w]
    made |= {
        f"{step}/{name}": state[name].numpy().copy()
        for name in ("state1", "state2", "absmax1", "absmax2")
    }
    made[f"{step}/w"] = w.detach().numpy().copy()
made["qmap2"] = optimizer.state[w]["qmap2"].numpy()
np.savez_compressed(Path(__file__).with_name("golden_adam8bit.npz"), **made)
