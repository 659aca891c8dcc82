"""The model card of an exported run: what was trained, how, on what, and how good it became."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jaxpref.config import AdapterConfig, Config
from jaxpref.objectives import Part
from jaxpref.runs.adapters import reference_adapter
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import to_dict

_FILES = (".gguf", ".json", ".jsonl", ".gz", ".parquet")
_VERSIONS = ("jaxpref", "jax", "flax", "optax", "transformers")


def model_card(
    run: str | Path,
    config: Config,
    parts: Sequence[Part],
    step: int,
    *,
    classifier: bool = False,
    adapter: bool = False,
) -> str:
    """Markdown with the Hub's YAML front matter.

    Args:
        run: directory of the run; its data.txt (rows read, kept and dropped) and metrics.jsonl are
            read.
        parts: the bound objectives, with every hyperparameter.
        step: of the exported checkpoint.
        classifier: a reward model, written as a sequence classifier.
        adapter: a PEFT directory.
    """
    run, settings = Path(run), to_dict(config)
    evaluation = _evaluation(run / "metrics.jsonl", step)
    sections = [
        f"---\n{_yaml(_front_matter(config, parts, classifier, adapter))}---",
        f"# {Path(config.out).name}",
        f"{config.model.path}, trained with jaxpref for {step} steps on {', '.join(config.data.train)}."
        + (
            " It scores an answer at its last token: one label, higher is better."
            if classifier
            else ""
        ),
        "## Recipe",
        _table(("setting", "value"), _recipe(config, parts, step)),
        "## Data",
        _data(run / "data.txt", config),
        f"## Evaluation\n\nHeld-out data, after step {step}."
        if evaluation
        else "## Evaluation\n\nNone at this step.",
        *(
            [
                _table(
                    ("metric", "value"),
                    {name: f"{value:.5g}" for name, value in evaluation.items()},
                )
            ]
            * bool(evaluation)
        ),
        "## Whole configuration",
        f"```yaml\n{_yaml(settings)}```",
    ]
    return "\n\n".join(sections) + "\n"


_SOUPS = {
    "weights": "The weighted mean of the models' weights.",
    "deltas": "The base with the weighted sum of what the adapters add to its weights.",
    "factors": "The base with an adapter whose two factors are the weighted means of the adapters' factors, each by "
    "itself; their product is not the mean of the adapters.",
}


def soup_card(weights: Mapping[str, float], how: str, base: str, *, adapter: bool) -> str:
    """Markdown of a soup (`jaxpref.merge`).

    Args:
        weights: source -> its weight.
        how: a key of `merge.HOWS`.
        base: name or path of the model that the adapters lie on; of whole models the first one.
        adapter: a PEFT directory.
    """
    named = [name for name in dict.fromkeys([base.partition("@")[0], *weights]) if _hub_id(name)]
    front = {
        **({"base_model": named} if named else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jaxpref", "merge", f"soup-{how}"],
    }
    about = "" if how == "weights" else f" The base is {base}."
    sections = [
        f"---\n{_yaml(front)}---",
        f"# Soup of {len(weights)} policies",
        f"{_SOUPS[how]}{about} Merged with jaxpref {importlib.metadata.version('jaxpref')}, without further training.",
        _table(("policy", "weight"), {name: f"{weight:g}" for name, weight in weights.items()}),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(
    config: Config, parts: Sequence[Part], classifier: bool, adapter: bool
) -> dict[str, Any]:
    """Keys as in https://huggingface.co/docs/hub/model-cards; a local path is no `base_model` and
    no dataset."""
    base = _hub_id(config.model.path.partition("@")[0])
    datasets = [path for path in config.data.train if _hub_id(path)]
    return {
        **({"base_model": base} if base else {}),
        **({"datasets": datasets} if datasets else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if classifier else "text-generation",
        "tags": [
            "jaxpref",
            *dict.fromkeys(part.function.__name__ for part in parts),
            *["reward-model"] * classifier,
        ],
    }


def _hub_id(path: str) -> str | None:
    """The path, when it names something on the Hub: `owner/name` that is no file here."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) and Path(path).suffix not in _FILES
    return path if named and not Path(path).expanduser().exists() else None


def _recipe(config: Config, parts: Sequence[Part], step: int) -> dict[str, str]:
    optim, train, data = config.optim, config.train, config.data
    warmup = (
        f"{optim.warmup_ratio:g} of all steps"
        if optim.warmup_ratio is not None
        else f"{optim.warmup_steps or 0} steps"
    )
    rule = {"adamw": ("b1", "b2", "eps"), "lion": ("b1", "b2"), "sgd": ("momentum",)}.get(
        optim.name, ()
    )
    decay = (
        f", weight decay {optim.weight_decay:g} ({optim.decay_mask})" if optim.weight_decay else ""
    )
    return {
        "base model": config.model.path,
        "trained": _trained(config.adapter),
        "objective": " + ".join(_objective(part) for part in parts),
        "reference": _reference(config, parts),
        "optimizer": optim.name
        + "".join(f", {key} {getattr(optim, key):g}" for key in rule)
        + decay,
        "learning rate": f"{optim.learning_rate:g}, {optim.schedule}, warm-up {warmup}",
        "gradient clipping": "none"
        if optim.clip_norm is None
        else f"global norm {optim.clip_norm:g}",
        "steps": f"{step} of {train.batch_size} groups each",
        "tokens": f"at most {data.max_length} of prompt and answer"
        if data.max_length
        else "no limit",
        "precision": _precision(config),
        "seed": str(train.seed),
        "exported with": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS
        ),
    }


def _objective(part: Part) -> str:
    values = ", ".join(f"{key}={value}" for key, value in part.hyperparameters.items())
    return f"{part.weight:g} * {part.name}({values})"


def _reference(config: Config, parts: Sequence[Part]) -> str:
    reference = config.reference
    if not any(part.needs_reference for part in parts):
        return "none"
    moved = (
        f", moved by {reference.sync_alpha:g} every {reference.sync_every} steps"
        if reference.sync_every
        else ""
    )
    further = f"; further: {', '.join(reference.extra)}" if reference.extra else ""
    adapter = reference_adapter(config)
    with_adapter = f" with the adapter {adapter}" if adapter and not reference.path else ""
    return (reference.path or "the base model") + with_adapter + moved + further


def _trained(adapter: AdapterConfig) -> str:
    if not adapter.trained:
        return "all weights"
    if adapter.path:
        return f"the adapter {adapter.path}"
    kind = ("DoRA" if adapter.dora else "LoRA") + (", rank-stabilised" if adapter.rslora else "")
    size = f"{kind}, rank {adapter.rank}, alpha {adapter.alpha or adapter.rank:g}"
    return f"an adapter ({size}) on {', '.join(adapter.targets or ['all matrices of the layers'])}"


def _precision(config: Config) -> str:
    dtype, adapter = config.model.compute_dtype, config.adapter
    if not adapter.trained:
        return f"{dtype} products, float32 weights and optimizer"
    return f"{dtype} products, float32 adapter and optimizer, frozen weights in {adapter.quantize or dtype}"


def _data(report: Path, config: Config) -> str:
    """The run's account of its files: rows read, kept and dropped, with the reasons."""
    if not report.is_file():
        return "\n".join(f"- {path}" for path in config.data.train)
    lines = [
        line for line in report.read_text().splitlines() if line and not line.startswith("Plan(")
    ]
    return "```\n" + "\n".join(lines) + "\n```"


def _evaluation(metrics: Path, step: int) -> dict[str, float]:
    """The latest evaluation of that step; empty when there was none."""
    found: dict[str, float] = {}
    for line in read_jsonl(metrics) if metrics.is_file() else ():
        if line["step"] == step and (
            values := {k: v for k, v in line.items() if k.startswith("eval/")}
        ):
            found = values
    return found


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    cell = lambda text: text.replace("|", "\\|")
    lines = [f"| {cell(key)} | {cell(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines])


def _yaml(value: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(value)))
