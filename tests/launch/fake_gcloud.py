"""Stands for gcloud: a cloud in a folder, whose workers are folders too.

It is found on PATH as 'gcloud' and answers as the real one does, as far as
launch/tpu.py asks. What is told to a worker by ssh is run, in that worker's
home and with its host name. In the folder:

  calls.jsonl   what was asked, one list of words a line
  errors.json   {verb: [message, ...]}, each said once in place of an answer
  states.json   the states that the next `describe`s report before ACTIVE
  failed        if there: the pod is FAILED with this message
  taken         if there: the machines are taken away, and this is by whom
  pod           if there: a pod was created
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ['FAKE_CLOUD'])
WORKERS = 2


def read(name, default):
  path = CLOUD / name
  return json.loads(path.read_text()) if path.exists() else default


def write(name, value):
  (CLOUD / name).write_text(json.dumps(value))


def refuse(verb, message):
  print(
    f'ERROR: (gcloud.compute.tpus.queued-resources.{verb}) {message}',
    file=sys.stderr,
  )
  sys.exit(1)


def flag(name, default=None):
  found = [w for w in sys.argv if w.startswith(f'--{name}=')]
  return found[-1].split('=', 1)[1] if found else default


def state():
  waiting = read('states.json', [])
  if waiting:
    write('states.json', waiting[1:])
    return {'state': waiting[0]}
  if (CLOUD / 'failed').exists():
    error = {'code': 8, 'message': (CLOUD / 'failed').read_text()}
    return {'state': 'FAILED', 'failedData': {'error': error}}
  if (CLOUD / 'taken').exists():
    by = (CLOUD / 'taken').read_text()
    return {'state': 'SUSPENDED', 'stateInitiator': by}
  return {'state': 'ACTIVE'}


def homes():
  only = flag('worker', '0')
  for node in range(int((CLOUD / 'pod').read_text())):
    for worker in range(WORKERS):
      if only == 'all' or (str(worker), str(node)) == (only, flag('node', '0')):
        home = CLOUD / 'homes' / f'n{node}-w{worker}'
        home.mkdir(parents=True, exist_ok=True)
        yield home


def ssh():
  """The highest exit code; that of a lost connection if the machines go."""
  codes = []
  for home in homes():
    process = subprocess.Popen(
      ['bash', '-c', flag('command')],
      cwd=home,
      env=os.environ | {'HOME': str(home), 'WORKER': home.name},
    )
    while process.poll() is None:
      if (CLOUD / 'taken').exists():
        time.sleep(0.2)
        process.kill()
        print('Connection to 10.1.1.1 closed by remote host', file=sys.stderr)
        return 255
      time.sleep(0.02)
    codes.append(process.returncode)
  return max(codes)


def delete():
  for pid in CLOUD.glob('homes/*/vmoe_robust/.launch/pid'):
    try:
      os.killpg(int(pid.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass
  shutil.rmtree(CLOUD / 'homes', ignore_errors=True)
  for name in ('pod', 'taken', 'failed'):
    (CLOUD / name).unlink(missing_ok=True)


def main():
  assert sys.argv[1:4] == ['compute', 'tpus', 'queued-resources'], sys.argv
  verb, name = sys.argv[4:6]
  with open(CLOUD / 'calls.jsonl', 'a') as calls:
    calls.write(json.dumps(['gcloud', *sys.argv[1:]]) + '\n')
  errors = read('errors.json', {})
  if errors.get(verb):
    message = errors[verb].pop(0)
    write('errors.json', errors)
    refuse(verb, message)
  if verb == 'create':
    (CLOUD / 'pod').write_text(flag('node-count', '1'))
    return 0
  if not (CLOUD / 'pod').exists():
    where = f'projects/{flag("project")}/locations/{flag("zone")}'
    refuse(
      verb,
      f"NOT_FOUND: Resource '{where}/queuedResources/{name}' was not found",
    )
  if verb == 'describe':
    print(json.dumps({'name': name, 'state': state()}))
  elif verb == 'delete':
    delete()
  elif verb == 'scp':
    for home in homes():
      shutil.copy(name, home / sys.argv[6].partition(':')[2])
  elif verb == 'ssh':
    return ssh()
  return 0


if __name__ == '__main__':
  sys.exit(main())
