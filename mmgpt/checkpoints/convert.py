"""Models in forms that others read: a language model in its family's files, and the multimodal ones of TARGETS.

Every export is read back from its draft, and its golden logits are compared, before it is moved into place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from mmgpt.arguments import place, several
from mmgpt.checkpoints.golden import make_golden, verify_golden
from mmgpt.checkpoints.hf_decoders import describe, family_of, family_rules, write_decoder
from mmgpt.checkpoints.hf_multimodal import EXTRA_CONFIG
from mmgpt.checkpoints.hf_multimodal_tables import EXPORT_FORMATS, FORMAT_OF_MODEL_TYPE, ExportFormat
from mmgpt.checkpoints.save_load import find_model, load_bundle, save_bundle, unique_weights
from mmgpt.config import UserError, did_you_mean
from mmgpt.files import read_json, save_weights, write_folder, write_json
from mmgpt.inputs.templates import to_jinja
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS, Tokenizer
from mmgpt.model.bundle import ModelBundle
from mmgpt.model.quantize import BLOCKS, Quantization, pick_scheme
from mmgpt.processor import pick_dtype
from mmgpt.weight_names import to_theirs

Form = Literal["mmgpt", "hf-lm", "hf-llava", "hf-smolvlm", "hf-qwen2-audio"]
UNLIMITED = 10**30  # what transformers writes for a tokenizer without a limit


def convert(
    path: str | Path,
    out: str | Path,
    *,
    to: str = "mmgpt",
    source: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
    layers: Sequence[str] = BLOCKS,
) -> Path:
    """Write a model in another form, from any that `load` opens.

    Args:
        path: a run, a checkpoint, a folder of mmgpt's or transformers', or organisation/name on the hub.
        out: the folder to write; one that is there is replaced when the new one is whole.
        to: `mmgpt`, `hf-lm`, `hf-llava`, `hf-smolvlm` or `hf-qwen2-audio`.
        source: the form that `path` is to have, one of these too; any if not given.
        revision: of the hub.
        dtype: of the weights: `float32`, `bfloat16`, or `auto` for what is stored.
        quantize: `int8`, `int4` or `int8-dynamic`, for mmgpt's own form.
        layers: globs over the linear layers to quantise.
    Returns:
        The folder.
    Raises:
        UserError: if there is no such form, it has no place for a part, or what was written reads back otherwise.
    """
    for form in (to, source):
        if form and form not in get_args(Form):
            raise UserError(f"form {form}: is not known; {did_you_mean(form, get_args(Form))}")
    if source:
        folder = find_model(path, revision)
        kind = str(read_json(folder / "config.json").get("model_type"))
        found = "mmgpt" if kind == "mmgpt" else FORMAT_OF_MODEL_TYPE.get(kind, "hf-lm")
        if found != source:
            raise UserError(f"{folder}: model_type is {kind!r}, which is {found}, not {source}; leave --from out")
    wanted = Quantization(scheme=pick_scheme(quantize), layers=several("layers", layers)) if quantize else None
    bundle = load_bundle(path, revision=revision, dtype=pick_dtype(dtype))
    if wanted:
        bundle.quantize(wanted)
    folder = place("out", out)
    export(bundle, folder, to)
    return folder


def export(bundle: ModelBundle, folder: Path, form: str) -> None:
    """Write a model as `form` has it, into a folder that is there whole or not at all.

    Raises:
        UserError: if the form has no place for a part, with the forms that have; or if what was written reads back to
            other logits.
    """
    faults = faults_of(bundle, form)
    if faults:
        able = [name for name in ("hf-lm", *EXPORT_FORMATS) if name != form and not faults_of(bundle, name)]
        told = "; ".join(faults)
        raise UserError(f"{form} has no place for {told}; this model can be {' or '.join([*able, 'mmgpt'])}")

    def fill(draft: Path) -> None:
        if form == "mmgpt":
            save_bundle(bundle, draft)
        elif form == "hf-lm":
            _write_language_model(bundle, draft)
        else:
            _write_multimodal(bundle, draft, EXPORT_FORMATS[form])
        golden = make_golden(bundle)
        write_json(draft / "golden.json", golden)
        verify_golden(load_bundle(draft), golden, str(folder))

    write_folder(folder, fill)


def faults_of(bundle: ModelBundle, form: str) -> list[str]:
    """What a form has no place for; nothing if it can express the model."""
    config = bundle.model.config
    if form == "mmgpt":
        return []
    if bundle.quantization:
        return [f"weights in {bundle.quantization.scheme}"]
    try:
        family = family_of(config.decoder)
    except UserError as error:
        return [str(error).removeprefix("decoder: ")]
    media = list(config.encoders)
    if form == "hf-lm":
        return [f"encoders of {' and '.join(media)}"] if media else []
    target = EXPORT_FORMATS[form]
    faults = [] if family in target.families else [f"a decoder of {family}, but for {' or '.join(target.families)}"]
    if media != [target.modality]:
        return [*faults, f"encoders of {' and '.join(media) or 'nothing'}, but for one of {target.modality}"]
    faults += [f"heads ({', '.join(head.name for head in config.heads)})"] if config.heads else []
    try:
        target.tower.describe(config.encoders[target.modality])
    except UserError as error:
        faults.append(str(error))
    given = config.adapters[target.modality]
    plain = given.model_copy(update={"inner": None}) if getattr(given, "inner", None) == config.decoder.width else given
    wanted = target.adapter.model_copy(update={name: getattr(plain, name, None) for name in target.unconstrained})
    if plain != wanted:
        faults.append(f"an adapter of kind {given.kind} as it is set here, but for {_in_words(target)}")
    wrap = bundle.media_markup.get(target.modality, ("", ""))
    if target.wrap and wrap != target.wrap:
        wanted_wrap = " and ".join(map(repr, target.wrap))
        faults.append(f"media in {' and '.join(map(repr, wrap))}, but in media_markup of {wanted_wrap}")
    return faults


def _in_words(target: ExportFormat) -> str:
    adapter = target.adapter.model_dump(exclude_defaults=True)
    return "{" + ", ".join(f"{name}: {value}" for name, value in adapter.items()) + "}"


def _write_language_model(bundle: ModelBundle, folder: Path) -> None:
    weights = bundle.model.decoder.state_dict()
    write_decoder(folder, bundle.model.config.decoder, weights, _special_ids(bundle))
    _write_talk(bundle, folder, bundle.tokenizer, {})


def _write_multimodal(bundle: ModelBundle, folder: Path, target: ExportFormat) -> None:
    config, modality = bundle.model.config, target.modality
    encoder, decoder = config.encoders[modality], config.decoder
    weights = unique_weights(bundle.model)
    tower, pixels, beside = target.tower.describe(encoder)
    dtype = weights["decoder.embedding.weight"].dtype
    slot = bundle.tokenizer.special(PLACEHOLDER_TOKENS[modality])
    config_json = {
        "architectures": [target.architecture],
        "model_type": target.kinds[0],
        "text_config": describe(decoder, bundle.model.vocab_size, dtype, _special_ids(bundle)),
        target.tower.part: tower,
        target.slot_key: slot,
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **beside,
    }
    adapter = config.adapters[modality]
    if adapter.kind == "fold":
        config_json["scale_factor"] = adapter.stride
    write_json(folder / "config.json", config_json)
    text, medium, joint = (
        _under(part, weights) for part in ("decoder.", f"encoders.{modality}.", f"adapters.{modality}.")
    )
    save_weights(
        {
            **target.tower.pack(medium, encoder, target.tower.prefix),
            **to_theirs(joint, target.rules),
            **to_theirs(text, family_rules(decoder, target.body, target.head)),
        },
        folder,
    )
    write_json(folder / "preprocessor_config.json", {**pixels, "processor_class": target.processor})
    count = config.media_processors()[modality].num_tokens(encoder.max_shape)
    write_json(folder / "processor_config.json", _processor(target, encoder, count))
    tokenizer = bundle.tokenizer.renamed(PLACEHOLDER_TOKENS[modality], target.slot)
    before, after = ("", "") if target.wrap else bundle.media_markup.get(modality, ("", ""))
    _write_talk(bundle, folder, tokenizer, {modality: before + target.slot + after})


def _under(part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a part, by their names in it."""
    return {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}


def _processor(target: ExportFormat, encoder: Any, count: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"processor_class": target.processor}
    if target.processor == "LlavaProcessor":
        drops = bool(encoder.prefix_tokens) and encoder.tokens == "patch"
        settings |= {
            "image_token": target.slot,
            "patch_size": encoder.patch_size,
            "num_additional_image_tokens": encoder.prefix_tokens,
            "vision_feature_select_strategy": "default" if drops else "full",
        }
    elif target.processor == "Idefics3Processor":
        settings["image_seq_len"] = count
    return settings


def _special_ids(bundle: ModelBundle) -> dict[str, int]:
    begin, end = bundle.tokenizer.begin, bundle.tokenizer.special(bundle.renderer.template.end)
    return {"eos_token_id": end, "pad_token_id": end, **({"bos_token_id": begin[0]} if begin else {})}


def _write_talk(bundle: ModelBundle, folder: Path, tokenizer: Tokenizer, media: dict[str, str]) -> None:
    """Tokenizer, chat template and generation settings as transformers reads them; and ours, for the way back."""
    template = bundle.renderer.template
    begin = tokenizer.decode(tokenizer.begin, keep_special=True) if template.begin is None else template.begin
    tokenizer.save(folder)
    ids = _special_ids(bundle)
    names = {name.removesuffix("_id"): tokenizer.core.id_to_token(number) for name, number in ids.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": UNLIMITED,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(to_jinja(template, begin, bundle.system, media), encoding="utf-8")
    write_json(folder / "generation_config.json", {"do_sample": False, "max_new_tokens": 64, **ids})
    own = {"template": bundle.template, "system": bundle.system, "media_markup": bundle.media_markup}
    write_json(folder / EXTRA_CONFIG, own)
