"""The one kind of error that is meant for people."""


class UserError(ValueError):
  """Something the user can mend; main prints the message as one line."""
