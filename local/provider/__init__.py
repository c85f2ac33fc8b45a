"""An emulated, OpenAI-compatible fine-tuning service. Nothing is trained; every answer says so."""
