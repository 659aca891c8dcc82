"""The model card of an export: what was trained, how, on which data, and how good it became."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jaxpref.config import AdapterConfig, Config, OptimConfig
from jaxpref.objectives import Part
from jaxpref.runs.adapters import reference_adapter
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import to_dict
from jaxpref.storage.paths import as_path

_FILES = (".gguf", ".json", ".jsonl", ".gz", ".parquet")
_PACKAGES = ("jaxpref", "jax", "flax", "optax", "transformers")


def model_card(
    run: str | Path,
    config: Config,
    parts: Sequence[Part],
    step: int,
    *,
    classifier: bool = False,
    adapter: bool = False,
    weights: Sequence[float] | None = None,
) -> str:
    """Markdown with the Hub's YAML front matter.

    Args:
        run: directory of the run; its data.txt (rows read, kept and dropped) and metrics.jsonl are
            read.
        parts: the bound objectives, with every hyperparameter.
        step: of the exported checkpoint.
        classifier: a reward model, written as a sequence classifier.
        adapter: a PEFT directory.
        weights: of the objectives, where the run serves all.
    """
    run, data = as_path(run), ", ".join(config.data.train)
    about = f"{config.model.path}, trained with jaxpref for {step} steps on {data}."
    if classifier:
        about += " It scores an answer at its last token: one label, higher is better."
    if weights is not None:
        at = zip(config.adapter.weight_columns, weights, strict=True)
        about += f" It is the policy for {', '.join(f'{name}={w:g}' for name, w in at)}."
    sections = [
        _front_matter(_metadata(config, parts, classifier, adapter)),
        f"# {as_path(config.out).name}",
        about,
        "## Recipe",
        _table(("setting", "value"), _recipe(config, parts, step)),
        "## Data",
        _data(run / "data.txt", config),
        "## Evaluation",
        *_evaluation(run / "metrics.jsonl", step),
        "## Whole configuration",
        f"```yaml\n{_yaml(to_dict(config))}```",
    ]
    return "\n\n".join(sections) + "\n"


_SOUPS = {
    "weights": "The weighted mean of the models' weights.",
    "deltas": "The base with the weighted sum of what the adapters add to its weights.",
    "factors": "The base with an adapter whose two factors are the weighted means of the adapters' "
    "factors, each by itself; their product is not the mean of the adapters.",
}


def soup_card(weights: Mapping[str, float], how: str, base: str, *, adapter: bool) -> str:
    """Markdown of a soup (`jaxpref.merge`).

    Args:
        weights: source -> its weight.
        how: a key of `merge.HOWS`.
        base: name or path of the model that the adapters lie on; of whole models the first one.
        adapter: a PEFT directory.
    """
    metadata: dict[str, Any] = {}
    models = dict.fromkeys([base.partition("@")[0], *weights])  # each once
    on_hub = [name for name in models if _hub_id(name)]
    if on_hub:
        metadata["base_model"] = on_hub
    metadata["library_name"] = "peft" if adapter else "transformers"
    metadata["pipeline_tag"] = "text-generation"
    metadata["tags"] = ["jaxpref", "merge", f"soup-{how}"]
    about = _SOUPS[how]
    if how != "weights":
        about += f" The base is {base}."
    version = importlib.metadata.version("jaxpref")
    sections = [
        _front_matter(metadata),
        f"# Soup of {len(weights)} policies",
        f"{about} Merged with jaxpref {version}, without further training.",
        _table(("policy", "weight"), {name: f"{weight:g}" for name, weight in weights.items()}),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(
    config: Config, parts: Sequence[Part], classifier: bool, adapter: bool
) -> dict[str, Any]:
    """Keys as in https://huggingface.co/docs/hub/model-cards; local paths are left out."""
    metadata: dict[str, Any] = {}
    base = _hub_id(config.model.path.partition("@")[0])
    if base:
        metadata["base_model"] = base
    datasets = [path for path in config.data.train if _hub_id(path)]
    if datasets:
        metadata["datasets"] = datasets
    metadata["library_name"] = "peft" if adapter else "transformers"
    metadata["pipeline_tag"] = "text-classification" if classifier else "text-generation"
    objectives = dict.fromkeys(part.function.__name__ for part in parts)  # each once
    metadata["tags"] = ["jaxpref", *objectives]
    if classifier:
        metadata["tags"].append("reward-model")
    return metadata


def _hub_id(path: str) -> str | None:
    """The path, where it names something on the Hub: `owner/name` that is no file here."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) and Path(path).suffix not in _FILES
    return path if named and not as_path(path).exists() else None


def _recipe(config: Config, parts: Sequence[Part], step: int) -> dict[str, str]:
    optim, train = config.optim, config.train
    clipping, tokens = "none", "no limit"
    if optim.clip_norm is not None:
        clipping = f"global norm {optim.clip_norm:g}"
    if config.data.max_length:
        tokens = f"at most {config.data.max_length} of prompt and answer"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return {
        "base model": config.model.path,
        "trained": _trained(config.adapter),
        "objective": " + ".join(_objective(part) for part in parts),
        "reference": _reference(config, parts),
        "optimizer": _optimizer(optim),
        "learning rate": _learning_rate(optim),
        "gradient clipping": clipping,
        "steps": f"{step} of {train.batch_size} groups each",
        "tokens": tokens,
        "precision": _precision(config),
        "seed": str(train.seed),
        "exported with": ", ".join(versions),
    }


def _optimizer(optim: OptimConfig) -> str:
    own = {"adamw": ("b1", "b2", "eps"), "lion": ("b1", "b2"), "sgd": ("momentum",)}
    own["muon"] = ("muon_momentum", *own["adamw"])
    settings = [f"{key} {getattr(optim, key):g}" for key in own.get(optim.name, ())]
    if optim.weight_decay:
        settings.append(f"weight decay {optim.weight_decay:g} ({optim.decay_mask})")
    return ", ".join([optim.name, *settings])


def _learning_rate(optim: OptimConfig) -> str:
    warmup = f"{optim.warmup_steps or 0} steps"
    if optim.warmup_ratio is not None:
        warmup = f"{optim.warmup_ratio:g} of all steps"
    schedule: str = optim.schedule
    if optim.min_ratio:
        schedule += f" to {optim.min_ratio:g} of it"
    return f"{optim.learning_rate:g}, {schedule}, warm-up {warmup}"


def _objective(part: Part) -> str:
    values = ", ".join(f"{key}={value}" for key, value in part.hyperparameters.items())
    return f"{part.weight:g} * {part.name}({values})"


def _reference(config: Config, parts: Sequence[Part]) -> str:
    reference = config.reference
    if not any(part.needs_reference for part in parts):
        return "none"
    text, adapter = reference.path or "the base model", reference_adapter(config)
    if adapter and not reference.path:
        text += f" with the adapter {adapter}"
    if reference.sync_every:
        text += f", moved by {reference.sync_alpha:g} every {reference.sync_every} steps"
    if reference.extra:
        text += f"; further: {', '.join(reference.extra)}"
    return text


def _trained(adapter: AdapterConfig) -> str:
    if not adapter.trained:
        return "all weights"
    if adapter.path:
        return f"the adapter {adapter.path}"
    kind = {"lora": "LoRA", "panacea": "Panacea", "pblora": "PBLoRA"}[adapter.kind]
    if adapter.dora:
        kind = "DoRA"
    if adapter.rslora:
        kind += ", rank-stabilised"
    size = f"rank {adapter.rank}, alpha {adapter.alpha or adapter.rank:g}"
    targets = ", ".join(adapter.targets or []) or "all matrices of the layers"
    return f"an adapter ({kind}, {size}) on {targets}"


def _precision(config: Config) -> str:
    dtype, adapter = config.model.compute_dtype, config.adapter
    if not adapter.trained:
        return f"{dtype} products, float32 weights and optimizer"
    frozen = adapter.quantize or dtype
    return f"{dtype} products, float32 adapter and optimizer, frozen weights in {frozen}"


def _data(report: Path, config: Config) -> str:
    """The run's account of its files: rows read, kept and dropped, with the reasons."""
    if not report.is_file():
        return "\n".join(f"- {path}" for path in config.data.train)
    lines = report.read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("Plan(")]
    return "```\n" + "\n".join(kept) + "\n```"


def _evaluation(metrics: Path, step: int) -> list[str]:
    """A sentence, and a table of the latest evaluation of that step where there was one."""
    latest: dict[str, float] = {}
    lines = read_jsonl(metrics) if metrics.is_file() else []
    for line in lines:
        values = {name: value for name, value in line.items() if name.startswith("eval/")}
        if line["step"] == step and values:
            latest = values
    if not latest:
        return ["None at this step."]
    rows = {name: f"{value:.5g}" for name, value in latest.items()}
    return [f"Held-out data, after step {step}.", _table(("metric", "value"), rows)]


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    lines = [f"| {cell(key)} | {cell(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines])


def _front_matter(metadata: Mapping[str, Any]) -> str:
    return f"---\n{_yaml(metadata)}---"


def _yaml(value: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(value)))
