"""The step of a tokenizer.json that puts the beginning and the end of a text around it."""

from collections.abc import Mapping
from typing import Any


def marks_around(
    tokens: list[str], roles: Mapping[str, int], adds: Mapping[str, bool]
) -> dict[str, Any] | None:
    """The step that puts bos and eos around a text, or a pair of texts; None if it adds neither."""
    # A role without a token adds nothing, whatever the key says.
    used = [role for role in ("bos", "eos") if adds[role] and role in roles]
    if not used:
        return None

    def _pattern(sequence: str, type_id: int) -> list[dict[str, Any]]:
        special = {
            role: {"SpecialToken": {"id": tokens[roles[role]], "type_id": type_id}} for role in used
        }
        inner = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [part for part in (special.get("bos"), inner, special.get("eos")) if part]

    return {
        "type": "TemplateProcessing",
        "single": _pattern("A", 0),
        "pair": _pattern("A", 0) + _pattern("B", 1),
        "special_tokens": {
            tokens[roles[role]]: {
                "id": tokens[roles[role]],
                "ids": [roles[role]],
                "tokens": [tokens[roles[role]]],
            }
            for role in used
        },
    }
