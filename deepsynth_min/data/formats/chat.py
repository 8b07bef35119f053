"""Rows of chat formats: `messages` and ShareGPT's `conversations` -> one question and its answer.

In: a list of turns, {"role", "content"} or {"from", "value"}; a content is a text or a list of
parts, {"type": "text", ...} and {"type": "image", ...} as transformers, ms-swift and Unsloth write
them. Out: the question, the answer, and the images that the question's parts hold.

The one idea: the model is trained on a page, an instruction and one answer, without roles. So a
conversation of one question and one answer is read, and any other is named and left to the user.
"""

from typing import Any

from ...errors import json_kind

USERS = ("user", "human")
ASSISTANTS = ("assistant", "gpt", "model", "bot")


def one_turn(turns: Any, name: str, answered: bool) -> tuple[str, str | None, list[Any]]:
    """(question, answer, images): of an image an entry each, None where only its place is held.

    answered: whether there must be an answer. Raises ValueError saying what is not as it must be.
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"field {name!r} is not a list of turns")
    found = [_turn(turn) for turn in turns]
    roles = [role for role, _, _ in found]
    if roles[0] == "system" and not found[0][1].strip():
        found, roles = found[1:], roles[1:]
    if "system" in roles:
        raise ValueError("a system turn: the model's prompts have none")
    wanted = [["user", "assistant"]] + ([] if answered else [["user"]])
    if roles not in wanted:
        listed = ", ".join(roles[:6]) + (", ..." if roles[6:] else "")
        raise ValueError(f"turns are {listed}; one question (user) and one answer are read")
    question, images = found[0][1:]
    if len(found) == 1:
        return question, None, images
    if found[1][2]:
        raise ValueError("an image in the answer")
    return question, found[1][1], images


def _turn(turn: Any) -> tuple[str, str, list[Any]]:
    """(role, text, images)"""
    if not isinstance(turn, dict):
        raise ValueError(f"a turn is {json_kind(turn)}, not an object")
    role = turn.get("role") or turn.get("from")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    kind = "user" if role in USERS else "assistant" if role in ASSISTANTS else role
    if kind not in ("user", "assistant", "system"):
        raise ValueError(f"a turn of the role {role!r:.40}")
    if isinstance(content, str):
        return kind, content, []
    if not isinstance(content, list):
        raise ValueError(f"the {kind}'s turn has no content")
    texts, images = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        what = part.get("type") if isinstance(part, dict) else None
        if what == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif what in ("image", "image_url"):
            images.append(_image_of(part))
        else:
            raise ValueError(f"the {kind}'s turn has a part that is neither text nor image")
    return kind, "".join(texts), images


def _image_of(part: dict[str, Any]) -> Any:
    """The image of a part; None where it only says that there is one."""
    for name in ("image", "image_url", "url", "path"):
        if part.get(name) is not None:
            found = part[name]
            return found["url"] if isinstance(found, dict) and "url" in found else found
    return None
