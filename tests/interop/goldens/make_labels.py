"""`make.py` for encoders with labels of tokens, and with the two scores of an answer's ends.

    python tests/interop/goldens/make_labels.py [NAME ...]

torch 2.13, transformers 5.24; imports none of the project.
"""

import sys

import torch
import transformers as hf
from make import VOCAB, Case, main, v4
from make_encoders import DISTILBERT, WIDE, electra, modernbert, mpnet, roberta, v4_modernbert

BERT = dict(vocab_size=VOCAB, max_position_embeddings=40, **WIDE)
SMALL = {
    "bert": ("Bert", lambda **c: hf.BertConfig(**BERT, **c), v4),
    "roberta": ("Roberta", roberta, v4),
    "mpnet": ("MPNet", mpnet, v4),
    "electra": ("Electra", electra, v4),
    "distilbert": ("DistilBert", lambda **c: hf.DistilBertConfig(**DISTILBERT, **c), v4),
    "modernbert": ("ModernBert", modernbert, v4_modernbert),
}
CASES = {
    f"{family}_{head}": Case(getattr(hf, f"{start}{name}"), config(**labels), to_v4)
    for family, (start, config, to_v4) in SMALL.items()
    for head, name, labels in (
        ("tokens", "ForTokenClassification", {"num_labels": 3}),
        ("spans", "ForQuestionAnswering", {}),
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:], CASES)
