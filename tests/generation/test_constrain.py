import json
import os
import random
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.sampling import GenerateConfig, make_sampler
from mmgpt.inputs.tokenizer import Tokenizer

SCHEMAS = int(os.environ.get("MMGPT_SCHEMAS", "100"))  # MMGPT_SCHEMAS=1000 for a thorough run
TEXTS = ["hello world yes no maybe {'a': 12}", 'the red circle is "true" or false'] * 5
END = "</s>"


def gpt2_like(vocab: int = 300) -> Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if vocab > 256 else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return Tokenizer(core)


def llama2_like() -> Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fixed = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=360, special_tokens=fixed, show_progress=False))
    tree = json.loads(core.to_str())
    tree["added_tokens"] = tree["added_tokens"][:3]  # as in Llama's file, the bytes are tokens of the model
    return Tokenizer.from_string(json.dumps(tree))


def of_whole_words() -> Tokenizer:
    core = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "no": 2, END: 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([END])
    return Tokenizer(core)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return gpt2_like()


TOKENIZERS = {"byte-level": gpt2_like, "byte fallback": llama2_like}


def written(tokenizer: Tokenizer, constraint: dict[str, Any], seed: int, most: int = 200) -> str | None:
    """An answer of random logits, a few rows wider than the tokenizer; None where `most` tokens did not end it."""
    options = GenerateConfig(temperature=1.0, constraint=constraint)
    eos_token_id = tokenizer.special(END if END in tokenizer.special_ids else "<|end|>")
    sampler = make_sampler(options, tokenizer, seed, [], eos_token_id)
    noise = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while len(ids) < most:
        ids.append(sampler.sample(torch.randn(len(tokenizer) + 7, generator=noise)))
        if ids[-1] == eos_token_id:
            return tokenizer.decode(ids)
    return None


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_answers_are_always_one_of_the_choices_and_each_can_be(kind):
    choices = ["yes", "no", "not yet", "né\n", '😀 \\ "it\'s"', "<|end|>", "</s>", "n"]
    tokenizer = TOKENIZERS[kind]()
    found = {written(tokenizer, {"choices": choices}, seed) for seed in range(150)}
    assert found == set(choices)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "regex", [r"[0-9]{2,4}(\.[0-9])?", "(red|blue) (circle|square)s?", "[a-zé]{3}|€+x", r"[^a-z]?!"]
)
def test_answers_match_the_regex(kind, regex):
    tokenizer = TOKENIZERS[kind]()
    answers = [written(tokenizer, {"regex": regex}, seed) for seed in range(20)]
    assert all(generate is not None and re.fullmatch(regex, generate) for generate in answers)
    assert len(set(answers)) > 2


def test_answers_follow_the_grammar(tokenizer):
    grammar = 'start: term (" + " term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]?/'
    answers = [written(tokenizer, {"grammar": grammar}, seed) for seed in range(30)]
    done = [generate for generate in answers if generate is not None]
    assert len(done) > 20
    assert any("(" in generate and "+" in generate for generate in done)
    for generate in done:
        assert re.fullmatch(r"[0-9+ ()]+", generate)
        assert eval(generate) > 0


class Schemas:
    """Random schemas whose instances are bounded but for the digits of fractions."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def any(self, depth: int = 3) -> dict[str, Any]:
        flat = [self.string, self.integer, self.number, self.boolean, self.enum, self.null]
        deep = [self.object, self.array, self.either]
        make = self.rng.choice(deep * 2 + flat if depth else flat)
        return make(depth - 1) if make in deep else make()

    def root(self) -> dict[str, Any]:
        return self.rng.choice([self.object, self.array])(2)

    def string(self) -> dict[str, Any]:
        low = self.rng.randint(0, 4)
        bounded = {"type": "string", "minLength": low, "maxLength": low + self.rng.randint(0, 6)}
        return self.rng.choice([bounded, bounded, {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"}])

    def integer(self) -> dict[str, Any]:
        low = self.rng.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + self.rng.randint(0, 500)}

    def number(self) -> dict[str, Any]:
        low = self.rng.randint(-50, 50) / 4
        open_end = self.rng.choice(["maximum", "exclusiveMaximum"])
        return {"type": "number", "minimum": low, open_end: low + self.rng.randint(1, 40) / 8}

    def boolean(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def null(self) -> dict[str, Any]:
        return {"type": "null"}

    def enum(self) -> dict[str, Any]:
        values = ["red", "é€😀", 'a "quoted"\n', 7, -1.5, True, None, ["x", 1], {"k": [2]}]
        chosen = self.rng.sample(values, self.rng.randint(1, 4))
        return self.rng.choice([{"enum": chosen}, {"const": chosen[0]}])

    def object(self, depth: int) -> dict[str, Any]:
        names = self.rng.sample(["name", "count", "a b", "ü", "x_1", "deep"], self.rng.randint(0, 4))
        needed = [name for name in names if self.rng.random() < 0.7]
        properties = {name: self.any(depth) for name in names}
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}

    def array(self, depth: int) -> dict[str, Any]:
        low = self.rng.randint(0, 2)
        return {"type": "array", "items": self.any(depth), "minItems": low, "maxItems": low + self.rng.randint(0, 2)}

    def either(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.any(depth), self.any(depth)]}


def answered(assistant: Assistant, constraints: list[dict[str, Any]], budget: int) -> list[tuple[str, str]]:
    """Text and finish reason of an answer under each constraint, in one batch."""
    prompt = assistant.renderer.prompt((Message.of("user", "JSON, please."),))
    drawn = {"temperature": 8.0, "max_new_tokens": budget, "speculation": "lookup", "draft_tokens": 3}
    options = [GenerateConfig(constraint=one, seed=at, **drawn) for at, one in enumerate(constraints)]
    replies = assistant.engine.generate([(prompt, one) for one in options], len(options))
    return [(reply.text, reply.finish_reason) for reply in replies]


def test_json_of_random_bounded_schemas_parses_and_validates(make_assistant: Callable[..., Assistant]):
    assistant = make_assistant(image=None, context=640)
    schemas = [Schemas(seed).root() for seed in range(SCHEMAS)]
    unfinished, kinds = 0, set()
    for at in range(0, SCHEMAS, 50):
        part = schemas[at : at + 50]
        for schema, (text, reason) in zip(
            part, answered(assistant, [{"json_schema": one} for one in part], 600), strict=True
        ):
            if reason == "length":
                unfinished += 1
                continue
            value = json.loads(text, parse_float=Decimal)
            jsonschema.Draft202012Validator(schema).validate(value)
            kinds.add(text[:2])
    print(f"{SCHEMAS} schemas, {unfinished} unfinished at the budget")
    assert unfinished <= 0.02 * SCHEMAS
    assert len(kinds) > 4


@pytest.mark.parametrize("low", [-10, -2.5, -1, 0, 1, 2.75])
@pytest.mark.parametrize("width", [0.25, 0.75, 1, 3.5])
@pytest.mark.parametrize("kind", ["number", "integer"])
def test_exclusive_bounds_are_never_reached(gpt2, low, width, kind):
    for bounds in (("exclusiveMinimum", "maximum"), ("minimum", "exclusiveMaximum")):
        schema = {"type": kind, **dict(zip(bounds, (low, low + width), strict=True))}
        if kind == "number" or any(jsonschema.Draft202012Validator(schema).is_valid(i) for i in range(-10, 9)):
            for seed in range(12):
                generate = written(gpt2, {"json_schema": schema}, seed)
                jsonschema.Draft202012Validator(schema).validate(json.loads(generate, parse_float=Decimal))


def test_what_looks_like_a_bound_but_is_a_value_is_left_alone(gpt2):
    value = {"exclusiveMaximum": 3, "properties": {"const": 1}}
    assert json.loads(written(gpt2, {"json_schema": {"const": value}}, 0)) == value
    inner = {"type": "integer", "minimum": 2, "exclusiveMaximum": 3}
    named = {"type": "object", "properties": {"const": inner, "exclusiveMaximum": inner}}
    strict = {**named, "required": ["const", "exclusiveMaximum"], "additionalProperties": False}
    assert json.loads(written(gpt2, {"json_schema": strict}, 0)) == {"const": 2, "exclusiveMaximum": 2}


def test_a_budget_too_short_ends_a_constrained_answer_with_reason_length(make_assistant):
    schema = {"type": "string", "minLength": 30, "maxLength": 40}
    text, reason = answered(make_assistant(image=None), [{"json_schema": schema}], 5)[0]
    assert (text[0], reason) == ('"', "length")


def test_the_constraint_only_takes_tokens_away(assistant):
    tokenizer = assistant.tokenizer
    words = [tokenizer.decode([token]) for token in range(20, 120)]
    ones = [word for word in words if word.isalpha() and len(tokenizer.encode(word)) == 1]
    letters = [word for word in ones if not any(other != word and word.startswith(other) for other in ones)]
    for seed in range(20):
        logits_V = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(seed))
        options = GenerateConfig(constraint={"choices": letters})
        sampler = make_sampler(options, tokenizer, 0, [], assistant.eos_token_id)
        best = max(letters, key=lambda word: float(logits_V[tokenizer.encode(word)[0]]))
        assert tokenizer.decode([sampler.sample(logits_V)]) == best


def test_constrained_speculation_gives_the_answers_of_plain_constrained_decoding(
    assistant, conversations, decode_plainly
):
    prompts = [assistant.renderer.prompt(one) for one in conversations]
    schema = {"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 6, "maxItems": 6}
    options = GenerateConfig(constraint={"json_schema": schema}, max_new_tokens=64, draft_tokens=6)
    samplers = [make_sampler(options, assistant.tokenizer, 0, one.ids, assistant.eos_token_id) for one in prompts]
    plain = decode_plainly(assistant.model.eval(), prompts, samplers, assistant.eos_token_id, 64)
    guessing = options.model_copy(update={"speculation": "lookup"})
    replies = assistant.engine.generate([(one, guessing) for one in prompts], len(prompts))
    found = [reply.tokens for reply in replies]
    assert found == [[token for token, _ in row] for row in plain]
    assert all(json.loads(assistant.tokenizer.decode(row)) for row in found)


NOTHING = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 2}}, "required": ["a"]}
CANNOT = "the constraint cannot be met: nothing that this tokenizer writes satisfies it"


@pytest.mark.parametrize(
    ("constraint", "told"),
    [
        ({"json_schema": NOTHING}, "cannot be used: Unsatisfiable schema: required property 'a' is unsatisfiable"),
        ({"json_schema": {"enum": []}}, "Unsatisfiable schema"),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"json_schema": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"regex": "[0-9"}, 'invalid regex "[0-9"'),
        ({"regex": "a[^\\s\\S]"}, CANNOT),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"grammar": "begin"}, "cannot be used"),
    ],
)
def test_an_impossible_or_unreadable_constraint_is_one_clear_error(tokenizer, constraint, told):
    with pytest.raises(UserError) as refused:
        make_sampler(GenerateConfig(constraint=constraint), tokenizer, 0, [], tokenizer.special("<|end|>"))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_tokenizer_cannot_write_is_refused():
    poor = gpt2_like(40)
    with pytest.raises(UserError, match="the tokenizer cannot write 'né'; leave it out"):
        written(poor, {"choices": ["no", "né"]}, 0)
    with pytest.raises(UserError, match=CANNOT):
        written(poor, {"regex": "né"}, 0)
    with pytest.raises(UserError, match="llguidance cannot read this tokenizer"):
        written(of_whole_words(), {"choices": ["yes", "no"]}, 0)


def test_without_llguidance_the_error_names_the_extra(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'mmgpt\[constrain\]'"):
        written(tokenizer, {"regex": "a"}, 0)


def test_requests_with_one_constraint_do_not_share_their_place_in_it(tokenizer):
    options = GenerateConfig(constraint={"regex": "abc"})
    one, other = (make_sampler(options, tokenizer, 0, [], tokenizer.special("<|end|>")) for _ in range(2))
    logits_V = torch.zeros(len(tokenizer))
    assert tokenizer.decode([one.sample(logits_V)])[0] == "a"
    assert tokenizer.decode([other.sample(logits_V)])[0] == "a"


def test_the_end_token_is_allowed_once_the_constraint_is_met_and_not_before(tokenizer):
    eos_token_id = tokenizer.special("<|end|>")
    sampler = make_sampler(GenerateConfig(constraint={"choices": ["a", "ab"]}), tokenizer, 0, [], eos_token_id)
    wanting_end_V = torch.zeros(len(tokenizer))
    wanting_end_V[eos_token_id] = 9.0
    assert tokenizer.decode([sampler.sample(wanting_end_V)]) == "a"
    assert sampler.sample(wanting_end_V) == eos_token_id
