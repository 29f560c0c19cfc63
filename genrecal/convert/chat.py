"""The authors' conversation format -> a chat template.

    <|im_start|>system\n SYSTEM SEPARATOR <|im_start|>user\n ... SEPARATOR <|im_start|>assistant\n

A checkpoint names its format in config.json and defines it in conversation.py. That file is parsed, not run:
the arguments of the format's `Conversation(...)` are literals.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

from genrecal.convert.source import Source
from genrecal.core.errors import ModelError

FILE = "conversation.py"
SYSTEM_TEMPLATE = "<|im_start|>system\n{system_message}"
ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")
INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "  # noqa: RUF001
    "是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，"  # noqa: RUF001
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What the formats of these checkpoints differ in."""

    system: str
    separator: str
    """After every turn; what stands before its line break ends an answer."""

    @property
    def end_of_turn(self) -> str:
        return self.separator.strip()


CHATS = {
    "Hermes-2": Chat(system=INTERNVL2_SYSTEM, separator="<|im_end|>"),
    "internlm2-chat": Chat(system=INTERNVL2_SYSTEM, separator="<|im_end|>"),
    "internvl2_5": Chat(system=INTERNVL2_5_SYSTEM, separator="<|im_end|>\n"),
    "chatml": Chat(system="Answer the questions.", separator="<|im_end|>"),
}


def read_chat(source: Source) -> Chat:
    """The format that `source` names: as its own conversation.py says, else as CHATS does.

    Raises:
        ModelError: an unknown format, or one that is not of the form above.
    """
    name = source.config.get("template")
    path = source.folder / FILE
    chat = _parse(path, name) if path.is_file() else CHATS.get(name)
    if chat is None:
        raise ModelError(
            f"its conversation format '{name}' is not known",
            where=source.folder,
            fix=f"Put the checkpoint's {FILE} beside it; known without it are {', '.join(CHATS)}",
        )
    system = source.config.get("system_message")
    return chat if system is None else Chat(system=system, separator=chat.separator)


def chat_template(chat: Chat, *, image_token: str) -> str:
    """The Jinja template of `chat`.

    A conversation that does not start with a system turn gets the model's own. An image stands in a line of
    its own, as in the authors' prompts.
    """
    system, separator, image = (
        json.dumps(text, ensure_ascii=False) for text in (chat.system, chat.separator, f"{image_token}\n")
    )
    return (
        "{% if messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n' + {system} + {separator} }}}}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ {image} }}}}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        f"{{{{ {separator} }}}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def _parse(path: Path, name: str | None) -> Chat | None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be parsed ({error})", where=path) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Conversation":
            fields = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
            if fields.get("name") == name:
                return _chat(fields, where=path)
    return None


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Attribute):  # SeparatorStyle.MPT
        return node.attr
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _chat(fields: dict[str, object], *, where: Path) -> Chat:
    expected = {"system_template": SYSTEM_TEMPLATE, "roles": ROLES, "sep_style": "MPT"}
    for field, value in expected.items():
        if fields.get(field) != value:
            raise ModelError(
                f"the format '{fields['name']}' has {field} {fields.get(field)!r}, not {value!r}", where=where
            )
    system, separator = fields.get("system_message", ""), fields.get("sep")
    if not isinstance(system, str) or not isinstance(separator, str):
        raise ModelError(f"the format '{fields['name']}' has no text as system_message or sep", where=where)
    return Chat(system=system, separator=separator)
