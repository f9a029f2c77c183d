"""Which tokens of two tokenizers stand for the same bytes of a text."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenRows(NamedTuple):
    """The tokens that rows of logits predict, in the order of the texts: int64 [N] each.

    `start` and `end` are the bytes that a token stands for, as places in all texts of a batch, ascending. The places of
    two pieces of text must not meet: one ends below the start of the next.
    """

    token: Tensor
    start: Tensor
    end: Tensor


class Groups(NamedTuple):
    """The minimal runs of tokens, of the student and of the teacher, that begin and end at the same bytes.

    A group is named by the student's row at which it begins. Rows that are in no group have N, the number of the
    student's rows, in its place.

    Attributes:
        begins: whether a group begins at this row of the student, bool [N].
        teacher: the teacher's row at which the same group begins, [N]; any row where none begins.
        of_student, of_teacher: the group of each row, [N] and [M].
        students, teachers: how many tokens of the student and of the teacher the group has that begins here, [N].
    """

    begins: Tensor
    teacher: Tensor
    of_student: Tensor
    of_teacher: Tensor
    students: Tensor
    teachers: Tensor

    @property
    def single(self) -> Tensor:
        """Whether a group of one token of each begins at the row, bool [N]."""
        return (self.students == 1) & (self.teachers == 1)

    def sums(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Values of rows, [N] and [M], summed over each group: [N] both, at the rows at which groups begin."""
        rows = len(self.begins)
        return _sums(student, self.of_student, rows), _sums(teacher, self.of_teacher, rows)


def byte_groups(student: TokenRows, teacher: TokenRows) -> Groups:
    """The groups of two tokenisations of the same texts, without a loop over the tokens.

    A group begins where a token of both begins, ends at the next byte at which a token of both ends, and has a row for
    every token in between. A token of no bytes (a blank that a tokenizer puts in front) belongs to what follows.
    """
    rows, device = len(student.start), student.start.device
    if not rows or not len(teacher.start):
        none = torch.zeros_like(student.start)
        of_student, of_teacher = (torch.full_like(each.start, rows) for each in (student, teacher))
        return Groups(none.bool(), none, of_student, of_teacher, none, none)
    number, theirs = (torch.arange(len(each.start), device=device) for each in (student, teacher))
    first, begins = _same_place(student.start, teacher.start)
    end, ends = _same_place(student.end, teacher.end)
    last = torch.where(ends, number, rows).flip(0).cummin(0).values.flip(0)  # the row at which a group would end
    begins = begins & (last < rows)
    last = last.clamp_max(rows - 1)
    last_theirs = end[last]
    begins = begins & _unbroken(student, number, last) & _unbroken(teacher, first, last_theirs)
    opened = torch.full((len(theirs) + 1,), rows, device=device)
    opened = opened.scatter(0, torch.where(begins, first, len(theirs)), number)[:-1]  # by the teacher's rows
    of_student = _groups_of(torch.where(begins, number, rows), number, last)
    of_teacher = _groups_of(opened, theirs, last_theirs)
    students, teachers = (_sums(torch.ones_like(each), each, rows) for each in (of_student, of_teacher))
    return Groups(begins, first, of_student, of_teacher, students, teachers)


def shares(student: TokenRows, teacher: TokenRows) -> tuple[Tensor, Tensor]:
    """The shares of the bytes of the student's tokens in groups of one token of each, and in any group."""
    groups, sizes = byte_groups(student, teacher), student.end - student.start
    single = groups.single[groups.of_student.clamp_max(len(sizes) - 1)] if len(sizes) else groups.begins
    inside = groups.of_student < len(sizes)
    one, several = (torch.where(part, sizes, 0).sum() / sizes.sum().clamp_min(1) for part in (inside & single, inside))
    return one, several


def _sums(values: Tensor, group: Tensor, rows: int) -> Tensor:
    return values.new_zeros(rows + 1).index_add(0, group, values)[:rows]


def _same_place(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """For each of our places, the first row of theirs with the same, and whether there is one and ours is the first."""
    row = torch.searchsorted(theirs, ours).clamp_max(len(theirs) - 1)
    return row, (theirs[row] == ours) & (torch.cat([ours[:1] - 1, ours[:-1]]) != ours)


def _unbroken(rows: TokenRows, first: Tensor, last: Tensor) -> Tensor:
    """Whether each row from `first` to `last` begins where the one before it ends."""
    gaps = torch.cat([torch.zeros_like(rows.start[:1]), (rows.start[1:] != rows.end[:-1]).cumsum(0)])
    return (first <= last) & (gaps[first] == gaps[last])


def _groups_of(opened: Tensor, number: Tensor, last: Tensor) -> Tensor:
    """The group of each row. `opened`: the group that begins there, or N; `last`: the row at which each group ends."""
    rows = len(last)
    begun = torch.where(opened < rows, number, -1).cummax(0).values
    group = torch.where(begun < 0, rows, opened[begun.clamp_min(0)])
    return torch.where(number <= last[group.clamp_max(rows - 1)], group, rows)
