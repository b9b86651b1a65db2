"""A server in this process that answers as https://platform.openai.com/docs/api-reference/chat lays out."""

import base64
import io
import json
import threading
from typing import Any

import numpy as np
import PIL.Image
import pytest
import serving
import soundfile

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Message, parse_messages
from mmgpt.evaluation.models.model import open_model
from mmgpt.evaluation.models.openai_model import OpenAIModel


class Server(serving.Server):
    """Answers each request with the last user text in capitals; `troubles` are statuses to answer with first."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.troubles: list[tuple[int, dict[str, str], bytes]] = []
        self.models = [{"id": "big", "object": "model"}]
        self.waits: threading.Barrier | None = None
        self.lock = threading.Lock()


class Handler(serving.Handler):
    server: Server

    def do_GET(self):
        assert self.path == "/v1/models"
        self.answer(200, {"object": "list", "data": self.server.models})

    def do_POST(self):
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            trouble = self.server.troubles.pop(0) if self.server.troubles else None
        if trouble:
            return self.answer(trouble[0], trouble[2], trouble[1])
        if self.server.waits:
            self.server.waits.wait(timeout=20)
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        choice = {"index": 0, "message": {"role": "assistant", "content": text.upper()}, "finish_reason": "stop"}
        if body["max_tokens"] < len(text):
            choice = {**choice, "message": {"role": "assistant", "content": None}, "finish_reason": "length"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return self.answer(200, whole | {"choices": [choice], "usage": usage})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)


@pytest.fixture
def server():
    with Server() as running:
        yield running


def talks(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message.of("user", text),) for text in texts]


def test_an_address_opens_the_servers_first_model_or_the_one_named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-1")
    first, named = open_model(f"openai:{server.address}"), open_model(f"openai:{server.address}/v1/#small")
    assert (first.name, named.name) == (f"openai:{server.address}/v1#big", f"openai:{server.address}/v1#small")
    assert first.fingerprint() != named.fingerprint()
    assert [reply.text for reply in named.chat(talks("one"))] == ["ONE"]
    assert server.asked[0]["model"] == "small"
    assert server.keys == ["Bearer k-1"]


def test_replies_come_in_the_order_of_the_talks_with_several_requests_under_way(server):
    server.waits = threading.Barrier(4)  # four must be there together, or none is answered
    replies = OpenAIModel(server.address).chat(talks(*"abcdefgh"), batch_size=4)
    assert [reply.text for reply in replies] == list("ABCDEFGH")
    assert {reply.finish_reason for reply in replies} == {"stop"}


def test_options_go_by_their_names_there(server):
    model = OpenAIModel(server.address)
    model.chat(talks("one", "two"), batch_size=1, max_new_tokens=9, temperature=0.5, top_p=0.9, stop=("\n",), seed=7)
    model.chat(talks("one"), each=[{"max_new_tokens": 5}])
    first, second, greedy = server.asked
    assert {k: v for k, v in first.items() if k != "messages"} == {
        "model": "big",
        "stream": False,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["\n"],
        "seed": 7,
    }
    assert (first["messages"], second["seed"]) == ([{"role": "user", "content": "one"}], 8)
    assert (greedy["max_tokens"], greedy["temperature"]) == (5, 0.0)
    assert greedy.keys() == {"model", "messages", "stream", "max_tokens", "temperature", "top_p"}
    with pytest.raises(UserError, match=r"top_k=5 has no name in requests of OpenAI's kind"):
        model.chat(talks("one"), temperature=1.0, top_k=5)


def test_media_travel_as_data_and_are_the_same_when_they_are_read(server, tmp_path):
    picture = PIL.Image.effect_noise((9, 7), 40).convert("RGB")
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.bmp")
    samples_S = np.sin(np.arange(800) / 9).astype(np.float32) / 2
    soundfile.write(tmp_path / "a.flac", samples_S, 8000)
    soundfile.write(tmp_path / "a.wav", samples_S, 8000)
    media = [Image(str(tmp_path / f"a.{kind}")) for kind in ("png", "bmp")]
    media += [Audio(str(tmp_path / "a.wav")), Audio(str(tmp_path / "a.flac")), Audio(samples_S, rate=8000)]
    turns = (Message.of("system", "Be brief."), Message.of("user", *media, "what?"))
    assert OpenAIModel(server.address).chat([turns])[0].text == "WHAT?"
    system, user = server.asked[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    png, bmp, wav, flac, array, text = user["content"]
    assert text == {"type": "text", "text": "what?"}
    assert (
        png["image_url"]["url"]
        == f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    )
    for part in (png, bmp):
        url = part["image_url"]["url"]
        assert url.startswith("data:image/png;base64,")
        shown = PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(picture))
    assert base64.b64decode(wav["input_audio"]["data"]) == (tmp_path / "a.wav").read_bytes()
    for part in (wav, flac, array):
        assert part["type"] == "input_audio"
        assert part["input_audio"]["format"] == "wav"
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])), dtype="float32")
        assert rate == 8000
        np.testing.assert_allclose(heard, samples_S, atol=1e-4)
    (again,) = parse_messages(server.asked[0]["messages"][1:])
    assert [type(part).__name__ for part in again.parts] == ["Image", "Image", "Audio", "Audio", "Audio", "Text"]
    with pytest.raises(UserError, match="hold no videos; give its frames as pictures"):
        OpenAIModel(server.address).chat([(Message.of("user", Video("a.mp4"), "what?"),)])


def test_a_busy_server_is_asked_again(server):
    told = json.dumps({"error": {"message": "slow down", "type": "rate_limit"}}).encode()
    server.troubles = [(429, {"Retry-After": "0.01"}, told), (503, {}, b"<html>busy</html>"), (500, {}, told)]
    assert OpenAIModel(server.address, wait=0.001).chat(talks("one"))[0].text == "ONE"
    assert len(server.asked) == 4


def test_a_server_that_stays_busy_is_a_failure_of_the_work(server):
    server.troubles = [(503, {}, b'{"detail": "loading"}')] * 6
    with pytest.raises(OSError, match=r"no answer after 6 tries \(503: loading\); is the server running"):
        OpenAIModel(server.address, "big", wait=0.001).chat(talks("one"))


def test_a_refusal_is_told_in_the_servers_words_and_not_tried_again(server):
    told = {"error": {"message": "context length exceeded: 9000 > 4096", "code": 400}}
    server.troubles = [(400, {}, json.dumps(told).encode())] * 2
    with pytest.raises(UserError, match=r"the server refuses a request \(400: context length exceeded: 9000 > 4096\)"):
        OpenAIModel(server.address, wait=0.001).chat(talks("one", "two"), batch_size=1)
    assert len(server.asked) <= 2


def test_no_server_no_model_and_no_completion_are_told(server):
    with pytest.raises(UserError, match="is no address of a server; write openai:http://HOST:PORT"):
        open_model("openai:localhost")
    server.models = []
    with pytest.raises(UserError, match=r"lists no model; name one, openai:http://.*/v1#MODEL"):
        OpenAIModel(server.address)
    server.troubles = [(200, {}, b'{"choices": []}')]
    with pytest.raises(UserError, match="is no chat completion"):
        OpenAIModel(server.address, "big").chat(talks("one"))
    with pytest.raises(OSError, match="no answer after 6 tries"):
        OpenAIModel("http://127.0.0.1:9", wait=0.001)


def test_an_answer_over_the_budget_says_so(server):
    (reply,) = OpenAIModel(server.address).chat(talks("a long answer"), max_new_tokens=2)
    assert (reply.text, reply.finish_reason) == ("", "length")


def test_given_answers_and_texts_are_not_scored(server):
    model = OpenAIModel(server.address, "big")
    with pytest.raises(UserError, match="a chat server scores no given answers; use a task of kind generate"):
        model.choose(talks("one"), [["a", "b"]], normalise=False)
    with pytest.raises(UserError, match="scores no given texts"):
        model.score_texts(["a"], ["b"])
    assert model.tokens_over_context(talks("one")[0], 8) == 0
