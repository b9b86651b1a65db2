"""Chat templates: the markup around turns and media, and which of them an outside model was trained with.

A Hugging Face checkpoint gives its template as a Jinja program. Those of the families here are recognised by their
markup and written without Jinja, so that rendering knows of every token whether it is to be learned.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from mmgpt.config import UserError
from mmgpt.datasets.sample import Role
from mmgpt.files import read_json
from mmgpt.inputs.tokenizer import END
from mmgpt.inputs.tools import ToolForm

TemplateName = Literal["plain", "chatml", "llama3", "gemma", "vicuna"]


class RoleMarkup(NamedTuple):
    """The markup around one role's turns; `end` is learned after a reply, `after` never is."""

    open: str
    end: str
    after: str = ""


@dataclass(frozen=True)
class ChatTemplate:
    """The markup of a conversation.

    Attributes:
        begin: what stands before the first turn; None for what the tokenizer puts before every text.
        turns: by role; a role without an entry cannot be said in this template.
        tools: how tools, calls and answers are written; None where they cannot be.
    """

    begin: str | None
    turns: Mapping[str, RoleMarkup]
    tools: ToolForm | None = None

    @property
    def end(self) -> str:
        """What closes a reply, and stops generation."""
        return self.turns["assistant"].end

    @property
    def tokens(self) -> list[str]:
        """The special tokens of the markup."""
        return special_tokens("".join([self.begin or "", *(piece for turn in self.turns.values() for piece in turn)]))

    def turn(self, role: str) -> RoleMarkup:
        """The markup of a role.

        Raises:
            UserError: if this template has none.
        """
        if role not in self.turns:
            raise UserError(f"this model's chat template has no {role} turns, only {', '.join(self.turns)}")
        return self.turns[role]


ROLES: tuple[Role, ...] = get_args(Role)
TEMPLATES: dict[str, ChatTemplate] = {
    "plain": ChatTemplate(None, dict.fromkeys(ROLES, RoleMarkup("", END))),
    "chatml": ChatTemplate(
        None, {role: RoleMarkup(f"<|im_start|>{role}\n", "<|im_end|>", "\n") for role in ROLES}, ToolForm()
    ),
    "llama3": ChatTemplate(
        "<|begin_of_text|>",
        {role: RoleMarkup(f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>") for role in ROLES},
    ),
    "gemma": ChatTemplate(
        "<bos>",
        {
            "user": RoleMarkup("<start_of_turn>user\n", "<end_of_turn>", "\n"),
            "assistant": RoleMarkup("<start_of_turn>model\n", "<end_of_turn>", "\n"),
        },
    ),
    "vicuna": ChatTemplate(  # LLaVA-1.5's (arXiv:2310.03744)
        None,
        {
            "system": RoleMarkup("", " "),
            "user": RoleMarkup("USER: ", " "),
            "assistant": RoleMarkup("ASSISTANT:", "</s>"),
        },
    ),
}
MARKS: dict[str, TemplateName] = {  # what tells a family's template, first come first served
    "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3",
    "<start_of_turn>": "gemma",
    "ASSISTANT:": "vicuna",
}


def special_tokens(markup: str) -> list[str]:
    """The special tokens in a piece of markup: words in angle brackets."""
    return list(dict.fromkeys(re.findall(r"<[^<>\s]+>", markup)))


def to_jinja(template: ChatTemplate, begin: str, system: str | None, media: Mapping[str, str]) -> str:
    """The template as Hugging Face's programs read it; messages hold a string, or a list of parts in reading order.

    Args:
        template: the markup.
        begin: what stands before the first turn.
        system: the system turn of conversations without one.
        media: what stands for a medium of each modality.
    """
    opened = {role: turn.open for role, turn in template.turns.items()}
    closed = {role: _closed(turn) for role, turn in template.turns.items()}
    form = template.tools
    return "".join(
        [
            f"{{%- set opened = {opened!r} -%}}{{%- set closed = {closed!r} -%}}",
            _jinja_of_content(media),
            _jinja_of_tools(form) if form else "",
            f"{{{{ {begin!r} }}}}",
            _jinja_of_system(system, form),
            "{%- for message in messages -%}",
            _jinja_of_answers(form) if form else _NO_TOOLS,
            "{{ opened[message['role']] }}{{ content(message) }}",
            _jinja_of_calls(form) if form else "",
            "{{ closed[message['role']] }}{%- endif -%}{%- endfor -%}",
            "{%- if add_generation_prompt -%}{{ opened['assistant'] }}{%- endif -%}",
        ]
    )


_NO_TOOLS = (
    "{%- if tools or message['tool_calls'] -%}{{ raise_exception('this template has no form for tools') }}{%- else -%}"
)


def _jinja_of_content(media: Mapping[str, str]) -> str:
    kinds = "".join(f"{{%- elif part['type'] == {kind!r} -%}}{{{{ {text!r} }}}}" for kind, text in media.items())
    return (
        "{%- macro content(message) -%}{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- elif message['content'] -%}{%- for part in message['content'] -%}"
        f"{{%- if part['type'] == 'text' -%}}{{{{ part['text'] }}}}{kinds}{{%- endif -%}}{{%- endfor -%}}"
        "{%- endif -%}{%- endmacro -%}"
    )


def _jinja_of_tools(form: ToolForm) -> str:
    return (
        f"{{%- macro listed(tools) -%}}{{{{ {form.before!r} }}}}"
        f"{{%- for tool in tools -%}}{{{{ '\n' + tool | tojson }}}}{{%- endfor -%}}{{{{ {form.after!r} }}}}"
        "{%- endmacro -%}"
    )


def _jinja_of_system(system: str | None, form: ToolForm | None) -> str:
    """The system turn of conversations without one, which may be that of its tools."""
    plain = "" if system is None else "{{ opened['system'] }}" + f"{{{{ {system!r} }}}}" + "{{ closed['system'] }}"
    text = "" if system is None else f"{{{{ {system + chr(10) * 2!r} }}}}"
    tools = "{{ opened['system'] }}" + text + "{{ listed(tools) }}{{ closed['system'] }}" if form else ""
    if not plain and not tools:
        return ""
    choice = f"{{%- if tools -%}}{tools}{{%- else -%}}{plain}{{%- endif -%}}" if form else plain
    return f"{{%- if messages[0]['role'] != 'system' -%}}{choice}{{%- endif -%}}"


def _jinja_of_answers(form: ToolForm) -> str:
    first, last = f"{form.answer[0]}\n", f"\n{form.answer[1]}"
    return (
        "{%- if message['role'] == 'tool' -%}"
        "{%- if loop.first or loop.previtem['role'] != 'tool' -%}{{ opened['user'] }}"
        "{%- else -%}{{ '\\n' }}{%- endif -%}"
        f"{{{{ {first!r} }}}}{{{{ content(message) }}}}{{{{ {last!r} }}}}"
        "{%- if loop.last or loop.nextitem['role'] != 'tool' -%}{{ closed['user'] }}{%- endif -%}{%- else -%}"
    )


def _jinja_of_calls(form: ToolForm) -> str:
    first, last = f"{form.call[0]}\n", f"\n{form.call[1]}"
    return (
        "{%- if loop.first and tools and message['role'] == 'system' -%}{{ '\n\n' + listed(tools) }}{%- endif -%}"
        "{%- for call in message['tool_calls'] or [] -%}{%- set called = call['function'] or call -%}"
        "{%- if not loop.first or content(message) -%}{{ '\n' }}{%- endif -%}"
        f"{{{{ {first!r} }}}}" + "{{ '{\"name\": ' }}{{ called['name'] | tojson }}{{ ', \"arguments\": ' }}"
        "{%- if called['arguments'] is string -%}{{ called['arguments'] }}"
        "{%- else -%}{{ called['arguments'] | tojson }}{%- endif -%}{{ '}' }}"
        f"{{{{ {last!r} }}}}{{%- endfor -%}}"
    )


def _closed(turn: RoleMarkup) -> str:
    return turn.end + turn.after


def read_template(folder: Path) -> tuple[TemplateName, str | None]:
    """The template of an outside checkpoint, and the system turn that it writes where none is given.

    Raises:
        UserError: if it is none of those here.
    """
    jinja, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    program = jinja.read_text(encoding="utf-8") if jinja.is_file() else ""
    if not program and settings.is_file():
        program = read_json(settings).get("chat_template") or ""
    if isinstance(program, list):  # several by name
        program = next((one["template"] for one in program if one.get("name") == "default"), "")
    if not program:
        return "plain", None
    name = next((name for mark, name in MARKS.items() if mark in program), None)
    if name is None:
        raise UserError(
            f"{folder}: its chat template is none of {', '.join(MARKS.values())}; name the one to use in `template`"
        )
    system = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]+?)<\|im_end\|>", program)
    return name, system.group(1) if system else None
