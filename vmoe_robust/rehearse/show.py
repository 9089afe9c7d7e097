"""What a rehearsal found, for people."""

from vmoe_robust.report.table import table


def show(found: dict) -> str:
  """The result of `rehearse` as text."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items())
  pod = f'{found["slices"]} x ' if found['slices'] > 1 else ''
  lines = [
    f'{found["parameters"] / 1e6:,.1f} million parameters on {pod}'
    f'{found["topology"]}: {found["chips"]} x {found["device_kind"]}, {mesh}'
  ]
  for name, program in found['programs'].items():
    title = 'Training step'
    if 'attempts' in program:
      title = f'Attack {name}, a run of {program["steps"]:,} steps'
    lines += ['', f'{title}, {program["batch"]:,} images', '']
    lines += _program(program)
  if 'attack' in found:
    lines += ['', *_attack(found)]
  return '\n'.join(lines)


def _attack(found: dict) -> list[str]:
  """All stages together."""
  rows, whole = [], found['attack']
  for name, one in found['programs'].items():
    if 'attempts' in one:
      hours = f'{one["hours"]:,.2f}' if 'hours' in one else ''
      rows.append(
        (name, one['attempts'], one['steps'], one['calls'])
        + (_mega(one['bytes']['total']), hours)
      )
  hours = f'{whole["hours"]:,.2f}' if 'hours' in whole else ''
  rows.append(('together', '', '', '', _mega(whole['total']), hours))
  head = ('stage', 'runs', 'steps', 'calls', 'MiB', 'hours')
  out = [table(head, rows), '']
  if 'hours' in whole:
    out.append(
      f'The attack: {whole["hours"]:,.1f} hours, {whole["chip_hours"]:,.0f} '
      'chip-hours at least, if every image stands to the end.'
    )
  return out


def _program(found: dict) -> list[str]:
  out = [_fits(found), '']
  rows = [(name, _mega(size)) for name, size in found['bytes'].items()]
  out += [table(('memory of a chip', 'MiB'), rows), '']
  if 'advice' in found:
    out += ['What would help, alone or together:']
    return out + [f'  {line}' for line in found['advice']]
  out += [_flops(found), '']
  if found['collectives']:
    rows = [_collective(one) for one in found['collectives']]
    head = ('collective', 'type', 'along', 'slices', 'times', 'MB')
    out += [table(head, rows), '']
  if found['open_loops']:
    out.append(
      f'{found["open_loops"]} loops turn as often as data need (rounds of the '
      'dropless experts) and are counted as one turn.'
    )
  return out + (_speed(found) if 'bound' in found else [])


def _fits(found: dict) -> str:
  total, limit = found['bytes']['total'], found['limit']
  if limit is None:
    return f'Takes {_mega(total)} MiB of each device; its memory is not known.'
  apart = _giga(abs(limit - total))
  if found['fits']:
    return f'Fits: {apart} of {_giga(limit)} GiB are free on each chip.'
  return f'Does not fit: {apart} GiB more than the {_giga(limit)} of a chip.'


def _flops(found: dict) -> str:
  formula = found['flops_per_image_by_formula']
  compiled = found['flops_per_image']
  return (
    f'{formula / 1e9:,.2f} GFLOP an image by formula, {compiled / 1e9:,.2f} as '
    f'compiled ({compiled / formula:.2f})'
  )


def _collective(one: dict) -> tuple:
  axes = ' '.join(one['axes'])
  megabytes = f'{one["bytes"] / 1e6:,.3f}'
  slices = one['slices']
  return one['kind'], one['dtype'], axes, slices, one['count'], megabytes


def _speed(found: dict) -> list[str]:
  parts = ', '.join(
    f'{name} {seconds * 1e3:,.2f}' for name, seconds in found['seconds'].items()
  )
  out = [
    f'Milliseconds at the peak of each part: {parts}.',
    f'So at most {found["images_per_second"]:,.0f} images a second, '
    f'{found["mfu"]:.0%} MFU, bound by {found["bound"]}.',
  ]
  if 'image_steps_per_second' in found:
    steps = found['image_steps_per_second']
    out.append(f'That is {steps:,.0f} steps of an image a second.')
  return [
    *out,
    f'All {found["calls"]:,} calls: {found["hours"]:,.1f} hours, '
    f'{found["chip_hours"]:,.0f} chip-hours at least. These are limits of the '
    'hardware, not measurements.',
  ]


def _giga(size: float) -> str:
  return f'{size / 2**30:,.2f}'


def _mega(size: float) -> str:
  return f'{size / 2**20:,.1f}'
