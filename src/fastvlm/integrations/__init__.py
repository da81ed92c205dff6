"""Other people's programs that run FastVLM through its engine. What they need is imported only here."""
