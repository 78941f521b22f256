"""Pictures and sounds in the messages of OpenAI's API: written is what the model writes of them
alone, and what is no picture, no sound or too much is refused before it is decoded."""

import base64
import http.client
import io
import json
import re
import wave
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import Tokenizer, train_tokenizer
from research.infer.attached import Attached, attach, encode_attached
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.models.spec import initialize
from research.objectives.soft_tokens import soft_tokens
from research.serve.asked import Served
from research.serve.attached import with_attached
from research.serve.dialogue import Dialogue
from research.serve.engine import Engine
from research.serve.refusal import Refused
from research.serve.request import Request
from research.serve.worker import Worker
from tests.serve.test_media import DECODER, IMAGE, SOUND

pytest.importorskip("starlette", reason="pip install 'graft-research[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")
pytest.importorskip("PIL", reason="pip install 'graft-research[media]'")

from PIL import Image

from tests.serve.test_server import CHAT, TEMPLATE, Client

LENGTH = 64
SIZES: dict = {"pages": 16, "page_size": 8, "rows": 2, "chunk": 16, "length": LENGTH, "few": True}


@cache
def tokenizer() -> Tokenizer:
    trained = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    return replace(trained, chat_template=TEMPLATE)


@cache
def model() -> tuple[Model, dict]:
    V = tokenizer().vocab_size
    media = {"image": replace(IMAGE, token=V), "sound": replace(SOUND, token=V + 1)}
    made = Model(replace(DECODER, vocab_size=V, **media))
    drawn = initialize(jax.random.key(0), made.specs(), jnp.float32)
    return made, jax.tree.map(lambda w: 4 * w, drawn)


@pytest.fixture(scope="module")
def client():
    engine = Engine(*model(), tokenizer(), **SIZES)
    soft = soft_tokens(model()[0].config)
    reads = ("image", "audio")
    made = Client.of(Worker(engine), Served("tiny", tokenizer(), LENGTH, soft=soft, reads=reads))
    yield made
    made.server.should_exit = True
    made.thread.join(20)
    assert not made.thread.is_alive() and engine.pages.held == 0


def picture(seed: int, size: tuple[int, int] = (9, 5), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, form)
    return made.getvalue()


def sound(seed: int, samples: int = 1600) -> bytes:
    values = np.random.default_rng(seed).normal(0, 3000, samples).astype("<i2")
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    return made.getvalue()


def shown(data: bytes, kind: str = "image/png") -> dict:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def heard(data: bytes, form: str = "wav") -> dict:
    spelt = {"data": base64.b64encode(data).decode(), "format": form}
    return {"type": "input_audio", "input_audio": spelt}


def said(*parts) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}], "temperature": 0}


TEXT = {"type": "text", "text": "to be?"}
ONE = said(shown(picture(0)), TEXT)
EVERY = [
    ONE,
    said(
        TEXT, shown(picture(1, form="JPEG"), "image/jpeg"), heard(sound(0)), {**TEXT, "text": "or"}
    ),
    said(heard(sound(1)), TEXT),
    said(TEXT),
]


def alone(body: dict) -> str:
    """What an engine writes for a body and nothing else."""
    c, parts = model()[0].config, []
    attached = partial(attach, soft=soft_tokens(c))
    for part in body["messages"][0]["content"]:
        spelt = part.get("input_audio", {}).get("data") or part.get("image_url", {}).get("url")
        kind = "audio" if "input_audio" in part else "image"
        source = base64.b64decode(spelt.partition(",")[2] or spelt) if spelt else b""
        parts.append(attached(kind, source) if spelt else part)
    ids, media = encode_attached(tokenizer(), [{"role": "user", "content": parts}], soft_tokens(c))
    config = SamplingConfig(temperature=0, max_tokens=6, stop_ids=(299,))
    own = Engine(*model(), tokenizer(), **SIZES)
    return own.generate([Request(ids, config, media=media)])[0].text


def test_answers_to_media_are_those_that_are_written_alone(client):
    assert client.json("/v1/models")["data"][0]["input_modalities"] == ["text", "image", "audio"]
    texts = []
    for body in EVERY:
        answer = client.json(CHAT, {**body, "max_completion_tokens": 6})
        texts.append(answer["choices"][0]["message"]["content"])
        assert texts[-1] == alone(body)
    streamed = client.events(CHAT, {**ONE, "max_completion_tokens": 6})
    pieces = [event["choices"][0]["delta"].get("content", "") for event in streamed]
    assert "".join(pieces) == texts[0] and len(set(texts)) > 1


def test_the_page_shows_media_of_its_own_and_loads_none(client):
    link = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    link.request("GET", "/")
    answer = link.getresponse()
    policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    link.close()
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert "img-src data:;" in policy and policy.endswith("media-src data:")
    # The button is there for models that read media, of which the page learns from /v1/models.
    assert re.search(r'<button [^>]*id="attach" hidden>', page) and "input_modalities" in page


BAD = base64.b64encode(b"no picture").decode()
FULL = picture(0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}], "nothing is fetched"),
        ([{"type": "image_url", "image_url": {"url": "/etc/passwd"}}], "no file is read"),
        ([{"type": "image_url", "image_url": "file:///etc/passwd"}], "no file is read"),
        ([{"type": "image_url"}], "image 0: image_url must be"),
        ([shown(FULL), {"type": "image_url", "image_url": "data:image/png,abc"}], "image 1: .*64"),
        ([{"type": "image_url", "image_url": "data:;base64,@@"}], "no base64"),
        ([{"type": "image_url", "image_url": f"data:;base64,{BAD}"}], "no picture that can be"),
        ([{"type": "image_url", "image_url": "data:;base64,"}], "image 0: it is empty"),
        ([shown(FULL[: len(FULL) // 2])], "image 0: its pixels cannot be read"),
        ([heard(b"no sound")], "audio 0: it is no WAV"),
        ([heard(sound(0), "mp3")], "ffmpeg -i FILE NAME.wav"),
        ([heard(sound(0, 16_000))], "audio 0: it lasts 1.00 s, over the 0.2 s"),
        ([{"type": "input_audio", "input_audio": [1]}], "input_audio must be"),
        ([shown(FULL)] * 8, "media take 72 tokens, and a text has at most 64; send fewer"),
        ([{"type": "image", "image": "x"}], "part of type 'image'"),
        ([shown(FULL), {"type": "video_url", "video_url": {}}], "part of type 'video_url'"),
        ([{"type": "text", "text": "\ue0f0"}, shown(FULL)], "18 places of soft tokens where its"),
    ],
)
def test_what_is_no_medium_is_refused_in_openais_form(client, parts, message):
    status, text = client.ask(CHAT, said(*parts, TEXT))
    error = json.loads(text)["error"]
    assert status == 400 and error["type"] == "invalid_request_error"
    with pytest.raises(ValueError, match=message):
        raise ValueError(error["message"])
    assert client.worker.failed is None


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(client):
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    status, text = client.ask(CHAT, said(shown(bomb.getvalue()), TEXT))
    assert status == 400 and "9000 x 9000 pixels" in json.loads(text)["error"]["message"]


def test_a_model_without_an_encoder_refuses_before_anything_is_decoded():
    served = Served("deaf", tokenizer(), 64)
    broken = {"type": "image_url", "image_url": "data:;base64,@@"}
    for part, what in ((broken, "images"), (heard(b"", "mp3"), "sounds")):
        with pytest.raises(Refused, match=f"the model reads no {what}; send text alone") as refused:
            with_attached(said(part, TEXT), served)
        assert refused.value.status == 400


def test_a_place_that_a_prompt_has_without_a_medium_is_refused(client):
    place = model()[0].config.image.token
    status, text = client.ask("/v1/completions", {"prompt": [1, place, 2], "max_tokens": 2})
    assert status == 400 and "places of images" in json.loads(text)["error"]["message"]


@pytest.mark.slow
def test_a_conversation_in_the_terminal_keeps_what_was_attached():
    soft, talk = soft_tokens(model()[0].config), Dialogue(*model(), tokenizer())
    one = attach("image", picture(0), soft)
    messages = [{"role": "user", "content": [one, "to be?"]}]
    config = SamplingConfig(temperature=0, max_tokens=6, stop_ids=(299,))
    ids, media = encode_attached(tokenizer(), messages, soft)
    first = "".join(talk.answer(ids, config, media))
    assert first == alone(ONE)
    messages += [{"role": "assistant", "content": "not"}, {"role": "user", "content": "or?"}]
    ids, media = encode_attached(tokenizer(), messages, soft)
    assert len(media["images"]) == 1 and isinstance(one, Attached)
    text = "".join(talk.answer(ids, config, media))
    [want] = generate(*model(), tokenizer(), [ids], config, [media["images"]])
    assert text == want.text
