"""The mutation run: small faults in the framework, one at a time, and the checks that see them."""
