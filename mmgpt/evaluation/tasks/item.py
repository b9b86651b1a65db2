"""Items: the questions that samples hold, with what their answers are scored against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mmgpt.config import UserError
from mmgpt.datasets.cells import is_missing
from mmgpt.datasets.sample import GroundTruth, Message, Sample


@dataclass(frozen=True)
class TaskItem:
    """One question of a task, or a document: a text with no messages before it."""

    key: str
    messages: tuple[Message, ...]
    reference: str  # what an exemplar shows
    references: tuple[str, ...]  # all answers that are right, for scoring
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The words of the last user turn, without media."""
        return self.messages[-1].text if self.messages else ""


def items_of(sample: Sample) -> Iterator[TaskItem]:
    """The questions of a sample: one, or one a branch; one assistant turn alone is a document.

    Raises:
        UserError: if it does not end with an assistant turn in words, the reference, or an answer is missing.
    """
    for one in sample.unbranched():
        if not one.messages or one.messages[-1].role != "assistant":
            raise UserError(f"{one.key}: a task's sample must end with an assistant turn, its reference")
        (truth,) = one.truths or (GroundTruth(),)
        if one.messages[-1].calls:
            raise UserError(f"{one.key}: its reference is a call of a tool, which no metric reads; leave it out")
        said = one.messages[-1].text
        if is_missing(said) or any(is_missing(answer) for answer in truth.answers):
            raise UserError(f"{one.key}: its answer is empty, and nothing can be scored against it; leave it out")
        yield TaskItem(one.key, one.messages[:-1], said, truth.answers or (said,), truth.choices, truth.tags)


def merged_items_of(sample: Sample) -> Iterator[TaskItem]:
    """The questions of a sample, where branches that ask the same are one item: the captions of a picture.

    Its key is that of the first such branch, or the sample's if all ask the same; its reference is the first one's.
    """
    same: dict[str, list[TaskItem]] = {}
    for item in items_of(sample):
        same.setdefault(item.question, []).append(item)
    for items in same.values():
        references = tuple(reference for item in items for reference in item.references)
        key = sample.key if len(same) == 1 else items[0].key
        yield replace(items[0], key=key, references=references)
