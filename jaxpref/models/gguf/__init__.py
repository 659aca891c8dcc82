"""GGUF: models and tokenizers out of llama.cpp's files."""
