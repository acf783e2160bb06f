"""What is each head for?  (arXiv 2503.12734, Observations 1 and 2; roles as `icl_interp.roles` defines them.)

Roles are judged by what heads do to predictions on sampled prompts, and jointly.  Beside them stands what each head is
worth: the rise in risk when it is removed, on the same prompts.  Cost: one pass over the budget's prompts.

With several responses (section 5.4) a head has an ω for each feature and a μ for each response, and may have no one
sign.  What it does for each response, by the sign of its μ there, stands in a table of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from icl_interp.roles import SERVES, STRUCTURED, Heads
from icl_interp_probes.shown import around

SOURCE, IDEAL = "arXiv 2503.12734, Observation 2", "arXiv 2503.12734, (3.2)"
EXPLAINED = Threshold(
    "trained models leave 0.1 to 1 % unexplained, untrained ones most of it; read between the curves of planted "
    "and almost_gd",
    low=1 - STRUCTURED,
)
MATCHED = Threshold(
    "sign(ω)·μ of every attending head has to be positive beyond its error; the curves of planted and wrong_signs"
    " lie on either side",
    low=0.0,
)
NOTHING = "—"


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
    needs=Need.WEIGHTS | Need.FORWARD | Need.TASK | Need.ONE_LAYER,
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
        blocks: list[Block] = [
            _table(heads, rises),
            *(_by_response(heads) if heads.mu.shape[1] > 1 else ()),
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
        if heads.are("mixed").any():  # of several responses only
            return not_applicable(claim, SOURCE, "mixed heads have no one sign: what has to match is their sum")
        if not heads.stable:
            return Verdict(
                claim, SOURCE, "inconclusive", "Quarters of the prompts disagree about the roles: too few prompts."
            )
        counts = heads.are("positive", "negative")[:, None] & heads.serves
        products = np.where(counts, np.sign(heads.omega)[:, None] * heads.mu, np.inf)
        worst, response = (int(index) for index in np.unravel_index(products.argmin(), products.shape))
        estimate = around(products[worst, response], heads.mu_half[worst, response], "prompts")
        where = f"head {worst}" + (f", for y{response}" if heads.mu.shape[1] > 1 else "")
        return judge(
            claim,
            SOURCE,
            estimate,
            MATCHED,
            f"The smallest sign(ω)·μ among attending heads is {estimate.value:.3g} ({where}).",
        )


def _table(heads: Heads, rises: Sequence[Estimate]) -> Table:
    """Each head's role, ω, μ and worth.  Of several responses ω is no one number, and its mean has no interval."""
    outputs = range(heads.mu.shape[1])
    one = len(outputs) == 1
    rows = tuple(
        (
            h,
            role,
            around(heads.omega[h], heads.omega_half[h], "KQ's diagonal") if one else float(heads.omega[h]),
            *(around(heads.mu[h, n], heads.mu_half[h, n], "prompts") for n in outputs),
            rises[h],
        )
        for h, role in enumerate(heads.roles)
    )
    names = ("ω", "μ") if one else ("mean ω", *(f"μ_{n}" for n in outputs))
    return Table(
        ("head", "role", *names, "risk without it − risk"),
        rows,
        alt="Role, ω, μ and worth of every head.",
        title="Heads",
        first_screen=one,  # of several responses the reader wants to know first who serves which
    )


def _by_response(heads: Heads) -> tuple[Block, Block]:
    """What each head does for each response, and in words what that means."""
    outputs = range(heads.mu.shape[1])
    rows = tuple((h, role, *(_duty(heads, h, n) for n in outputs)) for h, role in enumerate(heads.roles))
    told = (
        "For a response a head is positive where it adds the labels that it attends to (μ > 0), negative where it "
        f"subtracts them, and {NOTHING} where it does not serve it: its |μ| is below {SERVES:.0%} of the largest there."
    )
    return (
        Table(
            ("head", "role", *(f"for y{n}" for n in outputs)),
            rows,
            alt="What each head does for each response: a row a head, a column a response.",
            title="Signs of μ by response",
        ),
        Text(" ".join([told, *_why_mixed(heads)])),
    )


def _duty(heads: Heads, head: int, response: int) -> str:
    """What the head does for the response: a sign if it attends, else its role."""
    role = heads.roles[head]
    if role == "unstructured":  # its μ does not say what it does
        return role
    if role == "dummy" or not heads.serves[head, response]:
        return NOTHING
    if role == "mean":
        return role
    return "positive" if heads.mu[head, response] > 0 else "negative"


def _why_mixed(heads: Heads) -> list[str]:
    """What keeps mixed heads from having one sign, as `icl_interp.roles` tells it."""
    weighs = np.where(heads.serves, np.sign(heads.mu), 0)
    mixed, opposed = heads.are("mixed"), weighs.min(1) * weighs.max(1) < 0
    reasons = (
        (mixed & opposed, "add the labels of some responses and subtract those of others"),
        (mixed & ~opposed, "have ω of one sign on some features and of the other on others"),
    )
    return [
        f"Mixed heads that {reason}: {', '.join(map(str, np.flatnonzero(which)))}."
        for which, reason in reasons
        if which.any()
    ]


def _rise(outputs: np.ndarray, targets: np.ndarray, removed: np.ndarray) -> Estimate:
    error = outputs.sum(1) - targets
    without = error - outputs[:, removed].sum(1)
    return mean_of((without**2 - error**2).mean(-1))
