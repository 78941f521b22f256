"""tests/tuning/golden_several.npz: weighted merges of two adapters by peft 0.21.2."""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 12), nn.Linear(12, 10, bias=False)

    def forward(self, ids):
        return self.linear(self.table(ids))


out = {}
for case, ranks, how in (
    ("linear", (4, 4), dict(combination_type="linear")),
    ("cat", (4, 2), dict(combination_type="cat")),
    ("svd", (4, 2), dict(combination_type="svd")),
    ("svd3", (4, 2), dict(combination_type="svd", svd_rank=3)),
):
    torch.manual_seed(0)
    net = get_peft_model(
        Net(),
        LoraConfig(r=ranks[0], lora_alpha=8, target_modules=["table", "linear"]),
        adapter_name="0",
    )
    net.add_adapter("1", LoraConfig(r=ranks[1], lora_alpha=16, target_modules=["table", "linear"]))
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p)
    net.add_weighted_adapter(["0", "1"], [0.7, -0.4], "both", **how)
    net.set_adapter("both")
    ids = torch.arange(9)[None]
    for module in ("linear", "table"):
        layer = getattr(net.base_model.model, module)
        for name in ("0", "1", "both"):
            if module == "linear":
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            else:
                a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
            if name != "both":
                out[f"{case}/{module}/{name}/a"], out[f"{case}/{module}/{name}/b"] = (
                    a.detach().numpy(),
                    b.detach().numpy(),
                )
        out[f"{case}/{module}/delta"] = layer.get_delta_weight("both").detach().numpy()
        out[f"{case}/{module}/scale"] = np.array(
            [layer.scaling["0"], layer.scaling["1"]], np.float32
        )
np.savez_compressed(Path(__file__).parent / "golden_several.npz", **out)
