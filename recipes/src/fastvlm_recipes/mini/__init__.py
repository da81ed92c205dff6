"""The shipped checkpoint `fastvlm-mini`: icons, tokenizer, tests, scores, shipping."""
