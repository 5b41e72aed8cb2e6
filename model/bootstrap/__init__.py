"""Trains the foundations: the encoder, LLM and decoders that the world's preset ships with."""
