"""Generated dynamic scenes with exact ground truth for fourd."""
