"""Comparison of a converted model's logits with those of the program its source was made for:
transformers for Hugging Face folders, llama.cpp for GGUF files.

The reference runs in a process of its own (`python -m research.interop.reference KIND PATH IDS.npy
LOGITS.npy`): torch and llama.cpp are never imported into ours, and their memory is returned when
the process ends.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from research.interop.storage.checkpoint import Checkpoint
from research.models.model import Model, forward
from research.models.spec import abstract

# Length of the fixed text. A wrong rotary order or window moves logits after a few tokens; 64 show
# it and fit any machine.
TOKENS = 64
_SEED = 20260101  # of the fixed text; the certificate repeats the ids themselves
# The packages that must be installed, the one that computes last.
_PACKAGES = {"hf": ("torch", "transformers"), "gguf": ("llama_cpp",)}


def compare(source: Checkpoint, target: Checkpoint) -> dict[str, Any] | None:
    """Distance of the target's logits from the reference's on 64 fixed random token ids; None where
    the reference is not installed, and for other models than decoders.

    Returns `implementation` (name and version), `token_ids`, and the numbers of `differences`.
    """
    # Decoders alone: encoders have no logits of a text, and encoder-decoders need two of them.
    packages = _PACKAGES.get(source.format, ("",))
    plain = source.config.kind == "decoder" and not source.config.scores_texts
    if not plain or not all(name and importlib.util.find_spec(name) for name in packages):
        return None
    length = min(TOKENS, source.config.max_length)
    ids_T = np.random.default_rng(_SEED).integers(
        0, source.config.vocab_size, length, dtype=np.int32
    )
    theirs_TV = _reference(source, ids_T)
    ours_TV = _logits(target, ids_T)
    name = packages[-1]
    version = importlib.metadata.version({"llama_cpp": "llama-cpp-python"}.get(name, name))
    return {
        "implementation": f"{name} {version}",
        "token_ids": ids_T.tolist(),
        **differences(ours_TV, theirs_TV),
    }


def differences(ours_TV: np.ndarray, theirs_TV: np.ndarray) -> dict[str, float]:
    """`largest_logit_difference`; `mean_kl_nats`, KL(theirs || ours) in nats per token; and
    `top1_agreement`, the share of positions where both put the same token first. Logits are [T, V].
    """
    # In float64: a KL of 1e-7 nats is a difference of sums that float32 rounds away.
    ours_TV, theirs_TV = ours_TV.astype(np.float64), theirs_TV.astype(np.float64)
    log_p_TV, log_q_TV = _log_softmax(theirs_TV), _log_softmax(ours_TV)
    return {
        "largest_logit_difference": float(np.abs(ours_TV - theirs_TV).max()),
        "mean_kl_nats": float(np.mean(np.sum(np.exp(log_p_TV) * (log_p_TV - log_q_TV), axis=-1))),
        "top1_agreement": float(np.mean(ours_TV.argmax(-1) == theirs_TV.argmax(-1))),
    }


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    # Less the largest, so that no exponential overflows.
    shifted = logits_TV - logits_TV.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _logits(checkpoint: Checkpoint, ids_T: np.ndarray) -> np.ndarray:
    """The checkpoint's logits [T, V], computed by our model in float32."""
    import jax

    model = Model(checkpoint.config)
    params = checkpoint.restore(abstract(model.specs(), np.dtype("float32")))
    positions = np.arange(len(ids_T), dtype=np.int32)[None]
    batch = {"inputs": ids_T[None], "segments": np.ones_like(positions), "positions": positions}
    return np.asarray(jax.jit(forward, static_argnums=0)(model, params, batch))[0]


def _reference(source: Checkpoint, ids_T: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        ids, logits = Path(folder) / "ids.npy", Path(folder) / "logits.npy"
        np.save(ids, ids_T)
        arguments = [
            sys.executable,
            "-m",
            "research.interop.reference",
            source.format,
            source.source,
            ids,
            logits,
        ]
        # No standard input: a library that asks whether to run a model's own code gets no answer.
        done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            # Of a traceback the last line names the error; the rest is the other program's.
            raise ValueError(
                f"the reference cannot run {source.source}: "
                f"{(done.stderr.strip().splitlines() or ['?'])[-1]}"
            )
        return np.load(logits, allow_pickle=False)


def _transformers(path: str, ids_T: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, local_files_only=True
    ).eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids_T[None].astype(np.int64))).logits[0].numpy()


def _llama_cpp(path: str, ids_T: np.ndarray) -> np.ndarray:
    from llama_cpp import Llama

    # Without logits_all only those of the last token are kept.
    model = Llama(path, n_ctx=len(ids_T), logits_all=True, verbose=False, n_threads=2)
    model.eval(ids_T.tolist())
    return np.array(model.scores[: len(ids_T)])


if __name__ == "__main__":
    kind, path, ids, logits = sys.argv[1:]
    np.save(
        logits,
        (_transformers if kind == "hf" else _llama_cpp)(path, np.load(ids, allow_pickle=False)),
    )
