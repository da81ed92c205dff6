"""Auxiliary losses for records with object positions: targets, losses, columns of a batch."""
