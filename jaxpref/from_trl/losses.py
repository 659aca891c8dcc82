"""The losses of TRL's trainers as objectives."""

from collections.abc import Mapping
from typing import Any

from jaxpref.errors import InputError

_DPO = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "rdpo",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo_hard",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "aot_pair": "aot",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
    "sigmoid_norm": "dpo_norm",
}
_SMOOTHED = ("exo", "rdpo", "aot", "aot_unpaired")
_DIVERGENCES = {
    "forward_kl": ("f_dpo_forward_kl", "forward_kl"),
    "js_divergence": ("f_dpo_js", "js_divergence"),
    "alpha_divergence": ("f_dpo_alpha", "alpha_divergence"),
}
"""TRL's f_divergence_type -> (objective in place of dpo, transform of others)."""


class NoCounterpart(Exception):
    """A loss that has none; its text says why and what to do."""


def objectives(trainer: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weighted objectives of a trainer with these options.

    Errors: InputError for a loss that TRL does not have either; NoCounterpart.
    """
    parts = {"dpo": _dpo, "kto": _kto, "cpo": _cpo, "orpo": _orpo, "reward": _reward}[trainer](
        options
    )
    router = options.get("router_aux_loss_coef")
    if router:
        parts.append({"name": "router_balance", "weight": router})
    return parts


def _dpo(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    losses = options.get("loss_type", ["sigmoid"])
    losses = [losses] if isinstance(losses, str) else list(losses)
    weights = options.get("loss_weights") or [1.0] * len(losses)
    parts = []
    for loss, weight in zip(losses, weights, strict=True):
        part = _dpo_part(loss, options)
        parts.append(part | ({"weight": weight} if weight != 1.0 else {}))
    if options.get("rpo_alpha"):  # of older versions, which had no loss "sft"
        parts.append({"name": "sft", "weight": options["rpo_alpha"]})
    return parts


def _dpo_part(loss: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if loss not in _DPO:
        raise InputError(
            f"a loss of TRL's DPOConfig ({', '.join(_DPO)})",
            f"loss_type {loss!r}",
            "write one of them",
        )
    name = _DPO[loss]
    if name == "sft":
        return {"name": "sft"}
    part: dict[str, Any] = {"name": name, "beta": options.get("beta", 0.1)}
    if name in _SMOOTHED:
        part["eps"] = options.get("label_smoothing", 0.0)
    if name == "discopop":
        part["tau"] = options.get("discopop_tau", 0.05)
    if options.get("use_weighting"):
        if name != "dpo":
            raise NoCounterpart(f"use_weighting with loss_type {loss}: wpo is its form of sigmoid")
        part["name"] = "wpo"
    divergence = options.get("f_divergence_type", "reverse_kl")
    if divergence in _DIVERGENCES:
        alone, transform = _DIVERGENCES[divergence]
        alpha = 1.0 - options.get("f_alpha_divergence_coef", 0.5)
        own = {"alpha": alpha} if divergence == "alpha_divergence" else {}
        if divergence == "alpha_divergence" and alpha == 0.0:
            return part  # the reverse KL
        if part["name"] == "dpo":
            part = part | {"name": alone} | own
        else:
            part["transform"] = {"name": transform, **own} if own else transform
    if options.get("ld_alpha") is not None:
        if part["name"] == "dpo":
            part |= {"name": "ld_dpo", "alpha": options["ld_alpha"]}
        elif "transform" in part:
            raise NoCounterpart("ld_alpha together with f_divergence_type: one transform at a time")
        else:
            part["transform"] = {"name": "ld", "alpha": options["ld_alpha"]}
    return part


def _kto(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    beta = options.get("beta", 0.1)
    if options.get("loss_type", "kto") == "apo_zero_unpaired":
        return [{"name": "apo_zero_unpaired", "beta": beta}]
    names = ("desirable_weight", "undesirable_weight")
    weights = {name: options[name] for name in names if options.get(name, 1.0) != 1.0}
    return [{"name": "kto", "beta": beta, **weights}]


def _orpo(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "orpo_with_prompt", "lam": options.get("beta", 0.1)}]


def _cpo(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    loss, beta = options.get("loss_type", "sigmoid"), options.get("beta", 0.1)
    alpha, eps = options.get("cpo_alpha", 1.0), options.get("label_smoothing", 0.0)
    gamma = options.get("simpo_gamma", 0.5)
    if loss == "alphapo":
        own = options.get("alpha", 0.0)
        shape = {"name": "alphapo", "alpha": own} if own else {"name": "simpo"}
        return [{**shape, "beta": beta, "gamma": gamma}]
    if loss == "simpo":
        if alpha == 0:
            return [{"name": "simpo", "beta": beta, "gamma": gamma}]
        return [{"name": "cpo_simpo", "beta": beta, "gamma": gamma, "alpha": alpha}]
    if loss == "sigmoid" and not eps:
        return [{"name": "cpo", "beta": beta, "alpha": alpha}]
    names = {"sigmoid": "cdpo", "hinge": "hinge", "ipo": "ipo"}
    if loss not in names:
        known = ", ".join([*names, "simpo", "alphapo"])
        raise InputError(
            f"a loss of TRL's CPOConfig ({known})", f"loss_type {loss!r}", "write one of them"
        )
    part = {"name": names[loss], "beta": beta, "transform": "reference_free"}
    if loss == "sigmoid":
        part["eps"] = eps
    return [part, {"name": "sft", "weight": alpha}] if alpha else [part]


def _reward(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    centering = options.get("center_rewards_coefficient")
    return [{"name": "bradley_terry", **({"centering": centering} if centering else {})}]
