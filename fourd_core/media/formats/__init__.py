"""Public file formats, one a module: pure functions between tensors in fourd's conventions and files in the format's.

Every file is written whole or not at all. NaN stands for what is unknown, in the way that the format knows.
"""
