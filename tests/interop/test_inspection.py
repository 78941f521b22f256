"""What is said of a checkpoint is what conversions then do, and what is no checkpoint is called by
its name, by whatever opens it."""

import json
import re
import subprocess
import sys

import pytest

from research.interop import restored
from research.interop.convert import convert
from research.interop.inspection import inspect
from research.interop.load import open_adapter, open_checkpoint
from research.interop.native import write_native
from tests.configs import ROOT
from tests.families import FAMILIES
from tests.interop import golden as tensors
from tests.interop.memory import in_memory, random_params
from tests.interop.test_beside import source
from tests.interop.test_mlx_mixtures import gpt_oss_as_mlx
from tests.interop.test_mxfp4 import packed  # noqa: F401

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n"
LLAMA = '{"model_type": "llama"}'
ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'
# By kind: the files of a folder, which of them is asked about ("" for the folder), what is said.
STRANGERS = {
    "lfs": ({"config.json": LLAMA, "model.safetensors": POINTER}, "", "git lfs pull"),
    "lfs file": ({"a.gguf": POINTER}, "a.gguf", "a Git-LFS pointer, not the file"),
    "adapter": ({"adapter_config.json": ADAPTER}, "", "(LORA) for org/base; give the base"),
    "orbax": ({"manifest.ocdbt": ""}, "", "a folder of Orbax's"),
    "orbax step": (
        {"config.json": LLAMA, "checkpoints/3/trainable/_METADATA": ""},
        "checkpoints/3/trainable",
        "a step of a run; give the run's workdir",
    ),
    "safetensors": (
        {"config.json": LLAMA, "a.safetensors": ""},
        "a.safetensors",
        "give the folder",
    ),
    "shards": ({"model-00001-of-00002.safetensors": ""}, "", "without a config.json"),
    "pickle": ({"consolidated.00.pth": ""}, "", "pickled weights (consolidated.00.pth)"),
    "pickle file": ({"model.bin": ""}, "model.bin", "pickled weights (model.bin)"),
    "pickle checkpoint": ({"a.pt": ""}, "a.pt", "never read"),
    "archive": ({"model.zip": ""}, "model.zip", "an archive; unpack it"),
    "tokenizer file": ({"tokenizer.json": "{}"}, "tokenizer.json", "one with config.json"),
    "settings": ({"config.json": LLAMA}, "config.json", "settings, without the weights; give"),
    "onnx": ({"model.onnx": ""}, "model.onnx", "a file of ONNX"),
    "ggufs": ({"a.gguf": "", "b.gguf": ""}, "", "2 GGUF files; give one"),
    "tokenizer": ({"vocab.txt": "a\n"}, "", "a tokenizer and no model"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_checkpoint_is_called_by_its_name(kind, tmp_path):
    files, asked, says = STRANGERS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    facts = inspect(tmp_path / asked)
    assert facts["format"] == kind.split()[0] and facts["targets"] is None
    with pytest.raises(ValueError, match="is no checkpoint: it is") as error:
        open_checkpoint(tmp_path / asked)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith(f"{facts['what']}; {facts['remedy']}")


@pytest.mark.parametrize("kind", sorted(set(STRANGERS) - {"adapter"}))
def test_what_is_no_adapter_and_no_run_is_called_by_its_name_too(kind, tmp_path):
    files, asked, says = STRANGERS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="is no adapter: it is") as error:
        open_adapter(tmp_path / asked, None)
    assert says in str(error.value)
    if not (tmp_path / asked / "config.json").is_file():
        with pytest.raises(ValueError, match="is no run: it is"):
            restored.read_experiment(tmp_path / asked)


def test_a_checkpoint_in_the_place_of_a_run_is_sent_to_its_flag(tmp_path):
    path = tensors.write("llama_gqa", tmp_path)
    with pytest.raises(ValueError, match=f"of a llama checkpoint; give it as --checkpoint={path}"):
        restored.read_experiment(path)


# Each command that takes a source, with a kind of stranger.
COMMANDS = {
    "generate": (["--prompt=a", "--checkpoint=X"], "lfs"),
    "chat": (["--checkpoint=X"], "orbax"),
    "evaluate": (["--text=README.md", "--checkpoint=X"], "shards"),
    "classify": (["--text=a", "--checkpoint=X"], "archive"),
    "embed": (["--checkpoint=X", "--text=a"], "pickle file"),
    "quantize": (["--checkpoint=X", "--format=int8", "--receipt"], "safetensors"),
    "convert": (["--source=X", "--target=Y"], "adapter"),
    "inspect_batch": (["--config=configs/finetune.py:smoke", "--config.init=X"], "tokenizer file"),
    "fit": (
        ["--target=h100:1", "--config=configs/finetune.py:smoke", "--config.init=X"],
        "settings",
    ),
    "train": (
        ["--config=configs/finetune.py:smoke", "--config.init=X", "--workdir=Y"],
        "pickle checkpoint",
    ),
}


@pytest.mark.slow  # a process for each command
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_calls_what_it_is_given_by_its_name(command, tmp_path):
    flags, kind = COMMANDS[command]
    files, asked, says = STRANGERS[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    path = str(tmp_path / asked)
    given = [re.sub("=X$", f"={path}", flag).replace("=Y", f"={tmp_path}/new") for flag in flags]
    run = [sys.executable, "-m", f"research.{command}", *given]
    done = subprocess.run(
        run, capture_output=True, text=True, cwd=ROOT, timeout=300, stdin=subprocess.DEVNULL
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is no checkpoint: it is" in last and says in last


@pytest.mark.parametrize(
    ("name", "says"),
    [("gs://bucket/a", "remote storage"), ("org/no-model", "hub"), ("nothing", "wanted a folder")],
)
def test_what_is_not_there_is_refused(name, says):
    with pytest.raises(ValueError, match="is no checkpoint") as error:
        inspect(name)
    assert says in str(error.value)


def test_pointers_to_what_is_not_read_do_no_harm(tmp_path):
    tensors.write("llama_gqa", tmp_path)
    (tmp_path / "pytorch_model.bin").write_text(POINTER)
    open_checkpoint(tmp_path).close()


@pytest.mark.parametrize("to", ["native", "hf", "gguf"])
@pytest.mark.parametrize("family", ["llama_gqa", "bert_mlm"])
def test_what_a_target_loses_is_what_a_conversion_says(family, to, tmp_path):
    (tmp_path / "a").mkdir()
    path = tensors.write(family, tmp_path / "a")
    said = inspect(path)["targets"][to]
    if said["refused"]:
        with pytest.raises(ValueError) as error:
            convert(path, tmp_path / "b", to)
        assert str(error.value) == said["refused"] and (family, to) == ("bert_mlm", "gguf")
    else:
        assert convert(path, tmp_path / "b", to, certified=False)["notes"] == said["lost"]


def test_a_model_without_an_architecture_is_refused_before_it_is_converted(tmp_path):
    c = FAMILIES["transformer_base"]
    (tmp_path / "a").mkdir()
    write_native(in_memory(c, random_params(c)), tmp_path / "a")
    targets = inspect(tmp_path / "a")["targets"]
    assert targets["native"] == {"refused": None, "lost": []} and targets["gguf"]["refused"]


def test_facts_of_a_folder(tmp_path):
    path = source(tmp_path / "a")
    (path / "LICENSE").write_text("x" * 10)
    facts = inspect(path)
    with open_checkpoint(path) as checkpoint:
        c, tokenizer = checkpoint.config, checkpoint.tokenizer
        held = sum(one["values"] for one in facts["stored"].values())
    assert facts["format"] == "hf" and facts["model"]["family"] == "llama"
    assert facts["model"]["layers"] == c.layers and facts["model"]["parameters"] == held
    assert facts["files"]["LICENSE"] == 10
    assert facts["tokenizer"]["eos"] == {"id": tokenizer.eos_id, "text": "</s>"}
    assert [one["id"] for one in facts["ends"]] == [265]
    assert "What is 2 + 2?" in facts["template"]["example"]
    assert facts["targets"]["hf"]["lost"] == ["files that stay behind: LICENSE"]


@pytest.mark.parametrize(("to", "dtype"), [("gguf", ""), ("gguf", "q8_0"), ("native", "")])
def test_every_format_says_the_family_and_how_it_is_stored(to, dtype, tmp_path):
    (tmp_path / "a").mkdir()
    path = tensors.write("qwen3_moe", tmp_path / "a")
    convert(path, tmp_path / "b", to, dtype, certified=False)
    facts = inspect(tmp_path / "b")
    assert facts["model"]["family"] == inspect(path)["model"]["family"] == "qwen3_moe"
    if dtype:
        assert facts["model"]["stored_as"] == "Q8_0" and "Q8_0" in facts["stored"]
        assert any("weights (Q8_0) are written out" in x for x in facts["targets"]["hf"]["lost"])


def test_experts_that_stay_in_mxfp4_are_told_apart(packed, tmp_path):  # noqa: F811
    assert not any("written out" in x for x in inspect(packed)["targets"]["hf"]["lost"])
    assert any("written out" in x for x in inspect(packed)["targets"]["native"]["lost"])
    (tmp_path / "mlx").mkdir()
    gpt_oss_as_mlx(packed, tmp_path / "mlx")
    targets = inspect(tmp_path / "mlx")["targets"]
    assert any("but for its experts in MXFP4" in line for line in targets["hf"]["lost"])
    assert not any("but for" in line for line in targets["native"]["lost"])


def test_a_folder_that_cannot_be_read_says_why_and_still_has_its_tokenizer(tmp_path):
    path = source(tmp_path / "a")
    (path / "config.json").write_text('{"model_type": "mamba"}')
    facts = inspect(path)
    assert "model_type='mamba'" in facts["refused"] and facts["model"] is None
    assert facts["stored"]["F32"]["tensors"] > 3 and facts["template"]["example"]


def test_the_command_prints_lines_and_json(tmp_path):
    path = source(tmp_path / "a")
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}\x1b[31m{{ bos_token }}")
    run = [sys.executable, "-m", "research.inspect_checkpoint", str(path)]
    lines, values = (
        subprocess.run([*run, *more], capture_output=True, text=True, cwd=ROOT, timeout=60)
        for more in ([], ["--json"])
    )
    assert lines.returncode == values.returncode == 0, lines.stderr + values.stderr
    assert json.loads(values.stdout) == json.loads(json.dumps(inspect(path)))
    assert "| What is 2 + 2?\\x1b[31m<s>" in lines.stdout and "\x1b" not in lines.stdout
    assert {line.split("  ")[0] for line in lines.stdout.splitlines()} >= {
        "what", "model", "parameters", "files", "stored", "tokenizer", "template", "ends",
        "to native", "to hf", "to gguf",
    }  # fmt: skip
