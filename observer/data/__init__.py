"""Rows to train on: `observer data` makes, imports, checks, splits and audits them."""
