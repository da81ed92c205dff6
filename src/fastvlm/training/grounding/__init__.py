"""Optional objectives for records that say where objects stand: targets, losses, columns of a batch."""
