import json

import gguf
import numpy as np
import pytest
import torch
import transformers

import mmgpt
from mmgpt.checkpoints.gguf import unpacked
from mmgpt.checkpoints.hub import fetch
from mmgpt.checkpoints.pretrained_parts import fill_from_checkpoint
from mmgpt.config import UserError

SAME = {"atol": 1e-5, "rtol": 1e-5}
WIDTH, INNER, DEPTH, HEADS, KV_HEADS, CONTEXT = 64, 96, 2, 4, 2, 128
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
KINDS = {
    "llama": {"head_dim": WIDTH // HEADS},
    "qwen2": {"head_dim": WIDTH // HEADS, "biases": ("attn_q", "attn_k", "attn_v")},
    "qwen3": {"head_dim": 128, "norms": ("attn_q_norm", "attn_k_norm")},
    "gemma2": {
        "head_dim": 24,
        "blocks": ("post_attention_norm", "post_ffw_norm"),
        "settings": {
            "attention.sliding_window": 8,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    },
}


def settings_of(arch, head):
    return {
        "context_length": CONTEXT,
        "block_count": DEPTH,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        **({"rope.dimension_count": head} if arch == "llama" else {"attention.key_length": head}),
        **KINDS[arch].get("settings", {}),
    }


def block_shapes(arch, head):
    """The weights of a block."""
    own = KINDS[arch]
    shapes = {
        "attn_q": (HEADS * head, WIDTH),
        "attn_k": (KV_HEADS * head, WIDTH),
        "attn_v": (KV_HEADS * head, WIDTH),
        "attn_output": (WIDTH, HEADS * head),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
        **dict.fromkeys(("attn_norm", "ffn_norm", *own.get("blocks", ())), (WIDTH,)),
        **dict.fromkeys(own.get("norms", ()), (head,)),
    }
    biases = {f"{part}.bias": shapes[part][:1] for part in own.get("biases", ())}
    return {f"{part}.weight": shape for part, shape in shapes.items()} | biases


def add_tokenizer(out, tokenizer):
    vocabulary = json.loads(tokenizer.core.to_str())
    tokens = [tokenizer.core.id_to_token(at) for at in range(len(tokenizer))]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    special = {one["content"] for one in vocabulary["added_tokens"]}
    out.add_token_types([3 if token in special else 1 for token in tokens])
    out.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in vocabulary["model"]["merges"]])
    out.add_eos_token_id(tokens.index("<|im_end|>"))
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    return tokens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def write(tmp_path, tokenizer):
    """Writes a tiny file of random weights, as llama.cpp lays it out."""

    def write(arch="llama", kind="Q8_0", tied=True, rope_factors=None, name="model.gguf", **metadata):
        path, own, rng = tmp_path / name, KINDS[arch], np.random.default_rng(0)
        out = gguf.GGUFWriter(path, arch)
        head = own["head_dim"]
        settings = settings_of(arch, head) | metadata
        for key, value in settings.items():
            add = out.add_float32 if isinstance(value, float) else out.add_uint32
            (out.add_string if isinstance(value, str) else add)(f"{arch}.{key}", value)
        tokens = add_tokenizer(out, tokenizer)

        def add(name, *shape):
            weight = rng.normal(size=shape).astype(np.float32) * 0.2 + (1.0 if "norm" in name else 0.0)
            stored = gguf.GGMLQuantizationType[kind if len(shape) == 2 and shape[1] % 32 == 0 else "F32"]
            out.add_tensor(name, gguf.quantize(weight.astype(np.float32), stored), raw_dtype=stored)

        add("token_embd.weight", len(tokens), WIDTH)
        add("output_norm.weight", WIDTH)
        if not tied:
            add("output.weight", len(tokens), WIDTH)
        if rope_factors is not None:
            out.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
        for block_name, shape in block_shapes(arch, head).items():
            for layer in range(DEPTH):
                add(f"blk.{layer}.{block_name}", *shape)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return path

    return write


def theirs_of(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("arch", KINDS)
@torch.no_grad()
def test_a_file_gives_the_logits_and_tokens_of_transformers_reading_of_it(arch, kind, write):
    path = write(arch, kind, tied=arch in ("llama", "gemma2"))
    ours, theirs = mmgpt.load(path), theirs_of(path).eval()
    ids_BT = torch.randint(8, len(ours.tokenizer), (2, 20))
    hidden = ours.model.decoder(ours.model.decoder.embed(ids_BT), torch.arange(20).expand(2, -1))
    logits_BTV = theirs(ids_BT).logits
    torch.testing.assert_close(ours.model.decoder.logits(hidden), logits_BTV, **SAME)
    assert logits_BTV.std() > 0.1
    (reply,) = ours.continue_ids([ids_BT[0].tolist()], [{"max_new_tokens": 30}])
    out = theirs.generate(
        ids_BT[:1], do_sample=False, max_new_tokens=30, eos_token_id=ours.eos_token_id, pad_token_id=0
    )
    assert reply.tokens == out[0, 20:].tolist()


def test_texts_become_transformers_ids_and_the_chat_template_is_the_file_s(write):
    path = write()
    ours, theirs = mmgpt.load(path), transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("A red circle, and 12 blue ones.", "  two\n\nlines ", "Größe: 日本語 🙂"):
        assert list(ours.tokenizer.encode(text)) == theirs.encode(text, add_special_tokens=False)
    assert ours.renderer.template.turn("user").open == "<|im_start|>user\n"
    assert ours.chat([{"role": "user", "content": "How many?"}], max_new_tokens=4).tokens


def test_it_is_unpacked_once_and_again_when_the_file_changes(write, cache):
    path = write()
    first = unpacked(path)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert unpacked(path) == fetch(path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    write(kind="Q4_0")
    assert unpacked(path) != first
    assert sorted(p.name for p in first.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_recipe_begins_from_a_file(write):
    filled = fill_from_checkpoint({"decoder": {"pretrained": str(write("qwen2"))}}, "r.yaml")["decoder"]
    assert (filled["width"], filled["depth"], filled["bias"], filled["family"]) == (WIDTH, DEPTH, "qkv", "qwen2")


@pytest.mark.parametrize("factor", [8.0, 32.0])
@torch.no_grad()
def test_the_scaling_that_llama_3_s_frequency_factors_come_of_is_found(factor, write):
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=131_072,
        rope_parameters={"rope_theta": 500_000.0, **scaling},
    )
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** -(torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    path = write(rope_factors=(plain / scaled).numpy(), **{"rope.freq_base": 500_000.0, "context_length": 131_072})
    settings = json.loads((unpacked(path) / "config.json").read_text())
    assert settings["rope_scaling"] == scaling
    assert mmgpt.load(path).model.config.decoder.rope_scaling.factor == factor
    odd = write(rope_factors=np.full(WIDTH // HEADS // 2, 3.0), name="odd.gguf")
    with pytest.raises(UserError, match=r"rope_freqs\.weight holds factors of no Llama 3"):
        unpacked(odd)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"expert_count": 8}, r"llama\.expert_count=8 is not known"),
        ({"rope.scaling.type": "longrope"}, r"rope\.scaling\.type='longrope' is not known; known: linear, yarn"),
    ],
)
def test_metadata_that_would_change_the_model_are_refused_by_their_name(changes, told, write, cache):
    with pytest.raises(UserError, match=told):
        unpacked(write(**changes))
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_what_is_no_file_of_a_known_kind_is_told(write, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none\.gguf: no such file; give the path of a .gguf file"):
        mmgpt.load(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("no weights here, only words")
    with pytest.raises(UserError, match=r"text\.gguf: not a GGUF file, or damaged"):
        mmgpt.load(tmp_path / "text.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write().read_bytes()[:-4000])
    with pytest.raises(UserError, match=r"cut\.gguf: not a GGUF file, or damaged"):
        mmgpt.load(cut)
    out = gguf.GGUFWriter(tmp_path / "other.gguf", "rwkv6")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    with pytest.raises(UserError, match=r"its architecture 'rwkv6' is not read; .* llama"):
        mmgpt.load(tmp_path / "other.gguf")
    monkeypatch.setattr(gguf, "dequantize", lambda data, kind: (_ for _ in ()).throw(NotImplementedError("no")))
    with pytest.raises(UserError, match=r"token_embd\.weight is quantised as Q4_1, which gguf cannot read"):
        mmgpt.load(write(kind="Q4_1", name="new.gguf"))
