"""Protocols on lattice-based homomorphic encryption (TenSEAL's sealapi)."""
