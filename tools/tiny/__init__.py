"""How cortex/tiny is made: corpus, tokenizer, network, training, export, evaluation."""
