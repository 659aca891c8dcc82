"""A directory's tokenizer: its token ids are those of tokenizer.json.

Where transformers 5 knows the class of a tokenizer (GPT2Tokenizer, Qwen2Tokenizer, GemmaTokenizer
and others), it takes the vocabulary and the merges from tokenizer.json and rebuilds the rest as its
own code has it: SmolLM2's splitting of digits is lost, and some model types are given another class
than the one that the directory names.  So the file itself is loaded here; from the class come only
the special tokens and the padding side that the directory leaves to it.

Where there is tokenizer.model alone, these classes lose spaces in front of a text, among other
things.  What transformers converts the file to where no class is asked is compared with
SentencePiece's own ids, and taken.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from jaxpref.errors import InputError

_FILE, _SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
_FILES = (_FILE, "tokenizer_config.json", _SENTENCEPIECE)
_PROBES = (
    "It's 12,345.67 or so: naïve café, ﬁne Größe.",
    " one space",
    "  two  and   three ",
    "line\n\n\tx\r\n",
    "漢字とかな",
    "🙂 e\u0301 Ⅷ ½",
    "",
    " ",
    "▁",
    "def f(x):\n    return x**2  # squared\n",
    "xxxxxxxxxxxxxxxx",
)
"""Texts whose ids tell apart how spaces, digits, line ends and unknown characters are treated."""


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _FILES)


def load_tokenizer(directory: Path) -> Any:
    """A directory's tokenizer, for transformers.

    Errors: InputError when it has none, when tokenizer.json cannot be read, when
        tokenizer_config.json asks for other token ids than tokenizer.json gives, and for
        tokenizer.model alone without the package sentencepiece, or where it is not read exactly.
    """
    if not has_tokenizer(directory):
        raise InputError(
            f"tokenizer files ({', '.join(_FILES)})",
            f"none in {directory}",
            "copy them from the model that it was trained from",
        )
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = None
    if (directory / _FILE).is_file():
        backend = _read_backend(directory / _FILE)
    elif (directory / _SENTENCEPIECE).is_file():
        backend = _converted(directory / _SENTENCEPIECE)
    try:
        # Asked about code in the directory, transformers would run it on a "y": it is never run.
        of_class = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (ImportError, KeyError, OSError, ValueError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            "a tokenizer that transformers reads, without code from the directory",
            f"{directory}: {said}",
            "save it as a fast tokenizer (tokenizer.json) of a class that transformers has",
        ) from error
    if backend is None:
        _check_vocabulary(of_class, directory)
        return of_class
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    # The class has defaults for what the directory does not name.
    defaults: dict[str, Any] = {"padding_side": of_class.padding_side}
    for name, token in of_class.special_tokens_map.items():
        if token in known:
            defaults[name] = token
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        directory, local_files_only=True, **defaults
    )
    _check_ids(tokenizer, backend, directory)
    return tokenizer


def _read_backend(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            "a tokenizer.json that the `tokenizers` library reads",
            f"{file}: {error}",
            "copy or download the file again",
        ) from error


def _converted(file: Path) -> Tokenizer:
    """A SentencePiece model, as transformers converts it, its ids compared with SentencePiece's."""
    from transformers import PreTrainedTokenizerFast

    ask_for_json = f"copy {_FILE} from a publication of the model that has it"
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise InputError(
            f"{_FILE}, or the package sentencepiece",
            f"{file.parent} has {file.name} alone, and the package is not installed",
            f"pip install jaxpref[sentencepiece], or {ask_for_json}",
        ) from error
    try:
        original = SentencePieceProcessor(model_file=str(file))
        made = PreTrainedTokenizerFast.from_pretrained(file.parent, local_files_only=True)
    except Exception as error:  # neither library raises anything narrower
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError("a SentencePiece model", f"{file}: {said}", ask_for_json) from error
    converted = made.backend_tokenizer
    for text in _PROBES:
        wanted, got = original.encode(text), converted.encode(text, add_special_tokens=False).ids
        if got != wanted:
            raise InputError(
                "a SentencePiece model that transformers converts without loss",
                f"{file}: the ids of {text!r} are {wanted}, converted {got}",
                ask_for_json,
            )
    return converted


def _check_vocabulary(tokenizer: Any, directory: Path) -> None:
    """Refuses a tokenizer without tokens of text, which transformers makes of a missing file."""
    special = {*tokenizer.all_special_tokens, "▁"}
    if not tokenizer.get_vocab().keys() - special:
        raise InputError(
            f"the vocabulary of a tokenizer, as {_FILE} or tokenizer.model",
            f"{directory} has neither, and its settings alone give {len(special)} special tokens",
            "copy or download that file too",
        )


def _check_ids(tokenizer: Any, backend: Tokenizer, directory: Path) -> None:
    """Refuses settings of tokenizer_config.json that change the ids of tokenizer.json.

    Tokens that it adds to those of tokenizer.json are kept: such directories were trained with
    them.
    """
    conflicts = []
    if _split(tokenizer.backend_tokenizer) != _split(backend):
        conflicts.append("another splitting of text (`fix_mistral_regex`, `fast_tokenizer_files`)")
    if tokenizer.split_special_tokens:
        conflicts.append("`split_special_tokens`")
    added = tokenizer.added_tokens_decoder
    for index, token in backend.get_added_tokens_decoder().items():
        if _matching(added[index]) != _matching(token):
            conflicts.append(f"token {index} as {added[index]!r}, not {token!r}")
    for index, token in tokenizer.init_kwargs["added_tokens_decoder"].items():
        actual = tokenizer.convert_tokens_to_ids(token.content)
        if actual != index:
            conflicts.append(f"token {index} to be {token.content!r}, whose id is {actual}")
    if conflicts:
        raise InputError(
            "a tokenizer_config.json (and added_tokens.json) in agreement with tokenizer.json",
            f"{directory} asks for {'; '.join(conflicts[:10])}",
            "decide which the model was trained with, and change the other file to say the same",
        )


def _split(backend: Tokenizer) -> tuple[bytes | None, ...]:
    """What happens to text before its words become tokens."""
    steps = (backend.normalizer, backend.pre_tokenizer)
    return tuple(None if step is None else step.__getstate__() for step in steps)


def _matching(token: AddedToken) -> tuple[str, bool, bool, bool, bool]:
    """What decides where a token is found in a text; `special` matters to decoding alone."""
    return token.content, token.single_word, token.lstrip, token.rstrip, token.normalized
