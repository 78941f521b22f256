"""The names of a classifier's classes."""

from pathlib import Path

from research.files import read_json


def read_label_names(source: str | Path, count: int) -> list[str]:
    """The names of `count` classes of the run or checkpoint at `source`: those of the run's
    training data (provenance.json) or of Hugging Face's config.json (id2label). Classes that have
    none there are named by their numbers, from "0"."""
    folder, names = Path(source).expanduser(), {}
    if (folder / "provenance.json").is_file():
        labels = (read_json(folder / "provenance.json").get("dataset") or {}).get("labels") or []
        names = dict(enumerate(labels))
    elif (folder / "config.json").is_file():
        labels = read_json(folder / "config.json").get("id2label") or {}
        names = {int(number): name for number, name in labels.items()}
    return [str(names.get(number, number)) for number in range(count)]
