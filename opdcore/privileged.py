"""What a privileged teacher reads in place of a prompt: the prompt with a text that its student never sees.

It knows no template, no tokenizer and no model.
"""

from __future__ import annotations

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Message, Prompt
from opdcore.contract.teacher import PRIVILEGED, PROMPT, Privileged


def read_with(privileged: Privileged, prompt: Prompt) -> Prompt:
    """The prompt as the teacher reads it; raises BadInput where it brings no text of its own."""
    text = privileged.rule if privileged.source == "rule" else prompt.privileged
    if text is None:
        raise BadInput(
            "prompt_set.no_privileged",
            "The prompt has no privileged text, which its teacher reads.",
            remedy="Give each prompt its `privileged`, or the teacher one rule for all.",
            field="privileged",
        )
    if prompt.messages is None:
        changed = _filled(privileged.form, text, prompt.prompt or "")
        return prompt.model_copy(update={"prompt": changed})
    turns = list(prompt.messages)
    asked = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if not asked:
        raise BadInput(
            "prompt_set.no_user_turn",
            "The conversation has no user turn that the privileged text could be put into.",
            remedy="Give the conversation a user turn.",
            field="messages",
        )
    last = turns[asked[-1]]
    content = _filled(privileged.form, text, last.content)
    turns[asked[-1]] = Message(role=last.role, content=content)
    return prompt.model_copy(update={"messages": tuple(turns)})


def _filled(form: str, text: str, prompt: str) -> str:
    """The form with both put in; neither is searched for the other's place."""
    parts = form.partition(PROMPT)
    before, after = (part.replace(PRIVILEGED, text) for part in (parts[0], parts[2]))
    return before + prompt + after
