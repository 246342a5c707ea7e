"""DPT decoders: tokens of several layers fused, coarse to fine, into maps; cameras from rays."""
