"""VideoMAEv2 as a backbone: the network, its sizes, and the naming schemes of its checkpoints."""
