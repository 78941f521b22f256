"""A tiny random Whisper and what transformers computes with it, whisper.npz beside this file.

    python tests/interop/sound_goldens/make.py

torch 2.13, transformers 5.24; imports none of the project.

What is written:
    config        config.json as save_pretrained wrote it
    tensor/NAME   a saved tensor
    mel           float32 [2, 8, 24], bands before frames as transformers has them
    decoder_ids   int32 [2, 7] and logits float32 [2, 7, V]
    greedy        int32 [2, 6], what argmax writes behind the first two of decoder_ids
Weights are drawn far larger than a trained model's, norms and biases too, so that each matters.
Seeds are tried until no near-tie decides a greedy token.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors import safe_open

VOCAB, BANDS, FRAMES, WRITTEN, MARGIN = 96, 8, 24, 6, 1e-2
CONFIG = hf.WhisperConfig(
    vocab_size=VOCAB,
    num_mel_bins=BANDS,
    d_model=32,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_source_positions=FRAMES // 2,
    max_target_positions=20,
    decoder_start_token_id=1,
    bos_token_id=2,
    eos_token_id=2,
    pad_token_id=2,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draws every parameter but the sinusoids anew."""
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name.endswith("encoder.embed_positions.weight"):
                continue
            std = 0.2 if w.ndim < 2 else 1.5 * w[0].numel() ** -0.5
            std = 0.3 if "embed" in name else std
            drawn = torch.from_numpy(rng.normal(0, std, w.shape).astype(np.float32))
            w.copy_(drawn + (1.0 if name.endswith("norm.weight") else 0.0))


def golden(seed: int) -> tuple[dict[str, np.ndarray], float]:
    """(the fields, the least lead of a greedy token)."""
    rng = np.random.default_rng(seed)
    model = hf.WhisperForConditionalGeneration(CONFIG).eval()
    randomise(model, rng)
    mel = rng.normal(0, 1, (2, BANDS, FRAMES)).astype(np.float32)
    ids = rng.integers(3, VOCAB, (2, 7)).astype(np.int32)
    lead, text = np.inf, torch.from_numpy(ids[:, :2].astype(np.int64))
    sound = torch.from_numpy(mel)
    with torch.no_grad():
        tokens = torch.from_numpy(ids.astype(np.int64))
        logits = model(input_features=sound, decoder_input_ids=tokens).logits.numpy()
        for _ in range(WRITTEN):
            last = model(input_features=sound, decoder_input_ids=text).logits[:, -1]
            best = last.topk(2).values
            lead = min(lead, float((best[:, 0] - best[:, 1]).min()))
            text = torch.cat([text, last.argmax(-1, keepdim=True)], 1)
    fields = dict(mel=mel, decoder_ids=ids, logits=logits)
    fields["greedy"] = text[:, 2:].numpy().astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        fields["config"] = np.array((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            for key in file.keys():  # noqa: SIM118
                fields[f"tensor/{key}"] = file.get_tensor(key)
    return fields, lead


if __name__ == "__main__":
    for seed in range(100):
        fields, lead = golden(seed)
        if lead > MARGIN and len(set(fields["greedy"].ravel())) > 4:
            np.savez_compressed(Path(__file__).parent / "whisper.npz", **fields)
            print(f"seed {seed}, lead {lead:.3f}", fields["greedy"].tolist())
            break
