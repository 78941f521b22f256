"""Log-mel spectrograms beside those of transformers' WhisperFeatureExtractor."""

import numpy as np
import pytest

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; pip install -e '.[parity]'"
)

from research.data.media.mel import log_mel
from research.data.media.sound import windows


@pytest.mark.parametrize("mels", [80, 128])
def test_noise_and_tones_have_their_spectrogram(mels):
    rng, time = np.random.default_rng(0), np.arange(48_000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 600 * time) * time) + 0.01 * rng.standard_normal(48_000)
    (window,) = windows(sound)
    theirs = transformers.WhisperFeatureExtractor(feature_size=mels)
    # Its numpy path: where torch is installed the class transforms in float32 by default, which is
    # itself up to 3e-5 from this one.
    want = theirs._np_extract_fbank_features(window[None], "cpu")[0]
    np.testing.assert_allclose(log_mel(window, mels), want, atol=1e-5)
