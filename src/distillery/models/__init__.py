"""Networks, called by timm's convention with `num_classes` and `in_chans`: images [B,C,H,W] → logits [B,K].

As in timm, a network's `feature_info` lists the module that ends each stage, from shallow to deep.
"""
