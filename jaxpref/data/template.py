"""The chat template: what a row gives it, and the texts of a group, which are tokenised."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jinja2

from jaxpref.data.checks import check_json, shown
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.rows import as_parts
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


def group_texts(
    group: Group, tokenizer: Any, processor: PictureProcessor | None = None
) -> list[str] | RowError:
    """What is tokenised of a group: the prompt, then prompt + completion for each completion.

    Args:
        group: whose pictures are read.
        processor: which writes what stands for them; None: the model sees none.

    Raises:
        InputError: pictures for a model that sees none.
    """
    if group.pictures and processor is None:
        raise InputError(
            "rows of text, for a model that is given no pictures",
            f"{group.where}: {len(group.pictures)} pictures",
            "set model.pictures=true where the model sees them; data.columns: {images: null} "
            "trains without them",
        )
    try:
        if group.conversational:
            texts = _rendered(group, tokenizer, pictures=processor is not None)
        else:
            texts = _plain(group, tokenizer)
        if processor is None:
            return texts
        return [processor.with_tokens(text, group.pictures, group.where) for text in texts]
    except RowError as error:
        return error


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


def _rendered(group: Group, tokenizer: Any, *, pictures: bool) -> list[str]:
    """Texts of messages.

    Args:
        pictures: whether the model sees them; such a template reads all contents as parts.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "a tokenizer with a chat template for rows of messages",
            f"{group.where}: messages, and tokenizer.chat_template is not set",
            "use the tokenizer of a chat model, add chat_template.jinja beside tokenizer.json, "
            "or give the rows as plain text",
        )

    in_parts = pictures or _reads_parts(tokenizer, tokenizer.chat_template)

    def render(messages: list[dict], *, add_generation_prompt: bool) -> str:
        if in_parts:
            messages = [{**m, "content": as_parts(m["content"])} for m in messages]
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
        raise RowError(
            "refused by the chat template",
            "messages that the tokenizer's chat template can write",
            f"{group.where}: {type(error).__name__}: {error}",
            "mend or drop the row, or use another chat template",
        ) from error
    return texts


@lru_cache(maxsize=8)
def _reads_parts(tokenizer: Any, template: str) -> bool:
    """Whether a chat template writes contents only where they are lists of parts.

    Those of models that see pictures may leave out a content that is text, without a word.
    """
    text = "The quick brown fox"

    def is_written(content: Any) -> bool:
        message = {"role": "user", "content": content}
        try:
            return text in tokenizer.apply_chat_template([message], tokenize=False)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError):
            return False

    return not is_written(text) and is_written(as_parts(text))
