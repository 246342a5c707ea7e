"""The Triton kernels, imported at the first call that needs one: a machine without Triton never sees them."""
