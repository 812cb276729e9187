"""Regression heads, losses and target normalizers for targets that shift between categories."""
