"""Writes families/*.json: logits and gradients of transformers' models, to test every family against.

    cd tests/golden && python make_families.py

Needs torch and transformers; the tests need neither.  Made with torch 2.13.0 (CPU), transformers 5.23.0 or 5.24.0.
The models and their weights come from tests/models/family_cases.py.

Format of a file:

    versions     {package: version}
    config       the model's config.json, as transformers writes it
    tensors      {name: shape} as transformers stores them; the values are `family_cases.tensor`
    columns      columns of the vocabulary that are kept
    logits       [sequences][length][columns] float32; the sequences are `family_cases.sequences()`, each run alone
    logsumexp    [sequences][length] over the whole vocabulary
    loss         sum over sequences of weight * sum of the completion's log-probabilities
    gradients    {stored name, as a text model's: `family_cases.digest` of the loss's gradient}
    without      {feature: largest change of any logit when it is off or otherwise}: a test that does not see the
                 feature tests nothing
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import family_cases as cases  # noqa: E402

WEIGHTS = "model.safetensors"


def load(case: str, directory: Path):
    """The case's model with its weights, and the shapes of its stored tensors; `directory` holds it afterwards."""
    config = getattr(transformers, cases.CASES[case].config_class)(**cases.CASES[case].config)
    auto_class(config).from_config(config).save_pretrained(directory)
    with safe_open(directory / WEIGHTS, "numpy") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    values = {name: cases.tensor(case, name, tuple(shape)) for name, shape in shapes.items()}
    save_file(values, directory / WEIGHTS, metadata={"format": "pt"})
    return read(directory, config), shapes


def auto_class(config):
    """AutoModelForCausalLM would take the text part alone of some multimodal models."""
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def read(directory: Path, config):
    model, info = auto_class(config).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def run(model) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Logits [length, V] of every sequence, and the loss."""
    logits, loss = [], 0.0
    for (tokens, start), weight in zip(cases.sequences(), cases.SLOT_WEIGHTS, strict=True):
        logits.append(model(torch.tensor([tokens])).logits[0])
        logps = torch.log_softmax(logits[-1], -1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
        loss = loss + weight * logps[start - 1 :].sum()
    return logits, loss


def smallest_gap(model) -> float:
    """Between the router's logit of the last expert that is chosen and of the first that is not, over all tokens."""
    gaps = [1.0]

    def note(module, _, output):
        logits = output[0].sort(-1, descending=True).values
        gaps.append(float((logits[:, module.top_k - 1] - logits[:, module.top_k]).min()))

    hooks = [m.register_forward_hook(note) for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return min(gaps)


def golden(case: str, directory: Path) -> dict:
    model, shapes = load(case, directory)
    assert smallest_gap(model) > 1e-3, "a choice of experts that rounding could change"
    logits, loss = run(model)
    loss.backward()
    without = {}
    for feature, change in cases.CASES[case].without.items():
        config = type(model.config)(**{**cases.CASES[case].config, **change})
        other = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            changed, _ = run(other)
        without[feature] = max(float((a - b).abs().max()) for a, b in zip(changed, logits, strict=True))
    config = json.loads((directory / "config.json").read_text())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:  # as the encoders of images have
                parameter.copy_(parameter.grad)
    model.save_pretrained(directory)  # gradients under the names of the stored tensors
    gradients = load_file(directory / WEIGHTS)
    assert gradients.keys() == shapes.keys()
    columns = list(cases.VOCAB_COLUMNS)
    return dict(
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        config=config,
        tensors=shapes,
        columns=columns,
        logits=[rounded(x[:, columns].detach()) for x in logits],
        logsumexp=[rounded(torch.logsumexp(x, -1).detach()) for x in logits],
        loss=float(loss),
        gradients={
            text: cases.digest(case, text, value)
            for name, value in gradients.items()
            if (text := cases.text_name(name)) is not None
        },
        without=without,
    )


def rounded(x: torch.Tensor) -> list:
    """Six decimals: far below the tests' tolerance, and half the size of float32's shortest digits."""
    return np.round(x.double().numpy(), 6).tolist()


def main(golden: Callable[[str, Path], dict], folder: Path, every_case: Iterable[str]) -> None:
    """Writes what `golden` makes of a case in a directory of its own, for those that are named or all."""
    folder.mkdir(exist_ok=True)
    for case in sys.argv[1:] or every_case:
        with tempfile.TemporaryDirectory() as directory:
            (folder / f"{case}.json").write_text(json.dumps(golden(case, Path(directory))) + "\n")
        print(case)


if __name__ == "__main__":
    main(golden, cases.GOLDEN, cases.CASES)
