"""transformers' learning rate schedules as settings of ours."""

from collections.abc import Mapping
from typing import Any

Left = list[tuple[str, Any, str]]
"""(option, value, what to do instead)."""

_SAME = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "polynomial": "polynomial",
    "cosine_with_restarts": "cosine_restarts",
    "warmup_stable_decay": "wsd",
    "inverse_sqrt": "inverse_sqrt",
}
_WSD_DECAY = 0.1
_POLYNOMIAL_END = 1e-7


def schedule_of(
    name: str, given: Mapping[str, Any], *, peak: float, steps: int | None
) -> tuple[dict[str, Any], Left]:
    """Settings for `lr_scheduler_type` and `lr_scheduler_kwargs`, and what is left of them.

    Args:
        peak: the learning rate, for least ones that are given in absolute terms.
        steps: of the run, where they are given.
    """
    name = name.rpartition(".")[2].lower()  # SchedulerType.COSINE
    settings: dict[str, Any] = {}
    rest = dict(given)
    if name not in _SAME:
        return {}, [("lr_scheduler_type", name, "optim.schedule: linear is in its place")]
    schedule = _SAME[name]
    if schedule != "linear":
        settings["optim.schedule"] = schedule
    if steps is not None and steps > 0:
        settings["train.max_steps"] = int(steps)
    least = rest.pop("min_lr_rate", None) or rest.pop("min_lr_ratio", None)
    absolute = rest.pop("min_lr", None)
    if schedule == "polynomial":
        absolute = rest.pop("lr_end", _POLYNOMIAL_END)
        settings["optim.power"] = float(rest.pop("power", 1.0))
    if absolute:
        least = absolute / peak
    if least:
        settings["optim.min_ratio"] = float(f"{least:.6g}")
    if schedule == "cosine_restarts":
        settings["optim.cycles"] = int(rest.pop("num_cycles", 1))
    if schedule == "wsd":
        decay = rest.pop("num_decay_steps", None)
        if decay is not None and settings.get("train.max_steps"):
            settings["optim.decay_ratio"] = float(f"{decay / settings['train.max_steps']:.6g}")
            decay = None
        settings["optim.decay_shape"] = rest.pop("decay_type", "cosine")
        if decay is not None:
            rest["num_decay_steps"] = decay
    left = [
        (f"lr_scheduler_kwargs.{key}", value, f"set optim.decay_ratio: its default is {_WSD_DECAY}")
        if key == "num_decay_steps"
        else (f"lr_scheduler_kwargs.{key}", value, "optim.schedule has no such setting")
        for key, value in rest.items()
        if not (key == "num_cycles" and value == 0.5)
    ]
    return settings, left
