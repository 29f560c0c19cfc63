"""Conversation formats: read from the checkpoint's own file without running it, else from the known ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genrecal.convert.chat import CHATS, Chat, chat_template, read_chat
from genrecal.convert.source import Source
from genrecal.core.errors import ModelError

CONVERSATION = """
import os
raise SystemExit("this file must not be run")

register(Conversation(name='other', system_message='wrong', sep='x'))
register(
    Conversation(
        name='mine',
        system_template='<|im_start|>system\\n{system_message}',
        # a note
        system_message='Say "yes"\\nor 不.',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>\\n',
    )
)
"""


def source(folder: Path, **config: object) -> Source:
    return Source(folder=folder, layout="internvl_chat", config=config, shards={})


def test_the_checkpoints_own_file_wins(tmp_path: Path) -> None:
    (tmp_path / "conversation.py").write_text(CONVERSATION, encoding="utf-8")
    chat = read_chat(source(tmp_path, template="mine"))
    assert chat == Chat(system='Say "yes"\nor 不.', separator="<|im_end|>\n")
    assert chat.end_of_turn == "<|im_end|>"


def test_without_a_file_the_known_formats_are_taken(tmp_path: Path) -> None:
    assert read_chat(source(tmp_path, template="chatml")) == CHATS["chatml"]
    assert read_chat(source(tmp_path, template="chatml", system_message=None)) == CHATS["chatml"]
    changed = read_chat(source(tmp_path, template="chatml", system_message="Be brief."))
    assert changed == Chat(system="Be brief.", separator="<|im_end|>")
    with pytest.raises(ModelError, match=r"'phi3-chat' is not known.*conversation\.py beside it"):
        read_chat(source(tmp_path, template="phi3-chat"))
    with pytest.raises(ModelError, match="'None' is not known"):
        read_chat(source(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SeparatorStyle.MPT", "SeparatorStyle.LLAMA2", "sep_style 'LLAMA2', not 'MPT'"),
        ("<|im_start|>user", "<human>", "has roles"),
        ("<|im_start|>system", "<<SYS>>", "has system_template"),
        ("sep='<|im_end|>\\n'", "sep=END", "no text as system_message or sep"),
        ("raise SystemExit(", "raise SystemExit((", "cannot be parsed"),
    ],
)
def test_a_format_of_another_form_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CONVERSATION
    (tmp_path / "conversation.py").write_text(CONVERSATION.replace(old, new), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_chat(source(tmp_path, template="mine"))


def test_the_template() -> None:
    chat = Chat(system='Say "yes"\nor 不.', separator="<|im_end|>\n")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(chat_template(chat, image_token="<IMG>"))
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "  {{ 1 }}\n"}]}
    start = (
        '<|im_start|>system\nSay "yes"\nor 不.<|im_end|>\n<|im_start|>user\n<IMG>\n  {{ 1 }}\n<|im_end|>\n'
    )
    assert template.render(messages=[question]) == start
    asked = template.render(messages=[question], add_generation_prompt=True)
    assert asked == start + "<|im_start|>assistant\n"
    system = {"role": "system", "content": "Other."}
    other = template.render(messages=[system, {"role": "user", "content": "Hi"}])
    assert other == "<|im_start|>system\nOther.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
