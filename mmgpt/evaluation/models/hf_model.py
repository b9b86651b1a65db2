"""A vision, audio or text model of transformers, run in this process with its own processor and chat template.

Choices are scored after one reading of their prompt: its keys and values are repeated for all of them, so that scores
do not depend on a batch. The text that the template writes after an answer counts as its end.

Shape letters: B rows, T tokens, C choices, V vocabulary.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Part, Text, parse_messages
from mmgpt.encoders.audio_config import resampled
from mmgpt.generation.assistant import Choice
from mmgpt.generation.decode import Reply, cut_at
from mmgpt.generation.loglikelihood import windows
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.processor import pick_device

TAKEN = {
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "num_beams",
    "length_penalty",
    "stop",
    "seed",
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")

Record = dict[str, Any]
Talk = Sequence[Message]


class HFModel:
    """A model of transformers that answers messages."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Of a model and its processor, or the tokenizer of a language model."""
        self.model, self.processor, self.name = model.eval(), processor, name
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_media = self.tokenizer is not processor
        self.tokenizer.padding_side = "left"
        names = inspect.signature(model.forward).parameters
        self.cache = "cache" if "cache" in names else "past_key_values"  # as it was called before transformers 5.2x
        ends = model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(min(self.ends))
        if getattr(processor, "chat_template", None) is None and self.tokenizer.chat_template is None:
            raise UserError(f"{name}: has no chat template; take a model that was trained to answer messages")

    def fingerprint(self) -> str:
        """A hash of weights, settings, tokenizer and template."""
        config = self.model.config.to_json_string(use_diff=False)
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        described = [config, str(template), str(sorted(self.tokenizer.get_vocab().items())), str(self.processor)]
        found = hashlib.sha256("\n".join(described).encode())
        for key, weight in sorted(self.model.state_dict().items()):
            found.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def chat(
        self,
        messages: Sequence[Talk],
        *,
        batch_size: int = 32,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """The reply to each talk. Sampled ones are drawn one by one, talk i with seed + i, so that no batch matters.

        Raises:
            UserError: on an option that is not handed on, or a medium that the model does not take.
        """
        own = each or [{}] * len(messages)
        configs = [build(GenerateConfig, {**options, **more}, "generation options") for more in own]
        replies: list[Reply] = []
        for config, group in groupby(range(len(messages)), key=configs.__getitem__):
            numbers = list(group)
            size = 1 if config.temperature else batch_size
            for at in range(0, len(numbers), size):
                rows = numbers[at : at + size]
                replies += self._generate([messages[row] for row in rows], config, config.seed + rows[0])
        return replies

    def choose(
        self, messages: Sequence[Talk], choices: Sequence[Sequence[str]], *, normalise: bool, batch_size: int = 32
    ) -> list[Choice]:
        """The likeliest of the choices of each talk, each with its end; `batch_size` choices at a time."""
        chosen = []
        for talk, texts in zip(messages, choices, strict=True):
            opened = self._text(talk, add_generation_prompt=True)
            tails = [self._ids(self._answer(talk, opened, text)) for text in texts]
            found = self._after(self._inputs([talk]), tails, batch_size)
            scores = [sum(one) / (len(one) if normalise else 1) for one in found]
            chosen.append(Choice.best(texts, scores))
        return chosen

    def score_texts(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of the tokens of plain texts, as of `Assistant.score_texts`."""
        found: list[list[float]] = []
        for before, text in zip(contexts, texts, strict=True):
            head = list(self.tokenizer(before)["input_ids"])
            ids = [*head, *self._ids(text)]
            found.append([])
            for window in windows(max(1, len(head)), len(ids), self._context):
                ids_1T = torch.tensor([ids[window.start : window.first]], device=self.model.device)
                inputs = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
                found[-1] += self._after(inputs, [ids[window.first : window.stop]], 1)[0]
        return found

    @property
    def _context(self) -> int:
        return int(self.model.config.get_text_config().max_position_embeddings)

    def tokens_over_context(self, messages: Talk, room: int) -> int:
        """By how many tokens a talk with an answer of `room` tokens is over the context."""
        return int(self._inputs([messages])["input_ids"].shape[1]) + room - self._context

    def _inputs(self, talks: Sequence[Talk]) -> Record:
        spelled = [self._spelled(talk) for talk in talks]
        inputs = self.processor.apply_chat_template(
            spelled,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **({"processor_kwargs": _PADDED} if self.takes_media else _PADDED),
        )
        dtype, device = self.model.dtype, self.model.device
        return {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
            if isinstance(value, Tensor)
        }

    def _text(self, talk: Talk, **options: Any) -> str:
        text: str = self.processor.apply_chat_template(self._spelled(talk), tokenize=False, **options)
        return text

    def _spelled(self, talk: Talk) -> list[Record]:
        messages = [message.in_words(self.name) for message in parse_messages(talk)]
        if not self.takes_media:
            return [{"role": message.role, "content": self._words(message)} for message in messages]
        return [{"role": message.role, "content": [self._part(part) for part in message.parts]} for message in messages]

    def _words(self, message: Message) -> str:
        medium = next((part for part in message.parts if not isinstance(part, Text)), None)
        if medium is not None:
            raise UserError(f"{self.name}: a language model, which takes no {medium.modality}; use a task in words")
        return message.text

    def _part(self, part: Part) -> Record:
        if isinstance(part, Text):
            return {"type": "text", "text": part.text}
        if isinstance(part, Image) and hasattr(self.processor, "image_processor"):
            return {"type": "image", "image": part.load()}
        if isinstance(part, Audio) and hasattr(self.processor, "feature_extractor"):
            sound, rate = part.load(), self.processor.feature_extractor.sampling_rate
            samples_S = resampled(torch.from_numpy(sound.samples), sound.rate, rate)
            return {"type": "audio", "audio": samples_S.numpy()}
        raise UserError(f"{self.name}: {type(self.processor).__name__} takes no {part.modality}; use another task")

    def _answer(self, talk: Talk, opened: str, text: str) -> str:
        """An answer as the template writes it after the prompt, up to its end token."""
        whole = self._text([*parse_messages(talk), Message.of("assistant", text)], add_generation_prompt=False)
        if not whole.startswith(opened):
            raise UserError(f"{self.name}: its chat template changes the prompt once it is answered; use kind generate")
        written = whole[len(opened) :]
        at = written.find(text) + len(text)
        return written[:at] + written[at:].rstrip()

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def _after(self, inputs: Record, tails: Sequence[list[int]], batch_size: int) -> list[list[float]]:
        """Log-probabilities of the tokens of each continuation of one prompt, which is read once for every batch."""
        found: list[list[float]] = []
        for at in range(0, len(tails), batch_size):
            some = tails[at : at + batch_size]
            read = self.model(**inputs, use_cache=True)
            first_V = read.logits[0, -1].float().log_softmax(dim=-1)
            rest_CT = pad_sequence([torch.tensor(ids[:-1] or [0]) for ids in some], batch_first=True)
            cache = read[self.cache]
            cache.batch_repeat_interleave(len(some))
            past_CT = inputs["attention_mask"].expand(len(some), -1)
            rest_CT = rest_CT.to(past_CT.device)
            mask_CT = torch.cat([past_CT, torch.ones_like(rest_CT)], dim=1)  # padding is last: no token sees it
            logits_CTV = self.model(input_ids=rest_CT, attention_mask=mask_CT, **{self.cache: cache}).logits
            for ids, logits_TV in zip(some, logits_CTV, strict=True):
                later_TV = logits_TV[: len(ids) - 1].float().log_softmax(dim=-1)
                later_T = later_TV.gather(1, torch.tensor(ids[1:], device=later_TV.device)[:, None])[:, 0]
                found.append([float(first_V[ids[0]]), *later_T.tolist()])
        return found

    @torch.inference_mode()
    def _generate(self, talks: Sequence[Talk], config: GenerateConfig, seed: int) -> Iterator[Reply]:
        given = config.model_dump(exclude_defaults=True)
        odd = sorted(given.keys() - TAKEN)
        if odd:
            raise UserError(f"{self.name}: {odd[0]}={given[odd[0]]!r} is not handed on to transformers; leave it out")
        # its own generation_config may hold a penalty or a top-k, which nobody asked for here
        asked = _library().GenerationConfig(
            max_new_tokens=config.max_new_tokens,
            do_sample=config.temperature > 0,
            num_beams=config.num_beams,
            repetition_penalty=config.repetition_penalty,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.tokenizer.pad_token_id,
            stop_strings=list(config.stop) or None,
            **({name: getattr(config, name) for name in SAMPLING} if config.temperature else {}),
            **({"length_penalty": config.length_penalty} if config.num_beams > 1 else {}),
        )
        inputs = self._inputs(talks)
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            tokenizer = {"tokenizer": self.tokenizer} if config.stop else {}
            made_BT = self.model.generate(**inputs, generation_config=asked, **tokenizer)
        for row_T in made_BT[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((at + 1 for at, token in enumerate(row_T) if token in self.ends), len(row_T))
            tokens = row_T[:end]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            cut = cut_at(text, config.stop)
            is_over = bool(tokens) and tokens[-1] in self.ends
            yield Reply(text[:cut], tokens, finish_reason="stop" if is_over or cut is not None else "length")


_PADDED = {"return_tensors": "pt", "padding": True}


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("models of hf: need transformers; pip install 'mmgpt[hf]'") from None
    return transformers


def open_hf(name: str | Path, device: str = "auto") -> HFModel:
    """A model of transformers and its processor, from a folder or the hub.

    Raises:
        UserError: if transformers is not installed, has no class for the model, or a file is missing.
    """
    transformers = _library()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        architecture = next(iter(config.architectures or ()), "")
        kind: Any = getattr(transformers, architecture, None)
        if not hasattr(kind, "generate"):
            raise UserError(f"hf:{name}: {architecture or 'no architecture'} is no model that answers in words")
        model = kind.from_pretrained(name, dtype="auto").to(pick_device(device))
        processor = transformers.AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"hf:{name}: cannot be opened ({str(error).strip().splitlines()[0]})") from None
    return HFModel(model, processor, f"hf:{name}")
