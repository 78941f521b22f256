"""`DataConfig`: the section `data` of a config file."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """The data of a run. ValueError for values out of range.

    source                 "stdlib", "shakespeare", "alpaca" (conversations), "tfds:NAME", a file or
                           folder (.jsonl, .parquet, .csv, .tsv, .json, .conll, and texts such as
                           .txt, .md and .py), "infill:SOURCE" for texts with gaps to fill,
                           "repository:SOURCE" for code whose files follow those they import,
                           "counterfactual:SOURCE" for texts and the same with genders swapped, or
                           several with weights: "stdlib:0.7,shakespeare:0.3"
    tokenizer              "bytes", "gpt2", "bpe:VOCAB" or "sentencepiece:VOCAB" (trained on the
                           train part; "bpe:VOCAB+fim" has tokens for gaps), or a file or folder; ""
                           takes the one of the checkpoint `config.init`
    chat_template          file with a chat template to use instead of the tokenizer's
    template_variables     what the template sees beside the messages: ("enable_thinking=false",)
    sequence_length        tokens of an example
    packing                whether a training window of texts holds as many as fit, which do not see
                           each other; False gives each text windows of its own, with padding. Texts
                           that are held out are packed in any case, so that losses compare
    prompt_tokens          of a record with a prompt and answers, most tokens of the prompt, whose
                           beginning is left out beyond them; 0 keeps all
    batch_size             rows of a step over all devices; 0 if `batch_size_per_device` is set
    max_bad_records        unreadable records of a source that are left out before it is an error
    label_names            names of classes that the data have as numbers, from 0 on:
                           "O,B-PER,I-PER"; "" takes the names that are in the data
    threads                threads that read batches ahead; 0 reads each when it is needed
    """

    source: str = "stdlib"
    tokenizer: str = "bpe:8192"
    chat_template: str = ""
    template_variables: tuple[str, ...] = ()
    sequence_length: int = 1024
    packing: bool = True
    prompt_tokens: int = 0
    batch_size: int = 32
    batch_size_per_device: int = 0
    max_bad_records: int = 100
    label_names: str = ""
    # The number of threads changes no batch, so a resumed run may change it.
    threads: int = field(default=2, metadata={"resume": True})

    def __post_init__(self):
        if self.sequence_length < 2:
            raise ValueError(f"data.sequence_length={self.sequence_length} must be at least 2")
        if bool(self.batch_size) == bool(self.batch_size_per_device):
            raise ValueError(
                f"data.batch_size={self.batch_size} and data.batch_size_per_device="
                f"{self.batch_size_per_device}: set exactly one, the other to 0"
            )
        counts = ("batch_size", "batch_size_per_device", "max_bad_records", "threads")
        for name in (*counts, "prompt_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must not be negative")

    def global_batch(self, devices: int) -> int:
        """The rows of a batch over all of `devices` devices."""
        return self.batch_size or self.batch_size_per_device * devices
