"""The gcloud commands of one Cloud TPU pod, and what their failures mean."""

import dataclasses
import re
import shlex
from pathlib import Path

MOUNT = '/mnt/share'
_QUEUE = ('gcloud', 'compute', 'tpus', 'queued-resources')
# Where the working tree lies on the workers, in the home directory.
_TREE = 'vmoe_robust'
_WORKER = f'bash {_TREE}/launch/tpu_worker.sh'
# What a run needs of the working tree.
_COPIED = ('configs', 'launch', 'vmoe_robust') + (
  'LICENSE',
  'README.md',
  'pyproject.toml',
  'setup.py',
)
# What gcloud says if there is no such thing, and if all machines are taken.
_MISSING = 'NOT_FOUND'
_FULL = r'[Nn]o more capacity|[Ii]nsufficient.* capacity'
# Accelerator types, and the image that Google makes for each.
RUNTIMES = {
  'v4': 'tpu-ubuntu2204-base',
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
}


@dataclasses.dataclass(frozen=True)
class Pod:
  """A queued resource; each method is a command that nobody has run yet."""

  name: str
  project: str
  zone: str

  def create(
    self, type: str, runtime: str | None, slices: int, spot: bool
  ) -> list[str]:
    """Asks for the pod; it may wait in the queue for hours."""
    if slices > 1:  # gcloud refuses a count of one
      nodes = [f'--node-count={slices}', f'--node-prefix={self.name}']
    else:
      nodes = [f'--node-id={self.name}']
    return self._do(
      'create',
      self.name,
      *nodes,
      f'--accelerator-type={type}',
      f'--runtime-version={runtime or RUNTIMES[type.split("-")[0]]}',
      *(['--spot'] if spot else []),
    )

  def describe(self) -> list[str]:
    """Prints the state as JSON."""
    return self._do('describe', self.name, '--format=json')

  def delete(self) -> list[str]:
    """Deletes the pod with its machines, and waits until they are gone."""
    return self._do('delete', self.name, '--force')

  def install(self, root: Path, archive: str, share: str) -> list[list[str]]:
    """Copies the working tree to every worker and installs it there."""
    unpack = (
      f'rm -rf {_TREE}/vmoe_robust {_TREE}/configs && mkdir -p {_TREE} && '
      f'tar -xzf {_TREE}.tar.gz -C {_TREE} && '
      f'{_WORKER} install {shlex.quote(share)} {MOUNT}'
    )
    pack = ['tar', '-czf', archive, '--exclude=__pycache__']
    return [
      [*pack, '-C', str(root), *_COPIED],
      self._do('scp', archive, f'{self.name}:{_TREE}.tar.gz', *self._every()),
      self._ssh(unpack, *self._every()),
    ]

  def start(self, workdir: str, arguments: list[str]) -> list[str]:
    """Starts the run on every worker; it outlives the connection."""
    words = shlex.join(['start', workdir, *arguments])
    return self._ssh(f'{_WORKER} {words}', *self._every())

  def status(self, workdir: str, arguments: list[str]) -> list[str]:
    """Prints 'absent', 'running', 'other' or 'exit CODE', of this very run.

    It is that of the first process; 'other' if another run is running.
    """
    missing = f'[ -e {_TREE}/launch/tpu_worker.sh ] || {{ echo absent; exit; }}'
    words = shlex.join(['status', workdir, *arguments])
    return self._ssh(f'{missing}; {_WORKER} {words}', *self._first())

  def log(self) -> list[str]:
    """Follows the first process to its end."""
    return self._ssh(f'{_WORKER} log', *self._first())

  def errors(self) -> list[str]:
    """Prints the end of every process's errors, which are in one folder."""
    return self._ssh(f'{_WORKER} errors', *self._first())

  def is_missing(self, text: str) -> bool:
    """Whether gcloud says that there is no such pod, and not no such zone."""
    return self.meaning(text) == self.meaning(_MISSING)

  def is_full(self, text: str) -> bool:
    """Whether gcloud says that all machines are taken."""
    return bool(re.search(_FULL, text))

  def meaning(self, text: str, type: str = '') -> str:
    """What a message of gcloud means, and the way out."""
    listing = shlex.join(self._do('list'))
    meanings = (
      (
        r'active account|gcloud auth|[Rr]eauthentication|UNAUTHENTICATED',
        'gcloud is not logged in; run: gcloud auth login',
      ),
      (
        r'ssh-add',
        'gcloud needs the SSH key in an agent to reach several workers; run: '
        'eval "$(ssh-agent)" && ssh-add ~/.ssh/google_compute_engine',
      ),
      (
        r'not been used in project|SERVICE_DISABLED|API .*not enabled',
        f'--project={self.project} has not enabled the Cloud TPU API; run: '
        f'gcloud services enable tpu.googleapis.com --project={self.project}',
      ),
      (
        r'[Ll]ocation .*(is|was) not found|[Uu]nknown zone|Invalid.* zone',
        f'--zone={self.zone} has no TPUs or is closed to --project='
        f'{self.project}; list zones: gcloud compute tpus locations list '
        f'--project={self.project}',
      ),
      (
        _FULL,
        f'no free {type or "TPUs"} in --zone={self.zone} now; try later, '
        'another --zone or a smaller --type',
      ),
      (
        r'[Qq]uota|RESOURCE_EXHAUSTED',
        f'--project={self.project} has no quota left for {type or "this type"} '
        f'in --zone={self.zone}; requests that failed or were suspended count '
        f'until deleted ({listing}); for more, ask for the quota that the '
        'message names, spot or not, at '
        'https://console.cloud.google.com/iam-admin/quotas?service='
        f'tpu.googleapis.com&project={self.project}',
      ),
      (
        r'accelerator.*(not found|invalid|unsupported)|runtime.* not found',
        f'--type={type} or its --runtime is not offered in --zone={self.zone}; '
        'list types: gcloud compute tpus accelerator-types list '
        f'--zone={self.zone} --project={self.project}',
      ),
      (
        r'ALREADY_EXISTS|already exists',
        f'--name={self.name} exists; `up` goes on with it, `delete` ends it',
      ),
      (
        r'PERMISSION_DENIED|does not have permission',
        f'this account may not use TPUs in --project={self.project}; check the '
        'name, or ask its owner for the role TPU Admin',
      ),
      (
        f'{_MISSING}|[Nn]ot found',
        f'--name={self.name}: no such pod in --zone={self.zone} of --project='
        f'{self.project}; list them: {listing}',
      ),
    )
    text = re.sub(r'projects/\S+', '', text)  # names that look like reasons
    for pattern, meaning in meanings:
      if re.search(pattern, text):
        return meaning
    return f'gcloud failed for --name={self.name}'

  def _do(self, verb: str, *words: str) -> list[str]:
    place = [f'--project={self.project}', f'--zone={self.zone}']
    # Quiet, for nobody answers a question; an SSH key is made if there is none.
    return [*_QUEUE, verb, *words, *place, '--quiet']

  def _ssh(self, command: str, *where: str) -> list[str]:
    return self._do('ssh', self.name, f'--command={command}', *where)

  def _every(self) -> list[str]:
    return ['--worker=all', '--node=all']

  def _first(self) -> list[str]:
    return ['--worker=0', '--node=0']
