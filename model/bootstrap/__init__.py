"""Trains the foundations: the encoder, LLM and decoders that ship with preset `world`."""
