"""Prompts as they come in at the door: messages of any spelling, with media given by an http(s) address fetched.

Only what a user puts into a prompt is fetched: never an address in a reply, nor one in a training set's row.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmgpt.config import UserError
from mmgpt.datasets.media import LIMITS, Limits, Media
from mmgpt.datasets.remote import download
from mmgpt.datasets.sample import Message, parse_messages


def read_prompt(raw: Sequence[Any], limits: Limits = LIMITS) -> tuple[Message, ...]:
    """Messages, their media here.

    Args:
        raw: messages in Hugging Face chat or OpenAI spelling or as Message objects.
        limits: what is larger is not fetched to its end.
    Raises:
        UserError: if a message is none, an assistant turn holds an address, or the extra that fetches is absent.
        MediaError: if an address gives nothing, too late, or too much.
    """
    messages = parse_messages(raw)
    if not any(_address_of(part) for message in messages for part in message.parts):
        return messages
    return tuple(
        replace(message, parts=tuple(_here(part, message.role, limits) for part in message.parts))
        for message in messages
    )


def _address_of(part: Any) -> str | None:
    path = part.path if isinstance(part, Media) else None
    return path if path and path.startswith(("http://", "https://")) else None


def _here(part: Any, role: str, limits: Limits) -> Any:
    address = _address_of(part)
    if address is None:
        return part
    if role == "assistant":
        raise UserError(f"{address}: stands in an assistant turn, and what a model says is not fetched; take it out")
    return replace(part, source=download(address, limits.bytes), label=address)
