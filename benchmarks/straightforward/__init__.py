"""Operations as their papers and reference implementations state them, written by us: what the kernels are measured
against, and what gives their reference in float64. Nothing here saves time or memory."""
