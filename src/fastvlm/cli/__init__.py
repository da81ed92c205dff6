"""The command line: one file a verb. Nothing here loads torch before a verb has work for it."""
