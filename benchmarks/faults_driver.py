"""Leads searches by name, one after another on the same workers of a cluster, as a comparison does.

Names come by standard input.
"""

import sys
from pathlib import Path

from rich.console import Console

from lowland.platform.recipe import load_recipe
from lowland.platform.search.setting import read_setting
from lowland.platform.search.start import begin, changed
from lowland.platform.search.tune import ready


def main(folder: Path, trials: int, address: str) -> None:
    """Begins or resumes every study that is named, until there are no more names."""
    console = Console(width=200)
    base = load_recipe(folder / "recipe.yaml")
    with ready([base], address, 2, console) as (uri, experiment_id):
        from lowland.platform.search.driver import SearchDriver  # imports Ray, which is to find its environment
        from lowland.platform.search.workers import Workers

        with Workers(base, str(folder / "ray"), 2) as workers:
            for name in map(str.strip, sys.stdin):
                recipe = base.model_copy(update={"name": name})
                if read_setting(base.storage, name) is not None:
                    setting = changed(base.storage, name)
                else:
                    space = [str(folder / "space.yaml")]
                    setting = begin(recipe, space, trials=trials, sampler="random", seed=int(name[-3:]))
                SearchDriver(setting, uri, experiment_id, console, workers).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
