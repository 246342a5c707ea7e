"""Readers of public data sets, metrics and the papers' evaluation protocols."""
