"""Procedural lesions and their photographs."""
