"""What a decoder says, token by token: prompts, the loop, sampling, text as it grows, speculative decoding."""
