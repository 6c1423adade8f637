"""The weightcast laboratory: fair comparisons of optimizers with and without weight prediction."""
