"""A model behind a server of OpenAI's kind (`POST /v1/chat/completions`), so that tasks can be run on it."""

import base64
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Part, Text, parse_messages
from mmgpt.generation.assistant import Choice
from mmgpt.generation.decode import Reply
from mmgpt.generation.sampling import GenerateConfig

TRIES = 6
WAIT = 1.0  # seconds before the second try; twice as long before each further one
LONGEST_WAIT = 60.0  # seconds, also where the server asks for more
TIMEOUT = 600.0  # seconds for a reply
BUSY = {408, 409, 429, 500, 502, 503, 504}  # statuses after which the same request may succeed
SENT = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "stop": "stop"}
PICTURES = {"image/png", "image/jpeg", "image/webp", "image/gif"}  # what such servers take
SOUNDS = {"audio/wav": "wav", "audio/mpeg": "mp3"}

Record = dict[str, Any]


class OpenAIModel:
    """A client that answers messages.

    Attributes:
        name: `openai:ADDRESS#MODEL`, as results name it.
        url: the address up to and with /v1.
        model: the name that requests give.
    """

    def __init__(self, url: str, model: str | None = None, *, key: str | None = None, wait: float = WAIT) -> None:
        """Of a server; without `model` of the first one that it lists. `wait` is that before a second try, in s.

        Raises:
            UserError: if the address is none, or the server lists no model; OSError: if it cannot be reached.
        """
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is no address of a server; write openai:http://HOST:PORT or openai:URL#MODEL")
        url = url.rstrip("/").removesuffix("/chat/completions")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        self.key, self.wait = key, wait
        self.model = model or self._first_model()
        self.name = f"openai:{self.url}#{self.model}"

    def fingerprint(self) -> str:
        """Address and model name; what weights are behind them only the server knows."""
        return self.name

    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        batch_size: int = 32,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """The reply to each talk, `batch_size` requests at a time; talk i asks for seed + i.

        Raises:
            UserError: if an option has no name there, or the server refuses a request; the message is the server's.
            OSError: if it does not answer, after several tries.
        """
        own = each or [{}] * len(messages)
        bodies = [
            self._body(talk, build(GenerateConfig, {**options, **more}, "generation options"), number)
            for number, (talk, more) in enumerate(zip(messages, own, strict=True))
        ]
        with ThreadPoolExecutor(max_workers=batch_size) as pool:
            try:
                return list(pool.map(self._reply, bodies))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def choose(
        self,
        messages: Sequence[Sequence[Message]],
        choices: Sequence[Sequence[str]],
        *,
        normalise: bool,
        batch_size: int = 32,
    ) -> list[Choice]:
        """Refused: chat servers tell no log-probability of a given answer."""
        raise UserError(f"{self.name}: a chat server scores no given answers; use a task of kind generate")

    def score_texts(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """Refused: chat servers tell no log-probability of a given text."""
        raise UserError(f"{self.name}: a chat server scores no given texts; use a task of kind generate")

    def tokens_over_context(self, messages: Sequence[Message], room: int) -> int:
        """0: the server does not tell its context, and refuses by itself what is over it."""
        return 0

    def _body(self, talk: Sequence[Message], options: GenerateConfig, number: int) -> Record:
        given = options.model_dump(exclude_defaults=True)
        odd = sorted(given.keys() - SENT.keys() - {"seed"})
        if odd:
            raise UserError(
                f"{self.name}: {odd[0]}={given[odd[0]]!r} has no name in requests of OpenAI's kind; drop it"
            )
        dumped = options.model_dump()
        body = {theirs: dumped[ours] for ours, theirs in SENT.items() if ours in given or ours != "stop"}
        body |= {"model": self.model, "messages": openai_messages(talk), "stream": False}
        return body | ({"seed": options.seed + number} if options.temperature else {})

    def _reply(self, body: Record) -> Reply:
        found = self._ask("chat/completions", body)
        try:
            choice = found["choices"][0]
            text = choice["message"].get("content") or ""
            reason = "length" if choice.get("finish_reason") == "length" else "stop"
            return Reply(text=text, finish_reason=reason)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"{self.url}: the answer {json.dumps(found)[:200]} is no chat completion; is this OpenAI's API?"
            ) from None

    def _first_model(self) -> str:
        found = self._ask("models")
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}: lists no model; name one, openai:{self.url}#MODEL") from None

    def _ask(self, path: str, body: Record | None = None) -> Any:
        """What the server answers to a request, tried again where it is busy or out of reach for a moment."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        problem, asked_to_wait = "", 0.0
        for number in range(TRIES):
            if number:
                pause = max(self.wait * 2 ** (number - 1) * random.uniform(0.75, 1.25), asked_to_wait)
                time.sleep(min(pause, LONGEST_WAIT))
            try:
                request = urllib.request.Request(f"{self.url}/{path}", data, headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                problem = f"{error.code}: {_said(error.read())}"
                if error.code not in BUSY:
                    raise UserError(f"{self.url}: the server refuses a request ({problem})") from None
                asked_to_wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, ValueError) as error:  # ValueError: no JSON
                problem, asked_to_wait = f"{getattr(error, 'reason', error)}", 0.0
        raise ConnectionError(f"{self.url}: no answer after {TRIES} tries ({problem}); is the server running?")


def openai_messages(talk: Sequence[Message]) -> list[Record]:
    """A talk in OpenAI's spelling, its media as they are in the file where the format is one that servers take.

    Raises:
        UserError: on a video, for which there is no spelling; MediaError: on a medium that cannot be read.
    """
    return [
        {
            "role": message.role,
            "content": message.text if _is_text(message) else [_part(part) for part in message.parts],
        }
        for message in (one.in_words("the server") for one in parse_messages(talk))
    ]


def _is_text(message: Message) -> bool:
    return all(isinstance(part, Text) for part in message.parts)


def _part(part: Part) -> Record:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        mime, payload = part.encoded()
        if mime not in PICTURES:
            mime, payload = Image(part.load()).encoded()
        return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{_base64(payload)}"}}
    if isinstance(part, Audio):
        mime, payload = part.encoded()
        if mime not in SOUNDS:
            mime, payload = Audio(part.load()).encoded()
        return {"type": "input_audio", "input_audio": {"data": _base64(payload), "format": SOUNDS[mime]}}
    raise UserError(f"{part.name()}: requests of OpenAI's kind hold no videos; give its frames as pictures")


def _base64(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def _said(body: bytes) -> str:
    """The message of an error, in whichever of the usual places it is."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        return str(error if isinstance(error, str) else error.get("message") or error.get("detail") or error)[:500]
    except (ValueError, AttributeError):
        return text.strip()[:500] or "no message"


def _seconds(value: str | None) -> float:
    try:
        return float(value or 0)
    except ValueError:
        return 0.0  # a date, which nobody sends
