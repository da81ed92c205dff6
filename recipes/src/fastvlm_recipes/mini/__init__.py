"""How the shipped checkpoint `fastvlm-mini` is made: drawn images, tokenizer, training, evaluation."""
