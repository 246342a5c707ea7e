"""DPT decoders: tokens of several layers fused, coarse to fine, into one map per frame."""
