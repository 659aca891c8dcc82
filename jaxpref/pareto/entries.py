"""The policies of a front before they are measured: how each is made, and what it cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from jaxpref.pareto.config import (
    BY_ADAPTER,
    CONDITIONED,
    ON_POLICY,
    FrontConfig,
    point_name,
)
from jaxpref.pareto.cost import Cost
from jaxpref.pareto.max_min import chosen_weights
from jaxpref.pareto.measure import Candidate
from jaxpref.pareto.on_policy import on_policy_cost
from jaxpref.pareto.policies import LATEST, FrontPolicies, MakeCandidate
from jaxpref.pareto.run_configs import conditioned_out, point_out, single_out
from jaxpref.pareto.stage_costs import (
    combined_cost,
    conditioned_cost,
    point_cost,
    raco_cost,
    single_cost,
)
from jaxpref.pareto.stages import Stages
from jaxpref.processes.together import first_does
from jaxpref.runs.build import Pieces
from jaxpref.runs.export import export_run
from jaxpref.runs.merge import How, merge
from jaxpref.storage.paths import as_path


@dataclass(frozen=True)
class Entry:
    """One policy of a front, before it is measured."""

    name: str
    method: str
    weights: Mapping[str, float] | None
    make: MakeCandidate
    base: str | None = None
    run: str | None = None
    cost: Cost = Cost()


def entries(front: FrontConfig, policies: FrontPolicies, stages: Stages) -> Iterator[Entry]:
    """The reference, the ends, and every method at every weight vector."""
    yield Entry("reference", "reference", None, FrontPolicies.reference)
    if "dpo" in front.pareto.methods:
        for name in front.names:
            yield _end(front, name, stages)
    for method in front.pareto.methods:
        if method == "mpo":
            yield _combined_point(front, method, chosen_weights(front, policies, stages), stages)
            continue
        for weights in front.points:
            if method == "modpo":
                yield _modpo_point(front, weights, policies.pieces, stages)
            elif method == "raco":
                yield _raco_point(front, weights, stages)
            elif method in CONDITIONED:
                yield _conditioned_point(front, method, weights, stages)
            elif method in ON_POLICY:
                yield _on_policy_point(front, method, weights, stages)
            elif method != "dpo":
                yield _combined_point(front, method, weights, stages)


def _end(front: FrontConfig, name: str, stages: Stages) -> Entry:
    run = single_out(front, name)
    return Entry(
        f"dpo_{name}",
        "dpo",
        weights={other: float(other == name) for other in front.names},
        make=lambda policies: policies.run(run),
        base=name,
        run=run,
        cost=single_cost(front, name, stages),
    )


def _modpo_point(
    front: FrontConfig, weights: Mapping[str, float], pieces: Pieces, stages: Stages
) -> Entry:
    run = point_out(front, weights)
    return Entry(
        point_name("modpo", weights),
        "modpo",
        weights,
        make=lambda policies: policies.run(run),
        base=front.base(weights),
        run=run,
        cost=point_cost(front, weights, pieces, stages),
    )


def _raco_point(front: FrontConfig, weights: Mapping[str, float], stages: Stages) -> Entry:
    run = point_out(front, weights, "raco")
    return Entry(
        point_name("raco", weights),
        "raco",
        weights,
        make=lambda policies: policies.run(run),
        run=run,
        cost=raco_cost(front, weights, stages),
    )


def _conditioned_point(
    front: FrontConfig, method: str, weights: Mapping[str, float], stages: Stages
) -> Entry:
    """The policy of all weights, asked for these."""
    run, name = conditioned_out(front, method), point_name(method, weights)

    def make(policies: FrontPolicies) -> Candidate:
        if method not in BY_ADAPTER:
            return policies.conditioned(run, weights)
        adapter = as_path(front.run.out) / "adapters" / name
        if not first_does(adapter.is_dir):
            chosen = list(weights.values())
            export_run(run, adapter, step=LATEST, adapter=True, weights=chosen)
        return policies.adapter(adapter)

    return Entry(
        name,
        method,
        weights,
        make,
        run=run,
        cost=(
            on_policy_cost(front, method, None, stages)
            if method in ON_POLICY
            else conditioned_cost(front, method, stages)
        ),
    )


def _on_policy_point(
    front: FrontConfig, method: str, weights: Mapping[str, float], stages: Stages
) -> Entry:
    run = point_out(front, weights, method)
    return Entry(
        point_name(method, weights),
        method,
        weights,
        make=lambda policies: policies.run(run),
        run=run,
        cost=on_policy_cost(front, method, weights, stages),
    )


def _combined_point(
    front: FrontConfig, method: str, weights: Mapping[str, float], stages: Stages
) -> Entry:
    """The DPO policies mixed when decoding, or averaged."""
    name = method if method == "mpo" else point_name(method, weights)
    weight_of_run: dict[str | Path, float] = {
        single_out(front, of): weight for of, weight in weights.items()
    }

    def make(policies: FrontPolicies) -> Candidate:
        if method in ("mod", "mpo"):
            return policies.mix(weight_of_run)
        soup = as_path(front.run.out) / "soups" / name
        if not first_does(soup.is_dir):
            how = cast(How, method.removeprefix("soup_"))
            merge(weight_of_run, soup, how=how, adapter=True, step=LATEST)
        return policies.adapter(soup)

    return Entry(name, method, weights, make, cost=combined_cost(front, method, stages))
