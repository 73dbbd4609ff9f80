"""Planted defects: what the kit catches, and beside it what the rules of other projects catch."""
