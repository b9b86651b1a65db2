"""Media of a prompt given by an address: a server in this process."""

import sys

import numpy as np
import pytest
import serving

from mmgpt.config import UserError
from mmgpt.datasets import remote
from mmgpt.datasets.media import Image, Limits, MediaError
from mmgpt.datasets.sample import Message
from mmgpt.generation.prompts import parse_prompt

pytest.importorskip("aiohttp", reason="addresses need mmgpt[data]")
PNG = Image(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).encoded()[1]


@pytest.fixture
def server():
    """Addresses of a picture, of a stream that never ends, of nothing and of an empty file; and what was asked for."""
    asked = []

    class Handler(serving.Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/gone.png":
                return self.send_error(404)
            self.send_response(200)
            self.end_headers()
            payload = {"/a.png": PNG, "/empty.png": b""}.get(self.path)
            try:
                while payload is None:
                    self.wfile.write(b"\0" * 2**16)
                self.wfile.write(payload)
            except OSError:
                pass  # who reads has had enough

    with serving.Server(Handler) as running:
        running.asked = asked
        yield running


def asked_about(address: str, role: str = "user") -> list:
    return [{"role": role, "content": [{"type": "image_url", "image_url": {"url": address}}, "What?"]}]


def test_a_picture_by_its_address_is_the_picture(assistant, server):
    by_address = assistant.chat(asked_about(f"{server.address}/a.png"), max_new_tokens=6)
    assert by_address.text == assistant.ask(Image(PNG), "What?", max_new_tokens=6).text
    (message,) = parse_prompt(asked_about(f"{server.address}/a.png"))
    assert message.parts[0].name() == f"{server.address}/a.png"


def test_what_is_not_there_empty_or_too_large_is_refused(assistant, server, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    for name, told in (("gone.png", "no such file"), ("empty.png", "the file is empty")):
        with pytest.raises(MediaError, match=f"{name}: {told}"):
            assistant.chat(asked_about(f"{server.address}/{name}"))
    with pytest.raises(MediaError, match=r"endless: over 100,000 bytes; cut or compress it"):
        parse_prompt(asked_about(f"{server.address}/endless"), Limits(bytes=100_000))
    with pytest.raises(MediaError, match="cannot be read after 2 attempts"):
        parse_prompt(asked_about("http://127.0.0.1:1/a.png"))


def test_an_address_in_a_reply_is_not_fetched(assistant, server):
    said = f"{server.address}/a.png"
    talk = [Message.of("user", "Where?"), Message.of("assistant", f"data, {said}"), Message.of("user", "And?")]
    assistant.chat(talk, max_new_tokens=2)
    with pytest.raises(UserError, match="stands in an assistant turn, and what a model says is not fetched"):
        assistant.chat([*asked_about(said, "assistant"), Message.of("user", "And?")])
    assert server.asked == []


def test_without_the_extra_it_is_named(monkeypatch):
    remote._open_filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match=r"https:// cannot be read here .*pip install 'mmgpt\[data\]'"):
        parse_prompt(asked_about("https://example.com/a.png"))


def test_a_path_is_left_to_be_read_late():
    (message,) = parse_prompt([Message.of("user", Image("not/there.png"), "What?")])
    assert message.parts[0].source == "not/there.png"
