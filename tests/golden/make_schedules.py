"""Writes schedules.json: learning rates of transformers' schedules, and a step of torch's Muon.

Needs torch (2.9 or later) and transformers: python make_schedules.py
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import get_scheduler

TOTAL = 24
CASES = {
    "polynomial": ("polynomial", 0, {"lr_end": 0.1, "power": 2.0}),
    "polynomial_warmup": ("polynomial", 5, {"lr_end": 0.05, "power": 0.5}),
    "cosine_min": ("cosine_with_min_lr", 5, {"min_lr_rate": 0.1}),
    "restarts": ("cosine_with_restarts", 0, {"num_cycles": 4}),
    "restarts_warmup": ("cosine_with_restarts", 3, {"num_cycles": 3}),
    "wsd_cosine": ("warmup_stable_decay", 4, {"num_decay_steps": 6, "decay_type": "cosine"}),
    "wsd_linear": ("warmup_stable_decay", 0, {"num_decay_steps": 6, "decay_type": "linear", "min_lr_ratio": 0.2}),
    "wsd_sqrt": ("warmup_stable_decay", 0, {"num_decay_steps": 12, "decay_type": "1-sqrt", "min_lr_ratio": 0.1}),
}


def rates(name, warmup, options):
    """Learning rates of the steps, the peak being 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=TOTAL, scheduler_specific_kwargs=options
    )
    found = []
    for _ in range(TOTAL):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def muon():
    """The first step of torch's Muon on one matrix, scaled to AdamW's root mean square; it computes in bfloat16."""
    gradient = [[((7 * r + 3 * c) % 11 - 5) / 10 for c in range(6)] for r in range(4)]
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    weight.grad = torch.tensor(gradient)
    optimizer.step()
    return {"gradient": gradient, "after": weight.detach().tolist()}


if __name__ == "__main__":
    values = {name: rates(*case) for name, case in CASES.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    text = json.dumps({"versions": versions, "total": TOTAL, "rates": values, "muon": muon()}, indent=1)
    Path(__file__).with_name("schedules.json").write_text(text + "\n")
