"""Reads the rows of data sets, and decides the order in which training visits them."""
