"""Weights as a tree: leaves that stand in for arrays (quantized, adapted), and the transforms that
put them there."""
