"""DIST: correlations in place of exact probabilities (Huang et al., NeurIPS 2022)."""

from torch import Tensor
from torch.linalg import vector_norm

from distillery.core.numerics import log_softmaxes, reduce_rows
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import OF_CLASSES, Contract

EPS = 1e-8  # image_classification_sota's


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    t_squared: bool = True,
) -> Tensor:
    """β · (1 - correlation over the classes of a row) + γ · (1 - correlation over the batch's rows of a class), · T².

    Both are Pearson correlations of the softened probabilities, averaged over rows and over classes.

    1e-8 is added to the denominators, as in the reference. So at agreement about 1e-8 / variance remains, and a
    constant correlates with nothing: each class without probability in any row costs γ / C, and so does every class in
    a batch of one row. A student with equal logits (a head initialised to zero) has finite but enormous gradients.

    Args:
        student_logits: [N,C].
        teacher_logits: [N,C].
        beta: weight of the relation between classes.
        gamma: weight of the relation between rows.
        temperature: T; both softmaxes are of logits / T.
        t_squared: multiply by T².

    Returns: a scalar, since the second part belongs to no single row.

    Paper: Knowledge Distillation from A Stronger Teacher, https://arxiv.org/abs/2205.10536. Values equal
    those of image_classification_sota and MMRazor. The authors' other code, DIST_KD, has neither T nor T².
    """
    student, teacher = (log_p.exp() for log_p in log_softmaxes(student_logits, teacher_logits, temperature))
    between_classes = reduce_rows(1 - _correlation(student, teacher), "mean")
    between_rows = reduce_rows(1 - _correlation(student.mT, teacher.mT), "mean")
    loss = beta * between_classes + gamma * between_rows
    return loss * temperature**2 if t_squared else loss


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the last dimension; 0 if it is empty."""
    a, b = (x - x.sum(-1, keepdim=True) / max(x.shape[-1], 1) for x in (a, b))
    return (a * b).sum(-1) / (vector_norm(a, dim=-1) * vector_norm(b, dim=-1) + EPS)


class DIST(LogitTerm, function=dist):
    """`dist` on the rows of logits that count. Rows are compared within one batch.

    On several processes, `gather` compares the rows of all of them.
    """

    contract = Contract(
        short_name="dist",
        form="cross_entropy",  # EPS keeps it from vanishing at agreement
        per_sample=False,
        reduction="mean over rows, plus mean over classes",
        scale="at most 4 T², about 2 T² with an untrained student",
        properties=OF_CLASSES | {"symmetric"},
        paper="https://arxiv.org/abs/2205.10536",
        formula=r"T^2 \Big[\tfrac{\beta}{N} \sum_i \big(1 - \rho(p_{s,i\cdot}, p_{t,i\cdot})\big)"
        r" + \tfrac{\gamma}{C} \sum_c \big(1 - \rho(p_{s,\cdot c}, p_{t,\cdot c})\big)\Big],"
        r" \quad \rho(a, b) = \tfrac{\bar a \cdot \bar b}{\|\bar a\| \|\bar b\| + 10^{-8}}",
        values_of="image_classification_sota",
    )

    beta: float = 1.0
    gamma: float = 1.0
    temperature: Positive = 1.0
    t_squared: bool = True
    gather: bool = False
