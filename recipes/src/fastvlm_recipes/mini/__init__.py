"""How the shipped checkpoint `fastvlm-mini` is made: drawn pictures, tokenizer, training, evaluation."""
