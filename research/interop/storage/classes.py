"""A model that was given a classifier in training."""

from dataclasses import replace

from research.models.config import ModelConfig


def with_classes(c: ModelConfig, trained: ModelConfig) -> ModelConfig:
    """The config of a base with the classifier of the model that was trained on it, in place of
    the head that predicts words; `c` itself where that has none."""
    if not trained.labels:
        return c
    fields = {
        name: getattr(trained, name) for name in ("labels", "labels_over", "pooler", "mlm_head")
    }
    return replace(c, **fields)
