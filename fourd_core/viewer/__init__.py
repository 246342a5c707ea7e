"""The 4D viewer: one web page that plays what was found out about a video in space and time.

scene     points, cameras and tracks of a few frames, read from a run's arrays
page      the page that shows them, made by viser
command   `fourd view`
"""
