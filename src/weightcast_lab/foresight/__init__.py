"""How far an optimizer's last step sees ahead."""
