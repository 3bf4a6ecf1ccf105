"""Two or more runs side by side: paired differences, curves, recipes, and the queries that they disagree on."""
