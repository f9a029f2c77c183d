"""Distillation between language models with different tokenizers, aligned by bytes."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from distillery.core.kinds import Says
from distillery.core.numerics import Reduction, kl, log_softmax, log_softmaxes, reduce_rows
from distillery.losses.byte_groups import TokenRows, byte_groups, shares
from distillery.losses.response.jsd import jsd
from distillery.losses.settings import Positive
from distillery.losses.shared_tokens import SharedTokens, Unmatched, Vocabulary, shared_tokens
from distillery.losses.signals import Signals
from distillery.losses.sparse import log_rest
from distillery.losses.term import Contract, Term

SAMPLE = 64  # rows of a batch on which the teacher's mass is measured
NONE = -1  # of the outcomes: the text of a group is one more
NOTHING = -80.0  # the logarithm of a mass that changes no sum in float32


class Tokenised(NamedTuple):
    """What the rows of logits of one network predict, and how its vocabulary is compared with the other's."""

    rows: TokenRows
    vocabulary: SharedTokens

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """The class of each row's token, and whether the token itself is shared: [N] both."""
        return self.vocabulary.classes[self.rows.token], self.vocabulary.shared[self.rows.token]


def cross_tokenizer(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_text: Tokenised | None = None,
    teacher_text: Tokenised | None = None,
    temperature: float = 1.0,
    t_squared: bool = False,
    beta: float = 0.0,
    uld_weight: float = 0.0,
    words: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher ‖ student) of what follows each place at which tokens of both begin, in nats.

    Both read the same texts in their own tokens. These are put into groups, the minimal runs of tokens that begin and
    end at the same bytes (`byte_groups`). Where a group begins, both networks have a distribution over what comes next.
    It is compared on these outcomes:

    - each token that both vocabularies have, together with those of either that only begin with it and the rest
      (`SharedTokens`);
    - the text of the group itself, if it is no shared token in one piece on either side. Its probability is the product
      of those of its tokens (the chain rule), and is taken from the outcome of its first token.

    In each network they add up to 1. Between equal tokenizers all groups are of one token each and all tokens are
    shared: then the value and its gradient are those of `kd` (of `jsd` with `divided`).

    It differs from TRL's GOLD, which also compares groups: there the unnormalised probabilities of the matched tokens
    are compared, and in a group of several tokens those of its last one, times the probability of those before. The
    student's ' con', 'gress' is then pushed away from what a teacher with the token ' congress' says, which never
    predicts 'gress' where the group begins.

    With the end of a token a tokenizer has said that the text does not go on as a longer one would. After its ' con' a
    teacher gives 'gress' too little, as it would have written ' congress'. So between vocabularies that differ, `words`
    compares only what begins a word: the distribution given that one begins, times the teacher's probability of that.
    How a word goes on is then learnt from the texts alone, and from the text of a group that begins one.

    Args:
        student_logits: [N,V].
        teacher_logits: [M,V'].
        student_text, teacher_text: what the rows predict; None: both have the same tokens, row by row.
        temperature: T; all softmaxes are of logits / T.
        t_squared: multiply by T².
        beta: above 0 the divergence is the generalised Jensen-Shannon divergence, divided by β · (1 - β): at 1 it is
            KL(student ‖ teacher).
        uld_weight: of `uld` of the tokens that only one of the vocabularies has, which is added.
        words: whether to compare only outcomes that begin a word: with a blank, punctuation or a special token.
        reduction: 'mean' over the student's rows, or 'none': [N]. The value of a group stands at its first row, and all
            others are 0, as are rows in no group.

    Sources: universal logit distillation, https://arxiv.org/abs/2402.12030; approximate likelihood matching of chunks,
    https://arxiv.org/abs/2503.20083.
    """
    if student_text is None or teacher_text is None:
        log_s, log_t = log_softmaxes(student_logits, teacher_logits, temperature)
        rows = kl(log_t, log_s) if beta == 0 else jsd(log_s, log_t, beta, divided=True, reduction="none")
        return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)
    if not len(teacher_logits):
        return reduce_rows((student_logits * 0.0).sum(-1), reduction)
    groups = byte_groups(student_text.rows, teacher_text.rows)
    log_s, of_student = student_text.vocabulary.log_probabilities(student_logits, temperature)
    log_t, of_teacher = teacher_text.vocabulary.log_probabilities(teacher_logits, temperature)
    text = groups.sums(_of_token(log_s, student_text.rows), _of_token(log_t, teacher_text.rows))
    own_s, exact_s = student_text.outcomes()
    own_t, exact_t = (each[groups.teacher] for each in teacher_text.outcomes())
    is_own = groups.students == 1, groups.teachers == 1
    at = torch.where(is_own[0] & exact_s, own_s, torch.where(is_own[1] & exact_t, own_t, NONE))
    of_student, text_s = _moved(of_student, own_s, at, text[0])
    of_teacher, text_t = _moved(of_teacher[groups.teacher], own_t, at, text[1])
    share = torch.ones_like(text_t)
    if words and not student_text.vocabulary.equal:
        begins = student_text.vocabulary.beginnings
        of_word = begins[own_s] | begins[own_t]  # of a token in the rest it is not known; both begin with one byte
        of_student, text_s, _ = _given(of_student, torch.where(of_word, text_s, NOTHING), begins)
        of_teacher, text_t, share = _given(of_teacher, torch.where(of_word, text_t, NOTHING), begins)
    if beta == 0:
        rows = kl(of_teacher, of_student) + text_t.exp() * (text_t - text_s)
    else:
        of_student, of_teacher = (
            torch.cat([rest, last[:, None]], 1) for rest, last in ((of_student, text_s), (of_teacher, text_t))
        )
        rows = jsd(of_student, of_teacher, beta, divided=True, reduction="none")
    rows = rows * share
    if uld_weight:
        rows = rows + uld_weight * _sorted_gap(
            log_s[:, student_text.vocabulary.unmatched], log_t[:, teacher_text.vocabulary.unmatched][groups.teacher]
        )
    rows = torch.where(groups.begins, rows, 0.0)
    return reduce_rows(rows * temperature**2 if t_squared else rows, reduction)


def _of_token(log_p: Tensor, rows: TokenRows) -> Tensor:
    return log_p.gather(1, rows.token[:, None])[:, 0]


def _moved(log_p: Tensor, own: Tensor, at: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The outcomes of each row, and the text of its group as one more outcome.

    The mass of the text, exp(text), is taken from the outcome of its first token, `own`, and given to `at`, or to that
    one more.
    """
    to = torch.where(at == NONE, own, at)
    places = torch.stack([own, to], 1)
    mass, there = log_p.gather(1, places).unbind(1)
    left = torch.where(at == own, mass, mass + log_rest((text - mass)[:, None]))
    more = torch.where(to == own, left.detach(), torch.logaddexp(there, text))  # one place has one gradient
    return log_p.scatter(1, places, torch.stack([left, more], 1)), torch.where(at == NONE, text, NOTHING)


def _given(log_p: Tensor, text: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The outcomes `which` and the text, given that one of these comes, and the probability of that."""
    log_p = log_p.masked_fill(~which, NOTHING)
    share = torch.cat([log_p, text[:, None]], 1).logsumexp(1)
    return log_p - share[:, None], text - share, share.exp()


def _sorted_gap(log_s: Tensor, log_t: Tensor) -> Tensor:
    """L1 distance of the sorted probabilities, the shorter row padded with zeros."""
    width = max(log_s.shape[-1], log_t.shape[-1])
    ours, theirs = (
        F.pad(each.exp().sort(descending=True).values, (0, width - each.shape[-1])) for each in (log_s, log_t)
    )
    return (ours - theirs).abs().sum(-1)


class CrossTokenizer(Term, function=cross_tokenizer):
    """`cross_tokenizer` on the rows of a language model that count. A teacher with the student's tokenizer is compared
    token by token, as by kd.

    It measures the shares of the bytes that are in groups of one token of each, `one_to_one`, and in any, `aligned`,
    and the mass that the teacher gives to tokens that the student's tokenizer has, too, `shared_mass`.
    """

    contract = Contract(
        short_name="xtok",
        scale="as kd at T = 1; beta = 1: as reverse_kl",
        paper="https://arxiv.org/abs/2402.12030",
        formula=r"\sum_{g} \sum_{o} p_t(o \mid g) \log \frac{p_t(o \mid g)}{p_s(o \mid g)},"
        r" \quad o \in \{\text{shared tokens}, \text{text of } g, \text{rest}\}",
        values_of="kd between equal tokenizers",
        reduction="sum over outcomes and over groups, divided by the student's rows",
        bias="unmatched=rest: a student all of whose tokens are shared cannot follow a teacher's other tokens. "
        "words=false: away from how words go on that the teacher would have written in one token",
        aligned_classes=False,
        aligned_tokens=False,
    )

    temperature: Positive = 1.0
    t_squared: bool = False
    beta: Annotated[float, Ge(0), Le(1), Says("from 0 to 1")] = 0.0
    unmatched: Unmatched = "prefix"
    words: bool = True
    uld_weight: Annotated[float, Ge(0), Says("0 or more")] = 0.0
    vocabularies: nn.ModuleList = field(default_factory=nn.ModuleList, init=False)  # the student's and the teacher's

    def match_vocabularies(self, student: Vocabulary, teacher: Vocabulary) -> None:
        self.vocabularies = nn.ModuleList(shared_tokens(student, teacher, self.unmatched))

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        if teacher.of_rows is None:
            return self.loss(student.logits, teacher.logits)
        ours, theirs = (
            Tokenised(TokenRows(rows["target"], rows["start"], rows["end"]), cast(SharedTokens, vocabulary))
            for rows, vocabulary in zip((batch, teacher.of_rows), self.vocabularies, strict=True)
        )
        with torch.no_grad():
            self.measured["one_to_one"], self.measured["aligned"] = shares(ours.rows, theirs.rows)
            log_p = log_softmax(teacher.logits[:SAMPLE, : theirs.vocabulary.size], 1.0)
            self.measured["shared_mass"] = 1 - log_p[:, theirs.vocabulary.unmatched].exp().sum() / max(1, len(log_p))
        return self.loss(student.logits, teacher.logits, ours, theirs)
