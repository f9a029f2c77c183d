"""Every loss as a pure function of tensors, usable without the rest of the template."""

from distillery.losses.attention.attention_ce import attention_ce
from distillery.losses.attention.attention_mse import attention_mse
from distillery.losses.attention.attention_transfer import attention_transfer
from distillery.losses.attention.class_attention import class_attention
from distillery.losses.attention.minilm import minilm
from distillery.losses.attention.minilmv2 import minilmv2
from distillery.losses.attention.tinybert_attention import tinybert_attention
from distillery.losses.attention.vit_attention import vit_attention
from distillery.losses.feature.activation_boundary import activation_boundary
from distillery.losses.feature.cat import cat
from distillery.losses.feature.crd import crd, crd_in_batch, mean_score
from distillery.losses.feature.cwd import cwd
from distillery.losses.feature.factor_transfer import factor_transfer
from distillery.losses.feature.fsp import fsp
from distillery.losses.feature.hidden_cosine import hidden_cosine
from distillery.losses.feature.hidden_mse import hidden_mse
from distillery.losses.feature.hint import hint
from distillery.losses.feature.mgd import mgd
from distillery.losses.feature.nst import nst
from distillery.losses.feature.ofd import ofd, ofd_batch_margin, ofd_bn_margin
from distillery.losses.feature.pkd import pkd
from distillery.losses.feature.review import hcl
from distillery.losses.feature.semckd import semckd
from distillery.losses.feature.srrl import srrl
from distillery.losses.feature.vid import vid
from distillery.losses.relation.correlation_congruence import correlation_congruence
from distillery.losses.relation.ickd import ickd
from distillery.losses.relation.pkt import pkt
from distillery.losses.relation.rkd import rkd
from distillery.losses.relation.similarity_preserving import similarity_preserving
from distillery.losses.response.akl import akl
from distillery.losses.response.deep_supervision import deep_supervision
from distillery.losses.response.deit_hard import deit_hard
from distillery.losses.response.deit_soft import deit_soft
from distillery.losses.response.dist import dist
from distillery.losses.response.dkd import dkd
from distillery.losses.response.jsd import jsd
from distillery.losses.response.kd import kd
from distillery.losses.response.logit_mse import logit_mse
from distillery.losses.response.logit_standardized_kd import logit_standardized_kd
from distillery.losses.response.nkd import nkd
from distillery.losses.response.ofa import ofa
from distillery.losses.response.reverse_kl import reverse_kl
from distillery.losses.response.skewed_kl import skewed_kl
from distillery.losses.response.skewed_reverse_kl import skewed_reverse_kl
from distillery.losses.response.teacher_free import teacher_free
from distillery.losses.response.topk_kd import topk_kd
from distillery.losses.response.tvd import tvd
from distillery.losses.response.uld import uld
from distillery.losses.response.wsld import wsld

__all__ = [
    "activation_boundary",
    "akl",
    "attention_ce",
    "attention_mse",
    "attention_transfer",
    "cat",
    "class_attention",
    "correlation_congruence",
    "crd",
    "crd_in_batch",
    "cwd",
    "deep_supervision",
    "deit_hard",
    "deit_soft",
    "dist",
    "dkd",
    "factor_transfer",
    "fsp",
    "hcl",
    "hidden_cosine",
    "hidden_mse",
    "hint",
    "ickd",
    "jsd",
    "kd",
    "logit_mse",
    "logit_standardized_kd",
    "mean_score",
    "mgd",
    "minilm",
    "minilmv2",
    "nkd",
    "nst",
    "ofa",
    "ofd",
    "ofd_batch_margin",
    "ofd_bn_margin",
    "pkd",
    "pkt",
    "reverse_kl",
    "rkd",
    "semckd",
    "similarity_preserving",
    "skewed_kl",
    "skewed_reverse_kl",
    "srrl",
    "teacher_free",
    "tinybert_attention",
    "topk_kd",
    "tvd",
    "uld",
    "vid",
    "vit_attention",
    "wsld",
]
