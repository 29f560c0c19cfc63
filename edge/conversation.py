"""Several questions one after the other; images and what was said before are not read again.

chat = Conversation(model)
chat.ask(image, "What is in the picture?").text
chat.ask("And what is behind it?").text
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from edge.generate import Answer, AnswerStream
from edge.model import EdgeModel
from edge.prompt import Message, Part


class Conversation:
    """The turns so far.

    Args:
        model: answers; its kept keys and values make each turn cost its own tokens alone.
        system: what the model is told before the first question.
    """

    def __init__(self, model: EdgeModel, system: str | None = None) -> None:
        self._model = model
        self.messages: list[Message] = [Message(role="system", parts=(system,))] if system else []

    def ask(self, *parts: Part, **overrides: Any) -> Answer:
        """The answer to the next question; see `EdgeModel.answer`."""
        return self.stream(*parts, **overrides).answer

    def stream(self, *parts: Part, **overrides: Any) -> AnswerStream:
        """The same in pieces of text. The turn counts as said when its last piece was given."""
        question = Message(role="user", parts=parts)
        return AnswerStream(
            self._answered(question, self._model.stream([*self.messages, question], **overrides))
        )

    def _answered(self, question: Message, stream: AnswerStream) -> Generator[str, None, Answer]:
        try:
            yield from stream
        finally:
            stream.close()
        self.messages += [question, Message(role="assistant", parts=(stream.answer.text,))]
        return stream.answer
