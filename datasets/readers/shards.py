"""Webdataset shards: tar files of samples, here or at an address, read at any index.

What `mmgpt data shard` wrote has an index beside each tar; other tars are gone through once, header by header, and what
was found is kept in the user's cache. A sample is then one read of a range of bytes, so that the order of a training is
drawn over all samples, not over a buffer of a few.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, Literal, Self

import numpy as np
from pydantic import model_validator

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.cells import cell_text, check_keys, is_missing
from mmgpt.datasets.media import MEDIA, Media, MediaError
from mmgpt.datasets.plain_text import parse_json
from mmgpt.datasets.readers.placing import Placeholders
from mmgpt.datasets.readers.tars import Wanted, is_system_file, modality_of, ranges_of, read_members
from mmgpt.datasets.remote import RemoteFileNotFound, is_remote, read_range, read_text
from mmgpt.datasets.sample import GroundTruth, Message, Part, Sample, Text, parse_messages
from mmgpt.datasets.source import Source, SourceConfig, resolve

INDEX = "index.json"
OWN_KEYS = ("messages", "branches", "source", "key", "truths", "groups")  # of the .json of a conversation
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


class ShardsConfig(SourceConfig):
    """Webdataset shards, of mmgpt or of others.

    A sample whose `.json` holds `messages` is those; of any other, `prompt` and `answer` are filled with its members:
    {image}, {audio} and {video} stand for all its media of that kind, {txt}, {cls} and the like for a text member, and
    any other name for a key of its `.json`. Every member and every key of a `.json` that is read must be used, or
    named in `ignore`: `ignore: [json]` leaves the whole `.json` out, `ignore: ["*"]` all that no template names.
    """

    reader: Literal["shards"]
    path: str  # a folder with index.json, or tars: shard-{000000..000123}.tar; an address works as well
    prompt: str = "{image}"
    answer: str = "{txt}"
    text_tags: list[str] = []  # such as <image>: just words where the messages of another tool's .json say them

    @model_validator(mode="after")
    def _templates_are_plain(self) -> Self:
        for template in (self.prompt, self.answer):
            for _, field, spec, conversion in Formatter().parse(template):  # whose ValueError tells of a lone brace
                if field == "" or spec or conversion:
                    raise ValueError(f"{template!r}: braces hold the name of a member or key alone, as in {{txt}}")
        media = [field for field in _fields(self.answer) if field in MEDIA]
        if media or not self.answer.strip():
            raise ValueError(f"answer={self.answer!r}: what is learned is text; name a text member, as in {{txt}}")
        return self

    def wanted(self) -> Wanted:
        """What the templates read of a tar."""
        fields = {*_fields(self.prompt), *_fields(self.answer)}
        return Wanted(frozenset(fields - MEDIA.keys()), frozenset(fields & MEDIA.keys()), tuple(self.ignore))


class ShardSource(Source):
    """Samples of shards; each is read when it is asked for."""

    def __init__(self, config: ShardsConfig, data_root: Path) -> None:
        self.config, self.wanted = config, config.wanted()
        self.placeholders = Placeholders({}, config.text_tags)
        path = config.path.replace("{split}", config.split)
        self.name = config.label or _stem(path)
        self.shards, counts, self.facts = _find_shards(path, data_root, self.wanted)
        self.is_remote = is_remote(self.shards[0])
        self.files = [] if self.is_remote else [shard for shard in self.shards if Path(shard).is_file()]
        self.starts = np.cumsum([0, *counts])
        super().__init__(config, int(self.starts[-1]), path)

    def __getitem__(self, index: int) -> Sample:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, place = self.shards[shard], index - int(self.starts[shard])
        start, size = (int(number) for number in ranges_of(path, self.wanted)[place])
        payload = read_range(path, start, size)
        name = f"{_stem(path)}/{place}"
        if len(payload) < size:
            raise MediaError(
                f"{path}: truncated, sample {place} has {len(payload):,} of {size:,} bytes; fetch it again"
            )
        return self._sample(*read_members(payload, name), name)

    def _sample(self, key: str, members: dict[str, bytes], name: str) -> Sample:
        where, wanted = f"{name} ({key})", self.wanted
        members = {ext: data for ext, data in members.items() if not self._leaves_out(key, ext, members)}
        row = _parse_json(members["json"], where) if "json" in members else {}
        if not is_missing(row.get("messages")):
            return self._conversation(row, members, key, name)
        self._check_used(row, members, where)
        for kind in sorted(wanted.kinds - {modality_of(ext) for ext in members}):
            raise MediaError(
                f"{where}: the template shows {{{kind}}}, and it holds none; its members: {_named(members)}"
            )
        texts = {ext: _decode(members[ext], ext, where) for ext in wanted.fields & members.keys()}
        cells = {**row, **texts}
        media = {
            kind: [MEDIA[kind](data) for ext, data in members.items() if modality_of(ext) == kind] for kind in MEDIA
        }
        prompt = tuple(self._parts(self.config.prompt, cells, media, where))
        answer = Message("assistant", tuple(self._parts(self.config.answer, cells, media, where)))
        return Sample((Message("user", prompt), answer) if prompt else (answer,), self.name, name)

    def _leaves_out(self, key: str, ext: str, members: Mapping[str, bytes]) -> bool:
        """True for a member that `ignore` names; a .json only where the other members fill the templates."""
        return self.wanted.leaves_out(key, ext) and (ext != "json" or self.wanted.fields <= members.keys())

    def _check_used(self, row: dict[str, Any], members: Mapping[str, bytes], where: str) -> None:
        """Refuse members and keys of the .json that no template names."""
        wanted, keys = self.wanted, self.wanted.fields - members.keys()
        used = [ext for ext in members if ext == "json" or ext in wanted.fields or modality_of(ext) in wanted.kinds]
        left = [ext for ext in members if ext not in used]
        try:
            check_keys(left, [*wanted.fields, *wanted.kinds], self.config.ignore, where)
        except UserError as error:
            raise UserError(f"{error}{_dots(left)}") from None
        try:
            check_keys(_given(row), {*keys, "messages"}, self.config.ignore, f"{where}.json")
        except UserError as error:
            raise UserError(
                f"{error}, or for all of the .json ignore: [json]" if keys.isdisjoint(row) else f"{error}"
            ) from None

    def _conversation(self, row: dict[str, Any], members: Mapping[str, bytes], key: str, name: str) -> Sample:
        """Messages whose media name members by their ends, as in {"type": "image", "path": "0.png"}, or in full."""
        where, stem = f"{name} ({key})", PurePosixPath(key).name.lower()
        media = {ext: MEDIA[kind](data) for ext, data in members.items() if (kind := modality_of(ext))}
        groups, shown = row.get("groups") or {}, set[str]()

        def filled(messages: Any) -> tuple[Message, ...]:
            try:
                parsed = parse_messages(messages, self.config.ignore)
                self._check_tags(row, parsed)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            return tuple(replace(message, parts=tuple(map(fill, message.parts))) for message in parsed)

        def fill(part: Part) -> Part:
            if isinstance(part, Text):
                return part
            ext = part.source.lower() if isinstance(part.source, str) else type(part.source).__name__
            ext = ext if ext in media else ext.removeprefix(f"{stem}.")
            if ext not in media:
                raise UserError(
                    f"{where}: {str(part.source)[:60]!r} is no member of the sample; {did_you_mean(ext, media)}"
                )
            shown.add(ext)
            return replace(part, source=media[ext].source, group=groups.get(ext))

        branches = row.get("branches") or []
        if not isinstance(branches, list) or not isinstance(groups, dict):
            raise UserError(f"{where}.json: branches are a list of lists of messages, groups an object; mend it")
        messages, own = filled(row["messages"]), tuple(map(filled, branches))
        left = [ext for ext in members if ext not in shown and ext != "json"]
        check_keys(left, shown, self.config.ignore, f"{where}: its messages do not show all members")
        check_keys(_given(row), OWN_KEYS, self.config.ignore, f"{where}.json")
        source, named = row.get("source"), row.get("key")
        label = self.config.label or (self.name if is_missing(source) else cell_text(source))
        return Sample(messages, label, name if is_missing(named) else cell_text(named), own, _truths(row, where))

    def _check_tags(self, row: Mapping[str, Any], messages: Sequence[Message]) -> None:
        """Refuse tags of media in texts, which nothing fills here; what mmgpt wrote was seen to when it was written."""
        for message in [] if "key" in row else messages:
            if stray := self.placeholders.stray(message, {}):
                tag, kind = stray
                raise UserError(
                    f"a turn says {tag} and shows no {kind}; write it as a part that names its member, "
                    f'{{"type": "{kind}", "path": "..."}}, or if the tag is just words, text_tags: [\'{tag}\']'
                )

    def _parts(
        self, template: str, cells: Mapping[str, Any], media: Mapping[str, list[Media]], where: str
    ) -> Iterator[Part]:
        for literal, field, _, _ in Formatter().parse(template):
            if literal:
                yield Text(literal)
            if field in MEDIA:
                yield from media[field]  # type: ignore[misc]
            elif field is not None:
                yield Text(_text_of(field, cells, where))


def _find_shards(path: str, data_root: Path, wanted: Wanted) -> tuple[list[str], list[int], str]:
    """The tars that a path names, the samples in each, and a hash of what is known of their content."""
    named = expand_braces(path)
    for one in named:
        if one.startswith("pipe:"):
            raise UserError(
                f"{one}: samples are not read in the order of a pipe; write its tar to a file, and name that"
            )
        if one.lower().endswith(PACKED):
            raise UserError(
                f"{one}: compressed, so that no sample can be read alone; unpack it to .tar first, as gunzip does"
            )
    if named[0].lower().endswith(".tar"):
        shards = [one if is_remote(one) else str(resolve(data_root, one)) for one in named]
        return _counted(shards, wanted)
    folder = re.sub(rf"/?({re.escape(INDEX)})?$", "", path)
    folder = folder if is_remote(folder) else str(resolve(data_root, folder or ".").absolute())
    try:
        return _listed(folder, data_root)
    except RemoteFileNotFound:
        if is_remote(folder):
            raise UserError(
                f"{folder}: holds no {INDEX}; name its tars: {folder}/shard-{{000000..000123}}.tar"
            ) from None
    files = [file for file in sorted(Path(folder).glob("*")) if not is_system_file(file.name)]
    packed = [file for file in files if file.name.lower().endswith(PACKED)]
    if packed:
        raise UserError(
            f"{packed[0]}: compressed, so that no sample can be read alone; unpack it to .tar, or name the tars"
        )
    shards = [str(resolve(data_root, str(file))) for file in files if file.suffix.lower() == ".tar"]
    if not shards:
        raise UserError(f"{data_root / path}: holds no .tar; give a folder of shards, or name them")
    return _counted(shards, wanted)


def _counted(shards: list[str], wanted: Wanted) -> tuple[list[str], list[int], str]:
    digest, counts = hashlib.blake2b(digest_size=16), []
    for shard in shards:
        ranges = ranges_of(shard, wanted)
        counts.append(len(ranges))
        digest.update(ranges.tobytes())  # which tells the sizes of all samples
    return shards, counts, digest.hexdigest()


def _listed(folder: str, data_root: Path) -> tuple[list[str], list[int], str]:
    """The tars of a folder's index, the samples in each, and a hash of their hashes.

    Raises:
        RemoteFileNotFound: if there is no index.
        UserError: if it is none of ours, or the folder holds other tars than it lists.
    """
    try:
        listed = json.loads(read_text(f"{folder}/{INDEX}"))["shards"]
        names, counts = [str(one["name"]) for one in listed], [int(one["num_samples"]) for one in listed]
        if any("/" in name or "\\" in name for name in names):
            raise ValueError("its names lead elsewhere")
        facts = hashlib.blake2b(json.dumps(listed).encode(), digest_size=16).hexdigest()
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/{INDEX}: not an index that mmgpt data shard wrote ({error!r})") from None
    if is_remote(folder):
        return [f"{folder}/{name}" for name in names], counts, facts
    more = sorted({file.name for file in Path(folder).glob("*.tar") if not is_system_file(file.name)} - set(names))
    if more:
        raise UserError(f"{folder}: holds {more[0]}, which {INDEX} does not list; move it elsewhere, or remove {INDEX}")
    return [str(resolve(data_root, f"{folder}/{name}")) for name in names], counts, facts


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` as a-000.tar, a-001.tar, a-002.tar; `{x,y}` as x and y."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    first, dots, last = found.group(1).partition("..")
    if not dots:
        options = found.group(1).split(",")
    elif first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        options = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        raise UserError(f"{pattern}: {{{found.group(1)}}} is no range; write {{000000..000123}} or {{a,b}}")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for option in options for one in expand_braces(before + option + after)]


def _stem(path: str) -> str:
    """What to call a path's samples: the file's name without .tar and numbers in braces, or the folder's."""
    name = PurePosixPath(path.removesuffix(f"/{INDEX}")).name.removesuffix(".tar")
    return re.sub(r"[-_.]?\{.*?\}", "", name) or "shards"


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def _text_of(field: str, cells: Mapping[str, Any], where: str) -> str:
    """A text member or a cell of the .json as words.

    Raises:
        MediaError: if it is not there, or says nothing: the sample is skipped and counted.
        UserError: if it is a list or an object.
    """
    if field not in cells:
        raise MediaError(f"{where}: the template names {{{field}}}, and it holds none; {did_you_mean(field, cells)}")
    cell = cells[field]
    if isinstance(cell, list | dict):
        raise UserError(f"{where}: {{{field}}} is {str(cell)[:60]}, not a text; name a key that holds one")
    if is_missing(cell):
        raise MediaError(f"{where}: {{{field}}} says nothing ({cell!r}); fill or remove the sample")
    return cell if isinstance(cell, str) else cell_text(cell)


def _given(row: Mapping[str, Any]) -> list[str]:
    """The keys of a .json that hold something."""
    return [key for key, cell in row.items() if cell is not None]


def _named(members: Iterable[str]) -> str:
    return ", ".join(f".{ext}" for ext in members) or "none"


def _dots(exts: Iterable[str]) -> str:
    """What a name with several dots is taken for, where that may be the fault."""
    dotted = next((ext for ext in exts if "." in ext), None)
    if dotted is None:
        return ""
    return (
        f". A sample's name ends at the first dot of the file's name, so .{dotted} is no .{dotted.rpartition('.')[2]}: "
        "where the other dots belong to the name, write _ in their place"
    )


def _truths(row: Mapping[str, Any], where: str) -> tuple[GroundTruth, ...]:
    try:
        return tuple(
            GroundTruth(tuple(one.get("answers", ())), tuple(one.get("choices", ())), dict(one.get("tags", {})))
            for one in row.get("truths") or ()
        )
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{where}.json: truths are objects of answers, choices and tags; mend it") from None


def _decode(data: bytes, ext: str, where: str) -> str:
    """A text member without a byte order mark and the end of its last line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError(
            f"{where}: member .{ext} is not UTF-8 text ({error.reason}); name media by their usual ends"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _parse_json(data: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(_decode(data, "json", where))
        if not isinstance(row, dict):
            raise ValueError(f"it holds a {type(row).__name__}, not an object")
    except MediaError:
        raise
    except ValueError as error:
        raise MediaError(f"{where}: its .json cannot be read ({error}); write it again") from None
    return row
