"""Tokenizer: byte-level BPE from the `tokenizers` library, with special tokens that user text can never spell.

Source of the algorithm: Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019 (GPT-2).
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import tokenizers
from pydantic import PositiveInt
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmgpt.config import Config, UserError
from mmgpt.datasets.cells import well_formed

PAD, END, MASK = "<|pad|>", "<|end|>", "<|mask|>"
PLACEHOLDER_TOKENS = {"image": "<|image|>", "audio": "<|audio|>"}  # one placeholder token for each feature of a medium
CHAT = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SPECIALS = (PAD, END, MASK, *PLACEHOLDER_TOKENS.values(), *CHAT)
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")  # by which outside tokenizers close a document


class TokenizerConfig(Config):
    """Train a tokenizer on the recipe's own texts, or load `path` (a Hugging Face tokenizer.json).

    A pretrained decoder brings its own, unless `path` names another.
    """

    vocab_size: PositiveInt = 4096
    path: str | None = None
    num_samples: PositiveInt = 4000  # samples a source to learn the merges from


class Tokenizer:
    """Text to ids and back.

    Attributes:
        special_ids: by name; `<|end|>` is the tokenizer's own end of a document where it has one.
        begin: what it puts before every text, such as Llama's `<s>`.
    """

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        core.encode_special_tokens = True  # text that spells a special token is encoded as the characters it is
        core.no_padding()
        core.no_truncation()
        self.core = core
        self.special_ids = {token.content: i for i, token in core.get_added_tokens_decoder().items()}
        for end in ENDS_OF_TEXT:
            if end in self.special_ids:
                self.special_ids.setdefault(END, self.special_ids[end])
        opened = core.encode("a", add_special_tokens=True)
        is_text = [not special for special in opened.special_tokens_mask]
        self.begin = tuple(opened.ids[: is_text.index(True)]) if any(is_text) else ()
        self._split = re.compile("(" + "|".join(map(re.escape, self.special_ids)) + ")") if self.special_ids else None
        self.encode = lru_cache(maxsize=65_536)(self._encode)  # prompts and short answers recur
        self.encode_markup = lru_cache(maxsize=256)(self._encode_markup)

    def __len__(self) -> int:
        return self.core.get_vocab_size(with_added_tokens=True)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Tokenizer.from_string, (self.core.to_str(),)

    @classmethod
    def from_string(cls, text: str) -> "Tokenizer":
        """From the content of a tokenizer.json."""
        return cls(tokenizers.Tokenizer.from_str(text))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a tokenizer.json, or a folder that holds one.

        Raises:
            UserError: if there is none or it cannot be read.
        """
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            old = file.with_name("tokenizer.model").is_file()
            remedy = (
                "write it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                if old
                else "give a tokenizer.json or the folder that holds one"
            )
            raise UserError(f"{file}: no such file; {remedy}")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{file}: not a tokenizer.json ({error})") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from `texts`; digits stand alone, spaces belong to the word that follows.

        Raises:
            UserError: if `vocab_size` has no room for the 256 bytes and the special tokens.
        """
        least = 256 + len(SPECIALS)
        if vocab_size < least:
            raise UserError(f"vocab_size={vocab_size} is too small; the bytes and special tokens alone take {least}")
        core = tokenizers.Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(SPECIALS),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        return cls(core)

    def extended(self, tokens: Iterable[str]) -> "Tokenizer":
        """A tokenizer with these special tokens too; the same one if it has all of them."""
        missing = [token for token in dict.fromkeys(tokens) if token not in self.special_ids]
        if not missing:
            return self
        core = tokenizers.Tokenizer.from_str(self.core.to_str())
        core.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in missing])
        return Tokenizer(core)

    def renamed(self, old: str, new: str) -> "Tokenizer":
        """A tokenizer in which a special token has another name and the same id."""
        if old == new:
            return self
        tree = json.loads(self.core.to_str())
        for token in tree["added_tokens"]:
            token["content"] = new if token["content"] == old else token["content"]
        words = tree["model"]["vocab"]
        if isinstance(words, dict) and old in words:
            words[new] = words.pop(old)
        return Tokenizer.from_string(json.dumps(tree))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json into a folder."""
        self.core.save(str(Path(folder) / "tokenizer.json"))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._encode(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.core.encode(well_formed(text), add_special_tokens=False).ids)

    def _encode_markup(self, markup: str) -> tuple[int, ...]:
        """Encode a template's own text, in which special tokens are meant as such. Never give it user text."""
        ids: list[int] = []
        for piece in self._split.split(markup) if self._split else [markup]:
            ids += [self.special_ids[piece]] if piece in self.special_ids else self.encode(piece)
        return tuple(ids)

    def special(self, token: str) -> int:
        """The id of a special token.

        Raises:
            UserError: if this tokenizer has none of that name.
        """
        if token not in self.special_ids:
            raise UserError(
                f"the tokenizer has no special token {token}; it has {', '.join(self.special_ids) or 'none'}"
            )
        return self.special_ids[token]

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """Ids to text; special tokens are left out unless asked for."""
        text: str = self.core.decode(list(ids), skip_special_tokens=not keep_special)
        return text
