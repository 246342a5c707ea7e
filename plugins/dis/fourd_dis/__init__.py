"""OpenCV's DIS optical flow for fourd."""
