"""Networks whose path integral has a closed form: recognised, integrated, swept."""
