"""Backends that run a graph; each is loaded when it is asked for."""
