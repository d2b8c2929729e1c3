"""Preferences between two answers to one prompt: DPO and IPO, from given pairs or from pairs made by reward.

On the learner's rollouts this is online DPO. The reference is the base model. Differences from TRL: the pair is a
setting of the signal, its states are a source like any other, and an answer may be any text of the group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from statewise.batch import States, take_rows
from statewise.kind import Refusal
from statewise.signals.signal import Cells, Signal, Visited, refuse_given
from statewise.types import SignalInputs

if TYPE_CHECKING:
    from torch import Tensor

    from statewise.signals.signal import Supervision


class Preference(Signal):
    """The better answer of a pair should gain on the worse one, relative to the base model.

    Fields: `loss_type`: `dpo` or `ipo`; `beta` > 0, the strength of the pull to the base model (IPO's τ). A pair is the
    best and the worst answer to a prompt, by the reward that came with them (given pairs) or the task's own; a prompt
    whose answers are all equal, or that has one answer alone, gives none.
    """

    kind: Literal["preference"] = "preference"
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs", "base_logprobs", "advantages", "pairs", "rows"})
    skips_zero_advantages: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = True
    cells: ClassVar[Cells] = {
        "preference": {
            "dataset": "DPO, IPO on given pairs (arXiv:2305.18290, arXiv:2310.12036)",
            "teacher": "DPO on pairs of teacher answers",
            "learner": "online DPO (arXiv:2402.04792)",
            "base": "DPO on pairs of base answers, ranked by reward",
            "stale": "online DPO with a stale actor",
            "replay": "online DPO with a replay buffer",
            "prefix": "DPO from given beginnings",
            "log": "DPO on another arm's states",
            "mixture": "DPO on pairs across writers",
        },
    }

    loss_type: Literal["dpo", "ipo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1

    def refusal(self, visited: Visited) -> Refusal | None:
        if visited.group_size == 1:
            return Refusal(
                "a preference is between two answers to one prompt, and this source has one", visited.how_to_pair
            )
        return refuse_given(visited)

    def supervise(self, states: States, supervision: Supervision) -> States:
        """The rows of the pairs, the better one first, with advantage 1 and -1; the others leave the mask."""
        rewards = supervision.rewards(states)
        chosen: list[int] = []
        pair_ids: list[int] = []
        signs: list[float] = []
        for group in np.unique(states.group_ids):
            members = np.flatnonzero((states.group_ids == group) & ~np.isnan(rewards))
            if len(members) < 2 or np.ptp(rewards[members]) == 0:
                continue
            chosen += [int(members[rewards[members].argmax()]), int(members[rewards[members].argmin()])]
            pair_ids += [len(pair_ids) // 2] * 2
            signs += [1.0, -1.0]
        graded = replace(states, rewards=rewards)
        if not chosen:
            nobody = np.full(len(rewards), -1)
            nothing, zeros = np.zeros_like(states.action_mask), np.zeros_like(rewards)
            return replace(graded, action_mask=nothing, pair_ids=nobody, advantages=zeros)
        pairs = np.array(pair_ids, dtype=np.int64)
        return replace(take_rows(graded, chosen), pair_ids=pairs, advantages=np.array(signs, dtype=np.float32))

    def loss(self, inputs: SignalInputs) -> Tensor:
        """The loss of a pair, at each of its states: DPO -log σ(β h), IPO (h - 1/(2β))².

        h = Σ_t (log π - log π_base)(a_t|s_t) over the better answer, less the same over the worse. With the reduction
        `trajectories` an update's loss is the mean over pairs, as published. IPO takes the mean over an answer's tokens
        in the place of the sum, as TRL does, so that β does not depend on length.

        Args:
            inputs: `policy_logprobs`, `base_logprobs`, `advantages` (1 better, -1 worse), float32 [states]; `pairs`,
                `rows` int64 [states]. Both answers of a pair are in it.

        Returns:
            Loss per state in nats, >= 0, equal over a pair; not masked, not averaged.

        Source:
            Rafailov et al., arXiv:2305.18290, eq. 7; Azar et al., arXiv:2310.12036, eq. 17.
        """
        pairs, rows = inputs.required("pairs"), inputs.required("rows")
        change = inputs.required("policy_logprobs") - inputs.required("base_logprobs")
        if not len(pairs):
            return change
        signed = inputs.required("advantages") * change
        if self.loss_type == "ipo":
            signed = signed / rows.bincount()[rows]
        margins = signed.new_zeros(int(pairs.max()) + 1).index_add(0, pairs, signed)
        if self.loss_type == "ipo":
            return (margins - 1 / (2 * self.beta)).square()[pairs]
        # -log σ(x) = log(1 + e^-x), which neither over- nor underflows in this form.
        return (-self.beta * margins).logaddexp(margins.new_zeros(()))[pairs]
