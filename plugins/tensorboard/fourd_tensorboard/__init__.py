"""TensorBoard for fourd: every logged number of a run as a scalar."""
