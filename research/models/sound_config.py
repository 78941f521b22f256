"""The encoder of sounds that a decoder may have, as a section of its config."""

from dataclasses import dataclass

from research.models.config_checks import choice, setting
from research.models.part_checks import check_encoder

# What makes soft tokens of states that stand side by side: two layers with GELU between them
# (SLAM-ASR, arXiv:2402.08846, has a ReLU there; Voxtral, arXiv:2507.13264, this), or one.
PROJECTORS = ("mlp", "linear")


@dataclass(frozen=True)
class SoundConfig:
    """Whisper's encoder (arXiv:2212.04356, section 2.2) and the projector that makes soft tokens of
    its states (`research.models.sound_tokens`). Without layers there is none, and every other field
    must keep its default.

    `frames` log-mel frames of `mels` bands are a window, a hundred a second: each sound stands in
    one, silence behind it. Whisper was trained on 3000; with fewer its sinusoids are the first of
    those, and a shorter sound costs less. `stack` states in a row, two frames each, are side by
    side in one soft token. `token` is the id of a soft token's place in a text; what stands there
    sees its past alone.
    """

    layers: int = 0
    mels: int = setting(80, positive=True)
    frames: int = setting(3000, positive=True)
    d_model: int = setting(384, positive=True)
    heads: int = setting(6, positive=True)
    d_ff: int = setting(1536, positive=True)
    projector: str = choice(*PROJECTORS)
    stack: int = setting(5, positive=True)
    token: int = 0

    def __post_init__(self):
        check_encoder("sound", "sounds", self)
        if not self.layers:
            return
        if self.d_model % self.heads or self.d_model % 2 or self.d_model < 4:
            raise ValueError(
                f"model.sound.d_model={self.d_model} must be an even multiple, 4 or more, of "
                f"model.sound.heads={self.heads}"
            )
        # The second convolution makes one state of two frames.
        if self.frames % (2 * self.stack):
            raise ValueError(
                f"model.sound.frames={self.frames} must be a multiple of twice "
                f"model.sound.stack={self.stack}"
            )

    @property
    def tokens(self) -> int:
        """Soft tokens of a sound."""
        return self.frames // 2 // self.stack
