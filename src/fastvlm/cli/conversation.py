"""A chat's memory: turns, images waiting to be shown, and the file a chat is saved to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.cli.image_names import is_url
from fastvlm.errors import UsageError
from fastvlm.storage.whole_files import write_file

if TYPE_CHECKING:
    from fastvlm.cli.frames import OpenedImages
    from fastvlm.images.frames import Frame


@dataclass
class Turn:
    """A question with the images shown along with it, and the answer (None while it is being given)."""

    question: str
    image_names: list[str]
    images: list[Frame]
    answer: str | None = None


@dataclass
class Conversation:
    """Turns so far; images are shown with the next question.

    Args:
        system: system prompt in place of the model's own.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    waiting: list[tuple[str, Frame]] = field(default_factory=list)

    def show(self, images: OpenedImages) -> None:
        """Put images in front of the next question."""
        self.waiting.extend(zip(images.names, images.frames, strict=True))

    def ask(self, question: str) -> Turn:
        """Add a turn, with the images that were waiting."""
        turn = Turn(question, [name for name, _ in self.waiting], [image for _, image in self.waiting])
        self.turns.append(turn)
        self.waiting.clear()
        return turn

    def take_back(self) -> None:
        """Undo the last turn, whose images wait for the next question again."""
        turn = self.turns.pop()
        self.waiting[:0] = zip(turn.image_names, turn.images, strict=True)

    def clear(self) -> None:
        """Forget all turns and images; the system prompt stays."""
        self.turns.clear()
        self.waiting.clear()

    def messages(self) -> list[dict[str, Any]]:
        """The turns as chat messages with PIL images, and the times of video frames."""
        from fastvlm.api import assistant_message, system_message, user_message

        messages = system_message(self.system)
        for turn in self.turns:
            messages.append(user_message(turn.images, turn.question))
            if turn.answer is not None:
                messages.append(assistant_message(turn.answer))
        return messages

    def transcript(self) -> str:
        """The chat for people to read."""
        blocks = []
        for turn in self.turns:
            shown = "".join(f"[{name}] " for name in turn.image_names)
            blocks.append(f"You: {shown}{turn.question}\nFastVLM: {turn.answer or ''}\n")
        return "\n".join(blocks)

    def as_json(self) -> list[dict[str, Any]]:
        """The chat for programs: messages whose images are given as they were named."""
        messages = self.messages()
        users = [message for message in messages if message["role"] == "user"]
        for message, turn in zip(users, self.turns, strict=True):
            images = [item for item in message["content"] if item["type"] == "image"]
            for item, name in zip(images, turn.image_names, strict=True):
                del item["image"]
                item["url" if is_url(name) else "path"] = name
        return messages

    def save(self, file: Path) -> None:
        """Write the chat to a new file: messages as JSON if its name ends in ``.json``, else a readable transcript.

        Raises:
            UsageError: the file exists, or its folder does not.
            StorageError: the disk is full or failed.
        """
        is_json = file.suffix == ".json"
        content = json.dumps(self.as_json(), ensure_ascii=False, indent=2) + "\n" if is_json else self.transcript()
        if file.exists() or file.is_symlink():
            raise UsageError(f"{str(file)!r} exists and is left as it is; give another name.")
        write_file(file, content, is_new=True)
