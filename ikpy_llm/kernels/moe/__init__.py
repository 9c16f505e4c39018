"""Mixture of experts: routing, and products for groups of rows."""
