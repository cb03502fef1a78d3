"""The exceptions of lowland.

    LowlandError            everything lowland raises on purpose
    ├── UserError           something the user can change: exit code 2, shown without a traceback
    │   ├── RecipeError     a recipe or an override is wrong
    │   └── DataError       data or a model's files are missing or wrong
    └── RunError            a run that was rightly started has failed: exit code 1
        └── NonFiniteError  a loss or gradient was not finite and the policy says stop

Each takes one message, so that all of them survive pickling between processes.
"""


class LowlandError(Exception):
    """Base of every error that lowland raises on purpose."""


class UserError(LowlandError):
    """Something the user can change; the message names the place, the value and the way out."""


class RecipeError(UserError):
    """A recipe or an override is wrong."""


class DataError(UserError):
    """Data or the files of a model are missing or wrong."""


class RunError(LowlandError):
    """A run that was rightly started has failed."""


class NonFiniteError(RunError):
    """A loss or a gradient was not finite and the recipe says to stop."""
