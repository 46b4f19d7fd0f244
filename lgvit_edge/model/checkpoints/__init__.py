"""Reading and writing trained models: our own files, the authors', Hugging Face's and timm's."""
