"""`make.py` for encoders beside BERT and encoder-decoders beside T5 and Marian.

    python tests/interop/goldens/make_encoders.py [NAME ...]

torch 2.13, transformers 5.24; imports none of the project.
"""

import sys

import torch
import transformers as hf
from make import T5, VOCAB, Case, main, v4

WIDE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
MANY = dict(num_hidden_layers=5, pad_token_id=0, local_attention=6)
# Weights drawn as large as BERT's leave post-norm stacks of two sides without a clear winner.
BART = {"bias": 0.1, "shared": 0.3, "fc": 0.5, "v_proj": 0.3, "out_proj": 0.3}


def roberta(config=hf.RobertaConfig, **changes):
    """Positions from 3 on."""
    sizes = dict(vocab_size=VOCAB, max_position_embeddings=40, type_vocab_size=1, pad_token_id=2)
    return config(**{**WIDE, **sizes, **changes})


def mpnet(**changes):
    """Positions from 2 on."""
    sizes = dict(vocab_size=VOCAB, max_position_embeddings=40)
    return hf.MPNetConfig(**{**WIDE, **sizes, **changes})


def modernbert(**changes):
    """Three layers a period and two left over, windows shorter than the text, two bases."""
    bases = {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    }
    return hf.ModernBertConfig(
        **{**WIDE, **MANY, "vocab_size": VOCAB, "rope_parameters": bases, **changes}
    )


def v4_modernbert(text: dict) -> dict:
    """The period of the global layers for their list, and both bases at the top."""
    text = {**text}
    rope, types = text.pop("rope_parameters"), text.pop("layer_types")
    return v4(text) | {
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": types.index("full_attention", 1),
    }


def bart(config=hf.BartConfig, **changes):
    sizes = dict(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=48,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return config(**{**sizes, **changes})


def electra(**changes):
    sizes = dict(vocab_size=VOCAB, max_position_embeddings=40, embedding_size=16)
    return hf.ElectraConfig(**{**WIDE, **sizes, **changes})


def mt5():
    return hf.MT5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )


DISTILBERT = dict(
    vocab_size=VOCAB, dim=16, hidden_dim=24, n_layers=2, n_heads=4, max_position_embeddings=40
)
CASES = {
    "roberta_mlm": Case(hf.RobertaForMaskedLM, roberta(), v4),
    "roberta_classifier": Case(
        hf.RobertaForSequenceClassification, roberta(num_labels=3, layer_norm_eps=1e-3), v4
    ),
    "xlm_roberta": Case(hf.XLMRobertaModel, roberta(hf.XLMRobertaConfig), v4),
    "mpnet_mlm": Case(hf.MPNetForMaskedLM, mpnet(), v4),
    "mpnet_classifier": Case(hf.MPNetForSequenceClassification, mpnet(num_labels=3), v4),
    "modernbert_mlm": Case(hf.ModernBertForMaskedLM, modernbert(), v4_modernbert),
    "modernbert_classifier": Case(
        hf.ModernBertForSequenceClassification,
        modernbert(num_labels=3, classifier_pooling="mean", classifier_bias=True, norm_bias=True),
        v4_modernbert,
    ),
    "distilbert_mlm": Case(hf.DistilBertForMaskedLM, hf.DistilBertConfig(**DISTILBERT), v4),
    "distilbert_classifier": Case(
        hf.DistilBertForSequenceClassification,
        hf.DistilBertConfig(**DISTILBERT, num_labels=3),
        v4,
    ),
    "electra_mlm": Case(hf.ElectraForMaskedLM, electra(), v4),
    "electra_classifier": Case(hf.ElectraForSequenceClassification, electra(num_labels=3), v4),
    "mt5": Case(hf.MT5ForConditionalGeneration, mt5(), v4, stds=T5),
    "bart": Case(hf.BartForConditionalGeneration, bart(), v4, stds=BART),
    "mbart": Case(
        hf.MBartForConditionalGeneration, bart(hf.MBartConfig, scale_embedding=True), v4, stds=BART
    ),
    "pegasus": Case(
        hf.PegasusForConditionalGeneration,
        bart(hf.PegasusConfig, scale_embedding=True, decoder_start_token_id=0),
        v4,
        stds=BART,
    ),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:], CASES)
