"""`python -m vmoe_robust.report PATH [PATH ...] [--out=report.html]`."""

import sys
import webbrowser

from absl import flags

from vmoe_robust.config import UserError, command_line
from vmoe_robust.files import local_path
from vmoe_robust.report import page

_OUT = flags.DEFINE_string('out', page.REPORT, 'The HTML file to write.')
_OPEN = flags.DEFINE_bool('open', False, 'Open the file in a browser.')


def main(argv: list[str]) -> None:
  """Writes the report of some runs, and says what it lacks."""
  if len(argv) < 2:
    raise UserError(
      'no run is named; give folders of runs or studies: '
      'python -m vmoe_robust.report runs/digits_moe runs/digits_vit'
    )
  out = local_path(_OUT.value, '--out').absolute()
  try:
    if out.is_dir():
      raise UserError(
        f'--out={_OUT.value} is a folder; name a file, such as '
        f'--out={out / page.REPORT}'
      )
    lines = page.write(argv[1:], out)
  except OSError as error:
    raise UserError(
      f'--out={_OUT.value} cannot be written ({error.strerror}); name a file '
      'in a folder in which you may write'
    ) from error
  for line in lines:
    print(f'left out: {line}', file=sys.stderr)
  print(out)
  if _OPEN.value:
    webbrowser.open(out.as_uri())


if __name__ == '__main__':
  command_line.run(main)
