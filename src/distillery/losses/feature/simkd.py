"""SimKD: the student's projected features take the place of the teacher's (Chen et al., CVPR 2022)."""

from distillery.core.errors import UserError
from distillery.losses.feature.hint import hint
from distillery.losses.layer_terms import LayerTerm
from distillery.losses.term import Contract, Pair


class SimKD(LayerTerm):
    """`hint` of the map that the student's projector gives and the teacher's last one, which its classifier averages.

    It is for the student `model/student=simkd`, whose projector and classifier (the teacher's) are part of the
    network, and so of its export, its score and its costs. The authors train with this loss alone, task.weight=0.
    """

    auto = "pooled"
    function = staticmethod(hint)
    contract = Contract(
        short_name="simkd",
        family="feature",
        form="divergence",
        per_sample=True,
        t_squared=None,
        reduction="mean over elements",
        scale="the mean square of the teacher's features, about 0.01 to 1",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/2203.14001",
        formula=r"\tfrac{1}{n} \lVert \mathcal{P}(F_s) - F_t \rVert_2^2",
        values_of="SimKD (the authors)",
    )

    def checked(self, pair: Pair) -> Pair:
        if len(pair.student) != 4 or len(pair.teacher) != 4 or pair.student[1] != pair.teacher[1]:
            raise UserError(
                f"simkd compares the teacher's last map with a student map of the same number of channels, and cannot "
                f"compare {pair}. Use a student with the teacher's classifier: model/student=simkd."
            )
        return pair
