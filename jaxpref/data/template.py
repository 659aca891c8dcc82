"""The chat template: what a row gives it, and the texts of a group, which are tokenised."""

import json
from collections.abc import Mapping
from typing import Any

import jinja2

from jaxpref.data.checks import check_json, shown
from jaxpref.errors import InputError, RowError
from jaxpref.types import Group

# `apply_chat_template` has these as parameters of its own; as template variables they would change
# what it returns.
_TEMPLATE_PARAMETERS = {
    "conversation",
    "tools",
    "documents",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
}


def template_columns(row: Mapping[str, Any], where: str) -> tuple[list | None, dict[str, Any]]:
    """`tools` and `chat_template_kwargs` of a row, as the chat template takes them.

    A row without them has (None, {}).

    Raises:
        InputError: one is of another type, or sets what the trainer sets itself.
    """
    return _tools(row.get("tools"), where), _template_kwargs(row.get("chat_template_kwargs"), where)


def _tools(value: Any, where: str) -> list | None:
    if isinstance(value, str):
        try:
            tools = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(
                "tools as a list, or that list as JSON text",
                f'{where}, key "tools", column {error.colno} of the text: {error.msg}',
                "write the text with a JSON library",
            ) from error
    else:
        tools = value
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise InputError(
            "a list of tool descriptions (objects)",
            f'{where}, key "tools": {shown(tools)}',
            "write one object for each tool",
        )
    check_json(tools, "tools", where)
    return tools or None


def _template_kwargs(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(
            "an object with the template's variables",
            f'{where}, key "chat_template_kwargs": {shown(value)}',
            'write {"enable_thinking": false} or the like',
        )
    # Columnar files fill what a row lacks with null.
    kwargs = {name: item for name, item in value.items() if item is not None}
    check_json(kwargs, "chat_template_kwargs", where)
    if taken := sorted(_TEMPLATE_PARAMETERS & set(kwargs)):
        raise InputError(
            "variables of the chat template",
            f'{where}, key "chat_template_kwargs": {", ".join(taken)}, set by the trainer itself',
            'remove them; tools have their own column, "tools"',
        )
    return kwargs


def group_texts(group: Group, tokenizer: Any) -> list[str] | RowError:
    """What is tokenised of a group: the prompt, then prompt + completion for each completion."""
    return _rendered(group, tokenizer) if group.conversational else _plain(group, tokenizer)


def _plain(group: Group, tokenizer: Any) -> list[str]:
    eos = tokenizer.eos_token
    if group.completions and not eos:
        raise InputError(
            "a tokenizer with an end-of-text token, which closes every completion",
            f"{group.where}: plain text, and tokenizer.eos_token is not set",
            "set `eos_token` in tokenizer_config.json",
        )
    ended = [text if text.endswith(eos) else text + eos for text in group.completions]
    return [group.prompt, *(group.prompt + completion for completion in ended)]


def _rendered(group: Group, tokenizer: Any) -> list[str] | RowError:
    if not tokenizer.chat_template:
        raise InputError(
            "a tokenizer with a chat template for rows of messages",
            f"{group.where}: messages, and tokenizer.chat_template is not set",
            "use the tokenizer of a chat model, add chat_template.jinja beside tokenizer.json, "
            "or give the rows as plain text",
        )

    def render(messages: list[dict], *, add_generation_prompt: bool) -> str:
        return tokenizer.apply_chat_template(
            messages,
            tools=group.tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **group.template_kwargs,
        )

    try:
        texts = [render(group.prompt, add_generation_prompt=True)]
        for completion in group.completions:
            texts.append(render([*group.prompt, *completion], add_generation_prompt=False))
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        refusal = RowError(
            "refused by the chat template",
            "messages that the tokenizer's chat template can write",
            f"{group.where}: {type(error).__name__}: {error}",
            "mend or drop the row, or use another chat template",
        )
        refusal.__cause__ = error
        return refusal
    return texts
