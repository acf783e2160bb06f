"""What is each head for?  (arXiv 2503.12734, Observations 1 and 2; roles as `icl_interp.roles` defines them.)

Roles are judged by what heads do to predictions on sampled prompts, and jointly.  Beside them stands what each head is
worth: the rise in risk when it is removed, on the same prompts.  Cost: one pass over the budget's prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icl_interp.probing import (
    Bars,
    Block,
    Context,
    Estimate,
    Need,
    Table,
    Text,
    Threshold,
    Verdict,
    judge,
    mean_of,
    not_applicable,
    probe,
)
from icl_interp.roles import STRUCTURED, Heads
from icl_interp_probes.shown import around

SOURCE, IDEAL = "arXiv 2503.12734, Observation 2", "arXiv 2503.12734, (3.2)"
EXPLAINED = Threshold("trained models leave 0.1 to 1 % unexplained, untrained ones most of it", low=1 - STRUCTURED)
MATCHED = Threshold("sign(ω)·μ of every attending head has to be positive beyond its error", low=0.0)


@dataclass(frozen=True, eq=False)
class HeadRoles:
    """Roles, what they rest on, and what heads are worth.

    Args:
        heads: roles and their numbers.
        risk_without: the rise in risk when a head alone is removed.
        risk_without_group: the same when all heads of a role are.
        prompts: on which it was measured.
    """

    heads: Heads
    risk_without: tuple[Estimate, ...]
    risk_without_group: tuple[tuple[str, Estimate], ...]
    prompts: int


@probe(
    name="head_roles",
    title="Which heads are positive, negative, dummy, or something else?",
    needs=Need.WEIGHTS | Need.FORWARD | Need.TASK,
    cost="a few seconds",
)
class HeadRolesProbe:
    """Gives each head a role by what it does to predictions on sampled prompts, alone and together with the others, and
    measures on further prompts how much the risk rises without it.  ω is read off KQ_11; μ is the slope of the head's
    output on the kernel regressor that it would ideally be.
    """

    def run(self, context: Context) -> HeadRoles:
        """Classify, then remove each head and each role on prompts that the classification did not see."""
        heads = context.heads
        outputs, targets = [], []
        for prompt in context.chunks("ablation"):
            outputs.append(context.head_outputs(prompt).cpu().numpy())
            targets.append(prompt.y_q.cpu().numpy())
        o, y = np.concatenate(outputs), np.concatenate(targets)
        groups = {role: heads.are(role) for role in dict.fromkeys(heads.roles)}
        return HeadRoles(
            heads=heads,
            risk_without=tuple(_rise(o, y, np.arange(o.shape[1]) == h) for h in range(o.shape[1])),
            risk_without_group=tuple((role, _rise(o, y, members)) for role, members in groups.items()),
            prompts=len(y),
        )

    def blocks(self, result: HeadRoles) -> list[Block]:
        """Roles with ω, μ and what a head is worth; what roles rest on; what removing a head costs."""
        heads, rises = result.heads, result.risk_without
        outputs = range(heads.mu.shape[1])
        rows = tuple(
            (
                h,
                role,
                around(heads.omega[h], heads.omega_half[h], "KQ's diagonal"),
                *(around(heads.mu[h, n], heads.mu_half[h, n], "prompts") for n in outputs),
                rises[h],
            )
            for h, role in enumerate(heads.roles)
        )
        mu = ("μ",) if len(outputs) == 1 else tuple(f"μ_{n}" for n in outputs)
        blocks: list[Block] = [
            Table(
                ("head", "role", "ω", *mu, "risk without it − risk"),
                rows,
                alt="Role, ω, μ and worth of every head.",
                title="Heads",
                first_screen=True,
            ),
            Table(
                ("head", "effect", "misfit"),
                tuple((h, float(heads.effect[h]), float(heads.misfit[h])) for h in range(len(rises))),
                alt="What the roles rest on: the size of each head's output, and how far it is from its ideal self.",
                title="What roles rest on",
            ),
            Table(
                ("role", "risk without all of them − risk"),
                result.risk_without_group,
                alt="What removing all heads of a role costs.",
                title="Without a role",
            ),
            Bars(
                tuple(f"head {h}" for h in range(len(rises))),
                np.array([r.value for r in rises]),
                alt="Rise in risk when one head is removed.",
                title="Rise in risk without a head",
                low=np.array([r.low for r in rises]),
                high=np.array([r.high for r in rises]),
            ),
        ]
        if heads.cancelling:
            sets = "; ".join(" and ".join(map(str, group)) for group in heads.cancelling)
            blocks.append(Text(f"Heads that matter one at a time and do nothing together: {sets}."))
        return blocks

    def judge(self, result: HeadRoles) -> list[Verdict]:
        """Do ideal heads explain the model, and do signs match?"""
        heads = result.heads
        count = ", ".join(f"{heads.roles.count(role)} {role}" for role in dict.fromkeys(heads.roles))
        sentence = f"Ideal heads explain {heads.explained.value:.2%} of the prediction's energy; heads: {count}."
        return [judge("heads_structured", IDEAL, heads.explained, EXPLAINED, sentence), self._signs(heads)]

    def _signs(self, heads: Heads) -> Verdict:
        claim = "sign_matching"
        if not heads.structured:
            return not_applicable(claim, SOURCE, "ω and μ do not describe this model: its heads are unstructured")
        attending = [h for h, role in enumerate(heads.roles) if role in ("positive", "negative")]
        if not attending:
            return not_applicable(claim, SOURCE, "the claim is about one response; every attending head here is mixed")
        if not heads.stable:
            return Verdict(
                claim, SOURCE, "inconclusive", "Quarters of the prompts disagree about the roles: too few prompts."
            )
        sign = np.sign(heads.omega)[attending]
        products = sign * heads.mu[attending, 0]
        worst = int(products.argmin())
        estimate = around(products[worst], heads.mu_half[attending, 0][worst], "prompts")
        return judge(
            claim,
            SOURCE,
            estimate,
            MATCHED,
            f"The smallest sign(ω)·μ among attending heads is {estimate.value:.3g} (head {attending[worst]}).",
        )


def _rise(outputs: np.ndarray, targets: np.ndarray, removed: np.ndarray) -> Estimate:
    error = outputs.sum(1) - targets
    without = error - outputs[:, removed].sum(1)
    return mean_of((without**2 - error**2).mean(-1))
