"""RAFT and SEA-RAFT optical flow for fourd.

`cue.py` has the two components; `flow_network.py` what both networks share (padding, both directions at once, all
iterations or the last), with the correlation lookup in `correlation.py` and the convex upsampling in `upsampling.py`;
`raft_network.py` and `sea_raft_network.py` are the networks; `checkpoints.py` knows the names of published files,
`assets.py` where these are.
"""
