"""Writes vision/*.json: embeddings, logits and gradients of transformers' models that see pictures.

    cd tests/golden && python make_vision.py

Needs torch and transformers; the tests need neither.  Made with torch 2.13.0 (CPU), transformers 5.24.0.
The models come from tests/models/vision_cases.py, their weights from family_cases.py.

Format of a file:

    versions     {package: version}
    config       the model's config.json, as transformers writes it
    tensors      {name: shape} as transformers stores them; the values are `family_cases.tensor`
    embeddings   [groups][tiles * embeddings][D] what tower and connector make of the pictures, float32
    logits       [sequences][completion][V] that predict the completion, each sequence run alone with its pictures
    loss         sum over sequences of weight * sum of the completion's log-probabilities
    gradients    {stored name: `family_cases.digest` of the loss's gradient}
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from make_families import load, main, rounded
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import family_cases  # noqa: E402
import vision_cases as cases  # noqa: E402

from jaxpref.models.families.towers import CLIP, SIGLIP  # noqa: E402


def inputs(case: str, group: int) -> dict[str, torch.Tensor]:
    """A group's pictures, as its model's forward pass takes them."""
    how = CLIP if case in ("llava", "qwen2_5_vl") else SIGLIP
    tiles = cases.pixels(case, group).astype(np.float32) / np.float32(255)
    normalised = (tiles - np.float32(how["mean"])) / np.float32(how["std"])
    pixel_values = torch.tensor(normalised).permute(0, 3, 1, 2)
    if case == "qwen2_5_vl":
        return cases.flat_patches(pixel_values, cases.GRIDS[group])
    return {"pixel_values": pixel_values[None] if case in ("idefics3", "smolvlm") else pixel_values}


def golden(case: str, directory: Path) -> dict:
    family_cases.CASES[case] = family_cases.Case(*cases.CASES[case])
    model, shapes = load(case, directory)
    embeddings, logits, loss, weights = [], [], 0.0, iter(cases.WEIGHTS)
    for number, (prompt, completions, tiles) in enumerate(cases.groups(case)):
        pictures = inputs(case, number) if tiles else {}
        if tiles:
            features = model.model.get_image_features(**pictures, return_dict=True).pooler_output
            embeddings.append(rounded(torch.cat([x.reshape(-1, x.shape[-1]) for x in features]).detach()))
        else:
            embeddings.append([])
        for completion in completions:
            tokens = torch.tensor([prompt + completion])
            if case == "gemma3":  # by which it knows the tokens of a picture
                pictures["token_type_ids"] = (tokens == cases.TOKEN).int()
            if case == "qwen2_5_vl" and tiles:
                pictures["mm_token_type_ids"] = (tokens == cases.TOKEN).int()
            own = model(tokens, **pictures).logits[0, len(prompt) - 1 : -1]
            logits.append(rounded(own.detach()))
            logps = torch.log_softmax(own, -1)[torch.arange(len(completion)), torch.tensor(completion)]
            loss = loss + next(weights) * logps.sum()
    loss.backward()
    config = json.loads((directory / "config.json").read_text())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(directory)  # gradients under the names of the stored tensors
    gradients = load_file(directory / "model.safetensors")
    return dict(
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        config=config,
        tensors=shapes,
        embeddings=embeddings,
        logits=logits,
        loss=float(loss),
        gradients={name: family_cases.digest(case, name, value) for name, value in gradients.items()},
    )


if __name__ == "__main__":
    main(golden, cases.GOLDEN, cases.CASES)
