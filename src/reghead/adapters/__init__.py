"""Other projects' models with the parts of reghead in them, without editing those projects."""

__all__: list[str] = []
