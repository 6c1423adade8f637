"""The paper's experiments, beside ours."""
