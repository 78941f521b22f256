"""Adapters that peft made, served beside each other: each answers as peft does with it alone."""

import contextlib
import http.client
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
peft = pytest.importorskip("peft", reason="peft is not installed; pip install -e '.[parity]'")
pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")

import transformers

from research.data.tokenizers import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # peft calls what its own transformers deprecates
PROMPT, TOKENS = "to be or not", 12
SPECS = {
    "pirate": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "o_proj", "up_proj"]},
    "poet": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of transformers, and two adapters on it by peft, all with random weights."""
    made = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(made / "base")
    (made / "base" / "tokenizer.json").write_bytes(tokenizer.files["tokenizer.json"])
    for number, (name, spec) in enumerate(SPECS.items()):
        torch.manual_seed(number)
        base = transformers.LlamaForCausalLM.from_pretrained(made / "base")
        spec = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **spec)
        peft.get_peft_model(base, spec).save_pretrained(made / name)
    return made


@contextlib.contextmanager
def serving(folder, *flags):
    """The port of `research.serve` with the model of the folder."""
    command = [sys.executable, "-m", "research.serve", "--port=0", "--compiled=0", "--length=48"]
    command += [f"--checkpoint={folder / 'base'}", "--name=base", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield int(server.stdout.readline().rsplit(":", 1)[1])
        finally:
            server.kill()


def ask(port, model):
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    link.request("POST", "/v1/completions", json.dumps(body))
    answer = json.loads(link.getresponse().read())
    link.close()
    return answer["choices"][0]["text"]


def test_two_adapters_of_peft_in_one_batch_answer_as_each_alone(folder):
    named = [f"--adapter={name}={folder / name}" for name in SPECS]
    with serving(folder, *named) as port, ThreadPoolExecutor(8) as pool:
        models = ["base", *SPECS] * 2
        got = dict(zip(models, pool.map(lambda name: ask(port, name), models)))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "base" / "tokenizer.json")
    )
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    for name in models[:3]:
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
        if name != "base":
            model = peft.PeftModel.from_pretrained(model, folder / name)
        with torch.no_grad():
            out = model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
        theirs = tokenizer.decode(out[0, ids.shape[1] :], clean_up_tokenization_spaces=False)
        assert got[name] == theirs
    assert len(set(got.values())) == 3
    with serving(folder, f"--adapter={folder / 'poet'}") as port:
        assert ask(port, "base") == got["poet"]
