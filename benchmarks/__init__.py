"""One script a claim: each prints both sides and their ratio from one run, on 2 CPU threads."""
