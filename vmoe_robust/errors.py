"""What ends a program without a traceback."""


class UserError(ValueError):
  """Something the user can mend; main prints the message as one line."""


class SavedAndStopped(KeyboardInterrupt):
  """A run was asked to stop and has saved; all processes of a pod raise it."""


class BadState(UserError):
  """Training went wrong: the weights of this step are not to be saved."""
