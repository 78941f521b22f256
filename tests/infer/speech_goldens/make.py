"""What CTranslate2 writes of the sounds of tests/interop/sound_goldens, ctranslate2.json beside
this file.

    # In the project's environment. CTranslate2 scales embeddings unless it is told not to.
    python -c "import numpy as np; from pathlib import Path; \
        from tests.interop.test_ctranslate2 import folder; \
        folder(Path('tiny'), **{'decoder/scale_embeddings': np.int8(0)})"
    # With ctranslate2 4.8.5; imports none of the project.
    python tests/infer/speech_goldens/make.py tiny

Each case has the settings ("mel", number of the sound, "prompt", "words" that are not suppressed,
"beams"), the ids and the score of the best text, and the probability of silence. The vocabulary has
40 words, then the special tokens of an English Whisper, then 48 times. The words are such that
texts with several times and with an end are among the cases.
"""

import json
import sys
from itertools import product
from pathlib import Path

import ctranslate2
import numpy as np

HERE = Path(__file__).parent
NAMES = "endoftext startoftranscript translate transcribe startoflm startofprev nocaptions"
WORDS, TIMES, SPECIAL = 40, 48, [41, 42, 43, 44, 45, 46]
KEPT = ([4, 12, 14, 15, 20, 25, 31, 36, 39], [0, 3, 5, 25, 28, 33, 34, 35], [2, 24, 26])
PROMPTS = ([41], [45, 5, 6, 48, 7, 8, 50, 41])


def main(folder: Path) -> None:
    names = [f"w{n}" for n in range(WORDS)] + [f"<|{n}|>" for n in f"{NAMES} notimestamps".split()]
    names += [f"<|{n * 0.02:.2f}|>" for n in range(TIMES)]
    (folder / "vocabulary.txt").write_text("\n".join(names) + "\n")
    with np.load(HERE.parents[1] / "interop" / "sound_goldens" / "whisper.npz") as file:
        mels = file["mel"]
    model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32")
    cases = []
    for sound, prompt, words, beams in product(range(len(mels)), PROMPTS, KEPT, (1, 5)):
        [found] = model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(mels[sound][None])),
            [prompt],
            beam_size=beams,
            max_length=20,
            length_penalty=1,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=False,
            suppress_tokens=[n for n in range(WORDS) if n not in words] + SPECIAL,
            max_initial_timestamp_index=50,
        )
        case = {"mel": sound, "prompt": prompt, "words": words, "beams": beams}
        case |= {"ids": found.sequences_ids[0], "score": found.scores[0]}
        cases.append(case | {"silence": found.no_speech_prob})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "ctranslate2.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
