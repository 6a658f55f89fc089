"""Integers as the protocols need them: words modulo 2^k, residues modulo primes, uniform words from AES."""
