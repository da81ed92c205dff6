"""How files and folders reach the disk: whole or not at all, by one run at a time, with clear errors."""
