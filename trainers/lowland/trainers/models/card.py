"""The model card of an exported model."""

from collections.abc import Mapping


def model_card(name: str, recipe: str, metrics: Mapping[str, float]) -> str:
    """Markdown with the recipe (YAML) and the final metrics."""
    rows = "\n".join(f"| {key} | {value:.6g} |" for key, value in sorted(metrics.items()))
    return f"""---
library_name: transformers
tags: [lowland]
---
# {name}

Trained with lowland.

| metric | value |
| --- | --- |
{rows}

## Recipe

```yaml
{recipe.rstrip()}
```
"""
