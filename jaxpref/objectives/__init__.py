"""Objectives: pure functions of log-probs, one public function each; the dict lists them."""

from jaxpref.objectives import (
    coupled,
    divergences,
    multiobjective,
    pairwise,
    pointwise,
    ranked,
    reference_free,
    references,
    reward,
    router,
    supervised,
    tokenwise,
    unpaired,
)
from jaxpref.objectives.contract import (
    JUDGED,
    KINDS,
    PAIRS,
    Needs,
    ObjectiveOutput,
    Part,
    Term,
    asked_logps,
    bind,
    check_columns,
    group_kinds,
    needs,
)
from jaxpref.objectives.transforms import TRANSFORMS

FAMILIES = (
    pairwise,
    pointwise,
    divergences,
    tokenwise,
    coupled,
    reference_free,
    supervised,
    unpaired,
    ranked,
    references,
    multiobjective,
    reward,
    router,
)
"""In the order of docs/objectives.md."""

_LISTED = (
    pairwise.dpo, pairwise.cdpo, pairwise.rdpo, pairwise.ipo, pairwise.ipo_sum, pairwise.hinge,
    pairwise.dpo_norm, pairwise.r_dpo, pairwise.dpop, pairwise.minor_dpo, pairwise.odpo, pairwise.margin_dpo,
    pairwise.mmpo, pairwise.exo, pairwise.discopop, pairwise.chi_po, pairwise.hypo,
    pointwise.nca, pointwise.sppo_hard, pointwise.sppo_soft, pointwise.cal_dpo, pointwise.mdpo_anchor,
    pointwise.apo_zero, pointwise.apo_down, pointwise.bco_pair, pointwise.bco_pair_centred,
    divergences.f_dpo_forward_kl, divergences.f_dpo_js, divergences.f_dpo_alpha,
    tokenwise.wpo, tokenwise.wpo_clamped, tokenwise.ld_dpo, tokenwise.sampo, tokenwise.tdpo1, tokenwise.tdpo2,
    coupled.aot, coupled.aot_unpaired, coupled.dr_dpo, coupled.beta_dpo,
    reference_free.orpo, reference_free.orpo_with_prompt, reference_free.cpo, reference_free.simpo,
    reference_free.alphapo, reference_free.cpo_simpo, reference_free.tpo, reference_free.tpo_l,
    reference_free.slic_hf,
    supervised.sft, supervised.sft_gold, supervised.minor_sft,
    unpaired.kto, unpaired.apo_zero_unpaired, unpaired.bco,
    ranked.plackett_luce, ranked.info_nca,
    references.mrpo, references.mrpo_fixed, references.geometric_mrpo, references.multi_dpo,
    multiobjective.modpo, multiobjective.modpo_hinge, multiobjective.modpo_implicit, multiobjective.spo,
    multiobjective.hpo_dpo, multiobjective.hpo_kto, multiobjective.advantage_mle, multiobjective.advantage_mle_value,
    reward.bradley_terry,
    router.router_balance,
)  # fmt: skip
OBJECTIVES = {function.__name__: function for function in _LISTED}
"""Name in the config -> function."""

__all__ = [
    "FAMILIES", "JUDGED", "KINDS", "Needs", "OBJECTIVES", "ObjectiveOutput", "PAIRS", "Part", "TRANSFORMS", "Term",
    "asked_logps", "bind", "check_columns", "group_kinds", "needs",
]  # fmt: skip
